"""KITTI's average precision of 2-D boxes, ground boxes, 3-D boxes and orientation, R11 and R40.

Definition: https://www.cvlibs.net/datasets/kitti/eval_object.php (the object benchmark and its
development kit). An AP is in percent. With fewer than 41 true objects even perfect detections stay
below 100, because the definition takes a recall only where a true positive stands.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from mmengine.evaluator import BaseMetric

from sparse3d.datasets.kitti import DIFFICULTY, Calibration, Labels, boxes_to_camera
from sparse3d.ops import rotated
from sparse3d.registry import METRICS
from sparse3d.structures import Detections

from .matching import choose_in_turn, table

LEVELS = ("easy", "moderate", "hard")
KINDS = ("bbox", "bev", "3d")
# Least overlap of a match, for each of KINDS.
STRICT = {
    "Car": (0.7, 0.7, 0.7),
    "Van": (0.7, 0.7, 0.7),
    "Truck": (0.7, 0.7, 0.7),
    "Tram": (0.7, 0.7, 0.7),
    "Pedestrian": (0.5, 0.5, 0.5),
    "Person_sitting": (0.5, 0.5, 0.5),
    "Cyclist": (0.5, 0.5, 0.5),
}
LOOSE = {
    name: (least[0], *(0.5 if least[0] == 0.7 else 0.25,) * 2) for name, least in STRICT.items()
}
# A detection of the class may sit on one of these without being wrong.
RESEMBLING = {"Car": "Van", "Pedestrian": "Person_sitting"}
RECALLS = 41
VALID, IGNORED, EXCLUDED = 0, 1, -1


@dataclass(frozen=True, eq=False)
class Frames:
    """True and found objects of all frames, one frame after the other, and the pairs that overlap.

    Attributes:
        truth: labels [G], with 'frame' [G].
        found: labels [D] with 'score' [D], and 'frame' [D].
        pairs: for each of KINDS the rows of truth and of found [n] that overlap, and how much [n].
        in_dont_care: [D] largest share of a found 2-D box that lies in one DontCare region.
        number: of frames.
    """

    truth: Labels
    found: Labels
    pairs: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]
    in_dont_care: np.ndarray
    number: int


def gather(truth: Sequence[Labels], found: Sequence[Labels]) -> Frames:
    """Puts frames together and computes their overlaps.

    Args:
        truth: per frame the labels as ``datasets.kitti.read_labels`` gives them, DontCare included.
        found: per frame likewise, with 'score' [n]; truncated and occluded are not used.

    Raises:
        ValueError: the numbers of frames differ, or a field is missing.
    """
    if len(truth) != len(found):
        raise ValueError(f"{len(truth)} frames of truth but {len(found)} of detections")
    number = len(truth)
    truth = _join(truth, "occluded", "truncated")
    found = _join(found, "score")
    pairs = {kind: [(np.zeros(0, int), np.zeros(0, int), np.zeros(0))] for kind in KINDS}
    in_dont_care = np.zeros(len(found["frame"]))
    for frame in np.intersect1d(truth["frame"], found["frame"]):
        rows, columns = (_rows(labels, frame) for labels in (truth, found))
        true, seen = _select(truth, rows), _select(found, columns)
        overlaps = (_image_iou(true["bbox"], seen["bbox"]), *_box_ious(true, seen))
        for kind, overlap in zip(KINDS, overlaps):
            i, j = overlap.nonzero()
            pairs[kind].append((i + rows.start, j + columns.start, overlap[i, j]))
        common = _image_overlap(seen["bbox"], true["bbox"][true["name"] == "DontCare"])
        area = np.maximum(_image_area(seen["bbox"]), 1e-12)
        in_dont_care[columns] = common.max(1, initial=0) / area
    joined = {k: tuple(np.concatenate(column) for column in zip(*v)) for k, v in pairs.items()}
    return Frames(truth, found, joined, in_dont_care, number)


def average_precision(
    frames: Frames,
    classes: Sequence[str] = ("Car", "Pedestrian", "Cyclist"),
    min_overlaps: Mapping[str, Sequence[float]] = STRICT,
) -> dict[str, np.ndarray]:
    """Average precision in percent.

    Args:
        frames: from ``gather``.
        classes: KITTI's class names.
        min_overlaps: per class the least overlap of a match for bbox, bev, 3d; STRICT or LOOSE.

    Returns:
        'bbox_R11', 'bbox_R40', and so for bev, 3d and aos: [classes, 3] (easy, moderate, hard).

    Raises:
        ValueError: ``min_overlaps`` lacks a class.
    """
    unknown = [name for name in classes if name not in min_overlaps]
    if unknown:
        raise ValueError(
            f"no least overlap for {unknown}; known are {sorted(min_overlaps)}: give min_overlaps"
        )
    result = {}
    for kind, curve in ((k, c) for k in KINDS for c in (("aos", k) if k == "bbox" else (k,))):
        values = np.zeros((len(classes), len(LEVELS), RECALLS))
        for c, name in enumerate(classes):
            for level in range(len(LEVELS)):
                least = min_overlaps[name][KINDS.index(kind)]
                precision, similarity = _curves(frames, name, level, kind, least)
                values[c, level] = similarity if curve == "aos" else precision
        result[f"{curve}_R11"] = values[..., ::4].mean(-1) * 100
        result[f"{curve}_R40"] = values[..., 1:].mean(-1) * 100
    return result


def detection_summary(
    frames: Frames, score: float, iou: float = 0.5, name: str = "Car", level: str = "moderate"
) -> dict[str, float]:
    """What a user meets at one score: how many objects are found, and how many boxes are false.

    Objects up to difficulty ``level`` are to be found. Harder ones, Vans (for cars), DontCare
    regions and detections lower in the picture than the level's least height count neither way.

    Args:
        frames: from ``gather``.
        score: detections below do not count.
        iou: a match has a larger 3-D IoU.
        name: KITTI's class name.
        level: 'easy', 'moderate' or 'hard'.

    Returns:
        recall and precision in 0..1 (NaN: nothing to divide by), false_per_frame, true, found.
    """
    difficulty = LEVELS.index(level)
    state = _states(frames, name, difficulty)
    covered = frames.in_dont_care > iou
    right, false, _ = _count(frames, state, "3d", iou, np.array([score]), covered)
    wanted = int((state[0] == VALID).sum())
    return {
        "recall": float(right[0] / wanted) if wanted else float("nan"),
        "precision": float(right[0] / (right + false)[0]) if (right + false)[0] else float("nan"),
        "false_per_frame": float(false[0] / max(frames.number, 1)),
        "true": wanted,
        "found": int(right[0]),
    }


# ---------------------------------------------------------------------- matching


def _states(frames: Frames, name: str, level: int) -> tuple[np.ndarray, np.ndarray]:
    """VALID, IGNORED or EXCLUDED for each true [G] and each found [D] object."""
    truth, found = frames.truth, frames.found
    least, occluded, truncated = DIFFICULTY[level]
    height = truth["bbox"][:, 3] - truth["bbox"][:, 1]
    hard = (truth["occluded"] > occluded) | (truth["truncated"] > truncated) | (height <= least)
    same = truth["name"] == name
    true_state = np.full(len(same), EXCLUDED)
    true_state[same | (truth["name"] == RESEMBLING.get(name, name))] = IGNORED
    true_state[same & ~hard] = VALID
    # The height is tested before the class, as in the development kit: a low detection of another
    # class may be taken by an object too, and then counts neither way.
    low = np.abs(found["bbox"][:, 3] - found["bbox"][:, 1]) < least
    found_state = np.where(low, IGNORED, np.where(found["name"] == name, VALID, EXCLUDED))
    return true_state, found_state


def _curves(
    frames: Frames, name: str, level: int, kind: str, least: float
) -> tuple[np.ndarray, np.ndarray]:
    """Precision and orientation similarity at the 41 recalls, made monotone from the right."""
    state = _states(frames, name, level)
    rows, taken = _match(frames, state, kind, least, np.array([-np.inf]), by_score=True)
    hit = taken[:, 0] >= 0
    hit[hit] = (state[0][rows[hit]] == VALID) & (state[1][taken[hit, 0]] == VALID)
    scores = frames.found["score"][taken[hit, 0]]
    thresholds = _thresholds(scores, int((state[0] == VALID).sum()))

    covered = frames.in_dont_care > least if kind == "bbox" else np.zeros(len(state[1]), bool)
    right, false, alike = _count(frames, state, kind, least, thresholds, covered)
    total = np.maximum(right + false, 1)
    curves = np.zeros((2, RECALLS))
    curves[:, : len(thresholds)] = right / total, alike / total
    return tuple(np.maximum.accumulate(curves[:, ::-1], 1)[:, ::-1])


def _thresholds(scores: np.ndarray, number: int) -> np.ndarray:
    """Scores [<= 41] at which the recall of ``number`` objects passes multiples of 1/40."""
    scores = np.sort(scores)[::-1]
    chosen, recall = [], 0.0
    for i, score in enumerate(scores):
        last = i == len(scores) - 1
        left = (i + 1) / number
        right = left if last else (i + 2) / number
        if right - recall < recall - left and not last:
            continue
        chosen.append(score)
        recall += 1 / (RECALLS - 1)
    return np.array(chosen)


def _count(
    frames: Frames,
    state: tuple[np.ndarray, np.ndarray],
    kind: str,
    least: float,
    thresholds: np.ndarray,
    covered: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True positives, false positives and summed orientation similarity at each threshold [T].

    ``covered`` [D] detections lie in a DontCare region and are not false.
    """
    rows, taken = _match(frames, state, kind, least, thresholds, by_score=False)
    took_valid = (taken >= 0) & (state[1][taken] == VALID)
    right = took_valid & (state[0][rows] == VALID)[:, None]
    turn = frames.truth["alpha"][rows][:, None] - frames.found["alpha"][taken]
    alike = np.where(right, (1 + np.cos(turn)) / 2, 0).sum(0)

    may_be_false = (state[1] == VALID) & ~covered
    scores = np.sort(frames.found["score"][may_be_false])
    above = len(scores) - np.searchsorted(scores, thresholds)
    false = above - (took_valid & may_be_false[taken]).sum(0)
    return right.sum(0), false, alike


