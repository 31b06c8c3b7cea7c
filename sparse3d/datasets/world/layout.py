"""Seeded layouts: how a street is filled, in road coordinates (see ``ground``).

Lanes of traffic both ways, rows of parked cars, sidewalks with people, fronts of houses, gardens,
woods or open land, and roads across.
"""

import numpy as np

from . import clutter, people, vehicles
from .ground import Crossing, Road
from .plans import Plan, draw_plan
from .shapes import Mesh
from .streets import REACH, Street


def lay_out(rng: np.random.Generator, front: bool = False) -> Street:
    """A street drawn from ``rng``; with ``front`` only the part ahead of the sensor is filled."""
    plan = draw_plan(rng)
    street = Street(_draw_road(rng, plan), plan.ego, front)
    if rng.random() < plan.dead_end:
        _end(rng, street)
    _traffic(rng, street, plan)
    _parked(rng, street, plan)
    _cross_traffic(rng, street, plan)
    _people(rng, street, plan)
    for side in (-1, 1):
        _roadside(rng, street, plan, side)
        _frontage(rng, street, plan, side)
    return street


def _end(rng: np.random.Generator, street: Street) -> None:
    """A building across the road: a square, a yard or the head of a T-junction."""
    length, depth = rng.uniform(12, 45), rng.uniform(8, 15)
    mesh = clutter.building(rng, length, depth)
    s, t = rng.uniform(11, 50), rng.uniform(-0.3, 0.3) * length
    yaw = rng.normal(0, 0.15) - np.pi / 2
    street.add(mesh, s, t, yaw, "building", (length, depth), shift=depth / 2)


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
                length = 4.5
                if street.sees(s, t):
                    kind, mesh, size = _vehicle(rng, plan.traffic_mix)
                    yaw = rng.normal(0, 0.025) + (0 if direction > 0 else np.pi)
                    street.add(mesh, s, t + rng.normal(0, 0.2), yaw, kind, size=size, speed=speed)
                    length = size[0]
                s += length / 2 + 4.5 + (rng.uniform(0, gap) if queue else rng.exponential(gap))


def _parked(rng: np.random.Generator, street: Street, plan: Plan) -> None:
    """Rows of parked cars on both sides of the road."""
    for side in (-1, 1):
        mode = plan.parking[0 if side < 0 else 1]
        if mode == "none":
            continue
        edge = plan.right if side < 0 else plan.left
        occupancy = plan.occupancy * rng.uniform(0.6, 1.0)
        s = -REACH + rng.uniform(0, 6)
        slant = rng.uniform(0.7, 1.2) * rng.choice([-1, 1])
        while s < REACH:
            pitch = (
                rng.uniform(5.0, 6.4) if mode in ("lane", "kerb", "bay") else rng.uniform(2.4, 3.1)
            )
            if not _near_crossing(plan, s, 5) and street.sees(s, side * edge):
                if rng.random() < occupancy:
                    kind, mesh, size = _vehicle(rng, (0.93, 0.06, 0.01, 0.0))
                    t, yaw = _berth(rng, mode, edge, size, slant)
                    street.add(mesh, s + rng.normal(0, 0.25), side * t, yaw, kind, size=size)
                elif rng.random() < 0.06:
                    maker = clutter.trailer if rng.random() < 0.4 else clutter.scooter
                    _drop(street, maker(rng), s, side * (edge - 1), rng.choice([0, np.pi / 2]))
            s += pitch
            if rng.random() < 0.06:
                s += rng.uniform(3, 20)


def _drop(street: Street, mesh: Mesh, s: float, t: float, yaw: float, name="clutter") -> bool:
    """Puts down something without a box, its footprint that of its bounds."""
    low, high = mesh.bounds()
    footprint = tuple(2 * np.maximum(-low, high)[:2])
    return street.add(mesh, s, t, yaw, name, footprint)


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
                if street.sees(place, t):
                    kind, mesh, size = _vehicle(rng, plan.traffic_mix)
                    # On a road across, driving towards +t means keeping to the greater s.
                    yaw = direction * np.pi / 2 + rng.normal(0, 0.05)
                    if rng.random() < 0.15:
                        yaw += rng.uniform(-1, 1)
                    lane = place + direction * width / 4 + rng.normal(0, 0.2)
                    speed = rng.choice([0.0, rng.uniform(2, 10)])
                    street.add(mesh, lane, t, yaw, kind, size=size, speed=speed)
                t += rng.exponential(0.8 * plan.headway) + 6
        if rng.random() < 0.5:
            for t in np.arange(-60, 60, 5.8):
                beside = t > plan.left + 6 or t < -plan.right - 6
                if beside and rng.random() < 0.7 * plan.occupancy and street.sees(place, t):
                    kind, mesh, size = _vehicle(rng, (0.94, 0.06, 0, 0))
                    side = rng.choice([-1, 1])
                    yaw = rng.choice([-1, 1]) * np.pi / 2 + rng.normal(0, 0.03)
                    lane = place + side * (width / 2 + rng.uniform(-0.9, 0.6))
                    street.add(mesh, lane, t, yaw, kind, size=size)


