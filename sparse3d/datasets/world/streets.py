"""Seeded streets: what stands and moves where. Nothing here knows of a sensor's beams.

A street is laid out in road coordinates (see ``ground``): lanes of traffic both ways, rows of
parked cars, sidewalks with people, fronts of houses, gardens, woods or open land, and roads across.
"""

from dataclasses import dataclass, field

import numpy as np

from . import clutter, people, vehicles
from .ground import Crossing, Road
from .materials import KINDS, SEMANTICS
from .plans import Plan, draw_plan
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


def lay_out(rng: np.random.Generator, front: bool = False) -> Street:
    """A street drawn from ``rng``; with ``front`` only the part ahead of the sensor is filled."""
    plan = draw_plan(rng)
    street = Street(_draw_road(rng, plan), plan.ego, front)
    _traffic(rng, street, plan)
    _parked(rng, street, plan)
    _cross_traffic(rng, street, plan)
    _people(rng, street, plan)
    for side in (-1, 1):
        _roadside(rng, street, plan, side)
        _frontage(rng, street, plan, side)
    return street


def _draw_road(rng: np.random.Generator, plan: Plan) -> Road:
    count = rng.integers(2, 6)
    length = rng.uniform(14, 80, count)
    angle = rng.uniform(0, 2 * np.pi, count)
    waves = np.stack(
        [
            rng.uniform(0.0, 0.0022, count) * length,
            2 * np.pi / length * np.cos(angle),
            2 * np.pi / length * np.sin(angle),
            rng.uniform(0, 2 * np.pi, count),
        ],
        1,
    )
    return Road(
        bend=plan.bend,
        right=plan.right,
        left=plan.left,
        kerb=plan.kerb,
        walks=plan.walks,
        banks=plan.banks,
        grade=(rng.normal(0, 0.013), rng.normal(0, 0.012), rng.normal(0, 1.2e-4)),
        waves=waves,
        crossings=tuple(Crossing(s, width) for s, width in plan.crossings),
        paved=plan.paved,
    )


def _vehicle(rng: np.random.Generator, shares: tuple[float, ...]) -> tuple[str, Mesh, np.ndarray]:
    """A vehicle by ``shares`` of car, van, truck and bus."""
    kind = ("car", "van", "truck", "bus")[rng.choice(4, p=shares)]
    mesh, size = getattr(vehicles, kind)(rng)
    return kind, mesh, size


def _traffic(rng: np.random.Generator, street: Street, plan: Plan) -> None:
    """Moving and queueing vehicles in the lanes of the road."""
    for direction, lanes in ((1, plan.lanes[0]), (-1, plan.lanes[1])):
        for lane in range(lanes):
            t = -direction * (lane + 0.5) * plan.lane_width
            queue = rng.random() < 0.12
            gap = rng.uniform(1.5, 4) if queue else plan.headway * rng.uniform(0.5, 2)
            speed = 0.0 if queue else rng.uniform(2, 15)
            s = -REACH + rng.exponential(gap)
            while s < REACH:
                kind, mesh, size = _vehicle(rng, plan.traffic_mix)
                yaw = rng.normal(0, 0.025) + (0 if direction > 0 else np.pi)
                street.add(mesh, s, t + rng.normal(0, 0.2), yaw, kind, size=size, speed=speed)
                s += size[0] / 2 + 4.5 + (rng.uniform(0, gap) if queue else rng.exponential(gap))


def _parked(rng: np.random.Generator, street: Street, plan: Plan) -> None:
    """Rows of parked cars on both sides of the road."""
    for side in (-1, 1):
        mode = plan.parking[0 if side < 0 else 1]
        if mode == "none":
            continue
        edge = plan.right if side < 0 else plan.left
        occupancy = rng.uniform(0.25, 0.97)
        s = -REACH + rng.uniform(0, 6)
        slant = rng.uniform(0.7, 1.2) * rng.choice([-1, 1])
        while s < REACH:
            pitch = (
                rng.uniform(5.0, 6.4) if mode in ("lane", "kerb", "bay") else rng.uniform(2.4, 3.1)
            )
            if rng.random() < occupancy and not _near_crossing(plan, s, 5):
                kind, mesh, size = _vehicle(rng, (0.93, 0.06, 0.01, 0.0))
                t, yaw = _berth(rng, mode, edge, size, slant)
                street.add(mesh, s + rng.normal(0, 0.25), side * t, yaw, kind, size=size)
            s += pitch
            if rng.random() < 0.06:
                s += rng.uniform(3, 20)


