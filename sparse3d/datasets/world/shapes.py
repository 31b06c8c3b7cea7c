"""Triangle meshes and the few solids that everything in the procedural world is put together from.

A mesh lives in its object's own frame: x along the heading, y to the left, z up, origin on the
ground in the middle of the object, metres.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from .materials import Material


@dataclass
class Mesh:
    """Triangles with a material each.

    Attributes:
        vertices: [V, 3] float64, metres.
        faces: [F, 3] int64 rows of ``vertices``.
        material: [F] uint8, see ``Material``.
    """

    vertices: np.ndarray
    faces: np.ndarray
    material: np.ndarray

    def __len__(self) -> int:
        return len(self.faces)

    def moved(self, shift, yaw: float = 0.0) -> "Mesh":
        """Turned by ``yaw`` about the z axis, then shifted."""
        return Mesh(turned(self.vertices, yaw) + np.asarray(shift), self.faces, self.material)

    def mirrored(self) -> "Mesh":
        """Mirrored left to right."""
        return Mesh(self.vertices * (1, -1, 1), self.faces, self.material)

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper corner [3], metres."""
        return self.vertices.min(0), self.vertices.max(0)


def merge(meshes: list[Mesh]) -> Mesh:
    """One mesh of several; none gives an empty one."""
    if not meshes:
        return Mesh(np.zeros((0, 3)), np.zeros((0, 3), np.int64), np.zeros(0, np.uint8))
    starts = np.cumsum([0] + [len(mesh.vertices) for mesh in meshes[:-1]])
    return Mesh(
        np.concatenate([mesh.vertices for mesh in meshes]),
        np.concatenate([mesh.faces + start for mesh, start in zip(meshes, starts)]),
        np.concatenate([mesh.material for mesh in meshes]),
    )


def fitted(mesh: Mesh) -> tuple[Mesh, np.ndarray]:
    """The mesh with its bounds centred on the origin and standing on the ground, and their size."""
    low, high = mesh.bounds()
    middle = (low + high) / 2
    return mesh.moved((-middle[0], -middle[1], -low[2])), high - low


def turned(points: np.ndarray, yaw: float) -> np.ndarray:
    """``points`` [P, 3] turned by ``yaw`` radians about the z axis."""
    if yaw == 0:
        return points
    cos, sin = np.cos(yaw), np.sin(yaw)
    return points @ np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])


def _filled(count: int, material: int) -> np.ndarray:
    return np.full(count, material, np.uint8)


BOX_CORNERS = np.array([(x, y, z) for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)])
BOX_FACES = np.array(
    [
        (0, 1, 3),
        (0, 3, 2),
        (4, 6, 7),
        (4, 7, 5),
        (0, 4, 5),
        (0, 5, 1),
        (2, 3, 7),
        (2, 7, 6),
        (0, 2, 6),
        (0, 6, 4),
        (1, 5, 7),
        (1, 7, 3),
    ]
)


def box(center, size, material: int, yaw: float = 0.0) -> Mesh:
    """A box of full edge lengths ``size`` [3] about ``center`` [3]."""
    corners = turned(BOX_CORNERS * np.asarray(size), yaw) + np.asarray(center)
    return Mesh(corners, BOX_FACES, _filled(12, material))


def boxes(centers: np.ndarray, sizes: np.ndarray, material: int) -> Mesh:
    """Many boxes at once: ``centers`` [N, 3], ``sizes`` [N, 3] or [3]."""
    count = len(centers)
    sizes = np.broadcast_to(sizes, (count, 3))
    vertices = BOX_CORNERS[None] * sizes[:, None] + np.asarray(centers)[:, None]
    faces = BOX_FACES[None] + 8 * np.arange(count)[:, None, None]
    return Mesh(vertices.reshape(-1, 3), faces.reshape(-1, 3), _filled(12 * count, material))


@lru_cache(maxsize=64)
def _grid_faces(rows: int, columns: int) -> np.ndarray:
    """[(rows - 1) * (columns - 1) * 2, 3]: two triangles per quad, quads row by row."""
    a = (np.arange(rows - 1)[:, None] * columns + np.arange(columns - 1)).ravel()
    b, c, d = a + 1, a + columns, a + columns + 1
    return np.stack([a, c, d, a, d, b], 1).reshape(-1, 3)


def sheet(points: np.ndarray, material: int | np.ndarray) -> Mesh:
    """A surface over a net of ``points`` [R, C, 3].

    Args:
        points: the net.
        material: one for all, or [R - 1, C - 1] per quad.
    """
    rows, columns = points.shape[:2]
    faces = _grid_faces(rows, columns)
    quads = np.broadcast_to(np.asarray(material, np.uint8), (rows - 1, columns - 1))
    return Mesh(points.reshape(-1, 3), faces, np.repeat(quads.ravel(), 2))


