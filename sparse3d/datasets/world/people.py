"""Pedestrians, cyclists and bicycles. Each call of a maker draws another body, dress and pose.

A maker returns the mesh and the size (length, width, height) of its bounds in metres; x is forward.
"""

import numpy as np

from .materials import Material as M
from .shapes import Mesh, box, disc, ellipsoid, fitted, merge, ring, tube


def _at(x: float, y: float, z: float) -> np.ndarray:
    return np.array([x, y, z])


def _leg(hip: np.ndarray, swing: float, bend: float, length: float, radius: float) -> list[Mesh]:
    """Thigh, shank and foot; ``swing`` forward and ``bend`` of the knee in radians."""
    knee = hip + 0.5 * length * np.array([np.sin(swing), 0, -np.cos(swing)])
    back = swing - bend
    ankle = knee + 0.5 * length * np.array([np.sin(back), 0, -np.cos(back)])
    return [
        tube(hip, knee, (radius, radius * 0.75), M.CLOTH, 5),
        tube(knee, ankle, (radius * 0.75, radius * 0.55), M.CLOTH, 5),
        box(ankle + _at(0.06, 0, 0.02), (0.26, 0.09, 0.08), M.CLOTH),
    ]


def _arm(shoulder: np.ndarray, swing: float, bend: float, length: float) -> list[Mesh]:
    elbow = shoulder + 0.5 * length * np.array([np.sin(swing), 0, -np.cos(swing)])
    fore = swing + bend
    hand = elbow + 0.5 * length * np.array([np.sin(fore), 0, -np.cos(fore)])
    return [
        tube(shoulder, elbow, (0.055, 0.048), M.CLOTH, 5),
        tube(elbow, hand, (0.045, 0.035), M.CLOTH, 5),
    ]


def _trunk(hip: np.ndarray, lean: float, tall: float, wide: float, deep: float) -> tuple:
    """Torso and head above ``hip``, leaning forward; returns meshes and the shoulders' middle."""
    up = np.array([np.sin(lean), 0, np.cos(lean)])
    chest = hip + 0.27 * tall * up
    neck = hip + 0.315 * tall * up
    head = neck + 0.095 * tall * np.array([np.sin(lean * 0.4), 0, np.cos(lean * 0.4)])
    middle = (hip + chest) / 2
    belly = ellipsoid((0, 0, 0), (deep, wide, 0.19 * tall), M.CLOTH, 5, 8)
    cos, sin = np.cos(lean), np.sin(lean)
    tilt = np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])
    belly = Mesh(belly.vertices @ tilt.T + middle, belly.faces, belly.material)
    parts = [
        belly,
        tube(chest - 0.02 * up, neck, (0.07, 0.055), M.SKIN, 6),
        ellipsoid(head, (0.10, 0.085, 0.065 * tall), M.SKIN, 4, 7),
    ]
    return parts, hip + 0.265 * tall * up


def pedestrian(rng: np.random.Generator) -> tuple[Mesh, np.ndarray]:
    """Somebody walking or standing, a child at times, perhaps with a bag or a skirt."""
    tall = (
        rng.uniform(1.05, 1.5) if rng.random() < 0.1 else np.clip(rng.normal(1.72, 0.09), 1.5, 2.0)
    )
    wide = rng.uniform(0.105, 0.145) * tall
    deep = rng.uniform(0.08, 0.13) * tall
    walking = rng.random() < 0.75
    stride = rng.uniform(0.15, 0.55) * rng.choice([-1, 1]) if walking else rng.uniform(-0.08, 0.08)
    leg = 0.49 * tall
    hip = np.array([0, 0, leg * np.cos(stride) + 0.02])
    parts, shoulders = _trunk(hip, rng.uniform(-0.03, 0.12), tall, wide, deep)
    for side in (1, -1):
        joint = hip + _at(0, side * 0.05 * tall, 0)
        swing = side * stride
        bend = max(0.0, -swing) * rng.uniform(0.4, 1.3) if walking else 0.0
        parts += _leg(joint, swing, bend, leg, rng.uniform(0.07, 0.1))
        held = rng.random() < 0.2
        arm = rng.uniform(0.3, 1.0) if held else -0.8 * swing + rng.uniform(-0.1, 0.1)
        elbow = rng.uniform(0.6, 1.8) if held else rng.uniform(0.05, 0.5)
        parts += _arm(shoulders + _at(0, side * (wide + 0.045), 0), arm, elbow, 0.40 * tall)
    parts += _belongings(rng, shoulders, hip, wide, deep)
    return fitted(merge(parts))


def _belongings(
    rng, shoulders: np.ndarray, hip: np.ndarray, wide: float, deep: float
) -> list[Mesh]:
    parts = []
    if rng.random() < 0.2:
        middle = shoulders - (deep + 0.08, 0, 0.2)
        parts.append(ellipsoid(middle, (0.13, 0.16, 0.25), M.CLOTH, 4, 7))
    if rng.random() < 0.15:
        side = rng.choice([-1, 1])
        middle = hip + _at(rng.uniform(-0.1, 0.1), side * (wide + 0.12), -0.12)
        parts.append(box(middle, (0.32, 0.14, 0.3), M.CLOTH))
    if rng.random() < 0.15:
        parts.append(
            tube(hip + _at(0, 0, 0.05), hip * (1, 1, 0.45), (wide, wide * 1.5), M.CLOTH, 8)
        )
    return parts


