"""nuScenes' detection metrics: AP by centre distance, errors of the true positives, NDS.

Definition: https://www.nuscenes.org/object-detection (paper https://arxiv.org/abs/1903.11027) and
its devkit 1.2.0. Any list of classes can be measured so; the procedural world's streets are.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.evaluator import BaseMetric

from sparse3d.registry import METRICS
from sparse3d.structures import Detections

from .matching import choose_in_turn, table

DISTANCES = (0.5, 1.0, 2.0, 4.0)  # metres
ERROR_DISTANCE = 2.0
LEAST = 10  # percent of recall, and of precision, below which nothing counts
ERRORS = ("trans_err", "scale_err", "orient_err", "vel_err", "attr_err")
SHORT = dict(zip(ERRORS, ("ATE", "ASE", "AOE", "AVE", "AAE")))
# Errors that mean nothing for a class, and classes that look the same from behind.
UNDEFINED = {
    "traffic_cone": ("orient_err", "vel_err", "attr_err"),
    "barrier": ("vel_err", "attr_err"),
}
HALF_TURN = ("barrier",)
# Farther from the car than this, in metres, the official evaluation looks at nothing.
RANGES = {
    **dict.fromkeys(("car", "truck", "bus", "trailer", "construction_vehicle"), 50.0),
    **dict.fromkeys(("pedestrian", "motorcycle", "bicycle"), 40.0),
    **dict.fromkeys(("traffic_cone", "barrier"), 30.0),
}
MOST_BOXES = 500  # per frame, in a result file
SOURCES = ("camera", "lidar", "radar", "map", "external")  # that a result file asks about
MOVING = 0.2  # m/s, from which an object gets the attribute of a moving one


@dataclass(frozen=True, eq=False)
class Objects:
    """True or found objects of many frames.

    Attributes:
        frame: [n] int, the frame of each.
        name: [n] class names.
        boxes: [n, 9] float64: x, y, z, dx, dy, dz, yaw, vx, vy; metres, radians, m/s; velocity NaN
            where unknown.
        attribute: [n] names, '' where there is none.
        score: [n], of found objects.
    """

    frame: np.ndarray
    name: np.ndarray
    boxes: np.ndarray
    attribute: np.ndarray
    score: np.ndarray

    def __getitem__(self, rows: np.ndarray) -> "Objects":
        return Objects(*(column[rows] for column in vars(self).values()))

    def __len__(self) -> int:
        return len(self.frame)

    @staticmethod
    def cat(parts: Sequence["Objects"]) -> "Objects":
        parts = [_objects(np.zeros((0, 9)), []), *parts]
        columns = zip(*(vars(part).values() for part in parts))
        return Objects(*(np.concatenate(column) for column in columns))


def evaluate(
    truth: Objects,
    found: Objects,
    classes: Sequence[str],
    distances: Sequence[float] = DISTANCES,
    errors: Sequence[str] = ERRORS,
) -> dict[str, Any]:
    """The metrics, under the names of the devkit.

    Args:
        truth: true objects.
        found: detections; equal scores rank by later row, as in the devkit.
        classes: classes to measure. One without true objects has AP 0 and errors 1.
        distances: metres in the ground plane, below which centres match.
        errors: which of ERRORS are measured.

    Returns:
        label_aps {class: {distance: AP}}, mean_dist_aps {class: AP}, mean_ap, label_tp_errors
        {class: {error: value, NaN where it means nothing}}, tp_errors and tp_scores {error: value},
        and nd_score, in which mAP weighs as much as all errors together (5 of 10 with all five).
    """
    aps, tp_errors = {}, {}
    for name in classes:
        true, seen = (o[o.name == name] for o in (truth, found))
        seen = seen[np.lexsort((np.arange(len(seen)), seen.score))[::-1]]
        taken = _match(true, seen, (*distances, ERROR_DISTANCE))
        aps[name] = {
            float(d): _average_precision(taken[:, i] >= 0, len(true))
            for i, d in enumerate(distances)
        }
        hit = taken[:, -1] >= 0
        values = _errors(true[taken[hit, -1]], seen[hit], name)
        tp_errors[name] = {
            key: np.nan
            if key in UNDEFINED.get(name, ())
            else _mean_error(values[key], seen.score, hit, len(true))
            for key in errors
        }
    class_aps = {name: float(np.mean(list(values.values()))) for name, values in aps.items()}
    mean_ap = float(np.mean(list(class_aps.values())))
    mean_errors = {key: _nan_mean([tp_errors[name][key] for name in classes]) for key in errors}
    scores = {key: max(0.0, 1.0 - value) for key, value in mean_errors.items()}
    defined = [scores[key] for key in errors if not np.isnan(mean_errors[key])]
    half = max(len(defined), 1)
    return {
        "label_aps": aps,
        "mean_dist_aps": class_aps,
        "mean_ap": mean_ap,
        "label_tp_errors": tp_errors,
        "tp_errors": mean_errors,
        "tp_scores": scores,
        "nd_score": (half * mean_ap + sum(defined)) / (half + len(defined)),
    }


def _match(truth: Objects, found: Objects, distances: Sequence[float]) -> np.ndarray:
    """Row of ``truth`` that each of ``found`` takes at each distance, or -1: [D, T].

    ``found`` come by falling score; each takes the nearest free object of its frame that is nearer
    than the distance.
    """
    rows, columns, apart = _near(truth, found, max(distances))
    order = np.lexsort((columns, apart, rows))
    seen, options, apart = table(rows[order], columns[order], apart[order])
    taken = np.full((len(found), len(distances)), -1)
    allowed = apart[..., None] < np.array(distances)
    taken[seen] = choose_in_turn(found.frame[seen], options, allowed)
    return taken


def _near(
    truth: Objects, found: Objects, distance: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of found and of truth [n] of one frame nearer than ``distance``, and how near [n]."""
    parts = [(np.zeros(0, int), np.zeros(0, int), np.zeros(0))]
    true_order = np.argsort(truth.frame, kind="stable")
    found_order = np.argsort(found.frame, kind="stable")
    frames = np.intersect1d(truth.frame, found.frame)
    for true, seen in zip(
        _runs(truth.frame[true_order], true_order, frames),
        _runs(found.frame[found_order], found_order, frames),
    ):
        step = found.boxes[seen, None, :2] - truth.boxes[None, true, :2]
        apart = np.sqrt((step**2).sum(-1))
        i, j = (apart < distance).nonzero()
        parts.append((seen[i], true[j], apart[i, j]))
    return tuple(np.concatenate(column) for column in zip(*parts))