@lru_cache(maxsize=32)
def _circle(sides: int) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, sides + 1)
    return np.stack([np.cos(angle), np.sin(angle)], 1)


def tube(start, end, radii: tuple[float, float], material: int, sides: int = 6) -> Mesh:
    """A round bar from ``start`` to ``end`` [3] with a radius at each end, closed to points."""
    start, end = np.asarray(start, float), np.asarray(end, float)
    u, v = _across(*(end - start).tolist())
    circle = _circle(sides)
    ring = circle[:, :1] * u + circle[:, 1:] * v
    net = _TUBE_RADII @ np.array([[radii[0], 0.0], [0.0, radii[1]]])
    middle = np.array([start, start, end, end])
    return sheet(middle[:, None] + net.sum(1)[:, None, None] * ring, material)


_TUBE_RADII = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])


def _across(x: float, y: float, z: float) -> tuple[np.ndarray, np.ndarray]:
    """Two unit vectors at right angles to (x, y, z) and to each other."""
    length = max(math.sqrt(x * x + y * y + z * z), 1e-9)
    x, y, z = x / length, y / length, z / length
    u = (0.0, z, -y) if abs(x) < 0.8 else (-z, 0.0, x)
    length = math.sqrt(u[0] ** 2 + u[1] ** 2 + u[2] ** 2)
    u = (u[0] / length, u[1] / length, u[2] / length)
    v = (y * u[2] - z * u[1], z * u[0] - x * u[2], x * u[1] - y * u[0])
    return np.array(u), np.array(v)


def ring(center, radius: float, thick: float, material: int, sides: int = 10) -> Mesh:
    """A hoop about the y axis: a tyre."""
    section = _circle(4) * thick
    angle = _circle(sides)
    reach = radius + section[:, 0]
    net = np.stack(
        [
            angle[:, :1] * reach,
            np.broadcast_to(section[:, 1], (sides + 1, 5)),
            angle[:, 1:] * reach,
        ],
        -1,
    )
    return sheet(net + np.asarray(center), material)


def ellipsoid(center, radii, material: int, rings: int = 5, sides: int = 8) -> Mesh:
    """An ellipsoid with half axes ``radii`` [3]."""
    polar = np.linspace(-np.pi / 2, np.pi / 2, rings + 1)[:, None]
    circle = _circle(sides)
    net = np.stack(
        [
            np.cos(polar) * circle[:, 0],
            np.cos(polar) * circle[:, 1],
            np.sin(polar) + 0 * circle[:, 0],
        ],
        -1,
    )
    return sheet(net * np.asarray(radii) + np.asarray(center), material)


def disc(center, radius: float, axis: int, material: int, sides: int = 10) -> Mesh:
    """A flat disc; its normal is coordinate ``axis``."""
    circle = _circle(sides)[:-1] * radius
    ring = np.insert(circle, axis, 0.0, axis=1)
    vertices = np.concatenate([np.zeros((1, 3)), ring]) + np.asarray(center)
    index = np.arange(sides)
    faces = np.stack([0 * index, 1 + index, 1 + (index + 1) % sides], 1)
    return Mesh(vertices, faces, _filled(sides, material))


def leaves(rng: np.random.Generator, count: int, center, radii, size: float) -> Mesh:
    """``count`` leafy twigs, triangles of about ``size`` metres, scattered in an ellipsoid.

    More of them lie near the outside, as in a crown that gets its light there.
    """
    direction = rng.normal(size=(count, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    radius = rng.random((count, 1)) ** 0.25
    return _twigs(rng, direction * radius * np.asarray(radii) + np.asarray(center), size)


def leafy_box(rng: np.random.Generator, count: int, center, lengths, size: float) -> Mesh:
    """Leafy twigs scattered in a box of full edge lengths ``lengths`` [3]: a hedge."""
    where = (rng.random((count, 3)) - 0.5) * np.asarray(lengths) + np.asarray(center)
    return _twigs(rng, where, size)


def _twigs(rng: np.random.Generator, where: np.ndarray, size: float) -> Mesh:
    count = len(where)
    corners = where[:, None] + rng.normal(size=(count, 3, 3)) * (size * 0.55)
    faces = np.arange(3 * count).reshape(-1, 3)
    return Mesh(corners.reshape(-1, 3), faces, _filled(count, Material.LEAVES))