def _people(rng: np.random.Generator, street: Street, plan: Plan) -> None:
    """Pedestrians on sidewalks and crossing; cyclists on the road and beside it."""
    for _ in range(rng.poisson(plan.pedestrians)):
        s, side = rng.uniform(-60, 70), rng.choice([-1, 1])
        if not street.sees(s, 0):
            continue
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
        if not street.sees(s, 0):
            continue
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
            if not _near_crossing(plan, s, 1.5) and street.sees(s, side * near):
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
        s, t = rng.uniform(-60, 75), side * (near + rng.uniform(0, max(walk, 1)))
        if street.sees(s, t):
            yaw = rng.choice([0, np.pi / 2, np.pi]) + rng.normal(0, 0.1)
            _drop(street, _furniture(rng), s, t, yaw)
    if rng.random() < plan.border:
        _border(rng, street, plan, side, edge + rng.choice([0.7, walk + 0.4]))


def _furniture(rng: np.random.Generator) -> Mesh:
    kind = rng.choice(5, p=[0.13, 0.05, 0.3, 0.4, 0.12])
    if kind == 0:
        return people.parked_bicycle(rng)[0]
    if kind == 4:
        return people.bicycle_rack(rng)
    return (clutter.scooter, clutter.bollard, clutter.furniture)[kind - 1](rng)


def _border(rng, street: Street, plan: Plan, side: int, t: float) -> None:
    """One hedge, wall, fence, rail or thicket all along a side of the road."""
    maker, semantic, width = (
        (clutter.hedge, "vegetation", 0.9),
        (clutter.wall, "fence", 0.4),
        (clutter.fence, "fence", 0.2),
        (clutter.guard_rail, "fence", 0.3),
        (clutter.thicket, "vegetation", 1.6),
    )[rng.choice(5, p=plan.border_mix)]
    alike = int(rng.integers(2**32))
    for s in np.arange(-REACH, REACH, 10.0):
        if not _near_crossing(plan, s, 6) and street.sees(s, side * t) and rng.random() < 0.93:
            # Equal numbers for every piece, or it would change its height every ten metres.
            mesh = maker(np.random.default_rng(alike), 9.95)
            yaw = 0 if side > 0 else np.pi
            street.add(mesh, s, side * t, yaw, semantic, (9.9, width), margin=0.01)


def _frontage(rng: np.random.Generator, street: Street, plan: Plan, side: int) -> None:
    """Lots along the street, one after the other."""
    edge = plan.right if side < 0 else plan.left
    start = edge + plan.walks[0 if side < 0 else 1]
    start += 5.5 if plan.parking[0 if side < 0 else 1] in ("square", "slant", "bay") else 0
    s = -REACH
    while s < REACH:
        length = rng.uniform(9, 24)
        middle = s + length / 2
        if street.sees(middle, side * (start + 6), 22) and not _near_crossing(
            plan, middle, length / 2 + 1
        ):
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
    for _ in range(rng.integers(2, 9)):
        t = side * (start + rng.uniform(0.5, setback + 1))
        _plant(rng, street, s + rng.uniform(-0.5, 0.5) * length, t)
    if rng.random() < 0.15:
        _drop(
            street, clutter.trailer(rng), s, side * (start + rng.uniform(1, 6)), rng.uniform(0, 6)
        )


