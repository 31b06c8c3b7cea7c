"""Scene-flow metrics by their published definitions, each named: numbers differ by convention.

    point_scores       EPE3D, strict and relaxed accuracy, outliers (FlyingThings3D, KITTI)
    argoverse2_scores  version 1: subsets by class, motion and distance, three-way EPE (av2 0.3.6)
    bucketed_scores    version 2: EPE per speed, over the speed (BucketedSceneFlowEval)
    opensceneflow_*    the same two as OpenSceneFlow computes them: a circle instead of a square
    range_scores       plain EPE by distance and motion (SSF)

Flows of a Frame INCLUDE the ego motion, on both sides; what takes it out says so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

INTERVAL = 0.1
MOVING = 0.05
"""Metres per 0.1 s: from there on a point is dynamic in Argoverse 2's sense."""
CLOSE = 35.0

CATEGORIES = (
    *("ANIMAL", "ARTICULATED_BUS", "BICYCLE", "BICYCLIST", "BOLLARD", "BOX_TRUCK", "BUS"),
    *("CONSTRUCTION_BARREL", "CONSTRUCTION_CONE", "DOG", "LARGE_VEHICLE"),
    *("MESSAGE_BOARD_TRAILER", "MOBILE_PEDESTRIAN_CROSSING_SIGN", "MOTORCYCLE", "MOTORCYCLIST"),
    *("OFFICIAL_SIGNALER", "PEDESTRIAN", "RAILED_VEHICLE", "REGULAR_VEHICLE", "SCHOOL_BUS"),
    *("SIGN", "STOP_SIGN", "STROLLER", "TRAFFIC_LIGHT_TRAILER", "TRUCK", "TRUCK_CAB"),
    *("VEHICULAR_TRAILER", "WHEELCHAIR", "WHEELED_DEVICE", "WHEELED_RIDER"),
)
"""Argoverse 2's classes; category index = 1 + place here, 0 for none."""

META_CLASSES: dict[str, tuple[str, ...]] = {
    "BACKGROUND": ("NONE",),
    "CAR": ("REGULAR_VEHICLE",),
    "PEDESTRIAN": ("PEDESTRIAN", "STROLLER", "WHEELCHAIR", "OFFICIAL_SIGNALER"),
    "WHEELED_VRU": (
        *("BICYCLE", "BICYCLIST", "MOTORCYCLE", "MOTORCYCLIST", "WHEELED_DEVICE", "WHEELED_RIDER"),
    ),
    "OTHER_VEHICLES": (
        *("BOX_TRUCK", "LARGE_VEHICLE", "RAILED_VEHICLE", "TRUCK", "TRUCK_CAB"),
        *("VEHICULAR_TRAILER", "ARTICULATED_BUS", "BUS", "SCHOOL_BUS"),
    ),
}
"""Version 2's classes; animals and road signs are in none and do not count."""


@dataclass(frozen=True, eq=False)
class Frame:
    """One pair of sweeps with what was found.

    Attributes:
        points: [P, 3] of the source, metres, in its sensor's or vehicle's frame.
        found, truth: [P, 3] flow, ego motion INCLUDED.
        ego_flow: [P, 3] the part of the ego motion.
        category: [P] int, 0 background, else 1 + place in ``CATEGORIES``.
        found_dynamic: [P] bool, what the method calls dynamic; by ``MOVING`` if None.
        dynamic: [P] bool, the truth of it; by ``MOVING`` if None.
        valid: [P] bool, points that count; all if None.
    """

    points: np.ndarray
    found: np.ndarray
    truth: np.ndarray
    ego_flow: np.ndarray
    category: np.ndarray
    found_dynamic: np.ndarray | None = None
    dynamic: np.ndarray | None = None
    valid: np.ndarray | None = None

    def counted(self) -> "Frame":
        """The valid points alone, with every mask set."""
        valid = np.ones(len(self.points), bool) if self.valid is None else self.valid
        moves = [
            _length(flow - self.ego_flow) >= MOVING if given is None else given
            for flow, given in ((self.found, self.found_dynamic), (self.truth, self.dynamic))
        ]
        rest = (self.points, self.found, self.truth, self.ego_flow, self.category, *moves, valid)
        return Frame(*(np.asarray(part)[valid] for part in rest))


