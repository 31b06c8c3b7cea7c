"""How one cloud has to move to lie on another: rigid registration."""

import torch
from torch import Tensor

from .neighbors import knn
from .voxelize import segment_reduce, voxelize

THINNING = 0.4
"""Metres: one point of each cell counts."""
KERNELS = (1.5, 1.0, 0.7, 0.5, 0.3, 0.2, 0.15)
"""Metres: how far off a point may lie and still pull with half its weight, from coarse to fine."""
STEPS = 4
"""Steps with each kernel."""
NORMAL_NEIGHBORS = 12


def register(source: Tensor, target: Tensor) -> Tensor:
    """[4, 4] float64 rigid motion that lays ``source`` on ``target``.

    Point-to-plane steps with a weight that falls with the distance (Geman and McClure's), so that
    what moves by itself does not pull. Starts from no motion: for neighbouring sweeps, whose
    difference is a few metres and degrees.

    Args:
        source: [P, >=3] metres.
        target: [Q, >=3] metres.

    Raises:
        ValueError: fewer than 20 points are left after thinning, or one is not finite.
    """
    source, target = (_thin(cloud[:, :3].float()) for cloud in (source, target))
    if min(len(source), len(target)) < 20:
        raise ValueError(
            f"{len(source)} and {len(target)} points {THINNING} m apart are too few to find the "
            "ego motion from; give poses"
        )
    centre = target.double().mean(0)
    normals, flat = _normals(target)
    start, goal = source.double() - centre, target.double() - centre
    motion = torch.eye(4, dtype=torch.float64, device=source.device)
    for kernel in KERNELS:
        for _ in range(STEPS):
            moved = start @ motion[:3, :3].T + motion[:3, 3]
            index = knn(moved.float(), goal.float(), 1)[0][:, 0]
            step = _step(moved, goal[index], normals[index], flat[index], kernel)
            motion = step @ motion
    shift = torch.eye(4, dtype=torch.float64, device=source.device)
    shift[:3, 3] = centre
    return shift @ motion @ torch.linalg.inv(shift)


def _thin(points: Tensor) -> Tensor:
    """The mean of the points of each cell."""
    batch = torch.zeros(len(points), dtype=torch.int64, device=points.device)
    coords, index = voxelize(points, batch, (THINNING,) * 3, (0.0,) * 3, None)
    return segment_reduce(points, index, len(coords), "mean")


def _normals(points: Tensor) -> tuple[Tensor, Tensor]:
    """[P, 3] unit normals of the surface about each point, and [P] how flat it is, 0..1."""
    index = knn(points, points, min(NORMAL_NEIGHBORS, len(points)))[0]
    around = points[index].double()
    around = around - around.mean(1, keepdim=True)
    values, vectors = torch.linalg.eigh(around.transpose(1, 2) @ around)
    flat = 1 - (values[:, 0] / values[:, 1].clamp(min=1e-12)).clamp(0, 1)
    return vectors[:, :, 0], flat


def _step(moved: Tensor, goal: Tensor, normals: Tensor, flat: Tensor, kernel: float) -> Tensor:
    """[4, 4] the small motion that brings ``moved`` nearer to the planes through ``goal``."""
    gap = moved - goal
    off = (gap * normals).sum(1)
    weight = flat * (kernel**2 / (kernel**2 + gap.square().sum(1))) ** 2
    rows = torch.cat([torch.linalg.cross(moved, normals), normals], 1)
    left = rows.T @ (weight[:, None] * rows)
    left = left + 1e-9 * left.diagonal().mean() * torch.eye(6, dtype=left.dtype, device=left.device)
    turn = torch.linalg.solve(left, -(rows.T @ (weight * off)))
    x, y, z, *shift = turn.tolist()
    twist = torch.tensor(
        [[0, -z, y, shift[0]], [z, 0, -x, shift[1]], [-y, x, 0, shift[2]], [0, 0, 0, 0]],
        dtype=torch.float64,
    )
    return torch.linalg.matrix_exp(twist).to(moved.device)