def _berth(rng, mode: str, edge: float, size: np.ndarray, slant: float) -> tuple[float, float]:
    """Distance from the road's middle and yaw of a parked car."""
    turn = 0.0 if rng.random() < 0.75 else np.pi
    half = size[1] / 2
    if mode == "lane":
        return edge - half - rng.uniform(0.05, 0.4), turn + rng.normal(0, 0.03)
    if mode == "kerb":
        return edge - half + rng.uniform(0.3, 1.1), turn + rng.normal(0, 0.04)
    if mode == "bay":
        return edge + half + rng.uniform(0.1, 0.5), turn + rng.normal(0, 0.03)
    if mode == "square":
        return edge + size[0] / 2 + rng.uniform(0.1, 0.8), turn + np.pi / 2 + rng.normal(0, 0.05)
    return edge + size[0] / 2 + rng.uniform(0.0, 0.4), turn + slant + rng.normal(0, 0.04)


def _near_crossing(plan: Plan, s: float, margin: float) -> bool:
    return any(abs(s - place) < width / 2 + margin for place, width in plan.crossings)


def _cross_traffic(rng: np.random.Generator, street: Street, plan: Plan) -> None:
    """Vehicles on the roads across: driving, waiting, turning and parked."""
    for place, width in plan.crossings:
        for direction in (1, -1):
            t = -60.0 + rng.exponential(12)
            while t < 60:
                kind, mesh, size = _vehicle(rng, plan.traffic_mix)
                yaw = direction * np.pi / 2 + rng.normal(0, 0.05)
                if rng.random() < 0.15:
                    yaw += rng.uniform(-1, 1)
                lane = place + direction * width / 4 + rng.normal(0, 0.2)
                speed = rng.choice([0.0, rng.uniform(2, 10)])
                street.add(mesh, lane, t, yaw, kind, size=size, speed=speed)
                t += rng.exponential(18) + 5
        if rng.random() < 0.5:
            for t in np.arange(-60, 60, 5.8):
                if rng.random() < 0.5 and (t > plan.left + 6 or t < -plan.right - 6):
                    kind, mesh, size = _vehicle(rng, (0.94, 0.06, 0, 0))
                    side = rng.choice([-1, 1])
                    yaw = rng.choice([-1, 1]) * np.pi / 2 + rng.normal(0, 0.03)
                    lane = place + side * (width / 2 + rng.uniform(-0.9, 0.6))
                    street.add(mesh, lane, t, yaw, kind, size=size)


def _people(rng: np.random.Generator, street: Street, plan: Plan) -> None:
    """Pedestrians on sidewalks and crossing; cyclists on the road and beside it."""
    for _ in range(rng.poisson(plan.pedestrians)):
        s, side = rng.uniform(-60, 70), rng.choice([-1, 1])
        edge = plan.right if side < 0 else plan.left
        walk = plan.walks[0 if side < 0 else 1]
        for _ in range(rng.choice([1, 2, 3], p=[0.7, 0.22, 0.08])):
            t = side * (edge + rng.uniform(0.2, max(walk, 1.2)))
            yaw = rng.choice([0, np.pi]) + rng.normal(0, 0.3)
            if rng.random() < 0.2:
                t, yaw = rng.uniform(-plan.right, plan.left), rng.uniform(-np.pi, np.pi)
            mesh, size = people.pedestrian(rng)
            speed = rng.uniform(0.6, 1.7) if size[0] > 0.5 else 0.0
            street.add(mesh, s, t, yaw, "pedestrian", size=size, speed=speed, margin=0.05)
            s += rng.normal(0, 0.9)
    for _ in range(rng.poisson(plan.cyclists)):
        s, side = rng.uniform(-60, 70), rng.choice([-1, 1])
        edge = plan.right if side < 0 else plan.left
        t = side * (edge + rng.uniform(-1.5, 2.0))
        yaw = (0 if side < 0 else np.pi) + rng.normal(0, 0.08)
        if rng.random() < 0.2:
            t, yaw = rng.uniform(-plan.right, plan.left), rng.uniform(-np.pi, np.pi)
        mesh, size = people.cyclist(rng)
        street.add(mesh, s, t, yaw, "cyclist", size=size, speed=rng.uniform(1, 7))


