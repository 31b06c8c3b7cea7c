"""What people sit and lie on; makers as in ``furniture``."""

import numpy as np

from ..shapes import box, boxes, ellipsoid, merge, tube
from .pieces import DARK, MAIN, PART, Piece, cushion, draw_surfaces, legs, wooden
from .textures import Surface, draw_surface


def chair(rng: np.random.Generator, color: str) -> Piece:
    """A dining chair, a kitchen chair with slats, or an office chair on a star."""
    wide, deep = rng.uniform(0.4, 0.52), rng.uniform(0.4, 0.52)
    seat, tall = rng.uniform(0.43, 0.49), rng.uniform(0.78, 1.02)
    back = tall - seat
    style = rng.integers(3)
    if style == 2:
        seat_pad = cushion((0, 0, seat), (deep, wide, 0.1))
        rest = cushion((-deep / 2 + 0.03, 0, seat + 0.56 * back), (0.08, wide, 0.88 * back))
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
        return Piece("chair", mesh, draw_surfaces(rng, color, "fabric"), color)
    pattern = "fabric" if style == 0 else wooden(rng, color)
    parts = [box((0, 0, seat - 0.02), (deep, wide, 0.05), MAIN)]
    leg_material = MAIN if style == 1 and rng.random() < 0.6 else PART
    parts.append(legs(rng, (deep, wide), seat - 0.03, rng.uniform(0.03, 0.05), 0.01, leg_material))
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
    return Piece("chair", merge(parts), draw_surfaces(rng, color, pattern), color)


def stool(rng: np.random.Generator, color: str) -> Piece:
    """A round or square seat on legs."""
    radius, tall = rng.uniform(0.16, 0.22), rng.uniform(0.42, 0.72)
    if rng.random() < 0.6:
        top = tube((0, 0, tall - 0.06), (0, 0, tall), (radius, radius), MAIN, 18)
    else:
        top = box((0, 0, tall - 0.03), (2 * radius, 2 * radius, 0.06), MAIN)
    under = legs(rng, (1.5 * radius, 1.5 * radius), tall - 0.05, 0.035)
    pattern = "fabric" if rng.random() < 0.5 else wooden(rng, color)
    return Piece("stool", merge([top, under]), draw_surfaces(rng, color, pattern), color)


def sofa(rng: np.random.Generator, color: str, wide: float | None = None) -> Piece:
    """A sofa for two or three; an armchair when ``wide`` is small."""
    wide = wide or rng.uniform(1.4, 2.2)
    deep, tall, seat = rng.uniform(0.78, 0.95), rng.uniform(0.7, 0.88), rng.uniform(0.38, 0.44)
    arm, back = rng.uniform(0.12, 0.2), rng.uniform(0.16, 0.24)
    foot = rng.uniform(0.04, 0.12)
    inner = wide - 2 * arm
    parts = [
        box((0, 0, (foot + seat - 0.12) / 2 + foot / 2), (deep, wide, seat - 0.12 - foot), MAIN),
        cushion((-deep / 2 + back / 2, 0, (tall + foot) / 2), (back, wide, tall - foot)),
    ]
    for s in (-1, 1):
        size = (deep, arm, seat + 0.18 - foot)
        parts.append(cushion((0, s * (wide - arm) / 2, foot + size[2] / 2), size))
    count = max(1, round(inner / 0.65))
    for i in range(count):
        y = inner * ((i + 0.5) / count - 0.5)
        parts.append(cushion((back / 2, y, seat - 0.07), (deep - back, inner / count - 0.01, 0.17)))
        parts.append(
            cushion((-deep / 2 + back + 0.06, y, seat + 0.17), (0.16, inner / count - 0.02, 0.36))
        )
    parts.append(legs(rng, (deep, wide), foot, 0.05, 0.02, DARK))
    return Piece("sofa", merge(parts), draw_surfaces(rng, color, "fabric"), color)


def armchair(rng: np.random.Generator, color: str) -> Piece:
    """A sofa for one."""
    piece = sofa(rng, color, rng.uniform(0.75, 0.95))
    return Piece("armchair", piece.mesh, piece.surfaces, color)


def bed(rng: np.random.Generator, color: str) -> Piece:
    """A bed, its head at -x; the cover has the colour."""
    long, wide = rng.uniform(1.95, 2.1), rng.choice([rng.uniform(0.9, 1.1), rng.uniform(1.4, 1.8)])
    tall, head = rng.uniform(0.42, 0.58), rng.uniform(0.8, 1.15)
    frame = 0.3
    parts = [
        box((0, 0, frame / 2 + 0.06), (long, wide, frame - 0.1), PART),
        legs(rng, (long, wide), 0.1, 0.07, 0.02),
        cushion((0, 0, (frame + tall) / 2), (long - 0.06, wide - 0.04, tall - frame + 0.06), 3),
        cushion((0.22, 0, tall - 0.07), (long - 0.5, wide + 0.03, 0.2)),
        box((-long / 2 + 0.03, 0, head / 2), (0.06, wide + 0.04, head), PART),
    ]
    surfaces = draw_surfaces(rng, color, "fabric")
    if rng.random() < 0.4:
        stripes = draw_surface(rng, color, "stripes", other=surfaces[0].color, scale=0.2)
        darker = tuple(0.75 * c for c in surfaces[0].color)
        surfaces[0] = Surface(stripes.color, "stripes", 0.2, 0.1, darker, stripes.seed)
    surfaces.append(draw_surface(rng, "white", "fabric"))
    return Piece("bed", merge(parts), surfaces, color)


def pillow(rng: np.random.Generator, color: str) -> Piece:
    """A cushion lying flat."""
    deep, wide, tall = rng.uniform((0.3, 0.4, 0.11), (0.42, 0.6, 0.17))
    mesh = cushion((0, 0, tall / 2), (deep, wide, tall))
    return Piece("pillow", mesh, draw_surfaces(rng, color, "fabric"), color)