def _length(rows: np.ndarray) -> np.ndarray:
    return np.linalg.norm(rows, axis=-1)


def _accuracy(error: np.ndarray, truth: np.ndarray, limit: float, guard: float) -> np.ndarray:
    return (error < limit) | (error / (_length(truth) + guard) < limit)


# ---------------------------------------------------------------------- point benchmarks


def point_scores(
    found: np.ndarray, truth: np.ndarray, mask: np.ndarray | None = None
) -> dict[str, float]:
    """EPE3D (metres), AccS, AccR and Outliers of one pair; average them over pairs.

    Args:
        found, truth: [P, 3].
        mask: [P] bool, points that count.

    Source: FlowNet3D and HPLFlowNet; the relative error's guard is 1e-4.
    """
    if mask is not None:
        found, truth = found[mask], truth[mask]
    if not len(found):
        return dict.fromkeys(("EPE3D", "AccS", "AccR", "Outliers"), float("nan"))
    error = _length(found - truth)
    relative = error / (_length(truth) + 1e-4)
    return {
        "EPE3D": float(error.mean()),
        "AccS": float(((error < 0.05) | (relative < 0.05)).mean()),
        "AccR": float(((error < 0.1) | (relative < 0.1)).mean()),
        "Outliers": float(((error > 0.3) | (relative > 0.1)).mean()),
    }