def _roadside(rng: np.random.Generator, street: Street, plan: Plan, side: int) -> None:
    """Poles, trees, bicycles and furniture along the edge of the road."""
    edge = plan.right if side < 0 else plan.left
    walk = plan.walks[0 if side < 0 else 1]
    near = edge + rng.uniform(0.3, 0.8) + (5.2 if plan.parking[max(side, 0)] == "square" else 0)

    def along(spacing: float):
        s = -REACH + rng.uniform(0, spacing)
        while s < REACH:
            if not _near_crossing(plan, s, 1.5):
                yield s
            s += spacing * rng.uniform(0.6, 1.5)

    for s in along(plan.pole_spacing):
        t = side * (near + rng.uniform(-0.1, 0.4))
        street.add(clutter.pole(rng), s, t, -side * np.pi / 2, "pole", (0.4, 0.4))
    if rng.random() < plan.row_of_trees:
        for s in along(rng.uniform(6, 16)):
            t = side * (near + rng.uniform(0, 0.8))
            street.add(clutter.tree(rng), s, t, rng.uniform(0, 6), "vegetation", (0.7, 0.7))
    for _ in range(rng.poisson(plan.furniture)):
        t = side * (near + rng.uniform(0, max(walk, 1)))
        if rng.random() < 0.3:
            mesh, size = people.parked_bicycle(rng)
            footprint = (size[0], size[1])
        else:
            mesh = clutter.bollard(rng) if rng.random() < 0.4 else clutter.furniture(rng)
            low, high = mesh.bounds()
            footprint = tuple(2 * np.maximum(-low, high)[:2])
        yaw = rng.choice([0, np.pi / 2, np.pi]) + rng.normal(0, 0.1)
        street.add(mesh, rng.uniform(-60, 75), t, yaw, "clutter", footprint)
    if rng.random() < plan.rail:
        for s in np.arange(-REACH, REACH, 12.0):
            if not _near_crossing(plan, s, 8):
                mesh = clutter.guard_rail(rng, 11.9)
                street.add(mesh, s, side * (edge + 0.6), 0, "fence", (11.8, 0.3), margin=0.01)


def _frontage(rng: np.random.Generator, street: Street, plan: Plan, side: int) -> None:
    """Lots along the street, one after the other."""
    edge = plan.right if side < 0 else plan.left
    start = edge + plan.walks[0 if side < 0 else 1]
    start += 5.5 if plan.parking[0 if side < 0 else 1] in ("square", "slant", "bay") else 0
    s = -REACH
    while s < REACH:
        length = rng.uniform(9, 24)
        middle = s + length / 2
        if not _near_crossing(plan, middle, length / 2 + 1):
            kind = rng.choice(list(plan.lots), p=list(plan.lots.values()))
            LOTS[kind](rng, street, middle, side, start, length, plan)
        s += length + (rng.uniform(0, 6) if rng.random() < 0.4 else 0)


