"""Frames of the procedural world, and folders of them.

A frame is a function of (split, seed, index) and the sensor, byte for byte. The splits draw from
disjoint seeds (``frame_seed``), so no test street is ever seen in training.
"""

import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .ground import ROAD
from .layout import lay_out
from .materials import CLASS_NAMES, KINDS, LABEL_OF_KIND, SEMANTICS, Material
from .sensors import SENSORS, Sensor, scan
from .shapes import turned
from .streets import REACH, Street

SPLITS = ("train", "val", "test")
FRAMES_PER_SPLIT = 10_000_000
GENERATION = 3
"""Raised whenever the same seed begins to give another frame."""


@dataclass
class Frame:
    """One sweep and its truth, in the scanner's frame (x forward, y left, z up; metres).

    Attributes:
        points: [P, 4] float32 x, y, z, intensity in 0..1.
        boxes: [N, 9] float32 x, y, z (centre), dx, dy, dz, yaw, vx, vy.
        labels: [N] int64 row of ``CLASS_NAMES``, -1 to ignore.
        kinds: [N] uint8 row of ``KINDS``.
        num_points: [N] int32 points on the object.
        semantic: [P] uint8 row of ``SEMANTICS``.
        instance: [P] int16 row of ``boxes``, -1 for none.
    """

    points: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    kinds: np.ndarray
    num_points: np.ndarray
    semantic: np.ndarray
    instance: np.ndarray


