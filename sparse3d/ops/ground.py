"""Which points lie on the ground, without a map."""

import torch
from torch import Tensor
from torch.nn import functional as F

from .voxelize import segment_reduce, voxelize

CELL, WINDOW = 1.0, 9
FAR = 120.0
"""Metres: a cell of the height map, cells that something wide may span, the map's half width."""


def ground_mask(points: Tensor, height: float = 0.25) -> Tensor:
    """[P] bool: points less than ``height`` metres above the ground, or below it.

    The ground is the lowest point of each square metre, with whatever stands on it cut off: a
    morphological opening takes away what is narrower than 9 m (cars, trees, people) and keeps
    slopes. Roofs and walls that hide the ground over more than that count as ground, and so does
    nothing farther than 120 m.

    Args:
        points: [P, >=3] metres, z up.
        height: metres.

    Raises:
        ValueError: a coordinate is not finite, or there are fewer than three columns.
    """
    if points.dim() != 2 or points.shape[1] < 3:
        raise ValueError(f"points have shape {tuple(points.shape)}; [P, 3] or more is needed")
    xyz = points[:, :3].float()
    cells = int(2 * FAR / CELL)
    batch = torch.zeros(len(xyz), dtype=torch.int64, device=xyz.device)
    coords, index = voxelize(xyz[:, :2], batch, (CELL, CELL), (-FAR, -FAR), (cells, cells))
    result = index >= 0
    if not result.any():
        return result
    lowest = -segment_reduce(-xyz[:, 2:], index, len(coords), "max")[:, 0]
    surface = xyz.new_full((cells, cells), torch.inf)
    surface[coords[:, 1].long(), coords[:, 2].long()] = lowest
    eroded = -_widest(-surface)
    opened = _widest(torch.where(eroded.isfinite(), eroded, -torch.inf))
    floor = opened[coords[:, 1].long(), coords[:, 2].long()]
    result[result.clone()] = xyz[result, 2] < floor[index[result]] + height
    return result


def _widest(surface: Tensor) -> Tensor:
    return F.max_pool2d(surface[None, None], WINDOW, 1, WINDOW // 2)[0, 0]
