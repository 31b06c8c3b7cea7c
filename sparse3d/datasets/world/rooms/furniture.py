"""Furniture from parametric meshes: each maker draws another shape.

A maker returns its mesh, whose ``material`` is a row of the surfaces that it returns too; the first
surface has the colour that people would name. x is the front, y the left, z up, origin on the floor
in the middle, metres.
"""

from collections.abc import Callable
from itertools import pairwise

import numpy as np

from ..shapes import Mesh, box, boxes, merge, sheet, tube
from .pieces import DARK, MAIN, PART, Piece, draw_surfaces, legs, wooden
from .seats import armchair, bed, chair, pillow, sofa, stool
from .textures import Surface, draw_surface

ANY = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
SOFT = (*ANY, "gray", "beige")
HARD = ("brown", "brown", "white", "black", "gray", "beige", "red", "blue", "green", "yellow")


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
        parts = [top, legs(rng, size, tall - 0.03, rng.uniform(0.04, 0.08), 0.01, same)]
        if low and rng.random() < 0.5:
            parts.append(box((0, 0, 0.14), (size[0] - 0.1, size[1] - 0.1, 0.025), MAIN))
    return Piece("table", merge(parts), draw_surfaces(rng, color, wooden(rng, color)), color)


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
    return Piece("desk", merge(parts), draw_surfaces(rng, color, wooden(rng, color)), color)


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
        parts.append(legs(rng, (deep, wide), foot, 0.05, 0.02))
    parts += _fronts(deep / 2, 0, wide - 0.02, foot + 0.01, tall - 0.02, columns, rows)
    return Piece("cabinet", merge(parts), draw_surfaces(rng, color, wooden(rng, color)), color)


def nightstand(rng: np.random.Generator, color: str) -> Piece:
    """A small chest of drawers."""
    deep, wide, tall = rng.uniform((0.35, 0.38, 0.42), (0.45, 0.5, 0.58))
    parts = [box((0, 0, tall / 2 + 0.03), (deep, wide, tall - 0.06), MAIN)]
    parts.append(legs(rng, (deep, wide), 0.06, 0.04))
    parts += _fronts(deep / 2, 0, wide - 0.02, 0.08, tall - 0.02, 1, 2)
    return Piece("nightstand", merge(parts), draw_surfaces(rng, color, wooden(rng, color)), color)


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
    surfaces = draw_surfaces(rng, color, wooden(rng, color))
    surfaces.append(Surface((0.5, 0.4, 0.3), "books", seed=int(rng.integers(2**31))))
    return Piece("bookshelf", merge(parts), surfaces, color)


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
    return Piece("lamp", merge(parts), draw_surfaces(rng, color, "glow"), color)


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
    surfaces = draw_surfaces(rng, color, "plain")
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
    surfaces = draw_surfaces(rng, color, "plain")
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
    return Piece("bin", merge([wall, hole]), draw_surfaces(rng, color, "plain"), color)


def carton(rng: np.random.Generator, color: str) -> Piece:
    """A closed box with a tape over it."""
    size = rng.uniform((0.22, 0.25, 0.16), (0.45, 0.55, 0.42))
    tape = box((0, 0, size[2] / 2), (size[0] + 0.004, 0.05, size[2] + 0.004), PART)
    body = box((0, 0, size[2] / 2), size, MAIN)
    return Piece("box", merge([body, tape]), draw_surfaces(rng, color, "plain"), color)


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
    return Piece("picture", merge(parts), [surface, *draw_surfaces(rng, color, "plain")[1:]], "")


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
    return Piece("window", merge(parts), [*draw_surfaces(rng, color, "plain"), sky], "")


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
    return Piece("door", merge(parts), draw_surfaces(rng, color, wooden(rng, color)), color)


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
