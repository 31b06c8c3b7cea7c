"""Posed RGB-D pictures of a room, as nerfstudio and as the 7-Scenes data set have them.

One folder serves both: seq-01 (mapping) and seq-02 (another walk, for queries) with
frame-NNNNNN.color.png, .depth.png (16 bit, millimetres along the optical axis, 0: nothing) and
.pose.txt (camera to world; x right, y down, z forward); TrainSplit.txt, TestSplit.txt,
intrinsics.json; and transforms.json of the mapping pictures with points.ply.
Principal points count from the corner of the picture: its middle is (width / 2, height / 2).
"""

import json
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from sparse3d.structures.ply import write_ply

from ..generate import frame_seed, run_jobs
from .generate import build, room_generator
from .layout import Interior
from .render import Stage
from .scan import free_place, scan

FOCAL = 0.82  # of the width
SAMPLES = ((0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75))
NOISE = 0.004
SEQUENCES = ("seq-01", "seq-02")
FLIP = np.diag([1.0, -1.0, -1.0, 1.0])  # OpenGL's camera from ours
POINTS = 20_000  # of points.ply


def camera_path(
    interior: Interior, rng: np.random.Generator, count: int, turns: float = 1.0
) -> np.ndarray:
    """[count, 4, 4] camera to world along a smooth loop through the room, looking across it."""
    for attempt in range(60):
        reach = rng.uniform(0.16, 0.36) * interior.size[:2] * (1 - attempt / 120)
        middle = rng.uniform(-0.08, 0.08, 2) * interior.size[:2]
        height = rng.uniform(1.35, 1.6) + 0.006 * attempt
        phase = rng.uniform(0, 2 * np.pi)
        bob = rng.uniform(0.05, 0.15, 2)
        angle = phase + 2 * np.pi * turns * np.arange(count) / count
        eyes = np.stack(
            [
                middle[0] + reach[0] * np.cos(angle),
                middle[1] + reach[1] * np.sin(angle),
                height + bob[0] * np.sin(2 * angle) + bob[1] * np.sin(3 * angle + 1),
            ],
            1,
        )
        if all(free_place(interior, eye, 0.25) for eye in eyes):
            break
    aside, drop = rng.uniform(0.3, 0.6), rng.uniform(0.5, 0.9)
    look = np.zeros((count, 3))
    look[:, 0] = -aside * reach[0] * np.cos(angle + 0.5 * np.sin(2 * angle))
    look[:, 1] = -aside * reach[1] * np.sin(angle + 0.5 * np.sin(2 * angle))
    look[:, 2] = drop + 0.15 * np.sin(3 * angle + phase)
    poses = [look_at(eye, spot) for eye, spot in zip(eyes, look)]
    return np.array(poses).reshape(count, 4, 4)


def look_at(eye: np.ndarray, spot: np.ndarray) -> np.ndarray:
    """[4, 4] camera to world at ``eye`` [3] looking at ``spot`` [3], upright."""
    forward = (spot - eye) / np.linalg.norm(spot - eye)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, np.cross(forward, right), forward], 1)
    pose[:3, 3] = eye
    return pose


def intrinsics(size: tuple[int, int]) -> np.ndarray:
    """[3, 3], pixels counted from the corner."""
    width, height = size
    focal = FOCAL * width
    return np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1.0]])


