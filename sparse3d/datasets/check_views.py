"""What is wrong with posed photographs, before a scene is trained on them and stays a fog.

The usual silent failures: poses inverted or in OpenGL's axes, a focal length of another size,
cameras in another frame or scale than the points, photographs from one place only.
"""

import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from sparse3d.structures import Camera, Sample

from .check import ERROR, NOTE, WARNING, Problem
from .views import VIEW, ViewDataset

MOST_POINTS = 4000
FLIP = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0]))
ALTERNATIVES: dict[str, Callable[[Tensor], Tensor]] = {
    "invert the poses: world to camera and camera to world are swapped": torch.linalg.inv,
    "turn the cameras' axes: y up and -z forward (OpenGL) against y down and z forward": (
        lambda pose: FLIP @ pose
    ),
    "invert the poses and turn the cameras' axes (OpenGL)": lambda p: FLIP @ torch.linalg.inv(p),
    "invert the poses in the file's own axes (OpenGL)": (
        lambda pose: FLIP @ torch.linalg.inv(pose) @ FLIP
    ),
}
"""Other meanings of a world_to_cam [4, 4], by remedy."""


@dataclass
class ViewSurvey:
    """Numbers of a set of posed photographs.

    Attributes:
        views: how many there are in the split.
        sizes: (width, height) of each picture.
        angles: [N] horizontal field of view, degrees.
        eyes: [N, 3] camera centres.
        points: number of sparse points.
        extent: longest edge of the middle 98 % of the points.
        seen: [N] share of the points inside each picture.
        near: [N] median depth of those.
        fit: how much nearer a point's colour is to its pixel than to another pixel of the picture,
            by the meaning of the poses: '' as they are, or a remedy; 0: no nearer.
        flat: pictures of one brightness.
        complaints: warnings given while loading.
    """

    views: int = 0
    sizes: list[tuple[int, int]] = field(default_factory=list)
    angles: list[float] = field(default_factory=list)
    eyes: list[list[float]] = field(default_factory=list)
    points: int = 0
    extent: float = 0.0
    seen: list[float] = field(default_factory=list)
    near: list[float] = field(default_factory=list)
    fit: dict[str, float] = field(default_factory=dict)
    flat: list[str] = field(default_factory=list)
    complaints: Counter = field(default_factory=Counter)


