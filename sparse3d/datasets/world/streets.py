"""A street: the ground, what stands and moves on it, and who may stand where.

Nothing here knows of a sensor's beams; ``layout`` fills a street.
"""

from dataclasses import dataclass, field

import numpy as np

from .ground import Road
from .materials import KINDS, SEMANTICS
from .shapes import Mesh, turned

REACH = 84.0


@dataclass
class Thing:
    """Something on the street.

    Attributes:
        mesh: in its own frame.
        kind: one of ``KINDS`` for an object with a box, else None.
        semantic: row of ``SEMANTICS``.
        size: [3] length, width, height of the box, metres.
        position: [3] of the point on the ground under its middle, in the plane of the road.
        yaw: radians in that plane.
        tilt: slope of the ground under it along its x and y.
        speed: m/s along its heading.
    """

    mesh: Mesh
    kind: str | None
    semantic: int
    size: np.ndarray
    position: np.ndarray
    yaw: float
    tilt: tuple[float, float]
    speed: float = 0.0

    def box(self, time: float = 0.0) -> np.ndarray:
        """[9] x, y, z, dx, dy, dz, yaw, vx, vy; the centre, in the plane of the road."""
        forward = np.array([np.cos(self.yaw), np.sin(self.yaw)])
        velocity = self.speed * forward
        place = self.position[:2] + time * velocity
        height = self.position[2] + self.size[2] / 2
        return np.concatenate([place, [height], self.size, [self.yaw], velocity])

    def placed(self, time: float = 0.0) -> np.ndarray:
        """[V, 3] vertices in the plane of the road, ``time`` seconds after the layout."""
        local = self.mesh.vertices.copy()
        local[:, 2] += local[:, 0] * self.tilt[0] + local[:, 1] * self.tilt[1]
        shift = self.position + self.speed * time * np.array(
            [np.cos(self.yaw), np.sin(self.yaw), 0]
        )
        return turned(local, self.yaw) + shift


@dataclass
class Street:
    """One street.

    Attributes:
        road: the ground.
        ego: (t, yaw): where the sensor stands abreast of s = 0, and its heading.
        front: whether only what lies ahead of the sensor is laid out.
        things: what stands and moves on it.
    """

    road: Road
    ego: tuple[float, float]
    front: bool
    things: list[Thing] = field(default_factory=list)
    taken: list[tuple[float, ...]] = field(default_factory=list)

    def __post_init__(self):
        origin = self.road.place(np.zeros(1), np.full(1, self.ego[0]))
        self.ego_place = np.array([origin[0][0], origin[1][0], self.road.height(0, self.ego[0])])
        self.taken.append((*self.ego_place[:2], 2.4, 1.0, self.ego[1]))

    def wanted(self, x: float, y: float, radius: float) -> bool:
        """Whether something there could be seen."""
        dx, dy = x - self.ego_place[0], y - self.ego_place[1]
        if dx * dx + dy * dy > (REACH + radius) ** 2:
            return False
        ahead = dx * np.cos(self.ego[1]) + dy * np.sin(self.ego[1])
        aside = abs(dy * np.cos(self.ego[1]) - dx * np.sin(self.ego[1]))
        return not self.front or ahead > aside * 0.85 - radius - 2

    def sees(self, s: float, t: float, radius: float = 8.0) -> bool:
        """Whether something of ``radius`` at road coordinates could be seen."""
        x, y = self.road.place(np.float64(s), np.float64(t))
        return self.wanted(float(x), float(y), radius)

    def free(self, x: float, y: float, half: tuple[float, float], yaw: float) -> bool:
        """Whether a rectangle of half sizes ``half`` touches nothing that stands."""
        others = np.array(self.taken)
        dx, dy = others[:, 0] - x, others[:, 1] - y
        turn = others[:, 4] - yaw
        cos, sin = np.abs(np.cos(turn)), np.abs(np.sin(turn))
        c, s = np.cos(yaw), np.sin(yaw)
        apart = np.abs(c * dx + s * dy) > half[0] + others[:, 2] * cos + others[:, 3] * sin
        apart |= np.abs(c * dy - s * dx) > half[1] + others[:, 2] * sin + others[:, 3] * cos
        c, s = np.cos(others[:, 4]), np.sin(others[:, 4])
        apart |= np.abs(c * dx + s * dy) > others[:, 2] + half[0] * cos + half[1] * sin
        apart |= np.abs(c * dy - s * dx) > others[:, 3] + half[0] * sin + half[1] * cos
        return bool(apart.all())

    def add(
        self,
        mesh: Mesh,
        s: float,
        t: float,
        yaw: float,
        semantic: str,
        footprint: tuple[float, float] | None = None,
        size: np.ndarray | None = None,
        speed: float = 0.0,
        margin: float = 0.15,
        shift: float = 0.0,
    ) -> bool:
        """Puts a thing at road coordinates, turned by ``yaw`` against the road, if there is room.

        Args:
            footprint: length and width that nothing else may enter; taken from ``size`` if None.
            shift: the footprint's middle lies this far along the thing's y axis.
        """
        length, width = footprint if size is None else size[:2]
        x, y = (float(v) for v in self.road.place(np.float64(s), np.float64(t)))
        heading = self.road.heading(s) + yaw
        middle = x - shift * np.sin(heading), y + shift * np.cos(heading)
        half = length / 2 + margin, width / 2 + margin
        if not self.wanted(*middle, max(half)) or not self.free(*middle, half, heading):
            return False
        reach = max(0.4 * length, 0.2)
        tilt = self.road.tilt(s, t, yaw, reach) if size is not None else (0.0, 0.0)
        z = self._footing(s, t, yaw, reach)
        kind = semantic if semantic in KINDS else None
        size = np.zeros(3) if size is None else size
        self.taken.append((*middle, half[0] - margin / 2, half[1] - margin / 2, heading))
        self.things.append(
            Thing(
                mesh,
                kind,
                SEMANTICS.index(semantic),
                size,
                np.array([x, y, z]),
                heading,
                tilt,
                speed,
            )
        )
        return True

    def _footing(self, s: float, t: float, yaw: float, reach: float) -> float:
        along = np.array([1, -1, 0, 0]) * reach
        aside = np.array([0, 0, 1, -1]) * reach * 0.4
        ds = along * np.cos(yaw) - aside * np.sin(yaw)
        dt = along * np.sin(yaw) + aside * np.cos(yaw)
        return float(self.road.height(s + ds, t + dt).mean())
