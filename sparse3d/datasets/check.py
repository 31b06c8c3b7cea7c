"""What is wrong with a data set, before a training finds nothing and does not say why.

Most failures on own data are silent: boxes in another frame, length and width swapped, a range that
holds no object, class names that match nothing. ``survey`` gathers numbers, ``judge`` reads them.
"""

import warnings
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from sparse3d.structures import Boxes, wrap_angle

from .base import PointDataset, above_range, drop_bad_boxes, drop_bad_points, in_range

ERROR, WARNING, NOTE = "error", "warning", "note"
HEADINGS = 8  # bins of the heading histogram
# Words in a class name and what a box of it measures: least and most median length and height in
# metres, and whether it is longer than wide.
KNOWN_SIZES = {
    "car": ((2.5, 7.0), (1.0, 2.6), True),
    "van": ((3.0, 9.0), (1.3, 3.5), True),
    "truck": ((3.5, 20.0), (1.3, 5.0), True),
    "bus": ((4.0, 20.0), (2.0, 5.0), True),
    "trailer": ((2.0, 20.0), (1.0, 5.0), True),
    "cyclist": ((1.0, 3.0), (1.0, 2.5), True),
    "bicycle": ((1.0, 3.0), (0.7, 2.5), True),
    "motorcycle": ((1.2, 3.5), (0.8, 2.5), True),
    "pedestrian": ((0.2, 2.0), (1.0, 2.3), False),
}
FASTEST = 60.0  # m/s
ENOUGH = 20  # points of an object that tell where its box should be


@dataclass(frozen=True)
class Problem:
    """Something found: how bad ('error', 'warning', 'note'), what, and what to do."""

    level: str
    text: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.level}: {self.text}" + (
            f"\n    remedy: {self.remedy}" if self.remedy else ""
        )


@dataclass
class Survey:
    """Numbers of a data set, before its transforms.

    Attributes:
        class_names, point_range: of the data set.
        names: [N] class name of each box in the files.
        labels: [N] label, -1 for names that map to no class.
        boxes: [N, 7 or 9].
        num_points: [N] points inside.
        frame: [N] position of its frame.
        alternatives: how many points the boxes of labelled classes would hold if they were meant
            otherwise, by remedy; '' as they are.
        tops: for boxes with enough points around: height of the highest point over the box's
            centre, in box heights.
        frames, unlabelled, empty: number of frames; of those without labels, without points.
        points, in_range: number of points; of those in ``point_range``.
        lowest, highest: [C] least and greatest value of each column.
        spread: [2, 3] low and high end of the middle 99.8 % of x, y, z.
        complaints: warnings given while loading.
    """

    class_names: list[str]
    columns: tuple[str, ...]
    point_range: tuple[float, ...] | None
    names: list[str] = field(default_factory=list)
    labels: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    boxes: Tensor = field(default_factory=lambda: torch.zeros(0, 7))
    num_points: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    frame: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    alternatives: dict[str, int] = field(default_factory=dict)
    tops: list[float] = field(default_factory=list)
    frames: int = 0
    unlabelled: int = 0
    empty: int = 0
    points: int = 0
    in_range: int = 0
    lowest: np.ndarray | None = None
    highest: np.ndarray | None = None
    spread: np.ndarray | None = None
    complaints: list[str] = field(default_factory=list)


ALTERNATIVES = {
    "negate the yaw: it is counter-clockwise seen from above": lambda b: _with_yaw(b, -b[:, 6]),
    "turn the boxes by a quarter (yaw + pi/2, or swap length and width): dx is the length along "
    "the heading, and yaw 0 points along +x": lambda b: _with_yaw(b, b[:, 6] + torch.pi / 2),
    "turn the boxes by a quarter and negate: yaw = pi/2 - yaw, as of a clockwise angle from +y": (
        lambda b: _with_yaw(b, torch.pi / 2 - b[:, 6])
    ),
}


def survey(dataset: PointDataset, limit: int | None = None) -> Survey:
    """Loads samples, without transforms and range, and counts.

    Args:
        dataset: its class names and point range are what is checked.
        limit: at most so many samples, evenly over the data set; None: all.
    """
    number = len(dataset) if limit is None else min(limit, len(dataset))
    found = Survey(dataset.class_names, dataset.columns, dataset.point_range)
    found.alternatives = dict.fromkeys(["", *ALTERNATIVES], 0)
    samples: list[np.ndarray] = []
    for index in np.linspace(0, len(dataset) - 1, number).round().astype(int).tolist():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            sample = dataset.load(index, np.random.default_rng((dataset.seed, 0, index)))
            sample = dataset.label(drop_bad_boxes(drop_bad_points(sample)))
        found.complaints += [str(warning.message) for warning in caught]
        _count_points(found, sample.points, samples)
        if sample.boxes is None:
            found.unlabelled += 1
        elif len(sample.boxes):
            found.names += sample.names
            _count_boxes(found, sample.boxes, sample.labels, sample.points)
        found.frames += 1
    if samples:
        found.spread = np.quantile(np.concatenate(samples), [0.001, 0.999], axis=0)
    return found


