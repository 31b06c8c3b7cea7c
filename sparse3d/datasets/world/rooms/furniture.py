"""Furniture from parametric meshes: each maker draws another shape.

A maker returns its mesh, whose ``material`` is a row of the surfaces that it returns too; the first
surface has the colour that people would name. x is the front, y the left, z up, origin on the floor
in the middle, metres.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ..shapes import Mesh, box, boxes, ellipsoid, merge, sheet, tube
from .textures import Surface, draw_surface

MAIN, PART, DARK = 0, 1, 2  # rows of a piece's surfaces

ANY = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
SOFT = (*ANY, "gray", "beige")
HARD = ("brown", "brown", "white", "black", "gray", "beige", "red", "blue", "green", "yellow")


@dataclass
class Piece:
    """An object before it is placed.

    Attributes:
        kind: its class.
        mesh: in its own frame; ``material`` is a row of ``surfaces``.
        surfaces: what its parts look like.
        color: name of the colour that people would call it by, or '' when there is none.
    """

    kind: str
    mesh: Mesh
    surfaces: list[Surface]
    color: str = ""

    @property
    def size(self) -> np.ndarray:
        """[3] metres along x, y, z."""
        low, high = self.mesh.bounds()
        return high - low


def _surfaces(rng, color: str, pattern: str, **options) -> list[Surface]:
    """The main surface, one for legs and frames, a dark one."""
    part = rng.choice(["black", "gray", "brown", "white"])
    wooden = "wood" if part == "brown" else "plain"
    return [
        draw_surface(rng, color, pattern, **options),
        draw_surface(rng, part, wooden),
        draw_surface(rng, "black", "plain"),
    ]


def _wooden(rng, color: str) -> str:
    return (
        "wood" if color in ("brown", "beige", "white", "gray") and rng.random() < 0.85 else "plain"
    )


def _legs(rng, size, height: float, thick: float, inset: float = 0.0, material=PART) -> Mesh:
    """Four legs under a top of ``size`` (x, y)."""
    x, y = size[0] / 2 - thick / 2 - inset, size[1] / 2 - thick / 2 - inset
    places = np.array([(a * x, b * y) for a in (-1, 1) for b in (-1, 1)])
    if rng.random() < 0.5:
        centers = np.concatenate([places, np.full((4, 1), height / 2)], 1)
        return boxes(centers, (thick, thick, height), material)
    splay = 1 + rng.uniform(0, 0.1)
    feet = [((p[0] * splay, p[1] * splay, 0), (p[0], p[1], height)) for p in places]
    return merge([tube(a, b, (thick * 0.4, thick * 0.5), material, 8) for a, b in feet])


def _cushion(center, size, material: int = MAIN) -> Mesh:
    """A box with rounded edges: two nets of a squashed ball."""
    polar = np.linspace(-np.pi / 2, np.pi / 2, 9)[:, None]
    turn = np.linspace(0, 2 * np.pi, 21)[None]
    net = np.stack(
        [np.cos(polar) * np.cos(turn), np.cos(polar) * np.sin(turn), np.sin(polar) + 0 * turn], -1
    )
    net = np.sign(net) * np.abs(net) ** 0.35
    return sheet(net * np.asarray(size) / 2 + np.asarray(center), material)


def chair(rng: np.random.Generator, color: str) -> Piece:
    """A dining chair, a kitchen chair with slats, or an office chair on a star."""
    wide, deep = rng.uniform(0.4, 0.52), rng.uniform(0.4, 0.52)
    seat, tall = rng.uniform(0.43, 0.49), rng.uniform(0.78, 1.02)
    back = tall - seat
    style = rng.integers(3)
    if style == 2:
        seat_pad = _cushion((0, 0, seat), (deep, wide, 0.1))
        rest = _cushion((-deep / 2 + 0.03, 0, seat + 0.56 * back), (0.08, wide, 0.88 * back))
        column = tube((0, 0, 0.1), (0, 0, seat), (0.035, 0.03), PART, 10)
        star = [
            tube((0, 0, 0.12), (0.3 * np.cos(a), 0.3 * np.sin(a), 0.05), (0.03, 0.02), PART, 6)
            for a in np.arange(5) * 2 * np.pi / 5
        ]
        wheels = [
            ellipsoid((0.3 * np.cos(a), 0.3 * np.sin(a), 0.03), (0.03, 0.03, 0.03), DARK)
            for a in np.arange(5) * 2 * np.pi / 5
        ]
        arms = []
        if rng.random() < 0.5:
            for s in (-1, 1):
                arms.append(box((0, s * wide / 2, seat + 0.22), (0.3, 0.05, 0.03), DARK))
                arms.append(box((0, s * wide / 2, seat + 0.1), (0.05, 0.03, 0.24), DARK))
        mesh = merge([seat_pad, rest, column, *star, *wheels, *arms])
        return Piece("chair", mesh, _surfaces(rng, color, "fabric"), color)
    pattern = "fabric" if style == 0 else _wooden(rng, color)
    parts = [box((0, 0, seat - 0.02), (deep, wide, 0.05), MAIN)]
    leg_material = MAIN if style == 1 and rng.random() < 0.6 else PART
    parts.append(_legs(rng, (deep, wide), seat - 0.03, rng.uniform(0.03, 0.05), 0.01, leg_material))
    x = -deep / 2 + 0.02
    if style == 0:
        parts.append(box((x, 0, seat + back / 2), (0.05, wide, back), MAIN))
    else:
        posts = np.array([(x, s * (wide / 2 - 0.02), seat + back / 2) for s in (-1, 1)])
        parts.append(boxes(posts, (0.04, 0.04, back), leg_material))
        count = rng.integers(2, 5)
        heights = seat + back * (0.35 + 0.6 * (np.arange(count) + 0.5) / count)
        slats = np.stack([0 * heights + x, 0 * heights, heights], 1)
        parts.append(boxes(slats, (0.025, wide, 0.6 * 0.6 * back / count + 0.02), MAIN))
    return Piece("chair", merge(parts), _surfaces(rng, color, pattern), color)


def stool(rng: np.random.Generator, color: str) -> Piece:
    """A round or square seat on legs."""
    radius, tall = rng.uniform(0.16, 0.22), rng.uniform(0.42, 0.72)
    if rng.random() < 0.6:
        top = tube((0, 0, tall - 0.06), (0, 0, tall), (radius, radius), MAIN, 18)
    else:
        top = box((0, 0, tall - 0.03), (2 * radius, 2 * radius, 0.06), MAIN)
    legs = _legs(rng, (1.5 * radius, 1.5 * radius), tall - 0.05, 0.035)
    pattern = "fabric" if rng.random() < 0.5 else _wooden(rng, color)
    return Piece("stool", merge([top, legs]), _surfaces(rng, color, pattern), color)


def sofa(rng: np.random.Generator, color: str, wide: float | None = None) -> Piece:
    """A sofa for two or three; an armchair when ``wide`` is small."""
    wide = wide or rng.uniform(1.4, 2.2)
    deep, tall, seat = rng.uniform(0.78, 0.95), rng.uniform(0.7, 0.88), rng.uniform(0.38, 0.44)
    arm, back = rng.uniform(0.12, 0.2), rng.uniform(0.16, 0.24)
    foot = rng.uniform(0.04, 0.12)
    inner = wide - 2 * arm
    parts = [
        box((0, 0, (foot + seat - 0.12) / 2 + foot / 2), (deep, wide, seat - 0.12 - foot), MAIN),
        _cushion((-deep / 2 + back / 2, 0, (tall + foot) / 2), (back, wide, tall - foot)),
    ]
    for s in (-1, 1):
        size = (deep, arm, seat + 0.18 - foot)
        parts.append(_cushion((0, s * (wide - arm) / 2, foot + size[2] / 2), size))
    count = max(1, round(inner / 0.65))
    for i in range(count):
        y = inner * ((i + 0.5) / count - 0.5)
        parts.append(
            _cushion((back / 2, y, seat - 0.07), (deep - back, inner / count - 0.01, 0.17))
        )
        parts.append(
            _cushion((-deep / 2 + back + 0.06, y, seat + 0.17), (0.16, inner / count - 0.02, 0.36))
        )
    parts.append(_legs(rng, (deep, wide), foot, 0.05, 0.02, DARK))
    return Piece("sofa", merge(parts), _surfaces(rng, color, "fabric"), color)


def armchair(rng: np.random.Generator, color: str) -> Piece:
    """A sofa for one."""
    piece = sofa(rng, color, rng.uniform(0.75, 0.95))
    return Piece("armchair", piece.mesh, piece.surfaces, color)


def table(rng: np.random.Generator, color: str) -> Piece:
    """A dining or coffee table, round or not; the top has the colour."""
    low = rng.random() < 0.4
    tall = rng.uniform(0.38, 0.5) if low else rng.uniform(0.7, 0.77)
    if rng.random() < 0.25:
        radius = rng.uniform(0.3, 0.45) if low else rng.uniform(0.4, 0.6)
        top = tube((0, 0, tall - 0.04), (0, 0, tall), (radius, radius), MAIN, 28)
        stem = tube((0, 0, 0), (0, 0, tall - 0.03), (0.06, 0.05), PART, 12)
        foot = tube((0, 0, 0), (0, 0, 0.03), (0.55 * radius, 0.5 * radius), PART, 20)
        parts = [top, stem, foot]
    else:
        size = rng.uniform((0.5, 0.7), (0.7, 1.2)) if low else rng.uniform((0.7, 0.9), (0.95, 1.8))
        top = box((0, 0, tall - 0.02), (*size, 0.04), MAIN)
        same = MAIN if rng.random() < 0.5 else PART
        parts = [top, _legs(rng, size, tall - 0.03, rng.uniform(0.04, 0.08), 0.01, same)]
        if low and rng.random() < 0.5:
            parts.append(box((0, 0, 0.14), (size[0] - 0.1, size[1] - 0.1, 0.025), MAIN))
    return Piece("table", merge(parts), _surfaces(rng, color, _wooden(rng, color)), color)


def desk(rng: np.random.Generator, color: str) -> Piece:
    """A writing desk with a block of drawers; its user sits at +x."""
    deep, wide, tall = rng.uniform((0.55, 1.1, 0.71), (0.8, 1.7, 0.78))
    drawers = rng.uniform(0.35, 0.45)
    side = rng.choice([-1, 1])
    y = side * (wide - drawers) / 2
    parts = [
        box((0, 0, tall - 0.015), (deep, wide, 0.03), MAIN),
        box((0, y, (tall - 0.03) / 2), (deep - 0.04, drawers, tall - 0.03), MAIN),
        box((0, -side * (wide / 2 - 0.02), tall / 2), (deep - 0.04, 0.04, tall - 0.03), MAIN),
        box((-deep / 2 + 0.03, 0, tall * 0.65), (0.02, wide, tall * 0.5), MAIN),
    ]
    parts += _fronts(deep / 2 - 0.02, y, drawers, 0.05, tall - 0.06, 1, rng.integers(2, 5))
    return Piece("desk", merge(parts), _surfaces(rng, color, _wooden(rng, color)), color)


def _fronts(x, y, wide, low, high, columns, rows) -> list[Mesh]:
    """Dark seams and knobs of drawers or doors on a front at ``x``."""
    parts = []
    for edge in np.linspace(low, high, rows + 1):
        parts.append(box((x, y, edge), (0.008, wide, 0.008), DARK))
    for edge in np.linspace(-wide / 2, wide / 2, columns + 1):
        parts.append(box((x, y + edge, (low + high) / 2), (0.008, 0.008, high - low), DARK))
    for i in range(columns):
        for j in range(rows):
            cy = y + wide * ((i + 0.5) / columns - 0.5)
            cz = low + (high - low) * (j + 0.5) / rows
            parts.append(box((x + 0.012, cy, cz), (0.025, min(0.12, wide / 5), 0.015), PART))
    return parts


def cabinet(rng: np.random.Generator, color: str) -> Piece:
    """A sideboard, chest of drawers or wardrobe."""
    style = rng.integers(3)
    low, high = (
        ((0.38, 0.9, 0.6), (0.5, 1.6, 0.9)),
        ((0.4, 0.6, 0.85), (0.5, 1.0, 1.3)),
        ((0.5, 0.8, 1.75), (0.62, 1.6, 2.1)),
    )[style]
    deep, wide, tall = rng.uniform(low, high)
    columns, rows = ((3, 1), (1, 4), (2, 1))[style]
    foot = rng.choice([0.0, 0.08])
    parts = [box((0, 0, (tall + foot) / 2), (deep, wide, tall - foot), MAIN)]
    if foot:
        parts.append(_legs(rng, (deep, wide), foot, 0.05, 0.02))
    parts += _fronts(deep / 2, 0, wide - 0.02, foot + 0.01, tall - 0.02, columns, rows)
    return Piece("cabinet", merge(parts), _surfaces(rng, color, _wooden(rng, color)), color)


def nightstand(rng: np.random.Generator, color: str) -> Piece:
    """A small chest of drawers."""
    deep, wide, tall = rng.uniform((0.35, 0.38, 0.42), (0.45, 0.5, 0.58))
    parts = [box((0, 0, tall / 2 + 0.03), (deep, wide, tall - 0.06), MAIN)]
    parts.append(_legs(rng, (deep, wide), 0.06, 0.04))
    parts += _fronts(deep / 2, 0, wide - 0.02, 0.08, tall - 0.02, 1, 2)
    return Piece("nightstand", merge(parts), _surfaces(rng, color, _wooden(rng, color)), color)


def bookshelf(rng: np.random.Generator, color: str) -> Piece:
    """Open shelves, mostly full of books."""
    deep, wide, tall = rng.uniform((0.26, 0.6, 1.1), (0.34, 1.3, 2.1))
    count = max(2, round(tall / 0.36))
    boards = np.linspace(0.05, tall - 0.012, count + 1)
    flat = np.stack([0 * boards, 0 * boards, boards], 1)
    sides = np.array([(0, s * (wide / 2 - 0.012), tall / 2) for s in (-1, 1)])
    parts = [
        boxes(flat, (deep, wide, 0.024), MAIN),
        boxes(sides, (deep, 0.024, tall), MAIN),
        box((-deep / 2 + 0.006, 0, tall / 2), (0.012, wide, tall), MAIN),
    ]
    for board, above in pairwise(boards):
        full = rng.uniform(0.3, 0.95) * (wide - 0.06)
        high = (above - board) * rng.uniform(0.65, 0.85)
        y = rng.choice([-1, 1]) * (wide - 0.06 - full) / 2
        depth = deep * rng.uniform(0.55, 0.8)
        parts.append(
            box((-deep / 2 + depth / 2 + 0.02, y, board + high / 2 + 0.012), (depth, full, high), 3)
        )
    surfaces = _surfaces(rng, color, _wooden(rng, color))
    surfaces.append(Surface((0.5, 0.4, 0.3), "books", seed=int(rng.integers(2**31))))
    return Piece("bookshelf", merge(parts), surfaces, color)


def bed(rng: np.random.Generator, color: str) -> Piece:
    """A bed, its head at -x; the cover has the colour."""
    long, wide = rng.uniform(1.95, 2.1), rng.choice([rng.uniform(0.9, 1.1), rng.uniform(1.4, 1.8)])
    tall, head = rng.uniform(0.42, 0.58), rng.uniform(0.8, 1.15)
    frame = 0.3
    parts = [
        box((0, 0, frame / 2 + 0.06), (long, wide, frame - 0.1), PART),
        _legs(rng, (long, wide), 0.1, 0.07, 0.02),
        _cushion((0, 0, (frame + tall) / 2), (long - 0.06, wide - 0.04, tall - frame + 0.06), 3),
        _cushion((0.22, 0, tall - 0.07), (long - 0.5, wide + 0.03, 0.2)),
        box((-long / 2 + 0.03, 0, head / 2), (0.06, wide + 0.04, head), PART),
    ]
    surfaces = _surfaces(rng, color, "fabric")
    if rng.random() < 0.4:
        stripes = draw_surface(rng, color, "stripes", other=surfaces[0].color, scale=0.2)
        darker = tuple(0.75 * c for c in surfaces[0].color)
        surfaces[0] = Surface(stripes.color, "stripes", 0.2, 0.1, darker, stripes.seed)
    surfaces.append(draw_surface(rng, "white", "fabric"))
    return Piece("bed", merge(parts), surfaces, color)


def pillow(rng: np.random.Generator, color: str) -> Piece:
    """A cushion lying flat."""
    deep, wide, tall = rng.uniform((0.3, 0.4, 0.11), (0.42, 0.6, 0.17))
    mesh = _cushion((0, 0, tall / 2), (deep, wide, tall))
    return Piece("pillow", mesh, _surfaces(rng, color, "fabric"), color)


def lamp(rng: np.random.Generator, color: str, standing: bool | None = None) -> Piece:
    """A floor lamp, or a lamp for the table; the shade has the colour."""
    standing = rng.random() < 0.5 if standing is None else standing
    tall = rng.uniform(1.35, 1.75) if standing else rng.uniform(0.38, 0.6)
    radius = rng.uniform(0.17, 0.25) if standing else rng.uniform(0.1, 0.16)
    shade = rng.uniform(0.22, 0.32) if standing else rng.uniform(0.16, 0.24)
    parts = [
        tube((0, 0, 0), (0, 0, 0.025), (0.8 * radius, 0.75 * radius), PART, 16),
        tube((0, 0, 0), (0, 0, tall - shade / 2), (0.018, 0.015), PART, 8),
        tube((0, 0, tall - shade), (0, 0, tall), (radius, radius * rng.uniform(0.5, 1)), MAIN, 20),
    ]
    return Piece("lamp", merge(parts), _surfaces(rng, color, "glow"), color)


def table_lamp(rng: np.random.Generator, color: str) -> Piece:
    """A lamp for the table."""
    return lamp(rng, color, standing=False)


def floor_lamp(rng: np.random.Generator, color: str) -> Piece:
    """A lamp that stands on the floor."""
    return lamp(rng, color, standing=True)


def monitor(rng: np.random.Generator, color: str) -> Piece:
    """A screen on a foot; it faces +x."""
    wide, tall = rng.uniform(0.48, 0.72), rng.uniform(0.3, 0.42)
    z = 0.1 + tall / 2
    parts = [
        box((0, 0, z), (0.035, wide, tall), MAIN),
        box((0.019, 0, z), (0.004, wide - 0.03, tall - 0.03), 3),
        box((-0.03, 0, 0.12), (0.025, 0.07, 0.22), MAIN),
        box((-0.02, 0, 0.008), (0.18, 0.24, 0.016), MAIN),
    ]
    surfaces = _surfaces(rng, color, "plain")
    tint = tuple(rng.uniform(0.3, 1, 3))
    screen = Surface((0.05, 0.06, 0.08), "screen", 0.1, 0.1, tint, int(rng.integers(2**31)))
    return Piece("monitor", merge(parts), [*surfaces, screen], color)


def plant(rng: np.random.Generator, color: str, tall: float | None = None) -> Piece:
    """Leaves over a pot; the pot has the colour, and nobody calls the plant by it."""
    tall = tall or rng.uniform(0.6, 1.5)
    pot = min(0.3 * tall + 0.05, 0.36)
    radius = pot * rng.uniform(0.4, 0.55)
    parts = [tube((0, 0, 0), (0, 0, pot), (0.75 * radius, radius), MAIN, 16)]
    parts.append(tube((0, 0, pot), (0, 0, pot + 0.01), (0.93 * radius, 0.9 * radius), DARK, 16))
    count, wide = int(rng.integers(14, 30)), rng.uniform(0.22, 0.4) * tall
    for angle in rng.uniform(0, 2 * np.pi, count):
        end = np.array([np.cos(angle), np.sin(angle), 0]) * wide * rng.uniform(0.3, 1)
        end[2] = pot + (tall - pot) * rng.uniform(0.3, 1)
        parts.append(_leaf(np.array([0, 0, pot * 0.9]), end, rng.uniform(0.1, 0.2) * wide, 3))
    surfaces = _surfaces(rng, color, "plain")
    surfaces.append(draw_surface(rng, "green", "foliage"))
    return Piece("plant", merge(parts), surfaces, "")


def small_plant(rng: np.random.Generator, color: str) -> Piece:
    """A plant for the table."""
    return plant(rng, color, rng.uniform(0.25, 0.42))


def _leaf(start: np.ndarray, end: np.ndarray, wide: float, material: int) -> Mesh:
    """A bent blade from ``start`` to ``end`` [3]."""
    share = np.linspace(0, 1, 6)[:, None]
    spine = start + (end - start) * share
    spine[:, 2:] += 0.25 * np.linalg.norm(end - start) * share * (1 - share)
    aside = np.array([-(end - start)[1], (end - start)[0], 0.0])
    aside /= max(np.linalg.norm(aside), 1e-6)
    half = wide * np.sin(np.pi * np.clip(share, 0.04, 0.97)) ** 0.8
    net = np.stack([spine - half * aside, spine - np.array([0, 0, 0.01]), spine + half * aside], 1)
    return sheet(net, material)


def bin_(rng: np.random.Generator, color: str) -> Piece:
    """A waste bin, round or square."""
    radius, tall = rng.uniform(0.11, 0.18), rng.uniform(0.26, 0.5)
    if rng.random() < 0.6:
        wall = tube((0, 0, 0), (0, 0, tall), (radius * 0.8, radius), MAIN, 18)
        hole = tube((0, 0, tall), (0, 0, tall + 0.004), (0.9 * radius, 0.88 * radius), DARK, 18)
    else:
        wall = box((0, 0, tall / 2), (1.6 * radius, 2 * radius, tall), MAIN)
        hole = box((0, 0, tall), (1.45 * radius, 1.85 * radius, 0.008), DARK)
    return Piece("bin", merge([wall, hole]), _surfaces(rng, color, "plain"), color)


def carton(rng: np.random.Generator, color: str) -> Piece:
    """A closed box with a tape over it."""
    size = rng.uniform((0.22, 0.25, 0.16), (0.45, 0.55, 0.42))
    tape = box((0, 0, size[2] / 2), (size[0] + 0.004, 0.05, size[2] + 0.004), PART)
    body = box((0, 0, size[2] / 2), size, MAIN)
    return Piece("box", merge([body, tape]), _surfaces(rng, color, "plain"), color)


def small_box(rng: np.random.Generator, color: str) -> Piece:
    """A closed box for the table."""
    piece = carton(rng, color)
    piece.mesh = Mesh(piece.mesh.vertices * 0.6, piece.mesh.faces, piece.mesh.material)
    return piece


def picture(rng: np.random.Generator, color: str) -> Piece:
    """A framed picture, flat at the wall x = 0, about its own middle."""
    wide, tall = rng.uniform((0.4, 0.35), (1.1, 0.85))
    parts = [
        box((0.012, 0, 0), (0.024, wide, tall), PART),
        box((0.026, 0, 0), (0.006, wide - 0.06, tall - 0.06), MAIN),
    ]
    seed = int(rng.integers(2**31))
    surface = Surface(
        tuple(rng.uniform(0.2, 0.9, 3)), "poster", rng.uniform(0.2, 0.5), 0.2, seed=seed
    )
    return Piece("picture", merge(parts), [surface, *_surfaces(rng, color, "plain")[1:]], "")


def window(rng: np.random.Generator, color: str) -> Piece:
    """A window with its frame and what one sees through it, at the wall x = 0, from the floor."""
    wide, low, high = rng.uniform(0.9, 1.9), rng.uniform(0.75, 0.95), rng.uniform(2.0, 2.2)
    z, tall = (low + high) / 2, high - low
    bars = max(1, round(wide / 0.7))
    ys = np.linspace(-wide / 2, wide / 2, bars + 1)
    posts = np.stack([0 * ys + 0.03, ys, 0 * ys + z], 1)
    parts = [
        box((0.004, 0, z), (0.008, wide, tall), 3),
        boxes(posts, (0.06, 0.06, tall + 0.06), MAIN),
        boxes(np.array([(0.03, 0, low), (0.03, 0, high)]), (0.06, wide + 0.06, 0.06), MAIN),
        box((0.07, 0, low - 0.03), (0.16, wide + 0.16, 0.03), MAIN),
    ]
    seed = int(rng.integers(2**31))
    sky = Surface((0.62, 0.78, 0.95), "view", 0.2, 0.2, (0.28, 0.42, 0.22), seed)
    return Piece("window", merge(parts), [*_surfaces(rng, color, "plain"), sky], "")


def door(rng: np.random.Generator, color: str) -> Piece:
    """A closed door in its frame, at the wall x = 0."""
    wide, tall = rng.uniform(0.8, 1.0), rng.uniform(1.98, 2.1)
    sides = np.array([(0.03, s * (wide / 2 + 0.03), tall / 2) for s in (-1, 1)])
    parts = [
        box((0.015, 0, tall / 2), (0.03, wide, tall), MAIN),
        boxes(sides, (0.06, 0.06, tall), PART),
        box((0.03, 0, tall + 0.03), (0.06, wide + 0.12, 0.06), PART),
        box((0.06, 0.42 * wide, 1.02), (0.06, 0.12, 0.025), DARK),
    ]
    for z in (0.27, 0.72):
        size = (0.01, 0.66 * wide, 0.32 * tall)
        parts.append(box((0.032, 0, z * tall), size, MAIN))
    return Piece("door", merge(parts), _surfaces(rng, color, _wooden(rng, color)), color)


MAKERS: dict[str, tuple[Callable, tuple[str, ...]]] = {
    "chair": (chair, SOFT),
    "stool": (stool, SOFT),
    "armchair": (armchair, SOFT),
    "sofa": (sofa, SOFT),
    "table": (table, HARD),
    "desk": (desk, HARD),
    "cabinet": (cabinet, HARD),
    "nightstand": (nightstand, HARD),
    "bookshelf": (bookshelf, HARD),
    "bed": (bed, SOFT),
    "pillow": (pillow, SOFT),
    "floor_lamp": (floor_lamp, ("white", "yellow", "beige", "orange", "red", "green", "blue")),
    "table_lamp": (table_lamp, ("white", "yellow", "beige", "orange", "red", "green", "blue")),
    "monitor": (monitor, ("black", "black", "white", "gray")),
    "plant": (plant, SOFT),
    "small_plant": (small_plant, SOFT),
    "bin": (bin_, SOFT),
    "box": (carton, ("brown", "brown", "beige", "white", "red", "blue", "green", "yellow")),
    "small_box": (small_box, ("brown", "beige", "white", "red", "blue", "green", "yellow")),
    "picture": (picture, ("black", "white", "brown")),
    "window": (window, ("white", "white", "brown", "gray")),
    "door": (door, ("brown", "white", "gray", "beige", "green", "blue", "red")),
}
"""What a room is furnished with: the maker, and the colours it comes in."""

CLASS_NAMES = (
    "chair",
    "stool",
    "armchair",
    "sofa",
    "table",
    "desk",
    "cabinet",
    "nightstand",
    "bookshelf",
    "bed",
    "pillow",
    "lamp",
    "monitor",
    "plant",
    "bin",
    "box",
    "picture",
    "window",
    "door",
)
"""Classes of the rooms' objects."""


def make(rng: np.random.Generator, kind: str, color: str | None = None) -> Piece:
    """A piece of furniture of a key of ``MAKERS``, in ``color`` or a drawn one."""
    maker, colors = MAKERS[kind]
    return maker(rng, color or str(rng.choice(colors)))