def _enclosure(rng, street: Street, s: float, t: float, length: float) -> None:
    kind = rng.choice(4, p=[0.5, 0.2, 0.2, 0.1])
    if kind == 3 or length < 2:
        return
    maker = (clutter.hedge, clutter.wall, clutter.fence)[kind]
    semantic = ("vegetation", "fence", "fence")[kind]
    width = (0.9, 0.4, 0.2)[kind]
    street.add(
        maker(rng, length), s, t, rng.normal(0, 0.01), semantic, (length, width), margin=0.02
    )


def _plant(rng, street: Street, s: float, t: float) -> None:
    kind = rng.choice(3, p=[0.4, 0.45, 0.15])
    maker = (clutter.tree, clutter.bush, clutter.conifer)[kind]
    street.add(maker(rng), s, t, rng.uniform(0, 6), "vegetation", (0.8, 0.8))


def _block(rng, street, s, side, start, length, plan) -> None:
    """A building at the sidewalk."""
    depth, setback = rng.uniform(9, 20), rng.choice([0.0, rng.uniform(0, 4)])
    yaw = 0 if side > 0 else np.pi
    mesh = clutter.building(rng, length - 0.1, depth)
    t = side * (start + setback + 0.1)
    for _ in range(rng.integers(0, 5) if setback > 1 else 0):
        _plant(
            rng, street, s + rng.uniform(-0.5, 0.5) * length, side * (start + rng.uniform(0.2, 1))
        )
    street.add(mesh, s, t, yaw, "building", (length - 0.1, depth), shift=depth / 2, margin=0.02)


def _garages(rng, street, s, side, start, length, plan) -> None:
    """Garages close to the road, with a car before them at times."""
    length, depth, setback = min(length, rng.uniform(3, 14)), rng.uniform(5, 7), rng.uniform(0, 5.5)
    yaw = 0 if side > 0 else np.pi
    mesh = clutter.garage(rng, length, depth)
    t = side * (start + setback)
    street.add(mesh, s, t, yaw, "building", (length, depth), shift=depth / 2, margin=0.05)
    if setback > 3:
        kind, car, size = _vehicle(rng, (0.93, 0.07, 0, 0))
        angle = rng.choice([-1, 1]) * np.pi / 2 + rng.normal(0, 0.08)
        t = side * (start + setback - size[0] / 2 - rng.uniform(0.3, 1))
        street.add(car, s + rng.uniform(-0.3, 0.3) * length, t, angle, kind, size=size)


def _wood(rng, street, s, side, start, length, plan) -> None:
    """Trees and undergrowth."""
    for _ in range(rng.integers(5, 15)):
        t = side * (start + 14 * rng.random() ** 1.5)
        _plant(rng, street, s + rng.uniform(-0.5, 0.5) * length, t)
    if rng.random() < 0.65:
        mesh = clutter.thicket(rng, length * 0.8)
        t = side * (start + rng.uniform(0.5, 3))
        street.add(mesh, s, t, 0, "vegetation", (length * 0.8, 1.5), margin=0.0)


def _meadow(rng, street, s, side, start, length, plan) -> None:
    """Open land."""
    for _ in range(rng.integers(0, 3)):
        _plant(
            rng, street, s + rng.uniform(-0.5, 0.5) * length, side * (start + rng.uniform(1, 30))
        )
    if rng.random() < 0.35:
        maker = (clutter.furniture, clutter.trailer, clutter.heap)[rng.integers(3)]
        t = side * (start + rng.uniform(1, 20))
        _drop(street, maker(rng), s, t, rng.uniform(0, 6))


def _car_park(rng, street, s, side, start, length, plan) -> None:
    """Rows of cars on a yard."""
    turn = rng.choice([0, np.pi / 2]) + rng.normal(0, 0.1)
    fill = plan.occupancy * rng.uniform(0.5, 1.0)
    for row in np.arange(3, rng.uniform(6, 30), 5.8 if turn > 0.8 else 2.9):
        for place in np.arange(
            s - length / 2 + 1.5, s + length / 2 - 1, 2.8 if turn > 0.8 else 5.6
        ):
            if rng.random() < fill and street.sees(place, side * (start + row)):
                kind, mesh, size = _vehicle(rng, (0.92, 0.07, 0.01, 0))
                yaw = turn + rng.choice([0, np.pi]) + rng.normal(0, 0.06)
                street.add(mesh, place, side * (start + row), yaw, kind, size=size)


LOTS = {
    "house": _house,
    "block": _block,
    "garages": _garages,
    "wood": _wood,
    "meadow": _meadow,
    "car_park": _car_park,
}
