"""What a street of each style is made of, in numbers that are drawn anew for each frame."""

from dataclasses import dataclass

import numpy as np

STYLES = ("residential", "city", "avenue", "rural", "yard", "alley")
STYLE_SHARES = (0.35, 0.2, 0.15, 0.11, 0.11, 0.08)


@dataclass(frozen=True)
class Plan:
    """One street's numbers; right (driving forward) before left. Metres, radians.

    Attributes:
        lane_width, lanes: lanes forward and back.
        right, left: half widths of the roadway, lanes and parking strips together.
        parking: how cars park on each side.
        walks, kerb, banks, bend, paved, crossings: see ``ground.Road``.
        headway: mean gap between vehicles of a lane.
        traffic_mix: shares of cars, vans, trucks and buses.
        pedestrians, cyclists, furniture: expected numbers (furniture per side).
        pole_spacing: mean distance of poles.
        row_of_trees, border: probability of a row of trees, of one fence or the like all along.
        border_mix: shares of hedges, walls, fences, rails and thickets among these.
        occupancy: share of the parking places that are taken.
        dead_end: probability of a building across the road.
        lots: shares of what lies beyond the sidewalks.
        ego: (t, yaw) of the sensor.
    """

    lane_width: float
    lanes: tuple[int, int]
    right: float
    left: float
    parking: tuple[str, str]
    walks: tuple[float, float]
    kerb: float
    banks: tuple[float, float]
    bend: float
    paved: bool
    crossings: tuple[tuple[float, float], ...]
    headway: float
    traffic_mix: tuple[float, ...]
    pedestrians: float
    cyclists: float
    furniture: float
    pole_spacing: float
    row_of_trees: float
    border: float
    border_mix: tuple[float, ...]
    occupancy: float
    dead_end: float
    lots: dict[str, float]
    ego: tuple[float, float]


LOTS = {
    "residential": {
        "house": 0.56,
        "block": 0.08,
        "garages": 0.04,
        "wood": 0.23,
        "meadow": 0.05,
        "car_park": 0.04,
    },
    "city": {"house": 0.14, "block": 0.55, "wood": 0.20, "meadow": 0.03, "car_park": 0.08},
    "avenue": {"house": 0.14, "block": 0.2, "wood": 0.45, "meadow": 0.14, "car_park": 0.07},
    "rural": {"house": 0.1, "block": 0.0, "wood": 0.6, "meadow": 0.28, "car_park": 0.02},
    "yard": {"house": 0.1, "block": 0.25, "wood": 0.15, "meadow": 0.1, "car_park": 0.4},
    "alley": {"house": 0.25, "block": 0.25, "garages": 0.25, "wood": 0.2, "car_park": 0.05},
}
PARKING = {
    "residential": (("none", "lane", "kerb", "bay", "square"), (0.15, 0.4, 0.3, 0.1, 0.05)),
    "city": (
        ("none", "lane", "kerb", "bay", "square", "slant"),
        (0.2, 0.35, 0.12, 0.15, 0.1, 0.08),
    ),
    "avenue": (("none", "lane", "bay", "square"), (0.6, 0.2, 0.15, 0.05)),
    "rural": (("none", "lane", "kerb"), (0.85, 0.1, 0.05)),
    "yard": (("none", "lane", "square", "slant"), (0.3, 0.2, 0.35, 0.15)),
    "alley": (("none", "lane", "kerb"), (0.5, 0.3, 0.2)),
}
BORDER_MIX = {
    "residential": (0.38, 0.14, 0.14, 0.0, 0.34),
    "city": (0.3, 0.17, 0.17, 0.04, 0.32),
    "avenue": (0.15, 0.08, 0.1, 0.2, 0.47),
    "rural": (0.05, 0.05, 0.1, 0.3, 0.5),
    "yard": (0.2, 0.25, 0.4, 0.05, 0.1),
    "alley": (0.35, 0.35, 0.2, 0.0, 0.1),
}
HEADWAY = {"residential": 45, "city": 22, "avenue": 20, "rural": 45, "yard": 40, "alley": 60}
LANE_WIDTH = {
    "residential": (2.2, 3.0),
    "city": (2.8, 3.5),
    "avenue": (3.1, 3.8),
    "rural": (2.7, 3.6),
    "yard": (2.5, 3.5),
    "alley": (1.7, 2.4),
}
PEOPLE = {  # pedestrians, cyclists: more than on most streets, so that few frames show many
    "residential": (6, 4),
    "city": (20, 10),
    "avenue": (8, 7),
    "rural": (2, 3),
    "yard": (7, 3),
    "alley": (4, 2),
}