def _runs(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray):
    """The ``values`` of each ``wanted`` key; ``keys`` ascend."""
    starts, ends = np.searchsorted(keys, wanted), np.searchsorted(keys, wanted, "right")
    return (values[start:end] for start, end in zip(starts, ends))


def _at_recalls(hit: np.ndarray, number: int, values: np.ndarray) -> np.ndarray:
    """``values`` [D] of ranked detections at 101 recalls of ``number`` objects; 0 past the last."""
    recall = np.cumsum(hit) / number
    return np.interp(np.linspace(0, 1, 101), recall, values, right=0)


def _average_precision(hit: np.ndarray, number: int) -> float:
    """``hit`` [D] bool by falling score, ``number`` of true objects."""
    if not hit.any():
        return 0.0
    precision = _at_recalls(hit, number, np.cumsum(hit) / np.arange(1, len(hit) + 1))
    least = LEAST / 100
    return float(np.maximum(precision[LEAST + 1 :] - least, 0).mean() / (1 - least))


def _mean_error(values: np.ndarray, scores: np.ndarray, hit: np.ndarray, number: int) -> float:
    """Mean over the recalls from 11 % of the running mean of ``values`` [matches], NaN left out."""
    if not hit.any():
        return 1.0
    confidence = _at_recalls(hit, number, scores)
    last = confidence.nonzero()[0].max(initial=0)
    if last < LEAST + 1:
        return 1.0
    known = ~np.isnan(values)
    counts = np.cumsum(known)
    running = np.cumsum(np.where(known, values, 0)) / np.maximum(counts, 1)
    if not known.any():
        running = np.ones(len(values))
    at_recalls = np.interp(confidence[::-1], scores[hit][::-1], running[::-1])[::-1]
    return float(at_recalls[LEAST + 1 : last + 1].mean())


def _errors(true: Objects, found: Objects, name: str) -> dict[str, np.ndarray]:
    """Errors [n] of pairs of one class."""
    a, b = true.boxes, found.boxes
    common = np.minimum(a[:, 3:6], b[:, 3:6]).prod(1)
    union = a[:, 3:6].prod(1) + b[:, 3:6].prod(1) - common
    period = np.pi if name in HALF_TURN else 2 * np.pi
    turn = np.remainder(a[:, 6] - b[:, 6] + period / 2, period) - period / 2
    unequal = (true.attribute != found.attribute).astype(float)
    return {
        "trans_err": np.sqrt(((a[:, :2] - b[:, :2]) ** 2).sum(1)),
        "scale_err": 1 - common / union,
        "orient_err": np.abs(turn),
        "vel_err": np.sqrt(((a[:, 7:] - b[:, 7:]) ** 2).sum(1)),
        "attr_err": np.where(true.attribute == "", np.nan, unequal),
    }


def _nan_mean(values: Sequence[float]) -> float:
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")


# ---------------------------------------------------------------------- frames and files


