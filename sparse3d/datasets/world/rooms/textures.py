"""Colours of the rooms' surfaces: named colours and patterns as functions of place.

A pattern is a function of coordinates on the surface in its object's own frame, so that every
picture and every scan sees the same thing: rich enough for features and flow to find matches.
"""

import colorsys
from dataclasses import dataclass

import numpy as np

# Hue (turns), saturation and value ranges. Names lie far enough apart to be told under lamp light.
PALETTE = {
    "red": ((0.985, 1.01), (0.78, 0.92), (0.62, 0.82)),
    "orange": ((0.06, 0.08), (0.85, 0.95), (0.88, 0.98)),
    "yellow": ((0.135, 0.155), (0.72, 0.88), (0.88, 0.98)),
    "green": ((0.29, 0.38), (0.55, 0.8), (0.42, 0.66)),
    "blue": ((0.58, 0.64), (0.65, 0.88), (0.55, 0.8)),
    "purple": ((0.75, 0.79), (0.5, 0.7), (0.45, 0.65)),
    "pink": ((0.9, 0.94), (0.32, 0.46), (0.9, 0.98)),
    "brown": ((0.055, 0.08), (0.55, 0.72), (0.3, 0.44)),
    "beige": ((0.09, 0.12), (0.22, 0.32), (0.78, 0.88)),
    "black": ((0.0, 1.0), (0.0, 0.1), (0.06, 0.13)),
    "white": ((0.08, 0.14), (0.0, 0.04), (0.93, 0.99)),
    "gray": ((0.5, 0.65), (0.0, 0.07), (0.38, 0.5)),
}
"""Name of a colour -> ranges of hue, saturation and value."""

PATTERNS = (
    "plain",
    "wood",
    "fabric",
    "planks",
    "tiles",
    "stripes",
    "bricks",
    "carpet",
    "poster",
    "screen",
    "books",
    "foliage",
    "glow",
    "view",
)


@dataclass(frozen=True)
class Surface:
    """What a part of an object looks like.

    Attributes:
        color: [3] RGB in 0..1.
        pattern: one of ``PATTERNS``.
        scale: metres of the pattern's largest features.
        contrast: how far the pattern leaves the colour, 0..1.
        other: [3] the second colour of patterns that have one.
        seed: of the pattern.
    """

    color: tuple[float, float, float]
    pattern: str = "plain"
    scale: float = 0.2
    contrast: float = 0.1
    other: tuple[float, float, float] = (0.1, 0.1, 0.1)
    seed: int = 0


def draw_color(rng: np.random.Generator, name: str) -> tuple[float, float, float]:
    """RGB in 0..1 of a colour called ``name``."""
    hue, saturation, value = (rng.uniform(*span) for span in PALETTE[name])
    return colorsys.hsv_to_rgb(hue % 1.0, saturation, value)


def draw_surface(rng: np.random.Generator, name: str, pattern: str, **options) -> Surface:
    """A surface of a colour called ``name``, with its own pattern."""
    usual = {
        "plain": (rng.uniform(0.1, 0.5), rng.uniform(0.05, 0.12)),
        "wood": (rng.uniform(0.05, 0.12), rng.uniform(0.12, 0.25)),
        "fabric": (rng.uniform(0.03, 0.09), rng.uniform(0.1, 0.2)),
        "foliage": (0.05, 0.35),
    }
    scale, contrast = usual.get(pattern, (0.2, 0.2))
    options = {"scale": scale, "contrast": contrast, **options}
    seed = int(rng.integers(2**31))
    return Surface(draw_color(rng, name), pattern, seed=seed, **options)


def lattice(ix: np.ndarray, iy: np.ndarray, seed: np.ndarray) -> np.ndarray:
    """Uniform numbers in 0..1 for integer places, by mixing bits."""
    h = ix.astype(np.int64).astype(np.uint32) * np.uint32(0x85EBCA6B)
    h ^= iy.astype(np.int64).astype(np.uint32) * np.uint32(0xC2B2AE35)
    h ^= seed.astype(np.uint32) * np.uint32(0x27D4EB2F)
    h ^= h >> np.uint32(15)
    h *= np.uint32(0x2C1B3C6D)
    h ^= h >> np.uint32(12)
    h *= np.uint32(0x297A2D39)
    h ^= h >> np.uint32(15)
    return h.astype(np.float64) / 2**32


def noise(uv: np.ndarray, seed: np.ndarray) -> np.ndarray:
    """[P] smooth noise in -1..1 at ``uv`` [P, 2], one feature per unit."""
    cell = np.floor(uv)
    part = uv - cell
    part = part * part * (3 - 2 * part)
    x, y = cell.T
    low = _mix(lattice(x, y, seed), lattice(x + 1, y, seed), part[:, 0])
    high = _mix(lattice(x, y + 1, seed), lattice(x + 1, y + 1, seed), part[:, 0])
    return 2 * _mix(low, high, part[:, 1]) - 1