def bicycle(rng: np.random.Generator) -> Mesh:
    """A bicycle standing on its wheels; origin on the ground under the middle of the frame."""
    radius, base = rng.uniform(0.31, 0.36), rng.uniform(0.50, 0.56)
    front, rear = np.array([base, 0, radius]), np.array([-base, 0, radius])
    crank, seat = np.array([-0.08, 0, 0.29]), np.array([-0.26, 0, rng.uniform(0.85, 1.0)])
    head = np.array([base - 0.22, 0, rng.uniform(0.80, 0.95)])
    bar = head + _at(-0.02, 0, rng.uniform(0.08, 0.22))
    pipes = [
        (crank, seat), (crank, head), (seat - (0, 0, 0.15), head - (0, 0, 0.05)),
        (crank, rear), (seat - (0, 0, 0.15), rear), (front, bar),
    ]  # fmt: skip
    parts = [tube(a, b, (0.026, 0.026), M.METAL, 4) for a, b in pipes]
    parts.append(tube(bar - (0, 0.28, 0), bar + _at(0, 0.28, 0), (0.018, 0.018), M.METAL, 4))
    parts.append(box(seat + _at(0, 0, 0.03), (0.26, 0.15, 0.07), M.RUBBER))
    for axle in (front, rear):
        parts.append(ring(axle, radius, 0.03, M.RUBBER))
        parts.append(disc(axle, radius * 0.92, 1, M.LATTICE, 10))
    if rng.random() < 0.4:
        parts.append(
            box(rear + _at(0, 0, radius + 0.12), (0.42, rng.uniform(0.14, 0.4), 0.1), M.METAL)
        )
    if rng.random() < 0.2:
        parts.append(box(head + _at(0.2, 0, 0.12), (0.3, 0.36, 0.25), M.LATTICE))
    return merge(parts)


def cyclist(rng: np.random.Generator) -> tuple[Mesh, np.ndarray]:
    """Somebody riding a bicycle."""
    tall = np.clip(rng.normal(1.73, 0.09), 1.45, 1.95)
    bike = bicycle(rng)
    hip = np.array([-0.24, 0, rng.uniform(0.90, 1.02)])
    lean = rng.uniform(0.1, 0.75)
    wide = rng.uniform(0.11, 0.15) * tall
    parts, shoulders = _trunk(hip, lean, tall * 0.97, wide, rng.uniform(0.085, 0.13) * tall)
    pedal = rng.uniform(0, 2 * np.pi)
    for side in (1, -1):
        phase = pedal + (0 if side > 0 else np.pi)
        foot = np.array([-0.06, 0, 0.30]) + 0.17 * np.array([np.cos(phase), 0, np.sin(phase)])
        foot = foot + _at(0, side * 0.11, 0)
        joint = hip + _at(0, side * 0.09, -0.02)
        knee = (joint + foot) / 2 + (rng.uniform(0.14, 0.22), 0, 0.10)
        parts.append(tube(joint, knee, (0.1, 0.075), M.CLOTH, 5))
        parts.append(tube(knee, foot, (0.06, 0.045), M.CLOTH, 5))
        parts.append(box(foot + _at(0.05, 0, -0.02), (0.25, 0.09, 0.07), M.CLOTH))
        hand = np.array([0.30, side * 0.25, 1.02])
        start = shoulders + _at(0, side * (wide + 0.03), 0)
        elbow = (start + hand) / 2 + (-0.03, side * 0.06, -0.06)
        parts.append(tube(start, elbow, (0.065, 0.055), M.CLOTH, 5))
        parts.append(tube(elbow, hand, (0.045, 0.035), M.CLOTH, 5))
    if rng.random() < 0.25:
        parts.append(ellipsoid(shoulders - (0.14, 0, 0.15), (0.14, 0.16, 0.25), M.CLOTH, 4, 7))
    return fitted(merge([bike, *parts]))


def bicycle_rack(rng: np.random.Generator) -> Mesh:
    """A row of parked bicycles side by side: clutter of a car's size."""
    kinds = [fitted(bicycle(rng))[0] for _ in range(2)]
    count = rng.integers(3, 11)
    pitch = rng.uniform(0.32, 0.7)
    parts = []
    for place in (np.arange(count) - (count - 1) / 2) * pitch:
        shift = (rng.normal(0, 0.12), place + rng.normal(0, 0.05), 0)
        turn = rng.normal(0, 0.12) + rng.choice([0, np.pi])
        parts.append(kinds[rng.integers(2)].moved(shift, turn))
    return merge(parts)


def parked_bicycle(rng: np.random.Generator) -> tuple[Mesh, np.ndarray]:
    """A bicycle that nobody rides: clutter."""
    return fitted(bicycle(rng))