def survey_views(dataset: ViewDataset, limit: int | None = None) -> ViewSurvey:
    """Loads photographs, at most ``limit`` of them evenly spread (None: all), and counts."""
    found = ViewSurvey(views=len(dataset), points=len(dataset.points.xyz))
    step = max(found.points // MOST_POINTS, 1)
    xyz, rgb = dataset.points.xyz[::step], dataset.points.rgb[::step]
    if len(xyz):
        low, high = np.percentile(xyz.numpy(), [1, 99], axis=0)
        found.extent = float((high - low).max())
    number = len(dataset) if limit is None else min(limit, len(dataset))
    votes: dict[str, list[float]] = {"": [], **{remedy: [] for remedy in ALTERNATIVES}}
    for index in np.linspace(0, len(dataset) - 1, number).round().astype(int).tolist():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            sample = dataset[index]
        found.complaints.update(str(warning.message) for warning in caught)
        _count(found, sample, xyz)
        for remedy, votes_of in votes.items():
            change = ALTERNATIVES.get(remedy, torch.clone)
            votes_of.append(_agreement(sample, xyz, rgb, change))
    found.fit = {remedy: float(np.mean(v)) if v else 0.0 for remedy, v in votes.items()}
    return found


def _count(found: ViewSurvey, sample: Sample, xyz: Tensor) -> None:
    camera, image = sample.cameras[VIEW], sample.images[VIEW]
    found.sizes.append(camera.size)
    half = camera.size[0] / 2 / float(camera.K[0, 0])
    found.angles.append(float(np.degrees(2 * np.arctan(half))))
    found.eyes.append(torch.linalg.inv(camera.world_to_cam)[:3, 3].tolist())
    if float(image.float().std()) < 2:
        found.flat.append(sample.sample_id)
    inside = camera.sees(xyz)
    found.seen.append(float(inside.float().mean()) if len(xyz) else 0.0)
    if inside.any():
        found.near.append(float(camera.to_camera(xyz[inside])[:, 2].median()))


def _agreement(sample: Sample, xyz: Tensor, rgb: Tensor, change) -> float:
    """How much better the points' colours fit their pixels than those of a shuffled picture.

    Weighted by the share of points that are in the picture at all.
    """
    camera, image = sample.cameras[VIEW], sample.images[VIEW]
    other = Camera(camera.K, change(camera.world_to_cam), camera.size)
    inside = other.sees(xyz)
    if int(inside.sum()) < 20:
        return 0.0
    pixel = other.project(xyz[inside])[0].round().long()
    width, height = camera.size
    column, row = pixel[:, 0].clamp(0, width - 1), pixel[:, 1].clamp(0, height - 1)
    color = image[row, column].float() / 255
    gap = (color - rgb[inside]).abs().mean()
    shuffled = (color.roll(len(color) // 2, 0) - rgb[inside]).abs().mean()
    better = float(1 - gap / shuffled.clamp(min=1e-6))
    return better * float(inside.float().mean()) ** 0.5


def judge_views(found: ViewSurvey) -> list[Problem]:
    """What is wrong, the worst first."""
    problems = [*_camera_problems(found), *_pose_problems(found)]
    for text, count in found.complaints.most_common(5):
        problems.append(Problem(WARNING, f"{text} ({count} times)"))
    return sorted(problems, key=lambda p: (ERROR, WARNING, NOTE).index(p.level))


def _camera_problems(found: ViewSurvey) -> list[Problem]:
    problems = []
    if found.views < 2:
        text = f"the split has {found.views} photograph"
        problems.append(Problem(ERROR, text, "two are the least; lower holdout, or add pictures"))
    odd = [angle for angle in found.angles if not 15 < angle < 140]
    if odd:
        text = f"{len(odd)} pictures have a field of view of {np.median(odd):.0f} degrees"
        remedy = "the focal length must be in pixels of these pictures, not of larger ones"
        problems.append(
            Problem(ERROR if len(odd) > len(found.angles) / 2 else WARNING, text, remedy)
        )
    if found.flat:
        text = f"{len(found.flat)} pictures are of one brightness, such as {found.flat[0]}"
        problems.append(Problem(WARNING, text, "take them out"))
    return problems


def _pose_problems(found: ViewSurvey) -> list[Problem]:
    problems = []
    eyes = np.array(found.eyes).reshape(-1, 3)
    depth = float(np.median(found.near)) if found.near else found.extent
    if len(eyes) > 1 and np.ptp(eyes, axis=0).max() < 0.01 * depth:
        text = f"all cameras stand within {np.ptp(eyes, axis=0).max():.2g} of each other"
        problems.append(Problem(ERROR, text, "nothing can be triangulated: move between pictures"))
    if not found.points:
        text = "there are no sparse points: poses cannot be checked against them"
        return [*problems, Problem(NOTE, text)]
    best = max(found.fit, key=found.fit.get, default="")
    if best and found.fit[best] > max(2 * found.fit[""], 0.1):
        text = "the points' colours do not fit the pictures as the poses are, but would otherwise"
        return [*problems, Problem(ERROR, text, best)]
    blind = sum(share < 0.002 for share in found.seen)
    if blind > 0.05 * len(found.seen):
        level = ERROR if blind > 0.5 * len(found.seen) else WARNING
        text = f"{blind} of {len(found.seen)} pictures see none of the sparse points"
        remedy = "cameras and points must share one frame and scale"
        problems.append(Problem(level, text, remedy))
    elif found.fit.get("", 0) < 0.05:
        text = "the points' colours fit their pixels no better than other pixels"
        remedy = "the points may have no true colours; else poses or intrinsics are off"
        problems.append(Problem(WARNING, text, remedy))
    return problems


def view_table(found: ViewSurvey) -> str:
    """The numbers, for a person to read."""
    lines = [f"{found.views} photographs, {found.points} sparse points"]
    if found.sizes:
        sizes = ", ".join(f"{w} x {h} ({n})" for (w, h), n in Counter(found.sizes).most_common(4))
        low, high = min(found.angles), max(found.angles)
        lines.append(f"pictures: {sizes}; {low:.0f} to {high:.0f} degrees across")
        span = " x ".join(f"{v:.3g}" for v in np.ptp(np.array(found.eyes), axis=0))
        lines.append(f"cameras span {span}; points {found.extent:.3g}")
    if found.points and found.seen:
        shares = np.percentile(found.seen, [0, 50, 100])
        lines.append(
            f"a picture sees {shares[0]:.0%} to {shares[2]:.0%} of the points (median "
            f"{shares[1]:.0%}), colours fit {found.fit.get('', 0):.2f} (0: by chance, 1: exactly)"
        )
    return "\n".join(lines)
