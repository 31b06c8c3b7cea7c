"""Sample: one scene as a data set gives it. Batch: several. Detections: what was found in one."""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from .boxes import Boxes


@dataclass
class Sample:
    """One scene. What a data set does not have stays None.

    Attributes:
        points: [P, C] float32: x, y, z in metres, then what the data set names in
            ``meta['columns']`` (intensity in 0..1, time lag in seconds).
        boxes: the true boxes.
        labels: [N] int64 class of each box, an index into the class names; -1: to ignore.
        names: class name of each box, before the choice of classes.
        cameras: cameras of the scene by name.
        images: image of each camera by name, uint8 [H, W, 3] RGB.
        text: a sentence.
        flow: [P, 3] motion of each point, metres.
        instance: [P] int64 row of the box that each point belongs to, -1 for none.
        meta: plain data: 'sample_id', 'lidar_path', and what evaluation needs.
    """

    points: Tensor
    boxes: Boxes | None = None
    labels: Tensor | None = None
    names: list[str] | None = None
    cameras: dict[str, Any] = field(default_factory=dict)
    images: dict[str, Any] = field(default_factory=dict)
    text: str | None = None
    flow: Tensor | None = None
    instance: Tensor | None = None
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        points, boxes, labels = self.points, self.boxes, self.labels
        if not isinstance(points, Tensor) or points.dim() != 2 or not points.is_floating_point():
            raise ValueError(
                f"the points of sample {self.sample_id!r} are {_describe(points)}; a float tensor "
                "[P, C] is needed: torch.from_numpy(points).float()"
            )
        if boxes is not None and not isinstance(boxes, Boxes):
            raise ValueError(
                f"the boxes of sample {self.sample_id!r} are {_describe(boxes)}: wrap them, "
                "Boxes(tensor)"
            )
        rows = None if boxes is None else len(boxes)
        if labels is not None and (
            not isinstance(labels, Tensor)
            or labels.is_floating_point()
            or tuple(labels.shape) != (len(labels) if rows is None else rows,)
        ):
            raise ValueError(
                f"the labels of sample {self.sample_id!r} are {_describe(labels)} for "
                f"{'no' if rows is None else rows} boxes; one int64 per box is needed"
            )

    @property
    def sample_id(self) -> str:
        return str(self.meta.get("sample_id", "unnamed"))

    def to(self, device: str | torch.device) -> "Sample":
        """The sample with points, boxes, labels, flow and instances on ``device``."""
        moved = {
            name: value.to(device)
            for name in ("points", "boxes", "labels", "flow", "instance")
            if (value := getattr(self, name)) is not None
        }
        return replace(self, **moved)


def _describe(value: Any) -> str:
    kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
    shape = getattr(value, "shape", None)
    return f"{kind}" if shape is None else f"{kind} of shape {tuple(shape)}"


@dataclass
class Batch:
    """Several samples."""

    samples: list[Sample]

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def points(self) -> Tensor:
        """[sum P, C] points of all samples, one after the other."""
        return torch.cat([sample.points for sample in self.samples])

    @property
    def batch_index(self) -> Tensor:
        """[sum P] int64, the sample of each point."""
        counts = torch.tensor([len(sample.points) for sample in self.samples])
        index = torch.repeat_interleave(torch.arange(len(self)), counts)
        return index.to(self.samples[0].points.device)

    @property
    def boxes(self) -> list[Boxes]:
        return [sample.boxes for sample in self.samples]

    @property
    def labels(self) -> list[Tensor]:
        return [sample.labels for sample in self.samples]

    def to(self, device: str | torch.device) -> "Batch":
        """The batch on ``device``; samples that share their points share them there, too."""
        moved = [sample.to(device) for sample in self.samples]
        shared: dict[int, Tensor] = {}
        for sample, here in zip(moved, self.samples):
            if isinstance(here, Sample):
                sample.points = shared.setdefault(id(here.points), sample.points)
        return Batch(moved)


def collate(samples: list[Sample]) -> dict[str, Batch]:
    """The DataLoader's collate function: {'batch': Batch}, the keyword a model's forward takes."""
    return {"batch": Batch(list(samples))}


@dataclass
class Detections:
    """Boxes found in one scene, by falling score.

    Attributes:
        boxes: [N] boxes.
        scores: [N] float in 0..1.
        labels: [N] int64 index into the class names.
        sample: the scene they were found in (points, truth, meta), for evaluation and pictures.
    """

    boxes: Boxes
    scores: Tensor
    labels: Tensor
    sample: Sample | None = None

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, index) -> "Detections":
        """Those at ``index``: a mask, rows or a slice."""
        return replace(
            self, boxes=self.boxes[index], scores=self.scores[index], labels=self.labels[index]
        )

    def to(self, device: str | torch.device) -> "Detections":
        return replace(
            self,
            boxes=self.boxes.to(device),
            scores=self.scores.to(device),
            labels=self.labels.to(device),
            sample=None if self.sample is None else self.sample.to(device),
        )

    def above(self, score: float) -> "Detections":
        """Those with a score of at least ``score``."""
        return self[self.scores >= score]
