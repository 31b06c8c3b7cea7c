"""Rays into a furnished room: what they hit, and in which colour."""

from dataclasses import dataclass

import numpy as np

from ..shapes import Mesh
from .layout import Interior
from .textures import Surface, paint

FLOOR, CEILING, WALL = -2, -3, -4  # owners of the shell's faces; things count from 0


@dataclass
class Hits:
    """Where rays ended; ``rows`` of the rays that hit anything.

    Attributes:
        rows: [H] int64 of the rays.
        depth: [H] metres along the ray (in lengths of its direction).
        face: [H] int64.
    """

    rows: np.ndarray
    depth: np.ndarray
    face: np.ndarray


class Stage:
    """A room as one mesh, ready for rays.

    Attributes:
        vertices: [V, 3]; faces: [F, 3]; normals: [F, 3] unit.
        owner: [F] row of the thing, or FLOOR, CEILING, WALL.
        surface: [F] row of ``surfaces``.
        lights: [L, 4] place and strength of the lights.
    """

    def __init__(self, interior: Interior, rng: np.random.Generator):
        """Args:
        interior: the room.
        rng: draws the lamp and its strength.
        """
        import open3d as o3d

        parts, owners = _shell(interior)
        surfaces: list[Surface] = list(interior.shell)
        shifts = [np.zeros(3)] * len(parts)
        yaws = [0.0] * len(parts)
        material = [part.material.astype(np.int64) for part in parts]
        for row, thing in enumerate(interior.things):
            material.append(thing.piece.mesh.material.astype(np.int64) + len(surfaces))
            surfaces += thing.piece.surfaces
            parts.append(thing.piece.mesh.moved(thing.position, thing.yaw))
            owners.append(row)
            shifts.append(thing.position)
            yaws.append(thing.yaw)
        starts = np.cumsum([0] + [len(part.vertices) for part in parts[:-1]])
        counts = [len(part) for part in parts]
        self.interior = interior
        self.surfaces = surfaces
        self.vertices = np.concatenate([part.vertices for part in parts])
        self.faces = np.concatenate([part.faces + s for part, s in zip(parts, starts)])
        self.owner = np.repeat(owners, counts)
        self.surface = np.concatenate(material)
        self._shift = np.repeat(np.stack(shifts), counts, axis=0)
        self._yaw = np.repeat(yaws, counts)
        corner = self.vertices[self.faces]
        normal = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
        self.normals = normal / np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)
        self.lights = _lights(interior, rng)
        self.scene = o3d.t.geometry.RaycastingScene(nthreads=1)
        self.scene.add_triangles(
            o3d.core.Tensor(np.ascontiguousarray(self.vertices, np.float32)),
            o3d.core.Tensor(np.ascontiguousarray(self.faces, np.uint32)),
        )

    def cast(self, origin: np.ndarray, direction: np.ndarray) -> Hits:
        """Where rays from ``origin`` [R, 3] along ``direction`` [R, 3] end."""
        import open3d as o3d

        rays = np.concatenate([origin, direction], 1).astype(np.float32)
        answer = self.scene.cast_rays(o3d.core.Tensor(rays), nthreads=1)
        depth = answer["t_hit"].numpy()
        rows = np.flatnonzero(np.isfinite(depth))
        face = answer["primitive_ids"].numpy()[rows].astype(np.int64)
        return Hits(rows, depth[rows].astype(np.float64), face)

    def color(self, points: np.ndarray, face: np.ndarray, eye: np.ndarray) -> np.ndarray:
        """[P, 3] in 0..1 of ``points`` [P, 3] on faces [P], seen from ``eye`` [P, 3] or [3]."""
        albedo = self.albedo(points, face, eye)
        return np.clip(albedo * self.lit(points, face, eye)[:, None], 0, 1)

    def albedo(self, points: np.ndarray, face: np.ndarray, eye: np.ndarray) -> np.ndarray:
        """[P, 3] colours without light; arguments as of ``color``."""
        cos, sin = np.cos(self._yaw[face]), np.sin(self._yaw[face])
        local = _turn_back(points - self._shift[face], cos, sin)
        normal = _turn_back(self._facing(points, face, eye), cos, sin)
        return paint(self.surfaces, self.surface[face], local, normal)

    def lit(self, points: np.ndarray, face: np.ndarray, eye: np.ndarray) -> np.ndarray:
        """[P] brightness; arguments as of ``color``."""
        return self.light(points, self._facing(points, face, eye))

    def _facing(self, points: np.ndarray, face: np.ndarray, eye: np.ndarray) -> np.ndarray:
        """[P, 3] normals on the side of ``eye``."""
        normal = self.normals[face]
        away = ((eye - points) * normal).sum(1) < 0
        return np.where(away[:, None], -normal, normal)

    def light(self, points: np.ndarray, normal: np.ndarray) -> np.ndarray:
        """[P] brightness of ``points`` [P, 3] with ``normal`` [P, 3]: about 0.5 to 1.1."""
        bright = 0.53 + 0.06 * normal[:, 2] + 0.03 * normal[:, 0] + 0.3 * (normal[:, 2] < -0.99)
        for x, y, z, strength in self.lights:
            way = np.array([x, y, z]) - points
            far = np.linalg.norm(way, axis=1)
            way /= far[:, None]
            facing = np.clip((way * normal).sum(1), 0, 1)
            start = points + 0.004 * normal
            blocked = self._blocked(start, way, far - 0.15)
            bright += np.where(blocked, 0.0, strength * facing / (1 + (far / 3) ** 2))
        return bright

    def _blocked(self, start: np.ndarray, way: np.ndarray, far: np.ndarray) -> np.ndarray:
        import open3d as o3d

        rays = o3d.core.Tensor(np.concatenate([start, way], 1).astype(np.float32))
        hit = self.scene.cast_rays(rays, nthreads=1)["t_hit"].numpy()
        return hit < far


