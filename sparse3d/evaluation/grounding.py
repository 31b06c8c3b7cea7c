"""Accuracy of grounding: the share of sentences whose best box overlaps the true one.

A box counts when its axis-aligned IoU with the true one is greater than a threshold (strictly, as
TSP3D's and ScanRefer's evaluations have it; 3D-SPS's says >=). Shares are reported for all
sentences and for parts of them, each with its count. "unique" has two published definitions that
give different parts; both are reported under their names:

    unique_scanrefer   no other annotated object of the scene has the target's class among the
                       benchmark's classes (all further classes are one: 'others')
    unique_tsp3d       the annotation's list of distractors is empty: other objects of the target's
                       own class name where the data set gives no such list
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from mmengine.evaluator import BaseMetric

from sparse3d.registry import METRICS
from sparse3d.structures import Detections, Sample

THRESHOLDS = (0.25, 0.5)


def aligned_iou(boxes: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """IoU [N] of pairs of boxes [N, >=6] (centre, size) taken as parallel to the axes."""
    boxes, truth = np.asarray(boxes, float), np.asarray(truth, float)
    low = np.maximum(boxes[:, :3] - boxes[:, 3:6] / 2, truth[:, :3] - truth[:, 3:6] / 2)
    high = np.minimum(boxes[:, :3] + boxes[:, 3:6] / 2, truth[:, :3] + truth[:, 3:6] / 2)
    inner = (high - low).clip(min=0).prod(1)
    union = boxes[:, 3:6].prod(1) + truth[:, 3:6].prod(1) - inner
    return inner / np.maximum(union, 1e-12)


def accuracy(
    iou: np.ndarray,
    parts: Mapping[str, np.ndarray],
    thresholds: Sequence[float] = THRESHOLDS,
) -> dict[str, float]:
    """Shares of sentences above each threshold, of all and of each part.

    Args:
        iou: [N] of each sentence's best box; 0 where nothing was found.
        parts: masks [N] by name.
        thresholds: IoU that must be exceeded.

    Returns:
        'Acc@0.25', ..., 'mean_iou', 'sentences'; '<part>/Acc@0.25', ..., '<part>/sentences'. An
        empty part is left out.
    """
    iou = np.asarray(iou, float)
    result = {f"Acc@{t:g}": _share(iou > t) for t in thresholds}
    result |= {"mean_iou": _share(iou), "sentences": len(iou)}
    for name, mask in parts.items():
        chosen = iou[np.asarray(mask, bool)]
        if len(chosen):
            result |= {f"{name}/Acc@{t:g}": _share(chosen > t) for t in thresholds}
            result[f"{name}/sentences"] = len(chosen)
    return result


def _share(values: np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else 0.0


def parts_of(sample: Sample) -> list[str]:
    """The parts that a sample's sentence belongs to, see the module."""
    target, meta = sample.meta["target"][0], sample.meta
    parts = []
    if sample.labels is not None:
        same = int((sample.labels == sample.labels[target]).sum())
        parts.append("unique_scanrefer" if same == 1 else "multiple_scanrefer")
    distractors = meta.get("distractors")
    if distractors is None and sample.names is not None:
        distractors = sum(name == sample.names[target] for name in sample.names) - 1
    if distractors is not None:
        parts.append("unique_tsp3d" if distractors == 0 else "multiple_tsp3d")
        parts.append("hard" if distractors > 1 else "easy")
    if "view_dependent" in meta:
        parts.append("view_dependent" if meta["view_dependent"] else "view_independent")
    if meta.get("kind"):
        parts.append(meta["kind"])
    return parts


@METRICS.register_module()
class GroundingMetric(BaseMetric):
    """Accuracy of the best box of each sentence, see ``accuracy`` and ``parts_of``.

    Args:
        thresholds: IoU that must be exceeded.
        collect_device: where the parts of several processes come together.
    """

    def __init__(
        self, thresholds: Sequence[float] = THRESHOLDS, collect_device: str = "cpu", **options: Any
    ):
        super().__init__(collect_device=collect_device, **options)
        self.thresholds = tuple(thresholds)

    def process(self, data_batch: Any, data_samples: Sequence[Detections]) -> None:
        """Notes the IoU of the first of each sentence's boxes.

        Raises:
            ValueError: a sample says not which of its boxes is meant.
        """
        for found in data_samples:
            sample = found.sample
            rows = None if sample is None else sample.meta.get("target")
            if rows is None or sample.boxes is None or len(rows) != 1:
                name = "without a sample" if sample is None else sample.sample_id
                raise ValueError(
                    f"prediction {name}: meta['target'] is {rows}; one row of the sample's boxes is"
                    " needed to say whether the answer is right"
                )
            iou = 0.0
            if len(found):
                best = found.boxes.tensor[:1].cpu().numpy()
                iou = float(aligned_iou(best, sample.boxes.tensor[rows].cpu().numpy())[0])
            self.results.append((sample.sample_id, iou, parts_of(sample)))

    def compute_metrics(self, results: list[tuple[str, float, list[str]]]) -> dict[str, float]:
        iou = np.array([row[1] for row in results])
        names = sorted({part for row in results for part in row[2]})
        parts = {name: np.array([name in row[2] for row in results]) for name in names}
        return accuracy(iou, parts, self.thresholds)