def cloud(uv: np.ndarray, seed: np.ndarray, octaves: int = 3) -> np.ndarray:
    """[P] noise of several sizes, about -1..1."""
    value, weight = np.zeros(len(uv)), 1.0
    for octave in range(octaves):
        value += weight * noise(uv * 2.3**octave, seed + octave)
        weight *= 0.6
    return value


def _mix(a: np.ndarray, b: np.ndarray, share: np.ndarray) -> np.ndarray:
    return a + (b - a) * share


def project(local: np.ndarray, normal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates [P, 2] on the surface, by the axis that ``normal`` [P, 3] is nearest to; axis."""
    axis = np.abs(normal).argmax(1)
    first, second = np.array([1, 0, 0])[axis], np.array([2, 2, 1])[axis]
    rows = np.arange(len(local))
    return np.stack([local[rows, first], local[rows, second]], 1), axis


def paint(
    surfaces: list[Surface], index: np.ndarray, local: np.ndarray, normal: np.ndarray
) -> np.ndarray:
    """Colours [P, 3] in 0..1 of places on surfaces.

    Args:
        surfaces: all there are.
        index: [P] which one a place is on.
        local: [P, 3] place in the object's frame, metres.
        normal: [P, 3] in the object's frame.
    """
    base = np.array([s.color for s in surfaces])[index]
    other = np.array([s.other for s in surfaces])[index]
    scale = np.array([s.scale for s in surfaces])[index]
    contrast = np.array([s.contrast for s in surfaces])[index]
    kind = np.array([PATTERNS.index(s.pattern) for s in surfaces])[index]
    uv, axis = project(local, normal)
    seed = np.array([s.seed for s in surfaces], np.int64)[index] + 7 * axis
    color = np.zeros((len(index), 3))
    for number, name in enumerate(PATTERNS):
        rows = np.flatnonzero(kind == number)
        if len(rows):
            given = base[rows], other[rows], uv[rows], scale[rows], contrast[rows], seed[rows]
            color[rows] = _PAINTERS[name](*given)
    return np.clip(color, 0, 1)


def _shaded(base: np.ndarray, value: np.ndarray) -> np.ndarray:
    """``base`` made lighter and darker by ``value`` [P]; dark colours too."""
    return base * (1 + value[:, None]) + 0.08 * value[:, None]


def _plain(base, other, uv, scale, contrast, seed):
    value = cloud(uv / scale[:, None], seed) + 0.5 * noise(uv / 0.012, seed + 9)
    return _shaded(base, contrast * value)


def _wood(base, other, uv, scale, contrast, seed):
    grain = uv / np.stack([scale * 6, scale * 0.35], 1)
    bend = cloud(uv / (scale[:, None] * 8), seed + 3, 2)
    grain[:, 1] += 1.5 * bend
    return _shaded(base, contrast * (cloud(grain, seed) + 0.5 * np.sin(9 * bend)))


def _fabric(base, other, uv, scale, contrast, seed):
    weave = noise(uv / 0.008, seed) + noise(uv / np.array([0.02, 0.006]), seed + 1)
    return _shaded(base, contrast * (0.5 * weave + 0.8 * cloud(uv / scale[:, None], seed + 2)))


def _planks(base, other, uv, scale, contrast, seed):
    row = np.floor(uv[:, 1] / scale)
    along = uv[:, 0] / (scale * 8) + lattice(row, row, seed)
    board = np.floor(along)
    tone = 2 * lattice(board, row, seed + 5) - 1
    gap = (np.abs(uv[:, 1] / scale - row) < 0.03) | (np.abs(along - board) < 0.004)
    grain = cloud(uv / np.stack([scale * 2, scale * 0.08], 1), seed + 11)
    return _shaded(base, contrast * (tone + 0.6 * grain)) * np.where(gap, 0.55, 1.0)[:, None]


def _tiles(base, other, uv, scale, contrast, seed):
    cell = np.floor(uv / scale[:, None])
    part = np.abs(uv / scale[:, None] - cell - 0.5)
    tone = 2 * lattice(cell[:, 0], cell[:, 1], seed) - 1
    stain = cloud(uv / (0.4 * scale[:, None]), seed + 4)
    checker = ((cell[:, 0] + cell[:, 1]) % 2 == 0)[:, None]
    color = np.where(checker, base, other)
    grout = (part.max(1) > 0.475)[:, None]
    return np.where(grout, 0.6, 1) * _shaded(color, contrast * (0.6 * tone + 0.5 * stain))


def _stripes(base, other, uv, scale, contrast, seed):
    phase = uv[:, 0] / scale
    band = np.floor(phase)
    wide = 0.3 + 0.4 * lattice(band % 5, 0 * band, seed)
    inside = (phase - band < wide)[:, None]
    motif = noise(uv / (0.3 * scale[:, None]), seed + 2) > 0.35
    color = np.where(inside ^ motif[:, None], base, other)
    return _shaded(color, 0.3 * contrast * cloud(uv / 0.05, seed + 6))


def _bricks(base, other, uv, scale, contrast, seed):
    row = np.floor(uv[:, 1] / (0.35 * scale))
    along = uv[:, 0] / scale + 0.5 * (row % 2)
    brick = np.floor(along)
    gap = (np.abs(uv[:, 1] / (0.35 * scale) - row - 0.5) > 0.43) | (np.abs(along - brick) < 0.04)
    tone = 2 * lattice(brick, row, seed) - 1
    color = _shaded(base, contrast * (tone + 0.7 * cloud(uv / 0.06, seed + 8)))
    return np.where(gap[:, None], _shaded(other, 0.1 * noise(uv / 0.01, seed)), color)


def _carpet(base, other, uv, scale, contrast, seed):
    warped = uv / scale[:, None]
    ring = np.sin(6 * np.hypot(*(warped % 1 - 0.5).T) + 3 * (lattice(*np.floor(warped).T, seed)))
    share = (ring + 0.8 * cloud(uv / (0.5 * scale[:, None]), seed + 1) > 0)[:, None]
    pile = 0.6 * noise(uv / 0.01, seed + 2) + 0.4 * noise(uv / 0.035, seed + 3)
    return _shaded(np.where(share, base, other), contrast * pile)


def _poster(base, other, uv, scale, contrast, seed):
    """A picture: patches of random colours with strokes over them."""
    u, v = (uv / scale[:, None]).T
    u, v = (
        u + 0.4 * noise(uv / scale[:, None], seed),
        v + 0.4 * noise(uv / scale[:, None], seed + 1),
    )
    patch = np.floor(2.2 * u), np.floor(2.2 * v)
    color = np.stack([lattice(*patch, seed + k) for k in range(3)], 1)
    stroke = (np.abs(noise(uv / (0.35 * scale[:, None]), seed + 9)) < 0.09)[:, None]
    ink = np.stack([lattice(0 * u, 0 * u, seed + 20 + k) for k in range(3)], 1)
    color = np.where(stroke, ink, 0.75 * color + 0.25 * base)
    return _shaded(color, 0.15 * cloud(uv / 0.03, seed + 13))


def _screen(base, other, uv, scale, contrast, seed):
    cell = np.floor(uv / np.array([0.11, 0.045]))
    shown = lattice(*cell.T, seed) > 0.6
    fine = np.floor(uv / np.array([0.011, 0.012]))
    letters = (lattice(*fine.T, seed + 1) > 0.55) & shown
    tone = np.where(letters, 0.28, np.where(shown, 0.12, 0.0))
    return base + tone[:, None] * (0.4 + 0.6 * other)


def _books(base, other, uv, scale, contrast, seed):
    """Spines side by side, each with its colour, height and label."""
    shelf = np.floor(uv[:, 1] / 0.31)
    along = uv[:, 0] / 0.034 + 0.35 * noise(np.stack([uv[:, 0] / 0.09, shelf], 1), seed)
    book = np.floor(along)
    color = np.stack([lattice(book, shelf, seed + k) for k in range(3)], 1)
    color = 0.15 + 0.7 * color
    height = 0.62 + 0.3 * lattice(book, shelf, seed + 5)
    part = uv[:, 1] / 0.31 - shelf
    gap = (part > height) | (np.abs(along - book) < 0.07)
    label = (np.abs(part - 0.4 * height) < 0.07) & (np.abs(along - book - 0.5) < 0.3)
    color = np.where(label[:, None], 1 - 0.6 * color, color)
    return np.where(gap[:, None], 0.06, color)


def _foliage(base, other, uv, scale, contrast, seed):
    return _shaded(
        base, contrast * (cloud(uv / scale[:, None], seed) + 0.4 * noise(uv / 0.01, seed))
    )


def _glow(base, other, uv, scale, contrast, seed):
    return _shaded(base, 0.06 * cloud(uv / 0.05, seed))


def _view(base, other, uv, scale, contrast, seed):
    """What is behind a window: sky over trees and houses."""
    skyline = 1.25 + 0.35 * cloud(np.stack([uv[:, 0] / 0.7, 0 * uv[:, 0]], 1), seed)
    sky = base + 0.12 * cloud(uv / 0.6, seed + 1)[:, None]
    land = _shaded(other, 0.5 * cloud(uv / 0.12, seed + 2))
    return np.where((uv[:, 1] > skyline)[:, None], sky, land)


_PAINTERS = dict(
    zip(
        PATTERNS,
        (
            _plain,
            _wood,
            _fabric,
            _planks,
            _tiles,
            _stripes,
            _bricks,
            _carpet,
            _poster,
            _screen,
            _books,
            _foliage,
            _glow,
            _view,
        ),
    )
)
