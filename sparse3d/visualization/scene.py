"""What to show, described once; report.py and open3d_view.py draw it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sparse3d.structures import Boxes, Detections, Sample

TRUTH = (60, 220, 90)


PALETTE = (
    (255, 150, 40),
    (80, 170, 255),
    (255, 80, 200),
    (250, 230, 70),
    (170, 110, 255),
    (255, 85, 85),
    (60, 235, 235),
    (255, 190, 200),
    (200, 140, 90),
    (180, 190, 210),
)


def class_color(label: int) -> tuple[int, int, int]:
    """RGB of a class, never the green of the truth."""
    return PALETTE[label % len(PALETTE)]


@dataclass(frozen=True)
class BoxToShow:
    """One box: what it is and how sure.

    Attributes:
        corners: [8, 3] float32 metres, in the order of Boxes.corners.
        label: index of its class.
        name: its class.
        score: in 0..1, or None for a true box.
    """

    corners: np.ndarray
    label: int
    name: str
    score: float | None = None

    @property
    def color(self) -> tuple[int, int, int]:
        """RGB: green for the truth, else by class."""
        return TRUTH if self.score is None else class_color(self.label)

    @property
    def nose(self) -> np.ndarray:
        """[2, 3] metres: from the bottom's front edge ahead by half the length, at most 1.2."""
        middle, front = self.corners[:4].mean(0), self.corners[[0, 3]].mean(0)
        half = max(float(np.linalg.norm(front - middle)), 1e-6)
        return np.stack([front, front + (front - middle) / half * min(half, 1.2)])


@dataclass
class Scene:
    """Points, boxes and pictures of one place.

    Attributes:
        title: a line of text.
        points: [P, 3] float32 metres.
        shade: [P] float32 in 0..1, from dark to bright: height.
        boxes: true ones first, then predictions by rising score (the surest is drawn last).
        cameras: cameras by name.
        images: of some cameras, by the same name: uint8 [H, W, 3] RGB, or the path of a file.
    """

    title: str
    points: np.ndarray
    shade: np.ndarray
    boxes: list[BoxToShow] = field(default_factory=list)
    cameras: dict[str, Any] = field(default_factory=dict)
    images: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_sample(cls, sample: Sample, class_names: list[str] | None = None) -> "Scene":
        """Points and true boxes of ``sample``; of one with a sentence, the box that it means.

        Args:
            sample: the scene.
            class_names: names of the labels; ``sample.meta['class_names']`` if None.
        """
        names = class_names or sample.meta.get("class_names") or []
        points = sample.points[:, :3].detach().cpu().float().numpy()
        rows = slice(None) if sample.text is None else sample.meta.get("target", slice(None))
        labels = None if sample.labels is None else sample.labels[rows]
        boxes = [] if sample.boxes is None else _boxes(sample.boxes[rows], labels, None, names)
        title = sample.sample_id + ("" if sample.text is None else f" {sample.text!r}")
        return cls(title, points, _shade(points), boxes, dict(sample.cameras), _images(sample))

    @classmethod
    def from_detections(
        cls, found: Detections, min_score: float = 0.0, class_names: list[str] | None = None
    ) -> "Scene":
        """The scene in which ``found`` were found, with the boxes of at least ``min_score``.

        Raises:
            ValueError: the detections do not carry their sample.
        """
        if found.sample is None:
            raise ValueError("the detections carry no sample: set Detections.sample to show them")
        scene = cls.from_sample(found.sample, class_names)
        names = class_names or found.sample.meta.get("class_names") or []
        kept = found.above(min_score)
        scene.boxes += _boxes(kept.boxes, kept.labels, kept.scores, names)[::-1]
        return scene

    @property
    def truth(self) -> list[BoxToShow]:
        """The true boxes."""
        return [box for box in self.boxes if box.score is None]

    @property
    def predictions(self) -> list[BoxToShow]:
        """The predicted boxes."""
        return [box for box in self.boxes if box.score is not None]

    def extent(self) -> np.ndarray:
        """[2, 2] metres: lower and upper corner in x, y of nearly all points and of all boxes."""
        seen = [box.corners[:, :2] for box in self.boxes]
        if len(self.points):
            seen.append(np.percentile(self.points[:, :2], [0.5, 99.5], axis=0))
        if not seen:
            return np.array([[-10.0, -10.0], [10.0, 10.0]])
        seen = np.concatenate(seen)
        middle, half = (seen.min(0) + seen.max(0)) / 2, np.maximum(np.ptp(seen, axis=0) / 2, 2) + 1
        return np.stack([middle - half, middle + half])


def _images(sample: Sample) -> dict[str, Any]:
    """The sample's images; those not loaded by the paths that its meta notes."""
    paths = dict(sample.meta.get("image_paths") or {})
    if len(sample.cameras) == 1 and sample.meta.get("image_path"):
        paths = {next(iter(sample.cameras)): sample.meta["image_path"]}
    paths = {name: path for name, path in paths.items() if Path(path).is_file()}
    return {**paths, **sample.images}


def _shade(points: np.ndarray) -> np.ndarray:
    if not len(points):
        return np.zeros(0, np.float32)
    low, high = np.percentile(points[:, 2], [2, 98])
    return np.clip((points[:, 2] - low) / max(high - low, 1e-3), 0, 1).astype(np.float32)


def _boxes(boxes: Boxes, labels, scores, names: list[str]) -> list[BoxToShow]:
    corners = boxes.corners().detach().cpu().float().numpy()
    labels = [-1] * len(boxes) if labels is None else labels.tolist()
    sure = [None] * len(boxes) if scores is None else scores.tolist()
    return [
        BoxToShow(
            corner, label, names[label] if 0 <= label < len(names) else f"class {label}", score
        )
        for corner, label, score in zip(corners, labels, sure)
    ]
