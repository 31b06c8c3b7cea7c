"""Training on rooms: several sentences of a room at a time, and augmentation that keeps them true.

A room is loaded, augmented and later voxelized once for all its sentences of a batch: its samples
share one tensor of points, which a grounding model recognises.
"""

import functools
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from mmengine.registry import FUNCTIONS
from torch.utils.data import Dataset

from sparse3d.registry import DATASETS, TRANSFORMS
from sparse3d.structures import Batch, Boxes, Sample, collate

from .grounding import GroundingDataset

TURNS = ((1, 0, 0, 1), (0, -1, 1, 0), (-1, 0, 0, -1), (0, 1, -1, 0))
"""Rotations about z by 0, 90, 180 and 270 degrees, row by row."""
OTHER_SIDE = {"left": "right", "right": "left", "leftmost": "rightmost", "rightmost": "leftmost"}


@DATASETS.register_module()
class SentenceGroups(Dataset):
    """Lists of samples: ``per_room`` sentences of the same room, drawn anew in every epoch.

    Take ``collate_groups`` as the loader's collate function. All sentences of a room come up before
    one comes again.

    Args:
        dataset: config of a GroundingDataset, or one.
        per_room: sentences in a group.

    Raises:
        ValueError: ``per_room`` is not positive.
    """

    def __init__(self, dataset: dict | GroundingDataset, per_room: int = 4):
        if per_room < 1:
            raise ValueError(f"per_room is {per_room}; it must be 1 or more")
        self.dataset = DATASETS.build(dataset) if isinstance(dataset, dict) else dataset
        self.dataset.room = functools.lru_cache(maxsize=1)(self.dataset.room)
        self.per_room = per_room
        rooms: dict[str, list[int]] = {}
        for row, sentence in enumerate(self.dataset.sentences):
            rooms.setdefault(sentence.scene_id, []).append(row)
        self.rooms = list(rooms.values())
        groups = [-(-len(rows) // per_room) for rows in self.rooms]
        self.places = [(room, part) for room, n in enumerate(groups) for part in range(n)]

    @property
    def metainfo(self) -> dict:
        return self.dataset.metainfo

    def __len__(self) -> int:
        return len(self.places)

    def set_epoch(self, epoch: int) -> None:
        self.dataset.set_epoch(epoch)

    def check_classes(self, training: bool = True) -> None:
        self.dataset.check_classes(training)

    @property
    def data_root(self) -> Path:
        return self.dataset.data_root

    @property
    def vocabulary(self) -> list[str]:
        return self.dataset.vocabulary

    def contents(self) -> list[bytes]:
        return self.dataset.contents()

    def __getitem__(self, index: int) -> list[Sample]:
        room, part = self.places[range(len(self))[index]]
        order = np.random.default_rng((self.dataset.seed, self.dataset.epoch, room))
        rows = order.permutation(self.rooms[room])
        rows = np.resize(rows, -(-len(rows) // self.per_room) * self.per_room)
        chosen = rows[part * self.per_room : (part + 1) * self.per_room].tolist()
        first = self.dataset[chosen[0]]
        return [first, *(self._beside(first, row) for row in chosen[1:])]

    def _beside(self, first: Sample, row: int) -> Sample:
        """Sentence ``row`` about the room of ``first``, augmented as that is."""
        other = self.dataset.label(self.dataset.load(row, np.random.default_rng(0)))
        text = other_side(other.text) if first.meta.get("mirrored") else other.text
        meta = {**first.meta, **other.meta}
        return replace(first, text=text, names=other.names, labels=other.labels, meta=meta)


@FUNCTIONS.register_module()
def collate_groups(groups: Sequence[Sequence[Sample]]) -> dict[str, Batch]:
    """What a model takes of a batch of groups."""
    return collate([sample for group in groups for sample in group])


@TRANSFORMS.register_module()
class RoomAugmentation:
    """Quarter turns, mirroring, scale, brightness and noise; boxes stay parallel to the axes.

    A mirrored room swaps left and right in its sentence: right where viewpoints lie in the room, as
    in the procedural world's sentences.

    Args:
        mirror: whether half of the rooms are mirrored.
        scale: (least, most) factor of all lengths.
        brightness: most that a colour channel is changed by, as a share of it.
        noise: most that a coordinate is moved by, metres.
    """

    def __init__(
        self,
        mirror: bool = True,
        scale: Sequence[float] = (0.95, 1.05),
        brightness: float = 0.05,
        noise: float = 0.002,
    ):
        self.mirror = mirror
        self.scale = tuple(scale)
        self.brightness = brightness
        self.noise = noise

    def __call__(self, sample: Sample, generator: np.random.Generator) -> Sample:
        turn = torch.eye(3)
        turn[:2, :2] = torch.tensor(TURNS[generator.integers(4)]).reshape(2, 2)
        mirrored = self.mirror and bool(generator.random() < 0.5)
        if mirrored:
            turn = turn @ torch.diag(torch.tensor([-1.0, 1.0, 1.0]))
        turn = turn * generator.uniform(*self.scale)
        points = sample.points.clone()
        shape = (len(points), 3)
        noise = torch.from_numpy(generator.uniform(-self.noise, self.noise, shape)).to(points)
        points[:, :3] = points[:, :3] @ turn.T + noise
        light = 1 + generator.uniform(-self.brightness, self.brightness, 3)
        points[:, 3:6] = (points[:, 3:6] * torch.from_numpy(light).to(points)).clamp(0, 1)
        boxes = sample.boxes.tensor.clone()
        boxes[:, :3] = boxes[:, :3] @ turn.T
        boxes[:, 3:6] = boxes[:, 3:6] @ turn.abs().T
        text = other_side(sample.text) if mirrored and sample.text else sample.text
        meta = {**sample.meta, "mirrored": mirrored}
        return replace(sample, points=points, boxes=Boxes(boxes), text=text, meta=meta)


def other_side(text: str) -> str:
    """The sentence with left and right swapped."""
    return re.sub(r"\b(leftmost|rightmost|left|right)\b", lambda m: OTHER_SIDE[m.group()], text)
