"""Ground-truth sampling: objects cut out of the training frames and pasted into others.

Yan et al., "SECOND: Sparsely Embedded Convolutional Detection", 2018.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from sparse3d.ops.rotated import bev_overlap
from sparse3d.registry import TRANSFORMS
from sparse3d.structures import Boxes, Sample

from .base import PointDataset, reading, select_points


class ObjectDatabase:
    """Objects of one class: their boxes and the points inside, in the frame they were cut from.

    Attributes:
        points: [sum of counts, C] float32, object after object.
        offsets: [n + 1] int64: points of object i are rows offsets[i] to offsets[i + 1].
        boxes: [n, 7] or [n, 9] float32.
        columns: [C] names of the points' columns.
        sample_ids: [n] the frame of each object.
    """

    def __init__(
        self,
        points: np.ndarray,
        offsets: np.ndarray,
        boxes: np.ndarray,
        columns: Sequence[str],
        sample_ids: Sequence[str],
    ):
        self.points = points
        self.offsets = offsets
        self.boxes = boxes
        self.columns = [str(c) for c in columns]
        self.sample_ids = [str(s) for s in sample_ids]

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def counts(self) -> np.ndarray:
        """[n] points of each object."""
        return np.diff(self.offsets)

    def points_of(self, index: int) -> np.ndarray:
        """[P, C] points of object ``index``."""
        return self.points[self.offsets[index] : self.offsets[index + 1]]

    @classmethod
    def open(cls, path: str | Path) -> "ObjectDatabase":
        """Raises:
        FileNotFoundError: the file is not there.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(
                f"there is no object database {path}: make it with 'python tools/prepare_data.py "
                "database CONFIG', or take GroundTruthSampling out of the transforms"
            )
        with reading(path), np.load(path, allow_pickle=False) as content:
            return cls(**{key: content[key] for key in content.files})

    def save(self, path: Path) -> None:
        """Write the file whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with open(unfinished, "wb") as file:
                np.savez(file, **{k: np.asarray(v) for k, v in vars(self).items()})
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)


def build_database(
    dataset: PointDataset, folder: str | Path, limit: int | None = None, seed: int = 0
) -> dict[str, int]:
    """Cut the objects out of every sample and write one file per class into ``folder``.

    Args:
        dataset: without transforms; its class names, point range and filters count.
        folder: for <class>.npz.
        limit: most objects of a class, chosen evenly over the frames; None: all.
        seed: of that choice.

    Returns:
        Number of objects of each class.
    """
    generator = np.random.default_rng(seed)
    kept: list[list[tuple]] = [[] for _ in dataset.class_names]
    seen = [0] * len(kept)
    for index in range(len(dataset)):
        for label, *item in _cut_out(dataset[index]):
            seen[label] += 1
            if limit is None or len(kept[label]) < limit:
                kept[label].append(item)
            elif (place := generator.integers(seen[label])) < limit:
                kept[label][place] = item
    for name, items in zip(dataset.class_names, kept):
        if items:
            points, boxes, frames = zip(*items)
            offsets = np.cumsum([0, *map(len, points)])
            database = ObjectDatabase(
                np.concatenate(points), offsets, np.stack(boxes), dataset.columns, frames
            )
            database.save(Path(folder) / f"{name}.npz")
    return {name: len(items) for name, items in zip(dataset.class_names, kept)}


def _cut_out(sample: Sample) -> list[tuple[int, np.ndarray, np.ndarray, str]]:
    """Label, points, box and frame of every object with a point."""
    if sample.boxes is None:
        return []
    inside = sample.boxes.contains(sample.points)
    return [
        (label, sample.points[mask].numpy(), box.numpy(), sample.sample_id)
        for label, mask, box in zip(sample.labels.tolist(), inside, sample.boxes.tensor)
        if label >= 0 and mask.any()
    ]


@TRANSFORMS.register_module()
class GroundTruthSampling:
    """Paste objects until each class has its target count, where they touch no other box.

    A drawn object is rejected when it overlaps, seen from above, a box of the scene or one accepted
    before it. Points of the scene inside accepted boxes are removed.
    """

    def __init__(
        self,
        database: str | Path,
        counts: dict[str, int],
        min_points: int | dict[str, int] = 5,
        stop_epoch: int | None = None,
    ):
        """Args:
            database: folder written by ``build_database``.
            counts: class name -> number of objects wanted in a scene, present ones included.
            min_points: least points of an object, for all classes or by class.
            stop_epoch: first epoch without it (the last epochs see only true scenes); None: never.

        Raises:
            FileNotFoundError: the file of a class is missing.
            ValueError: a class has no object with enough points.
        """
        self.counts = {name: count for name, count in counts.items() if count > 0}
        self.stop_epoch = stop_epoch
        self.objects = {n: ObjectDatabase.open(Path(database) / f"{n}.npz") for n in self.counts}
        self.candidates = {}
        for name, objects in self.objects.items():
            least = min_points if isinstance(min_points, int) else min_points.get(name, 1)
            self.candidates[name] = np.flatnonzero(objects.counts >= least)
            if not len(self.candidates[name]):
                raise ValueError(
                    f"no {name} of {database} has {least} points (the fullest has "
                    f"{objects.counts.max()}): lower min_points or leave the class out of counts"
                )

    def __call__(self, sample: Sample, generator: np.random.Generator) -> Sample:
        if sample.boxes is None:
            return sample
        drawn = [pair for name in self.counts for pair in self._draw(name, sample, generator)]
        if not drawn:
            return sample
        boxes = np.stack([self.objects[name].boxes[index] for name, index in drawn])
        self._check(sample, boxes)
        drawn_boxes = torch.from_numpy(boxes).to(sample.boxes.tensor)
        accepted = _without_overlap(drawn_boxes, sample.boxes.tensor)
        return self._paste(sample, [drawn[i] for i in accepted], Boxes(drawn_boxes[accepted]))

    def _draw(
        self, name: str, sample: Sample, generator: np.random.Generator
    ) -> list[tuple[str, int]]:
        """As many objects of class ``name`` as the scene lacks."""
        class_names = sample.meta["class_names"]
        if name not in class_names:
            raise ValueError(f"counts name {name!r}, which is no class of the data: {class_names}")
        present = int((sample.labels == class_names.index(name)).sum())
        candidates = self.candidates[name]
        wanted = min(max(self.counts[name] - present, 0), len(candidates))
        return [(name, i) for i in generator.choice(candidates, wanted, replace=False)]

    def _check(self, sample: Sample, boxes: np.ndarray) -> None:
        for name, objects in self.objects.items():
            if objects.columns != list(sample.meta["columns"]):
                raise ValueError(
                    f"the database of {name} has points of {objects.columns} but the data "
                    f"{sample.meta['columns']}: make it anew with 'python tools/prepare_data.py "
                    "database CONFIG'"
                )
        if sample.flow is not None or boxes.shape[1] != sample.boxes.tensor.shape[1]:
            raise ValueError(
                f"objects with boxes of {boxes.shape[1]} numbers cannot be pasted into a scene "
                f"of {sample.boxes.tensor.shape[1]}, or with flow ({sample.flow is not None}): make"
                " the database from the same data set, and train flow without GroundTruthSampling"
            )

    def _paste(self, sample: Sample, pasted: list[tuple[str, int]], boxes: Boxes) -> Sample:
        """The scene with the objects in place of its own points there."""
        names = [name for name, _ in pasted]
        labels = torch.tensor([sample.meta["class_names"].index(n) for n in names]).long()
        points = [torch.from_numpy(self.objects[name].points_of(i)) for name, i in pasted]
        sample = select_points(sample, ~boxes.contains(sample.points).any(0))
        return Sample(
            points=torch.cat([sample.points, *points]),
            boxes=Boxes.cat([sample.boxes, boxes]),
            labels=torch.cat([sample.labels, labels]),
            names=None if sample.names is None else sample.names + names,
            cameras=sample.cameras,
            images=sample.images,
            text=sample.text,
            meta=sample.meta,
        )


def _without_overlap(drawn: torch.Tensor, present: torch.Tensor) -> list[int]:
    """Rows of ``drawn`` that touch neither ``present`` boxes nor an earlier row that stays."""
    free = ~(bev_overlap(drawn, present) > 0).any(1)
    touching = bev_overlap(drawn, drawn) > 0
    accepted: list[int] = []
    for row in free.nonzero()[:, 0].tolist():
        if not touching[row, accepted].any():
            accepted.append(row)
    return accepted