def _house(rng, street, s, side, start, length, plan) -> None:
    """A house behind a garden: an enclosure, plants, perhaps a car in the drive."""
    setback, depth = rng.uniform(1, 12), rng.uniform(8, 13)
    wide = length * rng.uniform(0.5, 0.85)
    place = s + rng.uniform(-0.5, 0.5) * (length - wide)
    yaw = 0 if side > 0 else np.pi
    mesh = clutter.building(rng, wide, depth)
    t = side * (start + setback)
    street.add(mesh, place, t, yaw, "building", (wide, depth), shift=depth / 2, margin=0.3)
    drive = rng.random() < 0.45
    if drive:
        kind, car, size = _vehicle(rng, (0.93, 0.07, 0, 0))
        angle = rng.choice([-1, 1]) * np.pi / 2 + rng.normal(0, 0.12)
        if rng.random() < 0.15:
            angle = rng.uniform(-np.pi, np.pi)
        t = side * (start + size[0] / 2 + rng.uniform(-1.0, 6))
        street.add(car, s + rng.choice([-1, 1]) * (length / 2 - 1.5), t, angle, kind, size=size)
    gap = 4.0 if drive else 1.2
    if setback > 1.5:
        _enclosure(rng, street, s, side * start, length - gap)
    for _ in range(rng.integers(0, 5)):
        t = side * (start + rng.uniform(0.5, setback + 1))
        _plant(rng, street, s + rng.uniform(-0.5, 0.5) * length, t)


def _enclosure(rng, street: Street, s: float, t: float, length: float) -> None:
    kind = rng.choice(4, p=[0.4, 0.25, 0.25, 0.1])
    if kind == 3 or length < 2:
        return
    maker = (clutter.hedge, clutter.wall, clutter.fence)[kind]
    semantic = ("vegetation", "fence", "fence")[kind]
    width = (0.9, 0.4, 0.2)[kind]
    street.add(
        maker(rng, length), s, t, rng.normal(0, 0.01), semantic, (length, width), margin=0.02
    )


def _plant(rng, street: Street, s: float, t: float) -> None:
    kind = rng.choice(3, p=[0.45, 0.4, 0.15])
    maker = (clutter.tree, clutter.bush, clutter.conifer)[kind]
    street.add(maker(rng), s, t, rng.uniform(0, 6), "vegetation", (0.8, 0.8))


def _block(rng, street, s, side, start, length, plan) -> None:
    """A building at the sidewalk."""
    depth, setback = rng.uniform(9, 20), rng.choice([0.0, rng.uniform(0, 4)])
    yaw = 0 if side > 0 else np.pi
    mesh = clutter.building(rng, length - 0.1, depth)
    t = side * (start + setback + 0.1)
    street.add(mesh, s, t, yaw, "building", (length - 0.1, depth), shift=depth / 2, margin=0.02)


def _wood(rng, street, s, side, start, length, plan) -> None:
    """Trees and undergrowth."""
    for _ in range(rng.integers(3, 9)):
        t = side * (start + rng.uniform(0.3, 16))
        _plant(rng, street, s + rng.uniform(-0.5, 0.5) * length, t)
    if rng.random() < 0.25:
        _enclosure(rng, street, s, side * start, length)


def _meadow(rng, street, s, side, start, length, plan) -> None:
    """Open land."""
    for _ in range(rng.integers(0, 3)):
        _plant(
            rng, street, s + rng.uniform(-0.5, 0.5) * length, side * (start + rng.uniform(1, 30))
        )
    if rng.random() < 0.3:
        mesh = clutter.furniture(rng)
        low, high = mesh.bounds()
        footprint = tuple(2 * np.maximum(-low, high)[:2])
        t = side * (start + rng.uniform(1, 20))
        street.add(mesh, s, t, rng.uniform(0, 6), "clutter", footprint)


def _car_park(rng, street, s, side, start, length, plan) -> None:
    """Rows of cars on a yard."""
    turn = rng.choice([0, np.pi / 2]) + rng.normal(0, 0.1)
    fill = rng.uniform(0.3, 0.9)
    for row in np.arange(3, rng.uniform(6, 30), 5.8 if turn > 0.8 else 2.9):
        for place in np.arange(
            s - length / 2 + 1.5, s + length / 2 - 1, 2.8 if turn > 0.8 else 5.6
        ):
            if rng.random() < fill:
                kind, mesh, size = _vehicle(rng, (0.92, 0.07, 0.01, 0))
                yaw = turn + rng.choice([0, np.pi]) + rng.normal(0, 0.06)
                street.add(mesh, place, side * (start + row), yaw, kind, size=size)


LOTS = {
    "house": _house,
    "block": _block,
    "wood": _wood,
    "meadow": _meadow,
    "car_park": _car_park,
}
