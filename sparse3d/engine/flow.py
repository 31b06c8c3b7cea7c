"""Flow between two bare clouds: what a user calls who has nothing else."""

import warnings

import numpy as np
import torch
from torch import nn

from sparse3d.registry import MODELS
from sparse3d.structures import Batch, Flow, SweepPair
from sparse3d.structures.sweeps import check_rigid

LARGEST_SCENE = 2000.0
"""Metres; a wider cloud is not one sweep in metres."""


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
        ValueError: a cloud in another unit, poses that are not rigid, only one pose, or a time that
            runs backwards.
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
    return model.eval().predict(Batch([pair]))[0]


def _clean(points: np.ndarray, name: str) -> tuple[torch.Tensor, np.ndarray]:
    """The finite points of a cloud, float32, and their rows."""
    points = np.asarray(points)
    if points.ndim != 2 or points.shape[1] < 3:
        raise ValueError(f"the {name} has shape {points.shape}; rows of x, y, z are needed")
    rows = np.flatnonzero(np.isfinite(points[:, :3]).all(1))
    if len(rows) < len(points):
        warnings.warn(
            f"{len(points) - len(rows)} of {len(points)} points of the {name} are NaN or infinite: "
            "dropped",
            stacklevel=3,
        )
    if not len(rows):
        warnings.warn(f"the {name} has no points", stacklevel=3)
    xyz = points[rows, :3].astype(np.float32)
    extent = float(np.ptp(xyz, axis=0).max()) if len(xyz) else 0.0
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