def photograph(
    stage: Stage, pose: np.ndarray, size: tuple[int, int], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Colour uint8 [H, W, 3] RGB and depth uint16 [H, W], millimetres, seen from ``pose`` [4, 4].

    A pixel is the mean of four rays; its depth is that of the ray through its middle.
    """
    width, height = size
    u, v = np.meshgrid(np.arange(width), np.arange(height))
    total = np.zeros((width * height, 3))
    lit_face = np.full(width * height, -1)
    bright = np.zeros(width * height)
    for du, dv in SAMPLES:
        hits, points = _shoot(stage, pose, size, u + du, v + dv)
        rows, face = hits.rows, hits.face
        # Light changes slowly: that of a pixel's first ray serves the others on the same face.
        fresh = np.flatnonzero(lit_face[rows] != face)
        light = bright[rows]
        light[fresh] = stage.lit(points[fresh], face[fresh], pose[:3, 3])
        first = fresh[lit_face[rows[fresh]] < 0]
        bright[rows[first]], lit_face[rows[first]] = light[first], face[first]
        total[rows] += np.clip(stage.albedo(points, face, pose[:3, 3]) * light[:, None], 0, 1)
    color = total / len(SAMPLES) + rng.normal(0, NOISE, total.shape)
    color = np.round(255 * np.clip(color, 0, 1)).astype(np.uint8)
    hits, _ = _shoot(stage, pose, size, u + 0.5, v + 0.5)
    depth = np.zeros(width * height, np.uint16)
    depth[hits.rows] = np.round(1000 * hits.depth).astype(np.uint16)
    return color.reshape(height, width, 3), depth.reshape(height, width)


def _shoot(stage: Stage, pose: np.ndarray, size, u: np.ndarray, v: np.ndarray):
    """Hits of the rays through places ``u``, ``v``; depths lie along the optical axis."""
    K = intrinsics(size)
    x, y = (u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1]
    way = np.stack([x.ravel(), y.ravel(), np.ones(x.size)], 1) @ pose[:3, :3].T
    hits = stage.cast(np.broadcast_to(pose[:3, 3], way.shape), way)
    return hits, pose[:3, 3] + way[hits.rows] * hits.depth[:, None]


@lru_cache(maxsize=2)
def _stage(split: str, seed: int, index: int) -> tuple[Interior, Stage]:
    return build(split, seed, index)


def _paths(interior: Interior, split: str, seed: int, index: int, counts) -> list[np.ndarray]:
    rng = room_generator(split, seed, index, 4)
    return [camera_path(interior, rng, count) for count in counts]


def write_picture(
    folder: Path, split: str, seed: int, size: tuple[int, int], counts, job: tuple[int, int, int]
) -> None:
    """Writes one picture, its depth and its pose; the picture comes last and is then complete."""
    import cv2

    index, sequence, number = job
    interior, stage = _stage(split, seed, index)
    pose = _paths(interior, split, seed, index, counts)[sequence][number]
    rng = room_generator(split, seed, index, 10 + 100_000 * sequence + number)
    color, depth = photograph(stage, pose, size, rng)
    stem = folder / room_folder(split, index) / SEQUENCES[sequence] / f"frame-{number:06d}"
    Path(f"{stem}.pose.txt").write_text(
        "".join(" ".join(f"{v:.9f}" for v in row) + "\n" for row in pose)
    )
    cv2.imwrite(f"{stem}.depth.png", depth)
    part = f"{stem}.part.png"
    cv2.imwrite(part, color[..., ::-1])
    Path(part).replace(f"{stem}.color.png")


def room_folder(split: str, index: int) -> str:
    """Name of the folder of a room's pictures."""
    return f"{split}-{index:06d}"


def write_room_files(
    folder: Path, split: str, seed: int, size: tuple[int, int], counts, index: int
) -> None:
    """Everything of a room's folder but the pictures."""
    interior, stage = _stage(split, seed, index)
    place = folder / room_folder(split, index)
    for sequence, count in zip(SEQUENCES, counts):
        if count:
            (place / sequence).mkdir(parents=True, exist_ok=True)
    (place / "TrainSplit.txt").write_text("sequence1\n")
    (place / "TestSplit.txt").write_text("sequence2\n" if counts[1] else "")
    K, (width, height) = intrinsics(size), size
    lens = {"w": width, "h": height, "fx": K[0, 0], "fy": K[1, 1], "cx": K[0, 2], "cy": K[1, 2]}
    depth = {**lens, "unit_m": 0.001, "invalid": 0}
    cameras = {"color": lens, "depth": depth, "poses": "exact, of the colour camera (rendered)"}
    (place / "intrinsics.json").write_text(json.dumps(cameras, indent=1))
    poses = _paths(interior, split, seed, index, counts)[0]
    frames = [
        {
            "file_path": f"seq-01/frame-{number:06d}.color.png",
            "depth_file_path": f"seq-01/frame-{number:06d}.depth.png",
            "transform_matrix": (pose @ FLIP).tolist(),
        }
        for number, pose in enumerate(poses)
    ]
    shot = {"camera_model": "PINHOLE", "w": width, "h": height, "fl_x": K[0, 0], "fl_y": K[1, 1]}
    shot |= {"cx": K[0, 2], "cy": K[1, 2], "ply_file_path": "points.ply", "frames": frames}
    (place / "transforms.json").write_text(json.dumps(shot, indent=1) + "\n")
    if not (place / "points.ply").exists():
        room = scan(stage, room_generator(split, seed, index, 3), POINTS)
        write_ply(place / "points.ply", {"vertex": _vertices(room.points)})


def _vertices(points: np.ndarray) -> np.ndarray:
    fields = [(axis, "f4") for axis in "xyz"] + [(c, "u1") for c in ("red", "green", "blue")]
    table = np.zeros(len(points), fields)
    for column, (name, kind) in enumerate(fields):
        table[name] = points[:, column] if kind == "f4" else np.round(255 * points[:, column])
    return table


def make_pictures(
    root: Path,
    name: str,
    counts: dict[str, int],
    seed: int = 0,
    frames: int = 60,
    queries: int = 20,
    size: tuple[int, int] = (640, 480),
    workers: int = 1,
) -> Path:
    """Makes (or completes) the folder ``root/name/pictures`` of posed pictures; returns it.

    Args:
        root: where worlds lie, such as data/world.
        name: of the rooms' world.
        counts: rooms per split that are photographed; room i is the scan's room i.
        seed: of the rooms.
        frames: mapping pictures of a room.
        queries: pictures of another walk.
        size: width and height, pixels.
        workers: processes.

    Raises:
        ValueError: fewer than two pictures, or a size that is no picture's.
    """
    if frames < 2 or queries < 0 or min(size) < 16:
        raise ValueError(
            f"frames is {frames}, queries {queries} and size {size}; at least 2 frames, 0 queries "
            "and 16 pixels are needed"
        )
    folder = Path(root) / name / "pictures"
    for split, count in counts.items():
        frame_seed(split, seed, 0)
        jobs = []
        for index in range(count):
            given = folder, split, seed, size, (frames, queries)
            write_room_files(*given, index)
            jobs += [
                (index, sequence, number)
                for sequence, amount in enumerate((frames, queries))
                for number in range(amount)
                if not _there(folder, split, index, sequence, number)
            ]
        run_jobs(
            partial(write_picture, folder, split, seed, size, (frames, queries)), jobs, workers
        )
    return folder


def _there(folder: Path, split: str, index: int, sequence: int, number: int) -> bool:
    place = folder / room_folder(split, index) / SEQUENCES[sequence]
    return (place / f"frame-{number:06d}.color.png").exists()
