"""The data set of sentences over a folder of the procedural world's rooms."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sparse3d.datasets.base import read_json, reading
from sparse3d.datasets.grounding import KINDS, GroundingDataset, Room, Sentence
from sparse3d.registry import DATASETS

from .furniture import CLASS_NAMES


@DATASETS.register_module()
class WorldRooms(GroundingDataset):
    """Rooms made by ``make_rooms``: one sample per sentence, see ``GroundingDataset``."""

    name = "rooms"

    def __init__(
        self,
        data_root: str | Path,
        split: str = "train",
        class_names: Sequence[str] = CLASS_NAMES,
        kinds: Sequence[str] | None = None,
        limit: int | None = None,
        **options: Any,
    ):
        """Args:
            data_root: the world's folder, with ``info.json``.
            split: 'train', 'val' or 'test'.
            class_names: classes in the order of the labels.
            kinds: keep only sentences of these kinds ('class', 'attribute', 'relation').
            limit: use only this many rooms.
            options: of GroundingDataset.

        Raises:
            FileNotFoundError: the folder holds no rooms of the split.
            ValueError: an unknown kind.
        """
        if set(kinds or ()) - set(KINDS):
            raise ValueError(f"kinds is {list(kinds)}; kinds of sentences are {', '.join(KINDS)}")
        super().__init__(data_root, class_names, **options)
        files = sorted((self.data_root / split).glob("[0-9]*.npz"))[:limit]
        if not files:
            raise FileNotFoundError(
                f"{self.data_root / split} holds no rooms; make them with "
                "`python tools/prepare_data.py rooms`"
            )
        self.split = split
        self.objects: dict[str, list[dict]] = {}
        for path in files:
            self._read(path.with_suffix(".json"), kinds)

    def _read(self, path: Path, kinds: Sequence[str] | None) -> None:
        """Takes the objects and sentences of one room from its JSON file."""
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: it holds the room's objects and sentences")
        scene_id = f"{self.split}/{path.stem}"
        data = read_json(path)
        with reading(path):
            self.objects[scene_id] = data["objects"]
            for row in data["sentences"]:
                sentence = Sentence(scene_id, **{**row, "anchors": tuple(row["anchors"])})
                if kinds is None or sentence.kind in kinds:
                    self.sentences.append(sentence)

    def names_in_labels(self) -> list[str]:
        return [entry["name"] for objects in self.objects.values() for entry in objects]

    def load_room(self, scene_id: str) -> Room:
        return _room(self.data_root / f"{scene_id}.npz", self.objects[scene_id])


def read_room(path: Path, described: Path) -> Room:
    """A room from its points (.npz) and its description (.json).

    Raises:
        ValueError: a file is damaged.
    """
    data = read_json(described)
    with reading(described):
        objects = data["objects"]
    return _room(path, objects)


def _room(path: Path, objects: list[dict]) -> Room:
    with reading(path), np.load(path) as data:
        xyz, rgb = data["xyz"].astype(np.float32) / 1000, data["rgb"].astype(np.float32) / 255
        instance = data["instance"].astype(np.int64)
        points = np.concatenate([xyz, rgb], 1)
    boxes = np.array([entry["box"] for entry in objects], np.float32).reshape(-1, 6)
    names, ids = [e["name"] for e in objects], [e["id"] for e in objects]
    return Room(points, instance, boxes, names, ids)
