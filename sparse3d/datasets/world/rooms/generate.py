"""Rooms with their scans and sentences, and folders of them.

A room is a function of (split, seed, index), byte for byte. The splits draw from disjoint seeds, as
the streets do.
"""

import json
import os
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from sparse3d.datasets.grounding import Room, Sentence
from sparse3d.datasets.phrases import write_sentences
from sparse3d.datasets.sentences import Entity

from ..generate import frame_seed, run_jobs, write_info
from .furniture import CLASS_NAMES
from .layout import Interior, furnish
from .render import Stage
from .scan import scan

GENERATION = 2
"""Raised whenever the same seed begins to give another room."""

POINTS = 50_000
SENTENCES = 12
ROOMS = 0x2007  # keeps the rooms' random numbers apart from the streets'
SEMANTICS = ("nothing", "floor", "ceiling", "wall", *CLASS_NAMES)
"""Meaning of a point's semantic label."""


@dataclass
class Furnished:
    """A room as it is made: its plan, its stage for rays, its scan, what is said about it.

    Attributes:
        interior: walls and things.
        stage: the same as a mesh.
        room: the scan; ``ids`` are rows of ``interior.things``.
        colors: [N] name of each object's colour, '' for none.
        sentences: about the objects.
    """

    interior: Interior
    stage: Stage
    room: Room
    colors: list[str]
    sentences: list[Sentence]


def make_room(
    split: str, seed: int, index: int, points: int = POINTS, sentences: int = SENTENCES
) -> Furnished:
    """The room ``index`` of a split.

    Raises:
        ValueError: an unknown split.
    """
    interior, stage = build(split, seed, index)
    rng = room_generator(split, seed, index, 1)
    room = scan(stage, rng, points)
    colors = [interior.things[i].piece.color for i in room.ids]
    rng = room_generator(split, seed, index, 2)
    said = write_sentences(scene_name(split, index), entities(room, colors), rng, sentences)
    return Furnished(interior, stage, room, colors, said)


def build(split: str, seed: int, index: int) -> tuple[Interior, Stage]:
    """The furnished room alone, and its mesh."""
    rng = room_generator(split, seed, index, 0)
    interior = furnish(rng)
    return interior, Stage(interior, rng)


def room_generator(split: str, seed: int, index: int, part: int) -> np.random.Generator:
    """Random numbers of a part of a room.

    0: its building, 1: its scan, 2: what is said of it, 3 and on: its pictures.
    """
    return np.random.default_rng((frame_seed(split, seed, index), ROOMS, part))


def scene_name(split: str, index: int) -> str:
    """A room's name in the data set, such as 'val/000003'."""
    return f"{split}/{index:06d}"


def entities(room: Room, colors: list[str]) -> list[Entity]:
    """What sentences know of a room's objects."""
    boxes = room.boxes.astype(np.float64)
    return [Entity(*row) for row in zip(room.ids, room.names, boxes, colors)]


def semantics(stage: Stage, room: Room) -> np.ndarray:
    """[P] uint8 row of ``SEMANTICS`` of each point: its object's class, or floor or wall."""
    height = stage.interior.size[2]
    rest = np.full(len(room.points), SEMANTICS.index("wall"), np.uint8)
    rest[room.points[:, 2] < 0.02] = SEMANTICS.index("floor")
    rest[room.points[:, 2] > height - 0.02] = SEMANTICS.index("ceiling")
    names = np.array([SEMANTICS.index(name) for name in room.names] + [0], np.uint8)
    return np.where(room.instance >= 0, names[room.instance], rest)


def write_room(folder: Path, seed: int, points: int, sentences: int, job: tuple[str, int]) -> Path:
    """Writes ``folder/split/NNNNNN.npz`` and ``.json`` unless they are there."""
    split, index = job
    path = Path(folder) / f"{scene_name(split, index)}.npz"
    if path.exists():
        return path
    made = make_room(split, seed, index, points, sentences)
    room = made.room
    objects = [
        {"id": number, "name": name, "color": color, "box": [round(float(v), 4) for v in box]}
        for number, name, color, box in zip(room.ids, room.names, made.colors, room.boxes)
    ]
    said = [{k: v for k, v in asdict(s).items() if k != "scene_id"} for s in made.sentences]
    size = [round(float(v), 3) for v in made.interior.size]
    text = {"theme": made.interior.theme, "size": size, "objects": objects, "sentences": said}
    path.with_suffix(".json").write_text(json.dumps(text) + "\n")
    part = path.with_name(f".{path.stem}.{os.getpid()}.npz")
    np.savez(
        part,
        xyz=np.round(1000 * room.points[:, :3]).astype(np.int16),
        rgb=np.round(255 * room.points[:, 3:]).astype(np.uint8),
        instance=room.instance.astype(np.int16),
        semantic=semantics(made.stage, room),
    )
    part.replace(path)
    return path


def make_rooms(
    root: Path,
    name: str,
    counts: dict[str, int],
    seed: int = 0,
    workers: int = 1,
    points: int = POINTS,
    sentences: int = SENTENCES,
) -> Path:
    """Makes (or completes) the folder ``root/name`` of rooms and returns it.

    Args:
        root: where worlds lie, such as data/world.
        name: of this world.
        counts: rooms per split.
        seed: another seed, another world.
        workers: processes.
        points: most points of a scan.
        sentences: most sentences about a room.

    Raises:
        ValueError: an unknown split, numbers that are not positive, or the folder holds a world
            made otherwise.
    """
    if points <= 0 or sentences < 0:
        raise ValueError(f"points is {points} and sentences {sentences}; points must be positive")
    for split in counts:
        frame_seed(split, seed, 0)
    folder = Path(root) / name
    made = {"kind": "rooms", "seed": seed, "points": points, "sentences": sentences}
    made["generation"] = GENERATION
    write_info(folder, made, {"class_names": CLASS_NAMES, "semantics": SEMANTICS})
    jobs = []
    for split, count in counts.items():
        (folder / split).mkdir(exist_ok=True)
        names = [(split, index) for index in range(count)]
        jobs += [job for job in names if not (folder / f"{scene_name(*job)}.npz").exists()]
    run_jobs(partial(write_room, folder, seed, points, sentences), jobs, workers)
    return folder