def draw_plan(rng: np.random.Generator) -> Plan:
    """The numbers of one street."""
    style = STYLES[rng.choice(len(STYLES), p=STYLE_SHARES)]
    lane_width = rng.uniform(*LANE_WIDTH[style])
    many = style == "avenue" and rng.random() < 0.7
    lanes = (int(rng.integers(1, 4)), int(rng.integers(1, 4))) if many else (1, 1)
    modes, shares = PARKING[style]
    parking = tuple(str(rng.choice(modes, p=shares)) for _ in range(2))
    strip = [rng.uniform(1.9, 2.3) if mode == "lane" else 0.0 for mode in parking]
    pedestrians, cyclists = PEOPLE[style]
    busy = rng.gamma(2.0, 0.5)
    ditch = -0.12 if style == "rural" else 0.0
    trucks = rng.uniform(0.05, 0.25) if style in ("avenue", "rural") else rng.uniform(0.02, 0.16)
    return Plan(
        lane_width=lane_width,
        lanes=lanes,
        right=lanes[0] * lane_width + strip[0],
        left=lanes[1] * lane_width + strip[1],
        parking=parking,
        walks=tuple(rng.uniform(0.8, 4.5, 2) * (0.4 if style == "alley" else 1.0)),
        kerb=0.0 if style in ("rural", "yard", "alley") else rng.uniform(0.04, 0.17),
        banks=(rng.normal(ditch / 3, 0.03), rng.normal(ditch / 3, 0.03)),
        bend=rng.normal(0, 0.0025) if rng.random() < 0.6 else 0.0,
        paved=style in ("city", "yard") and rng.random() < 0.8,
        crossings=_draw_crossings(rng, style),
        headway=HEADWAY[style] * rng.uniform(0.4, 2.5),
        traffic_mix=(0.94 - 1.25 * trucks, 0.06, trucks, 0.25 * trucks),
        pedestrians=pedestrians * busy,
        cyclists=cyclists * rng.gamma(2.0, 0.5),
        furniture=rng.uniform(0, 9) if style != "rural" else rng.uniform(0, 2),
        pole_spacing=rng.uniform(9, 40),
        row_of_trees=0.35,
        border=0.72,
        border_mix=BORDER_MIX[style],
        occupancy=rng.uniform(0.05, 1.0),
        dead_end={"city": 0.12, "yard": 0.3, "alley": 0.15}.get(style, 0.02),
        lots=LOTS[style],
        ego=_draw_ego(rng, lanes[0], lane_width, style),
    )


def _draw_crossings(rng: np.random.Generator, style: str) -> tuple[tuple[float, float], ...]:
    chance = {"residential": 0.5, "city": 0.7, "avenue": 0.55}
    if rng.random() > chance.get(style, 0.25):
        return ()
    first = rng.uniform(-30, 60)
    crossings = [(first, rng.uniform(4.5, 14))]
    if rng.random() < 0.35:
        crossings.append((first + rng.choice([-1, 1]) * rng.uniform(25, 60), rng.uniform(4.5, 10)))
    return tuple(crossings)


def _draw_ego(rng, lanes: int, lane_width: float, style: str) -> tuple[float, float]:
    """Mostly in a lane and along it, at times askew or turning."""
    t = -(rng.integers(lanes) + 0.5) * lane_width + rng.normal(0, 0.3)
    if style == "residential" and rng.random() < 0.6:
        t = rng.uniform(-0.6, 0.3) * lane_width
    yaw = rng.normal(0, 0.035)
    if rng.random() < 0.12:
        yaw = rng.uniform(-np.pi / 2, np.pi / 2)
    return float(t), float(yaw)