def _count_points(found: Survey, points: Tensor, samples: list[np.ndarray]) -> None:
    found.points += len(points)
    found.empty += not len(points)
    if not len(points):
        return
    low, high = points.amin(0).numpy(), points.amax(0).numpy()
    found.lowest = low if found.lowest is None else np.minimum(found.lowest, low)
    found.highest = high if found.highest is None else np.maximum(found.highest, high)
    if found.point_range is not None:
        found.in_range += int(in_range(points, found.point_range).sum())
    samples.append(points[:: max(len(points) // 2000, 1), :3].numpy())


def _count_boxes(found: Survey, boxes: Boxes, labels: Tensor, points: Tensor) -> None:
    inside = boxes.contains(points)
    found.boxes = torch.cat([found.boxes, boxes.tensor]) if len(found.boxes) else boxes.tensor
    found.labels = torch.cat([found.labels, labels])
    found.num_points = torch.cat([found.num_points, inside.sum(1)])
    found.frame = torch.cat([found.frame, torch.full_like(labels, found.frames)])
    known = boxes[labels >= 0]
    found.alternatives[""] += int(inside[labels >= 0].sum())
    for remedy, change in ALTERNATIVES.items():
        found.alternatives[remedy] += int(Boxes(change(known.tensor)).contains(points).sum())
    tall = known.tensor[:, :7].clone()
    tall[:, 5] *= 2
    for box, column in zip(known.tensor, Boxes(tall).contains(points)):
        if column.sum() >= ENOUGH:
            found.tops.append(float((points[column, 2].max() - box[2]) / box[5]))


def _with_yaw(boxes: Tensor, yaw: Tensor) -> Tensor:
    return torch.cat([boxes[:, :6], yaw[:, None]], 1)


# ---------------------------------------------------------------------- judging


def judge(found: Survey) -> list[Problem]:
    """What is wrong, the worst first."""
    parts = (_frames, _names, _placement, _ranges, _columns, _sizes, _headings)
    problems = [problem for part in parts for problem in part(found)]
    return sorted(problems, key=lambda p: (ERROR, WARNING, NOTE).index(p.level))


def _frames(found: Survey) -> list[Problem]:
    problems = []
    if found.unlabelled == found.frames:
        problems.append(
            Problem(ERROR, "no frame has labels", "add the label files, or check another split")
        )
    elif found.unlabelled:
        text = f"{found.unlabelled} of {found.frames} frames have no labels"
        problems.append(Problem(ERROR, text, "take them out of the training split"))
    if found.empty:
        level = ERROR if found.empty == found.frames else WARNING
        text = f"{found.empty} of {found.frames} frames have no points"
        problems.append(Problem(level, text, "copy their files again"))
    for text in found.complaints[:5]:
        problems.append(Problem(WARNING, text))
    if len(found.complaints) > 5:
        problems.append(Problem(WARNING, f"and {len(found.complaints) - 5} more such warnings"))
    return problems


def _names(found: Survey) -> list[Problem]:
    problems = []
    unknown: dict[str, int] = {}
    for name, label in zip(found.names, found.labels.tolist()):
        if label < 0:
            unknown[name] = unknown.get(name, 0) + 1
    listed = ", ".join(f"{name} ({n})" for name, n in sorted(unknown.items()))
    counts = torch.bincount(found.labels[found.labels >= 0], minlength=len(found.class_names))
    for name, count in zip(found.class_names, counts.tolist()):
        if count == 0 and found.unlabelled < found.frames:
            problems.append(
                Problem(
                    ERROR,
                    f"no box is a {name!r}; names in the files that map to no class: "
                    f"{listed or 'none'}",
                    f"spell class_names as the files do, give class_map (file's name -> {name!r}), "
                    "or leave the class out",
                )
            )
        elif count < 0.01 * counts.max():
            text = f"{name} has {count} boxes, less than 1 % of the commonest class"
            problems.append(Problem(WARNING, text, "sample it more (GroundTruthSampling)"))
    if unknown:
        problems.append(Problem(NOTE, f"names that map to no class are left out: {listed}"))
    return problems


def _placement(found: Survey) -> list[Problem]:
    """Whether points are where the boxes are."""
    problems = []
    for label, name in enumerate(found.class_names):
        points = found.num_points[found.labels == label]
        share = float((points == 0).float().mean()) if len(points) else 0.0
        if share > 0.1:
            level = ERROR if share > 0.5 else WARNING
            problems.append(
                Problem(
                    level,
                    f"{share:.0%} of the {len(points)} {name} boxes hold no point",
                    "boxes must be in the frame of the points, in metres, by their CENTRE; drop "
                    "boxes that the sensor cannot see",
                )
            )
    given = found.alternatives.get("", 0)
    better = max(found.alternatives, key=found.alternatives.get, default="")
    if better and found.alternatives[better] > 1.3 * given + ENOUGH:
        text = f"the boxes hold {given} points, but would hold {found.alternatives[better]}"
        problems.append(Problem(ERROR, f"{text} if they were meant otherwise", better))
    if len(found.tops) >= 3:
        top = float(np.median(found.tops))
        if not 0.2 < top < 0.75:
            side, change = ("low", "add") if top > 0.5 else ("high", "subtract")
            problems.append(
                Problem(
                    ERROR,
                    f"the boxes lie about half their height too {side}: the highest point on them "
                    f"is {top:.2f} box heights over the centre (0.3 to 0.5 is usual)",
                    f"z is the box's CENTRE, not its bottom or top: {change} half the height",
                )
            )
    return problems


def _ranges(found: Survey) -> list[Problem]:
    if found.point_range is None or not found.frames:
        return []
    problems = []
    suggestion = ""
    if found.spread is not None:
        suggestion = f"; 99.8 % of the points lie in {found.spread.round(1).ravel().tolist()}"
    share = found.in_range / max(found.points, 1)
    if found.points and share < 0.2:
        text = f"only {share:.1%} of the points lie in point_range {list(found.point_range)}"
        problems.append(Problem(ERROR if share < 0.02 else WARNING, text + suggestion))
    known = found.boxes[found.labels >= 0]
    if not len(known):
        return problems
    outside = 1 - float(above_range(known, found.point_range).float().mean())
    if outside > 0.1:  # a scanner sees farther than a small experiment looks: half outside is usual
        level = ERROR if outside > 0.8 else WARNING
        text = f"{outside:.0%} of the boxes have their centre outside point_range"
        low, high = known[:, :3].amin(0), known[:, :3].amax(0)
        ends = [round(v, 1) for v in (*low.tolist(), *high.tolist())]
        problems.append(Problem(level, text, f"widen it; the centres span {ends}"))
    return problems + _heights(found, known)


def _heights(found: Survey, known: Tensor) -> list[Problem]:
    """Boxes that stick out of the range's floor or ceiling lose points."""
    low, high = found.point_range[2], found.point_range[5]
    half = known[:, 5] / 2
    cut = (known[:, 2] - half < low - 0.5 * half) | (known[:, 2] + half > high + 0.5 * half)
    share = float(cut.float().mean())
    if share <= 0.1:
        return []
    floor, ceiling = known[:, 2] - half, known[:, 2] + half
    ends = [round(float(floor.quantile(0.01)), 1), round(float(ceiling.quantile(0.99)), 1)]
    text = f"{share:.0%} of the boxes reach well out of point_range's heights {low} to {high}"
    return [Problem(WARNING, text, f"boxes reach from {ends[0]} to {ends[1]} m")]


def _columns(found: Survey) -> list[Problem]:
    if found.lowest is None:
        return []
    problems = []
    size = np.abs([found.lowest[:3], found.highest[:3]]).max()
    if size > 2000:
        text = f"coordinates reach {size:.0f}"
        remedy = (
            "points must be in metres in the sensor's frame (a wrong point width looks like this)"
        )
        problems.append(Problem(ERROR, text, remedy))
    if "intensity" in found.columns:
        column = found.columns.index("intensity")
        low, high = float(found.lowest[column]), float(found.highest[column])
        if low < 0 or high > 1.001:
            text = f"intensity runs from {low:g} to {high:g}, not within 0..1"
            remedy = (
                "scale it (most sensors: / 255), unless published weights want it raw; a wrong "
                "point width looks like this too"
            )
            problems.append(Problem(WARNING, text, remedy))
        elif low == high:
            problems.append(Problem(WARNING, f"intensity is {low:g} everywhere"))
    return problems


def _sizes(found: Survey) -> list[Problem]:
    problems = []
    for label, name in enumerate(found.class_names):
        boxes = found.boxes[found.labels == label]
        if len(boxes):
            problem = _size(name, boxes[:, 3:6].median(0).values.tolist(), len(boxes))
            problems += [problem] if problem else []
    return problems


def _size(name: str, median: list[float], count: int) -> Problem | None:
    """What is odd about the median length, width and height of ``count`` boxes of a class."""
    length, width, height = median
    said = f"the median {name} is {length:.2f} long, {width:.2f} wide, {height:.2f} high"
    words = name.lower().replace("_", " ").replace("-", " ").split()
    usual = next((KNOWN_SIZES[word] for word in words if word in KNOWN_SIZES), None)
    if usual is None:
        fits = 0.05 < max(median) < 50
        return None if fits else Problem(WARNING, said, "sizes must be in metres")
    lengths, heights, is_long = usual
    fits = lengths[0] < length < lengths[1] and heights[0] < height < heights[1]
    wrong_order = is_long and not fits and height > max(length, width)
    if is_long and width > 1.1 * length and not wrong_order:
        remedy = "swap dx and dy: dx is the length along the heading, dy the width"
        return Problem(ERROR, f"{said}: wider than long", remedy)
    if fits:
        return None
    gross = count >= 5 and not 0.5 * lengths[0] < max(median) < 2 * max(lengths[1], heights[1])
    remedy = (
        f"sizes are dx, dy, dz = length, width, height in metres; usual are {lengths[0]} to "
        f"{lengths[1]} m long and {heights[0]} to {heights[1]} m high"
    )
    return Problem(ERROR if wrong_order or gross else WARNING, said, remedy)


def _headings(found: Survey) -> list[Problem]:
    boxes = found.boxes[found.labels >= 0]
    if not len(boxes):
        return []
    problems = []
    most = float(boxes[:, 6].abs().max())
    if most > 7:
        text = f"yaw reaches {most:.1f}"
        problems.append(Problem(ERROR, text, "yaw is in radians; numbers like these are degrees"))
    histogram = headings(boxes[:, 6])
    if len(boxes) >= 50 and int(histogram.max()) > 0.95 * len(boxes):
        text = f"{int(histogram.max())} of {len(boxes)} boxes have the same heading"
        problems.append(Problem(WARNING, text, "yaw may have been lost: look at some frames"))
    if boxes.shape[1] == 9 and float(boxes[:, 7:].norm(dim=1).max()) > FASTEST:
        text = f"velocities reach {float(boxes[:, 7:].norm(dim=1).max()):.0f} m/s"
        problems.append(Problem(WARNING, text, "velocities are in m/s"))
    return problems


def headings(yaw: Tensor) -> Tensor:
    """[8] boxes by heading; the first bin lies around 0 (+x), the third around 90 degrees (+y)."""
    step = 2 * torch.pi / HEADINGS
    bins = torch.div(wrap_angle(yaw) + torch.pi + step / 2, step, rounding_mode="floor").long()
    counts = torch.bincount(bins % HEADINGS, minlength=HEADINGS)
    return counts.roll(-HEADINGS // 2)


def table(found: Survey) -> str:
    """The numbers, for a person to read."""
    lines = [
        f"{found.frames} frames, {found.points} points, {len(found.names)} boxes",
        f"{'class':<22}{'boxes':>7}{'frames':>8}{'dx':>7}{'dy':>6}{'dz':>6}{'points':>8}"
        f"{'none':>6}{'outside':>9}  headings at 0, 45, .. 315 degrees",
    ]
    for label, name in enumerate(found.class_names):
        mine = found.labels == label
        boxes, points = found.boxes[mine], found.num_points[mine]
        if not len(boxes):
            lines.append(f"{name:<22}{0:>7}")
            continue
        outside = 0.0
        if found.point_range is not None:
            outside = 1 - float(above_range(boxes, found.point_range).float().mean())
        dx, dy, dz = boxes[:, 3:6].median(0).values.tolist()
        lines.append(
            f"{name:<22}{len(boxes):>7}{len(found.frame[mine].unique()):>8}{dx:>7.2f}{dy:>6.2f}"
            f"{dz:>6.2f}{int(points.median()):>8}{float((points == 0).float().mean()):>6.0%}"
            f"{outside:>9.0%}  {' '.join(map(str, headings(boxes[:, 6]).tolist()))}"
        )
    lines.append("(dx, dy, dz and points are medians; none: boxes without a point)")
    if found.lowest is not None:
        lines += [
            f"{name:<10} from {low:10.3f} to {high:10.3f}"
            for name, low, high in zip(found.columns, found.lowest, found.highest)
        ]
    return "\n".join(lines)