def moved(boxes: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Boxes [n, 9] brought by the rigid ``matrix`` [4, 4] to another frame, upright there too."""
    out = boxes.copy()
    out[:, :3] = boxes[:, :3] @ matrix[:3, :3].T + matrix[:3, 3]
    heading = np.stack([np.cos(boxes[:, 6]), np.sin(boxes[:, 6])], 1) @ matrix[:2, :2].T
    out[:, 6] = np.arctan2(heading[:, 1], heading[:, 0])
    out[:, 7:] = boxes[:, 7:] @ matrix[:2, :2].T
    return out


def usual_attribute(name: str, speed: float) -> str:
    """The commonest attribute of a class at ``speed`` m/s; '' for a class without any."""
    moving = speed > MOVING
    if name in ("bicycle", "motorcycle"):
        return "cycle.with_rider" if moving else "cycle.without_rider"
    if name == "pedestrian":
        return "pedestrian.moving" if moving else "pedestrian.standing"
    if name in ("car", "truck", "bus", "trailer", "construction_vehicle"):
        return "vehicle.moving" if moving else "vehicle.parked"
    return ""


def write_results(path: str | Path, found: Objects, tokens: Sequence[str]) -> None:
    """Writes a result file for the official evaluation server.

    Args:
        path: of the JSON file.
        found: detections in the global frame; the best 500 of a frame are written.
        tokens: the sample token of each frame, by its number in ``found.frame``.
    """
    results = {token: [] for token in tokens}
    for row in np.argsort(-found.score, kind="stable"):
        token = tokens[found.frame[row]]
        if len(results[token]) < MOST_BOXES:
            results[token].append(_entry(found, row, token))
    meta = {f"use_{source}": source == "lidar" for source in SOURCES}
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps({"meta": meta, "results": results}))


def _entry(found: Objects, row: int, token: str) -> dict[str, Any]:
    box = found.boxes[row]
    return {
        "sample_token": token,
        "translation": box[:3].tolist(),
        "size": box[[4, 3, 5]].tolist(),
        "rotation": [float(np.cos(box[6] / 2)), 0.0, 0.0, float(np.sin(box[6] / 2))],
        "velocity": np.nan_to_num(box[7:9]).tolist(),
        "detection_name": str(found.name[row]),
        "detection_score": float(found.score[row]),
        "attribute_name": str(found.attribute[row]),
    }


# ---------------------------------------------------------------------- the metric


@METRICS.register_module()
class NuScenesMetric(BaseMetric):
    """nuScenes' metrics for ``Detections`` of any data set.

    Where the sample's meta has 'nuscenes' (all labelled objects with attributes), lidar_to_ego and
    ego_to_global, the official evaluation is followed in the global frame; bicycles in racks stay
    in. Elsewhere the truth is the sample's boxes with a label that is not negative, and an error
    that the truth says nothing about (velocity, attribute) is not measured.

    Results, 0..1 or in the unit of the error: 'mAP', 'NDS', 'mATE', ...; '<class>/AP',
    '<class>/AP_<distance>', '<class>/ATE', ...
    """

    def __init__(
        self,
        class_names: Sequence[str] | None = None,
        distances: Sequence[float] = DISTANCES,
        max_distance: Mapping[str, float] | float | str | None = None,
        drop_empty: bool = True,
        result_file: str | None = None,
        collect_device: str = "cpu",
    ):
        """Args:
            class_names: the classes in the order of the labels; None: those of the data set.
            distances: metres below which centres match.
            max_distance: true and found objects farther from the car are left out: metres per class
                or for all; 'official': RANGES; None: none is.
            drop_empty: true objects without points are left out, where the meta tells: 'nuscenes',
                or 'num_points' [N] of the sample's boxes.
            result_file: where to write nuScenes' result file too.
            collect_device: where the parts of several processes come together.

        Raises:
            ValueError: ``max_distance`` is another word.
        """
        super().__init__(collect_device=collect_device)
        if isinstance(max_distance, str) and max_distance != "official":
            raise ValueError(
                f"max_distance is {max_distance!r}; it must be 'official', metres, or None"
            )
        self.class_names = class_names
        self.distances = tuple(distances)
        self.max_distance = RANGES if max_distance == "official" else max_distance
        self.drop_empty = drop_empty
        self.result_file = result_file

    def process(self, data_batch: Any, data_samples: Sequence[Detections]) -> None:
        for detections in data_samples:
            if detections.sample is None:
                raise ValueError("detections come without their sample, which holds the truth")
            truth, found = self._truth(detections), self._found(detections)
            meta = detections.sample.meta
            if "lidar_to_ego" in meta:
                truth, found = (self._to(part, meta["lidar_to_ego"]) for part in (truth, found))
            truth, found = self._in_range(truth), self._in_range(found)
            if "ego_to_global" in meta:
                truth, found = (self._to(part, meta["ego_to_global"]) for part in (truth, found))
            self.results.append((detections.sample.sample_id, truth, found))

    def compute_metrics(self, results: list[tuple[str, Objects, Objects]]) -> dict[str, float]:
        for number, (_, *parts) in enumerate(results):
            for part in parts:
                part.frame[:] = number
        truth, found = (Objects.cat([row[i] for row in results]) for i in (1, 2))
        if self.result_file is not None:
            write_results(self.result_file, found, [row[0] for row in results])
        silent = set()
        if np.isnan(truth.boxes[:, 7:]).all():
            silent.add("vel_err")
        if (truth.attribute == "").all():
            silent.add("attr_err")
        errors = [key for key in ERRORS if key not in silent]
        return flatten(evaluate(truth, found, self._classes(), self.distances, errors))

    def _classes(self) -> Sequence[str]:
        names = self.class_names or (self.dataset_meta or {}).get("class_names")
        if not names:
            raise ValueError("NuScenesMetric does not know the classes: give class_names")
        return list(names)

    def _truth(self, detections: Detections) -> Objects:
        sample, classes = detections.sample, self._classes()
        labelled = sample.meta.get("nuscenes")
        if labelled is not None:
            points = labelled["num_lidar_points"] + labelled["num_radar_points"]
            truth = _objects(labelled["boxes"], labelled["name"], labelled["attribute"])
            keep = np.isin(truth.name, classes)
            return truth[keep & (points > 0) if self.drop_empty else keep]
        if sample.boxes is None or sample.labels is None:
            raise ValueError(
                f"sample {sample.sample_id} has no labelled boxes; evaluate on a split that has"
            )
        labels = sample.labels.cpu().numpy()
        truth = _objects(_array(sample.boxes.tensor), [classes[label] for label in labels])
        keep = labels >= 0
        points = sample.meta.get("num_points")
        if points is not None and self.drop_empty:
            if len(points) != len(keep):
                raise ValueError(
                    f"sample {sample.sample_id} has num_points of {len(points)} boxes but "
                    f"{len(keep)} boxes: a transform dropped boxes; evaluate without it"
                )
            keep &= np.asarray(points) > 0
        return truth[keep]

    def _found(self, detections: Detections) -> Objects:
        classes = self._classes()
        names = [classes[label] for label in detections.labels.tolist()]
        boxes = _array(detections.boxes.tensor)
        attributes = [""] * len(names)
        if "nuscenes" in detections.sample.meta or self.result_file is not None:
            speeds = np.nan_to_num(np.linalg.norm(boxes[:, 7:], axis=1))
            attributes = [usual_attribute(*pair) for pair in zip(names, speeds)]
        return _objects(boxes, names, attributes, _array(detections.scores))

    def _in_range(self, objects: Objects) -> Objects:
        if self.max_distance is None:
            return objects
        limits = self.max_distance
        if isinstance(limits, Mapping):
            limits = np.array([limits.get(name, np.inf) for name in objects.name])
        return objects[np.linalg.norm(objects.boxes[:, :2], axis=1) < limits]

    @staticmethod
    def _to(objects: Objects, matrix: np.ndarray) -> Objects:
        boxes = moved(objects.boxes, np.asarray(matrix, float))
        return Objects(**(vars(objects) | {"boxes": boxes}))


def flatten(result: Mapping[str, Any]) -> dict[str, float]:
    """The result of ``evaluate`` as one level of names; what means nothing is left out."""
    out = {"mAP": result["mean_ap"], "NDS": result["nd_score"]}
    out |= {f"m{SHORT[key]}": value for key, value in result["tp_errors"].items()}
    for name, ap in result["mean_dist_aps"].items():
        out[f"{name}/AP"] = ap
        out |= {f"{name}/AP_{d:g}": value for d, value in result["label_aps"][name].items()}
        out |= {f"{name}/{SHORT[k]}": v for k, v in result["label_tp_errors"][name].items()}
    return {key: value for key, value in out.items() if not np.isnan(value)}


def _array(values: Any) -> np.ndarray:
    return values.detach().cpu().double().numpy()


def _objects(boxes, names, attributes=None, scores=None) -> Objects:
    """A table of one frame, whose number is set when all frames are together."""
    boxes = np.asarray(boxes, float)
    table = np.full((len(boxes), 9), np.nan)
    table[:, : boxes.shape[1]] = boxes
    if attributes is None:
        attributes = [""] * len(boxes)
    return Objects(
        np.zeros(len(boxes), int),
        np.asarray(names, dtype=object).reshape(-1),
        table,
        np.asarray(attributes, dtype=object).reshape(-1),
        np.zeros(len(boxes)) if scores is None else scores,
    )