def _turn_back(points: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    x, y = points[:, 0], points[:, 1]
    return np.stack([x * cos + y * sin, -x * sin + y * cos, points[:, 2]], 1)


def _shell(interior: Interior) -> tuple[list[Mesh], list[int]]:
    """Floor, ceiling and walls; ``material`` is a row of the shell's surfaces."""
    x, y = interior.size[:2] / 2
    z = interior.size[2]
    corners = np.array([(-x, -y), (x, -y), (x, y), (-x, y)])
    low = np.concatenate([corners, np.zeros((4, 1))], 1)
    high = np.concatenate([corners, np.full((4, 1), z)], 1)

    def quad(a, b, c, d, row: int) -> Mesh:
        faces = np.array([(0, 1, 2), (0, 2, 3)])
        return Mesh(np.stack([a, b, c, d]), faces, np.full(2, row, np.uint8))

    sides = ((3, 0), (0, 1), (1, 2), (2, 3))  # walls at -x, -y, +x, +y
    parts = [quad(*low, 0), quad(*high[::-1], 1)]
    parts += [quad(low[a], low[b], high[b], high[a], 2 + k) for k, (a, b) in enumerate(sides)]
    return parts, [FLOOR, CEILING, *[WALL] * 4]


def _lights(interior: Interior, rng: np.random.Generator) -> np.ndarray:
    """[L, 4]: a lamp under the ceiling of four points, and light from each window."""
    width, depth, height = interior.size
    xy = rng.uniform(-0.15, 0.15, 2) * (width, depth)
    strength = rng.uniform(0.5, 0.8)
    lamp = [
        (xy[0] + a, xy[1] + b, height - 0.12, strength / 4)
        for a in (-0.35, 0.35)
        for b in (-0.35, 0.35)
    ]
    windows = [t for t in interior.things if t.piece.kind == "window"]
    for thing in windows:
        low, high = thing.bounds()
        middle = (low + high) / 2
        middle[:2] += 0.25 * np.array([np.cos(thing.yaw), np.sin(thing.yaw)])
        middle[2] = 1.6
        lamp.append((*middle, rng.uniform(0.25, 0.5) / len(windows)))
    return np.array(lamp)