def _match(
    frames: Frames,
    state: tuple[np.ndarray, np.ndarray],
    kind: str,
    least: float,
    thresholds: np.ndarray,
    by_score: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Which detection each true object takes, in the order of the labels.

    Of those that are free, score at least the threshold and overlap more than ``least`` it takes
    the one with the best score, or else (``by_score`` False) the one with the largest overlap, an
    ignored one only if there is no other; ties by index.

    Returns:
        rows [n] of the true objects that have candidates; detection [n, T] each one takes, or -1.
    """
    true, found, overlap = frames.pairs[kind]
    legal = (overlap > least) & (state[0][true] != EXCLUDED) & (state[1][found] != EXCLUDED)
    true, found, overlap = true[legal], found[legal], overlap[legal]
    ignored = state[1][found] == IGNORED
    if by_score:
        order = np.lexsort((found, -frames.found["score"][found], true))
    else:
        order = np.lexsort((found, np.where(ignored, 0, -overlap), ignored, true))
    rows, options = table(true[order], found[order])
    allowed = frames.found["score"][options][..., None] >= thresholds
    return rows, choose_in_turn(frames.truth["frame"][rows], options, allowed)


# ---------------------------------------------------------------------- overlaps


def _join(frames: Sequence[Labels], *extra: str) -> Labels:
    """Labels of all frames one after the other, with 'frame' [n]."""
    widths = {"bbox": 4, "dimensions": 3, "location": 3}
    fields = ("name", "alpha", "bbox", "dimensions", "location", "rotation_y", *extra)
    for number, labels in enumerate(frames):
        missing = [name for name in fields if name not in labels]
        if missing:
            raise ValueError(
                f"frame {number} of the labels lacks {missing}; it has {sorted(labels)}"
            )
    joined = {}
    for name in fields:
        dtype = object if name == "name" else float
        shape = (-1, widths[name]) if name in widths else (-1,)
        parts = [np.asarray(labels[name], dtype).reshape(shape) for labels in frames]
        joined[name] = np.concatenate([np.zeros((0, *shape[1:]), dtype), *parts])
    counts = [len(labels["name"]) for labels in frames]
    joined["frame"] = np.repeat(np.arange(len(frames)), counts)
    return joined


def _rows(labels: Labels, frame: int) -> slice:
    start, end = np.searchsorted(labels["frame"], [frame, frame + 1])
    return slice(start, end)


def _select(labels: Labels, rows: slice | np.ndarray) -> Labels:
    return {name: values[rows] for name, values in labels.items()}


def _image_overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Common area [N, M] in pixels of boxes (left, top, right, bottom) [N, 4] and [M, 4]."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    return (high - low).clip(0).prod(-1)


def _image_area(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2:] - boxes[:, :2]).prod(1)


def _image_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    common = _image_overlap(a, b)
    union = _image_area(a)[:, None] + _image_area(b)[None] - common
    return common / np.maximum(union, 1e-12)


def _box_ious(true: Labels, found: Labels) -> tuple[np.ndarray, np.ndarray]:
    """Ground and 3-D IoU [G, D]; DontCare regions, which have no 3-D box, overlap nothing."""
    real = true["name"] != "DontCare"
    out = np.zeros((2, len(real), len(found["name"])))
    a, b = _upright(_select(true, real)), _upright(found)
    out[0, real], out[1, real] = rotated.bev_iou(a, b).numpy(), rotated.iou3d(a, b).numpy()
    return out[0], out[1]


def _upright(labels: Labels) -> torch.Tensor:
    """Boxes [n, 7] in a frame of camera x, camera z and height: rotation_y is clockwise there."""
    x, y, z = labels["location"].T
    length, height, width = labels["dimensions"].T
    rows = [x, z, height / 2 - y, length, width, height, -labels["rotation_y"]]
    return torch.from_numpy(np.stack(rows, 1))


# ---------------------------------------------------------------------- the metric


def as_labels(detections: Detections, class_names: Sequence[str]) -> Labels:
    """Detections as KITTI labels with 'score'; what the picture does not show is left out.

    Args:
        detections: with boxes in the LiDAR's frame; ``sample.meta`` has P2 [3, 4], R0_rect [3, 3],
            Tr_velo_to_cam [3, 4] and image_size (width, height).
        class_names: KITTI's name of each label, whatever its capitals.

    Raises:
        ValueError: a matrix is missing.
    """
    meta = {} if detections.sample is None else detections.sample.meta
    missing = [k for k in ("P2", "R0_rect", "Tr_velo_to_cam", "image_size") if k not in meta]
    if missing:
        raise ValueError(
            f"the sample's meta lacks {missing}, so its boxes cannot be brought into the camera's "
            "frame; use KittiDataset, or put them there"
        )
    matrices = [np.asarray(meta[k], float) for k in ("P2", "R0_rect", "Tr_velo_to_cam")]
    labels = boxes_to_camera(detections.boxes.tensor, Calibration(*matrices), meta["image_size"])
    names = [class_names[i].capitalize() for i in detections.labels.tolist()]
    labels["name"] = np.array(names, dtype=object)
    labels["score"] = detections.scores.detach().cpu().double().numpy()
    shown = ((labels["bbox"][:, 2:] - labels["bbox"][:, :2]) > 0).all(1)
    return _select(labels, shown)


@METRICS.register_module()
class KittiMetric(BaseMetric):
    """KITTI's AP for ``Detections`` in the LiDAR's frame.

    Results, in percent: 'mAP' (3-D, R40, moderate, mean over the classes that have such objects);
    '<Class>/<kind>_<R>/<level>' for kinds bbox, bev, 3d, aos, and '<Class>/loose_...' with the
    loose overlaps; and '<Class>/summary/...' of ``detection_summary`` for each class, not in
    percent. Classes that KITTI does not know are left out.
    """

    def __init__(
        self,
        class_names: Sequence[str] | None = None,
        summary_score: float = 0.5,
        collect_device: str = "cpu",
    ):
        """Args:
        class_names: the classes in the order of the labels; None: those of the data set.
        summary_score: score of the summary.
        collect_device: where the parts of several processes come together.
        """
        super().__init__(collect_device=collect_device)
        self.class_names = class_names
        self.summary_score = summary_score

    def process(self, data_batch: Any, data_samples: Sequence[Detections]) -> None:
        names = self._classes()
        for detections in data_samples:
            found = as_labels(detections, names)
            truth = detections.sample.meta.get("kitti")
            if truth is None:
                raise ValueError(
                    f"frame {detections.sample.sample_id} has no labels (meta['kitti']); evaluate "
                    "on a split with label_2"
                )
            self.results.append((truth, found))

    def compute_metrics(self, results: list[tuple[Labels, Labels]]) -> dict[str, float]:
        classes = [name.capitalize() for name in self._classes()]
        classes = [name for name in classes if name in STRICT]
        frames = gather(*([pair[i] for pair in results] for i in (0, 1)))
        strict = average_precision(frames, classes)
        loose = average_precision(frames, classes, LOOSE)
        out, present = {"mAP": 0.0}, []
        for c, name in enumerate(classes):
            for level, word in enumerate(LEVELS):
                for key, values in strict.items():
                    out[f"{name}/{key}/{word}"] = float(values[c, level])
                for key in ("bev_R11", "bev_R40", "3d_R11", "3d_R40"):
                    out[f"{name}/loose_{key}/{word}"] = float(loose[key][c, level])
            summary = detection_summary(frames, self.summary_score, name=name)
            out |= {f"{name}/summary/{key}": value for key, value in summary.items()}
            if summary["true"]:
                present.append(strict["3d_R40"][c, 1])
        out["mAP"] = float(np.mean(present)) if present else 0.0
        return out

    def _classes(self) -> Sequence[str]:
        names = self.class_names or (self.dataset_meta or {}).get("class_names")
        if not names:
            raise ValueError("KittiMetric does not know the classes: give class_names")
        return names
