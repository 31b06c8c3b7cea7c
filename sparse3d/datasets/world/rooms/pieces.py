"""What every piece of furniture is put together from: surfaces, legs, cushions."""

from dataclasses import dataclass

import numpy as np

from ..shapes import Mesh, boxes, merge, sheet, tube
from .textures import Surface, draw_surface

MAIN, PART, DARK = 0, 1, 2  # rows of a piece's surfaces


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


def draw_surfaces(rng, color: str, pattern: str, **options) -> list[Surface]:
    """The main surface, one for legs and frames, a dark one."""
    part = rng.choice(["black", "gray", "brown", "white"])
    wooden = "wood" if part == "brown" else "plain"
    return [
        draw_surface(rng, color, pattern, **options),
        draw_surface(rng, part, wooden),
        draw_surface(rng, "black", "plain"),
    ]


def wooden(rng, color: str) -> str:
    return (
        "wood" if color in ("brown", "beige", "white", "gray") and rng.random() < 0.85 else "plain"
    )


def legs(rng, size, height: float, thick: float, inset: float = 0.0, material=PART) -> Mesh:
    """Four legs under a top of ``size`` (x, y)."""
    x, y = size[0] / 2 - thick / 2 - inset, size[1] / 2 - thick / 2 - inset
    places = np.array([(a * x, b * y) for a in (-1, 1) for b in (-1, 1)])
    if rng.random() < 0.5:
        centers = np.concatenate([places, np.full((4, 1), height / 2)], 1)
        return boxes(centers, (thick, thick, height), material)
    splay = 1 + rng.uniform(0, 0.1)
    feet = [((p[0] * splay, p[1] * splay, 0), (p[0], p[1], height)) for p in places]
    return merge([tube(a, b, (thick * 0.4, thick * 0.5), material, 8) for a, b in feet])


def cushion(center, size, material: int = MAIN) -> Mesh:
    """A box with rounded edges: two nets of a squashed ball."""
    polar = np.linspace(-np.pi / 2, np.pi / 2, 9)[:, None]
    turn = np.linspace(0, 2 * np.pi, 21)[None]
    net = np.stack(
        [np.cos(polar) * np.cos(turn), np.cos(polar) * np.sin(turn), np.sin(polar) + 0 * turn], -1
    )
    net = np.sign(net) * np.abs(net) ** 0.35
    return sheet(net * np.asarray(size) / 2 + np.asarray(center), material)
