"""Coloured scans of a room, as one gets by walking through it with a depth camera."""

import numpy as np

from sparse3d.datasets.grounding import Room

from .layout import Interior
from .render import Stage

LEAST_POINTS = 40  # of an object, per 50,000 of the scan: fewer are not annotated
RAYS_PER_POINT = 9
KINDS = {"floor_lamp": "lamp", "table_lamp": "lamp", "small_plant": "plant", "small_box": "box"}


def scan(stage: Stage, rng: np.random.Generator, count: int = 50_000) -> Room:
    """What a depth camera sees of the room, fused: at most ``count`` points in random order.

    Boxes are the extents of the objects' points; objects of which next to nothing is seen have
    none. ``ids`` are rows of the interior's things.
    """
    views = 20
    side = int(np.sqrt(RAYS_PER_POINT * count / views))
    points, faces, depths, eyes = [], [], [], []
    for number in range(views):
        eye, direction = _view(rng, stage.interior, number / views, side)
        hits = stage.cast(np.broadcast_to(eye, direction.shape), direction)
        seen = hits.depth > 0.2
        points.append(eye + direction[hits.rows[seen]] * hits.depth[seen, None])
        faces.append(hits.face[seen])
        depths.append(hits.depth[seen])
        eyes.append(np.broadcast_to(eye, points[-1].shape))
    points, faces, depths, eyes = map(np.concatenate, (points, faces, depths, eyes))
    spacing = 0.026 * np.sqrt(50_000 / count)
    kept = _thinned(points, depths, spacing)
    kept = rng.permutation(kept)[:count]
    points, faces, depths, eyes = points[kept], faces[kept], depths[kept], eyes[kept]
    color = stage.color(points, faces, eyes)
    color = np.clip(color * rng.uniform(0.9, 1.08) + rng.normal(0, 0.012, color.shape), 0, 1)
    sigma = 0.001 + 0.0006 * depths**2
    way = (points - eyes) / depths[:, None]
    points = points + way * (rng.normal(0, 1, len(points)) * sigma)[:, None]
    return _annotated(stage, points, color, stage.owner[faces], count)


def free_place(interior: Interior, place: np.ndarray, margin: float = 0.3) -> bool:
    """Whether an eye at ``place`` [3] is clear of everything by ``margin``."""
    for thing in interior.things:
        low, high = thing.bounds()
        if (place > low - margin).all() and (place < high + margin).all():
            return False
    return bool((np.abs(place[:2]) < interior.size[:2] / 2 - margin).all())


def _view(rng, interior: Interior, turn: float, side: int) -> tuple[np.ndarray, np.ndarray]:
    """An eye on a loop through the room, and unit directions [side**2, 3]."""
    angle = 2 * np.pi * turn + rng.normal(0, 0.2)
    for _ in range(40):
        reach = rng.uniform(0.1, 0.42) * interior.size[:2]
        eye = np.array([*(reach * [np.cos(angle), np.sin(angle)]), rng.uniform(1.3, 1.85)])
        if free_place(interior, eye):
            break
        angle += 0.3
    # Across the room on the even views, to the near wall on the odd ones.
    look = angle + (np.pi if int(turn * 20) % 2 == 0 else 0) + rng.normal(0, 0.6)
    pitch = rng.uniform(-0.6, -0.1)
    u, v = np.meshgrid(np.linspace(-0.9, 0.9, side), np.linspace(-0.75, 0.75, side))
    u = u + rng.uniform(-0.9, 0.9, u.shape) / side
    v = v + rng.uniform(-0.75, 0.75, v.shape) / side
    forward = np.array([np.cos(look) * np.cos(pitch), np.sin(look) * np.cos(pitch), np.sin(pitch)])
    right = np.array([np.sin(look), -np.cos(look), 0.0])
    down = np.cross(forward, right)
    direction = forward + u.reshape(-1, 1) * right + v.reshape(-1, 1) * down
    return eye, direction / np.linalg.norm(direction, axis=1, keepdims=True)


def _thinned(points: np.ndarray, depth: np.ndarray, spacing: float) -> np.ndarray:
    """Rows of the points seen from nearest by, one per cell of ``spacing`` metres."""
    cell = np.floor(points / spacing).astype(np.int64) + 2**20
    key = (cell[:, 0] << 42) + (cell[:, 1] << 21) + cell[:, 2]
    order = np.lexsort((depth, key))
    first = np.ones(len(order), bool)
    first[1:] = np.diff(key[order]) != 0
    return order[first]


def _annotated(stage: Stage, points, color, owner, count: int) -> Room:
    """The scan with a box around the points of each thing that has enough of them."""
    points = np.round(points, 3)
    seen = np.bincount(owner[owner >= 0], minlength=len(stage.interior.things))
    ids = np.flatnonzero(seen >= max(LEAST_POINTS * len(points) / 50_000, 2)).tolist()
    row = np.full(len(stage.interior.things) + 1, -1)
    row[ids] = np.arange(len(ids))
    instance = row[np.maximum(owner, -1)]
    boxes = np.zeros((len(ids), 6), np.float32)
    for number in range(len(ids)):
        mine = points[instance == number]
        low, high = mine.min(0), mine.max(0)
        boxes[number] = np.concatenate([(low + high) / 2, np.maximum(high - low, 0.01)])
    things = [stage.interior.things[i] for i in ids]
    names = [KINDS.get(t.piece.kind, t.piece.kind) for t in things]
    colored = np.concatenate([points, np.round(255 * color) / 255], 1).astype(np.float32)
    return Room(colored, instance.astype(np.int64), boxes, names, ids)
