"""Flow between two bare clouds: what a user calls who has nothing else."""

import warnings

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import nn

from sparse3d.registry import MODELS
from sparse3d.structures import Batch, Flow, SweepPair
from sparse3d.structures.sweeps import check_rigid, transform

LARGEST_SCENE = 2000.0
"""Metres; a wider cloud is not one sweep in metres."""
FASTEST, SLACK = 70.0, 5.0
"""m/s and metres: a sensor that moved farther than both allow was not on a vehicle."""
BESIDE, LOOKED_AT = 1.0, 5000
"""Metres within which a point of the source, laid on the target, should find one, and how many
are looked at: of neighbouring sweeps 9 of 10 do, of two places fewer than half."""
SAME, OTHER = 0.6, 0.25
"""Least shares of such points: fewer are warned of, and still fewer are of two places."""


def predict_flow(
    source: np.ndarray,
    target: np.ndarray,
    source_pose: np.ndarray | None = None,
    target_pose: np.ndarray | None = None,
    model: nn.Module | None = None,
    interval: float = 0.1,
) -> Flow:
    """The motion of every point of ``source`` until ``target`` was taken.

    Neither poses nor a ground mask, a map or weights are needed: what is missing is found. The
    result is in the TARGET's frame and INCLUDES the ego motion; ``residual`` is without it.

    Args:
        source: [P, >=3] metres, z up, in its sensor's frame.
        target: [Q, >=3], the later cloud, in its own frame.
        source_pose, target_pose: [4, 4] sensor -> world of each; both or neither.
        model: what finds it; RigidFlow, which needs no weights, if None.
        interval: seconds from the source to the target.

    Returns:
        The flow of the points that are finite, in order; ``pair.meta['kept']`` has their rows in
        ``source``, and ``pair.meta['dropped']`` the numbers of points that were not finite.

    Raises:
        ValueError: a cloud without points or in another unit, poses that are not rigid, only one
            pose, a time that runs backwards, or clouds that registration cannot lay on each other.
    """
    clouds, kept = zip(*(_clean(c, n) for c, n in ((source, "source"), (target, "target"))))
    pair = SweepPair(
        *clouds,
        ego_motion=_ego_motion(source_pose, target_pose),
        interval=interval,
        meta={
            "sample_id": "clouds",
            "kept": kept[0],
            "dropped": [len(c) - len(k) for c, k in zip((source, target), kept)],
        },
    )
    model = MODELS.build({"type": "RigidFlow"}) if model is None else model
    flow = model.eval().predict(Batch([pair]))[0]
    if pair.ego_motion is None and flow.ego_motion is not None:
        _check_found(flow.ego_motion.cpu(), pair)
    return flow


def _check_found(motion: torch.Tensor, pair: SweepPair) -> None:
    """Refuses an ego motion, found by registration, that cannot be; warns of a doubtful one."""
    shift = float(motion[:3, 3].norm())
    if shift > FASTEST * pair.interval + SLACK:
        raise ValueError(
            f"registration found an ego motion of {shift:.0f} m in {pair.interval:g} s, which "
            "cannot be: the clouds are of two places or frames. Give their poses (--poses), each "
            "cloud in its own sensor's frame, or the time between them (--seconds)"
        )
    rows = np.linspace(0, len(pair.source) - 1, min(len(pair.source), LOOKED_AT)).astype(int)
    laid = transform(pair.source[rows, :3], motion).numpy()
    share = float((cKDTree(pair.target[:, :3].numpy()).query(laid)[0] < BESIDE).mean())
    text = (
        f"laid on each other by registration, only {share:.0%} of the source's points have one of "
        f"the target within {BESIDE:g} m"
    )
    if share < OTHER:
        raise ValueError(
            f"{text}: the clouds are of two places, or their columns, axes or units differ; check "
            "the files (--columns, --scale) or give poses (--poses)"
        )
    if share < SAME:
        warnings.warn(f"{text}: the flow is doubtful; give poses (--poses)", stacklevel=3)


def _clean(points: np.ndarray, name: str) -> tuple[torch.Tensor, np.ndarray]:
    """The finite points of a cloud, float32, and their rows."""
    points = np.asarray(points)
    if points.ndim != 2 or points.shape[1] < 3:
        raise ValueError(f"the {name} has shape {points.shape}; rows of x, y, z are needed")
    rows = np.flatnonzero(np.isfinite(points[:, :3]).all(1))
    if 0 < len(rows) < len(points):
        warnings.warn(
            f"{len(points) - len(rows)} of {len(points)} points of the {name} are NaN or infinite: "
            "dropped",
            stacklevel=3,
        )
    if not len(rows):
        found = f"none of its {len(points)} points is finite" if len(points) else "it has none"
        raise ValueError(
            f"the {name} has no points ({found}): there is nothing to find a flow from; check the "
            "file, or make it again"
        )
    xyz = points[rows, :3].astype(np.float32)
    extent = float(np.ptp(xyz, axis=0).max())
    if extent > LARGEST_SCENE:
        raise ValueError(
            f"the {name} is {extent:.0f} wide; a sweep in metres is narrower than "
            f"{LARGEST_SCENE:.0f}. If it is in millimetres, divide it by 1000 (--scale 0.001)"
        )
    return torch.from_numpy(xyz), rows


def _ego_motion(source_pose, target_pose) -> torch.Tensor | None:
    if (source_pose is None) != (target_pose is None):
        raise ValueError("only one pose is given: give both, sensor to world, or neither")
    if source_pose is None:
        return None
    poses = [torch.as_tensor(np.asarray(p, np.float64)) for p in (source_pose, target_pose)]
    for pose, name in zip(poses, ("the source's pose", "the target's pose")):
        check_rigid(pose, name)
    return torch.linalg.inv(poses[1]) @ poses[0]