def image_scores(found: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """EPE2D (pixels) and Acc2D of flows [P, 2] in a picture."""
    error = _length(found - truth)
    good = (error < 3) | (error / (_length(truth) + 1e-5) < 0.05)
    return {"EPE2D": float(error.mean()), "Acc2D": float(good.mean())}


# ---------------------------------------------------------------------- Argoverse 2, version 1

POINTWISE = ("Accuracy Relax", "Accuracy Strict", "Angle Error", "EPE")
COUNTS = ("TP", "TN", "FP", "FN")


def argoverse2_rows(frame: Frame, name: str = "") -> list[dict]:
    """One row per class, motion and distance: number of points, mean errors, counts of dynamic."""
    frame = frame.counted()
    errors = _pointwise(frame.found, frame.truth)
    near = np.abs(frame.points[:, :2]).max(1, initial=0) <= CLOSE
    rows = []
    for kind, is_kind in (("Background", frame.category == 0), ("Foreground", frame.category > 0)):
        for motion, is_motion in (("Dynamic", frame.dynamic), ("Static", ~frame.dynamic)):
            for distance, is_there in (("Close", near), ("Far", ~near)):
                chosen = is_kind & is_motion & is_there
                row = {"Example": name, "Class": kind, "Motion": motion, "Distance": distance}
                row["Count"] = int(chosen.sum())
                for metric, values in errors.items():
                    row[metric] = float(values[chosen].mean()) if row["Count"] else float("nan")
                found, truth = frame.found_dynamic[chosen], frame.dynamic[chosen]
                row |= {
                    "TP": float((found & truth).sum()),
                    "TN": float((~found & ~truth).sum()),
                    "FP": float((found & ~truth).sum()),
                    "FN": float((~found & truth).sum()),
                }
                rows.append(row)
    return rows


def _pointwise(found: np.ndarray, truth: np.ndarray) -> dict[str, np.ndarray]:
    error = _length(found - truth)
    ends = [np.pad(flow, ((0, 0), (0, 1)), constant_values=INTERVAL) for flow in (found, truth)]
    first, second = (end / _length(end)[:, None] for end in ends)
    angle = np.arccos(np.clip((first * second).sum(1), -1.0, 1.0))
    relax, strict = (_accuracy(error, truth, limit, 1e-10) for limit in (0.1, 0.05))
    return dict(zip(POINTWISE, (relax.astype(float), strict.astype(float), angle, error)))


def argoverse2_scores(frames: Sequence[Frame]) -> dict[str, float]:
    """Version 1's summary: means weighted by the number of points, over all frames.

    Keys: '<metric>/<class>/<motion>/<distance>', '<metric>/<class>/<motion>', 'Dynamic IoU' and
    'EPE 3-Way Average' (foreground dynamic, foreground static, background static; no distance cut).

    Source: av2 0.3.6. Distance: max(|x|, |y|) <= 35 m, a square.
    """
    rows = [
        row for number, frame in enumerate(frames) for row in argoverse2_rows(frame, str(number))
    ]
    scores: dict[str, float] = {}
    for keys in (("Class", "Motion", "Distance"), ("Class", "Motion")):
        for metric in POINTWISE:
            groups: dict[str, list[dict]] = {}
            for row in rows:
                groups.setdefault("/".join(row[key] for key in keys), []).append(row)
            for name, group in sorted(groups.items()):
                filled = [row for row in group if row["Count"]]
                total = sum(row["Count"] for row in filled)
                if total:
                    mean = sum(row[metric] * row["Count"] for row in filled) / total
                    scores[f"{metric}/{name}"] = mean
    hits = sum(row["TP"] for row in rows)
    union = hits + sum(row["FP"] + row["FN"] for row in rows)
    scores["Dynamic IoU"] = hits / union if union else float("nan")
    three = ("Foreground/Dynamic", "Foreground/Static", "Background/Static")
    scores["EPE 3-Way Average"] = float(
        np.mean([scores.get(f"EPE/{name}", float("nan")) for name in three])
    )
    return scores


# ---------------------------------------------------------------------- Argoverse 2, version 2

EDGES = np.append(np.linspace(0, 2.0, 51), np.inf)
"""Metres per frame: 50 buckets of 0.04 m and an open one, [low, high)."""


def category_groups(
    classes: Mapping[str, Sequence[str]] = META_CLASSES,
) -> dict[str, tuple[int, ...]]:
    """Category indices of each meta-class."""
    index = {"NONE": 0} | {name: i for i, name in enumerate(CATEGORIES, 1)}
    return {group: tuple(index[name] for name in names) for group, names in classes.items()}


def bucketed_scores(
    frames: Sequence[Frame],
    limit: float = CLOSE,
    groups: Mapping[str, Sequence[int]] | None = None,
) -> dict[str, tuple[float, float]]:
    """(static, dynamic) of each meta-class, and their mean under 'mean'; ego motion taken out.

    Per class and speed bucket the points of all frames are pooled. Static: the EPE of the slowest
    bucket, metres. Dynamic: the mean over other filled buckets of EPE over speed. The mean counts
    background; it leaves out what has no value.

    Args:
        frames: what was found.
        limit: only points with max(|x|, |y|) below it, metres.
        groups: category indices of each class; Argoverse 2's meta-classes if None.

    Source: BucketedSceneFlowEval.
    """
    pooled = [_compensated(frame, limit) for frame in frames]
    category, error, speed = (np.concatenate(part) for part in zip(*pooled))
    return _by_class(category, error, speed, groups or category_groups())


def _compensated(frame: Frame, limit: float) -> tuple[np.ndarray, ...]:
    frame = frame.counted()
    near = np.abs(frame.points[:, :2]).max(1, initial=0) < limit
    found, truth = frame.found - frame.ego_flow, frame.truth - frame.ego_flow
    return frame.category[near], _length(found - truth)[near], _length(truth)[near]


def _by_class(category, error, speed, groups) -> dict[str, tuple[float, float]]:
    scores = {}
    for name, members in groups.items():
        chosen = np.isin(category, members)
        scores[name] = _static_and_dynamic(error[chosen], speed[chosen])
    table = np.array(list(scores.values()))
    means = [
        float(np.nanmean(column)) if np.isfinite(column).any() else float("nan")
        for column in table.T
    ]
    return scores | {"mean": tuple(means)}


def _static_and_dynamic(error: np.ndarray, speed: np.ndarray) -> tuple[float, float]:
    bucket = np.searchsorted(EDGES, speed, side="right") - 1
    count = np.bincount(bucket, minlength=len(EDGES) - 1)
    filled = count > 0
    mean_error, mean_speed = (
        np.divide(np.bincount(bucket, values, len(count)), count, where=filled, out=count * np.nan)
        for values in (error.astype(np.float64), speed.astype(np.float64))
    )
    moving = filled.copy()
    moving[0] = False
    shares = mean_error[moving] / mean_speed[moving]
    return float(mean_error[0]), float(shares.mean()) if len(shares) else float("nan")


def bucketed_threeway(
    frames: Sequence[Frame], limit: float = CLOSE
) -> dict[str, tuple[float, float]]:
    """(static, dynamic) plain EPE of background and foreground, as BucketedSceneFlowEval names it.

    Foreground are the meta-classes' points alone; a point is dynamic from ``MOVING`` on.
    """
    pooled = [_compensated(frame, limit) for frame in frames]
    category, error, speed = (np.concatenate(part) for part in zip(*pooled))
    groups = category_groups()
    background = groups.pop("BACKGROUND")
    foreground = [index for members in groups.values() for index in members]
    scores = {}
    for name, members in (("BACKGROUND", background), ("FOREGROUND", foreground)):
        own = np.isin(category, members)
        scores[name] = tuple(
            float(error[part].mean()) if part.any() else float("nan")
            for part in (own & (speed < MOVING), own & (speed >= MOVING))
        )
    return scores


# ---------------------------------------------------------------------- OpenSceneFlow's versions


def _circle(frame: Frame) -> tuple[np.ndarray, ...]:
    """Category, error, speed and found speed within 35 m seen from above.

    Flows are float32 and differences too, as there: points on a bucket's edge change buckets.
    """
    frame = frame.counted()
    points, found, truth, ego = (
        part.astype(np.float32) for part in (frame.points, frame.found, frame.truth, frame.ego_flow)
    )
    near = _length(points[:, :2]) <= CLOSE
    lengths = (
        _length(rows[near].astype(np.float64)) for rows in (found - truth, truth - ego, found - ego)
    )
    return frame.category[near], *lengths


def opensceneflow_threeway(frames: Sequence[Frame]) -> dict[str, float]:
    """Version 1 as OpenSceneFlow has it: points within a circle of 35 m, mean over frames.

    A subset that a frame lacks counts 0 in it. Compare with published numbers of that toolkit only;
    ``argoverse2_scores`` is the official one.
    """
    table = []
    for frame in frames:
        category, error, speed, found = _circle(frame)
        moves, says = speed >= MOVING, found >= MOVING
        subsets = {
            "EPE_FD": (category > 0) & moves,
            "EPE_BS": (category == 0) & ~moves,
            "EPE_FS": (category > 0) & ~moves,
        }
        row = {n: float(error[part].mean()) if part.any() else 0.0 for n, part in subsets.items()}
        union = (moves | says).sum()
        row["IoU"] = float((moves & says).sum() / (union + 1e-6))
        table.append(row)
    scores = {name: float(np.mean([row[name] for row in table])) for name in table[0]}
    scores["Three-way"] = float(np.mean([scores[n] for n in ("EPE_FD", "EPE_BS", "EPE_FS")]))
    return scores


def opensceneflow_bucketed(frames: Sequence[Frame]) -> dict[str, tuple[float, float]]:
    """Version 2 as OpenSceneFlow has it: a circle, float32, background all in the first bucket."""
    category, error, speed, _ = (np.concatenate(part) for part in zip(*map(_circle, frames)))
    return _by_class(category, error, np.where(category == 0, 0, speed), category_groups())


RANGES = (0.0, 35.0, 50.0, 75.0, 100.0, np.inf)
RANGE_SPEED = 1.4
"""m/s: from there on a point is dynamic in SSF's sense."""


def range_scores(frames: Sequence[Frame]) -> dict[str, dict[str, float]]:
    """Plain EPE of static and dynamic points by 3-D distance, and the mean over filled distances.

    Ego motion taken out; points of all frames pooled.

    Source: SSF, https://arxiv.org/abs/2501.17821.
    """
    parts = []
    for frame in (frame.counted() for frame in frames):
        found, truth = frame.found - frame.ego_flow, frame.truth - frame.ego_flow
        parts.append((_length(frame.points), _length(found - truth), _length(truth) / INTERVAL))
    distance, error, speed = (np.concatenate(part) for part in zip(*parts))
    scores: dict[str, dict[str, float]] = {}
    for low, high in pairwise(RANGES):
        there = (distance >= low) & (distance < high)
        row = {}
        for name, moves in (("Static", speed < RANGE_SPEED), ("Dynamic", speed >= RANGE_SPEED)):
            chosen = there & moves
            row[name] = float(error[chosen].mean()) if chosen.any() else float("nan")
            row[f"#{name}"] = float(chosen.sum())
        scores[f"{low:g}-{high:g}"] = row
    scores["mean"] = {
        name: float(np.nanmean([row[name] for row in scores.values()]))
        for name in ("Static", "Dynamic")
    }
    return scores