def frame_seed(split: str, seed: int, index: int) -> int:
    """The number a frame's generator starts from; different for every (split, seed, index).

    Raises:
        ValueError: an unknown split or an index outside [0, 10 million).
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; it must be one of {SPLITS}")
    if not 0 <= index < FRAMES_PER_SPLIT or seed < 0:
        raise ValueError(f"seed {seed} and index {index} must lie in [0, {FRAMES_PER_SPLIT})")
    return (seed * len(SPLITS) + SPLITS.index(split)) * FRAMES_PER_SPLIT + index


def make_frame(split: str, seed: int, index: int, sensor: str = "hdl64") -> Frame:
    """The frame ``index`` of a split.

    Raises:
        ValueError: an unknown sensor or split.
    """
    scanner = find_sensor(sensor)
    rng = np.random.default_rng(frame_seed(split, seed, index))
    street = lay_out(rng, front=scanner.fov < 180)
    return observe(street, scanner, rng)


def find_sensor(name: str) -> Sensor:
    """The sensor called ``name``.

    Raises:
        ValueError: there is none.
    """
    if name not in SENSORS:
        raise ValueError(f"sensor is {name!r}; it must be one of {tuple(SENSORS)}")
    return SENSORS[name]


def observe(street: Street, sensor: Sensor, rng: np.random.Generator, time: float = 0.0) -> Frame:
    """What ``sensor`` sees of ``street``, its things moved on by ``time`` seconds."""
    yaw = street.ego[1]
    behind = -12.0 if sensor.fov < 180 and abs(yaw) < 0.5 else -REACH
    ground, ground_semantic = street.road.mesh(rng, behind, REACH)
    eye = street.ego_place + np.array([0, 0, rng.uniform(*sensor.height)])
    vertices = [ground.vertices, *(thing.placed(time) for thing in street.things)]
    starts = np.cumsum([0] + [len(part) for part in vertices[:-1]])
    meshes = [ground, *(thing.mesh for thing in street.things)]
    faces = np.concatenate([mesh.faces + start for mesh, start in zip(meshes, starts)])
    owner = np.repeat(np.arange(len(meshes)), [len(mesh) for mesh in meshes])
    material = np.concatenate([mesh.material for mesh in meshes])
    local = turned(np.concatenate(vertices) - eye, -yaw)
    echoes = scan(sensor, rng, local, faces, material, owner)
    owners = owner[echoes.faces]
    semantic = np.array([ROAD, *(thing.semantic for thing in street.things)], np.uint8)[owners]
    semantic = _by_material(semantic, material[echoes.faces])
    on_ground = owners == 0
    semantic[on_ground] = ground_semantic[echoes.faces[on_ground]]
    seen = np.bincount(owners, minlength=len(meshes))[1:]
    boxes, kinds, row = _truth(street, sensor, eye, time, seen)
    instance = row[owners]
    counts = np.bincount(instance[instance >= 0], minlength=len(boxes)).astype(np.int32)
    labels = np.array([LABEL_OF_KIND[KINDS[kind]] for kind in kinds], np.int64)
    return Frame(echoes.points, boxes, labels, kinds, counts, semantic, instance)


def _by_material(semantic: np.ndarray, material: np.ndarray) -> np.ndarray:
    """Trunks among the vegetation and signs on poles, by what was hit."""
    for whole, stuff, part in (
        ("vegetation", Material.BARK, "trunk"),
        ("pole", Material.SIGN, "sign"),
    ):
        mask = (semantic == SEMANTICS.index(whole)) & (material == stuff)
        semantic[mask] = SEMANTICS.index(part)
    return semantic


def _truth(street: Street, sensor: Sensor, eye: np.ndarray, time: float, seen: np.ndarray):
    """Boxes and kinds of the objects in the sensor's field; the box's row, or -1, of each owner."""
    yaw = street.ego[1]
    row = np.full(len(street.things) + 1, -1, np.int16)
    boxes, kinds = [np.zeros((0, 9))], []
    for number, thing in enumerate(street.things):
        if thing.kind is None:
            continue
        box = thing.box(time)
        box[:3] = turned((box[:3] - eye)[None], -yaw)[0]
        box[6] = (box[6] - yaw + np.pi) % (2 * np.pi) - np.pi
        box[7:9] = turned(np.append(box[7:9], 0)[None], -yaw)[0, :2]
        aside = np.degrees(abs(np.arctan2(box[1], box[0])))
        near = np.hypot(box[0], box[1]) < sensor.farthest
        if seen[number] or (near and aside <= sensor.fov / 2):
            row[number + 1] = len(kinds)
            boxes.append(box[None])
            kinds.append(KINDS.index(thing.kind))
    return np.concatenate(boxes).astype(np.float32), np.array(kinds, np.uint8), row


def write_frame(folder: Path, split: str, seed: int, sensor: str, index: int) -> Path:
    """Writes ``folder/split/NNNNNN.npz`` unless it is there; it appears only when complete."""
    path = Path(folder) / split / f"{index:06d}.npz"
    if not path.exists():
        frame = make_frame(split, seed, index, sensor)
        part = path.with_name(f".{path.stem}.{os.getpid()}.npz")
        np.savez(part, **vars(frame))
        part.replace(path)
    return path


def make_world(
    root: Path, name: str, sensor: str, counts: dict[str, int], seed: int = 0, workers: int = 1
) -> Path:
    """Makes (or completes) the folder ``root/name`` of frames and returns it.

    Args:
        root: where worlds lie, such as data/world.
        name: of this world.
        sensor: a name in ``SENSORS``.
        counts: frames per split.
        seed: another seed, another world.
        workers: processes.

    Raises:
        ValueError: an unknown sensor or split, or the folder holds a world made otherwise.
    """
    find_sensor(sensor)
    for split in counts:
        frame_seed(split, seed, 0)
    folder = Path(root) / name
    made = {"sensor": sensor, "seed": seed, "generation": GENERATION}
    names = {"class_names": CLASS_NAMES, "kinds": KINDS, "semantics": SEMANTICS}
    write_info(folder, made, names)
    jobs = []
    for split, count in counts.items():
        (folder / split).mkdir(exist_ok=True)
        jobs += [(split, i) for i in range(count) if not (folder / split / f"{i:06d}.npz").exists()]
    run_jobs(partial(_work, folder, seed, sensor), jobs, workers)
    return folder


def write_info(folder: Path, made: dict, more: dict) -> None:
    """Writes ``folder/info.json``: how the world was ``made``, and ``more``.

    Raises:
        ValueError: the folder holds a world made otherwise.
    """
    path = folder / "info.json"
    if path.exists():
        before = json.loads(path.read_text())
        before = {key: before.get(key) for key in made}
        if before != made:
            raise ValueError(
                f"{folder} holds a world made with {_told(before)}, not {_told(made)}; choose "
                "another name or remove it"
            )
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(made | more, indent=1) + "\n")


def _told(made: dict) -> str:
    return ", ".join(f"{key} {value}" for key, value in made.items())


def run_jobs(work: Callable[[Any], Any], jobs: Sequence[Any], workers: int) -> None:
    """Does ``work`` for each job in so many processes, with a progress bar."""
    from mmengine.utils import ProgressBar

    if not jobs:
        return
    bar = ProgressBar(len(jobs))
    if workers <= 1:
        for job in jobs:
            work(job)
            bar.update()
    else:
        pool = ProcessPoolExecutor(workers)
        try:
            for future in as_completed([pool.submit(work, job) for job in jobs]):
                future.result()
                bar.update()
        finally:
            pool.shutdown(cancel_futures=True)
    print()


def _work(folder: Path, seed: int, sensor: str, job: tuple[str, int]) -> None:
    write_frame(folder, job[0], seed, sensor, job[1])
