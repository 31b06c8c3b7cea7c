"""The ground under a street: roadway, kerbs, sidewalks and land, none of it flat.

Road coordinates: s metres along the middle of the road from the place abreast of the sensor, t
metres to its left. The road may bend; ``Road.place`` brings (s, t) to the plane.
"""

from dataclasses import dataclass

import numpy as np

from .materials import Material as M
from .shapes import Mesh, sheet

ROAD, SIDEWALK, TERRAIN = 1, 2, 3


@dataclass(frozen=True)
class Crossing:
    """A road across, its middle at ``s``; ``width`` of its roadway in metres."""

    s: float
    width: float


@dataclass(frozen=True)
class Road:
    """The lie of the land. Metres.

    Attributes:
        bend: curvature of the road, 1/m, positive to the left.
        right, left: half widths of the roadway.
        kerb: height of the kerbs.
        walks: width of the sidewalk right and left.
        banks: slope of the land beyond, right and left.
        grade: slope along and across, and its change along per metre.
        waves: [W, 4] amplitude, wave numbers along s and t, phase.
        crossings: roads across.
        paved: whether the land beyond the sidewalks is paved too.
    """

    bend: float
    right: float
    left: float
    kerb: float
    walks: tuple[float, float]
    banks: tuple[float, float]
    grade: tuple[float, float, float]
    waves: np.ndarray
    crossings: tuple[Crossing, ...]
    paved: bool

    def place(self, s: np.ndarray, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """x, y of road coordinates."""
        if abs(self.bend) < 1e-5:
            return s + 0 * t, t + 0 * s
        angle = self.bend * s
        radius = 1 / self.bend - t
        return radius * np.sin(angle), 1 / self.bend - radius * np.cos(angle)

    def heading(self, s: float) -> float:
        """Direction of the road in radians."""
        return self.bend * s

    def on_crossing(self, s: np.ndarray) -> np.ndarray:
        """Whether ``s`` lies on the roadway of a road across."""
        result = np.zeros(np.shape(s), bool)
        for crossing in self.crossings:
            result |= np.abs(s - crossing.s) < crossing.width / 2
        return result

    def height(self, s: np.ndarray, t: np.ndarray) -> np.ndarray:
        """Height of the ground at road coordinates."""
        s, t = np.broadcast_arrays(np.asarray(s, float), np.asarray(t, float))
        along, across, change = self.grade
        z = along * s + across * t + change * s**2
        for amplitude, ks, kt, phase in self.waves:
            z = z + amplitude * np.sin(ks * s + kt * t + phase)
        beyond_left, beyond_right = t - self.left, -t - self.right
        z = z - 0.015 * np.clip(np.abs(t), 0, max(self.left, self.right))
        off_road = ((beyond_left > 0) | (beyond_right > 0)) & ~self.on_crossing(s)
        z = z + np.where(off_road, self.kerb, 0)
        z = z + self.banks[1] * np.clip(beyond_left - self.walks[1], 0, 25)
        return z + self.banks[0] * np.clip(beyond_right - self.walks[0], 0, 25)

    def tilt(self, s: float, t: float, yaw: float, reach: float) -> tuple[float, float]:
        """Slope of the ground along x and y of a thing of half length ``reach`` turned by yaw."""
        cos, sin = np.cos(yaw), np.sin(yaw)
        ds = np.array([cos, -cos, -0.4 * sin, 0.4 * sin]) * reach
        dt = np.array([sin, -sin, 0.4 * cos, -0.4 * cos]) * reach
        z = self.height(s + ds, t + dt)
        return (z[0] - z[1]) / (2 * reach), (z[2] - z[3]) / (0.8 * reach)

    def mesh(self, rng: np.random.Generator, start: float, end: float) -> tuple[Mesh, np.ndarray]:
        """The ground from ``start`` to ``end`` along the road; the semantic class of each face."""
        s = np.arange(start, end + 1, 2.0)
        t = np.concatenate(
            [np.arange(-88, -24, 4.0), np.arange(-24, 24, 1.2), np.arange(24, 89, 4.0)]
        )
        step = 0.015
        for crossing in self.crossings:
            low, high = crossing.s - crossing.width / 2, crossing.s + crossing.width / 2
            s = np.concatenate([s, [low - step, low + step, high - step, high + step]])
        edges = [self.left, -self.right]
        walks = [self.left + self.walks[1], -self.right - self.walks[0]]
        marks = [0.0] if rng.random() < 0.5 else [-0.06, 0.06]
        t = np.concatenate([t, *[[e - step, e + step] for e in edges], walks, marks])
        s, t = np.unique(s), np.unique(t)
        ss, tt = np.meshgrid(s, t, indexing="ij")
        z = self.height(ss, tt)
        land = (tt > walks[0]) | (tt < walks[1])
        rough = 0.004 if self.paved else rng.uniform(0.003, 0.03)
        z = z + rng.normal(0, 1, z.shape) * np.where(land, rough, 0.004)
        x, y = self.place(ss, tt)
        material, semantic = self._cover(rng, s, t)
        return sheet(np.stack([x, y, z], -1), material), np.repeat(semantic.ravel(), 2)

    def _cover(self, rng, s: np.ndarray, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        middle_s, middle_t = (s[1:] + s[:-1]) / 2, (t[1:] + t[:-1]) / 2
        on_road = (middle_t < self.left) & (middle_t > -self.right)
        on_road = on_road[None] | self.on_crossing(middle_s)[:, None]
        beyond = (middle_t > self.left + self.walks[1]) | (middle_t < -self.right - self.walks[0])
        land = beyond[None] & ~on_road
        land_cover = M.PAVING if self.paved else M.GRASS
        material = np.where(on_road, M.ASPHALT, np.where(land, land_cover, M.PAVING))
        dashes = (np.abs(middle_t) < 0.06)[None] & (np.floor(middle_s / 4) % 2 == 0)[:, None]
        material = np.where(on_road & dashes, M.MARKING, material)
        semantic = np.where(on_road, ROAD, np.where(land & (not self.paved), TERRAIN, SIDEWALK))
        return material.astype(np.uint8), semantic
