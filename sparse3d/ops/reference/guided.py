"""Definitions of matching among pairs that geometry allows."""

import torch
from torch import Tensor


def match_on_lines(one, two, lines, reach, points, reaches) -> tuple[Tensor, ...]:
    """See ``ops.guided.match_on_lines``; lines [N, 3], reach [N] and reaches [M] as in the kernel.

    Returns best [N], its column [N], second best [N], and best rows of columns [M].
    """
    away = (lines[:, :2] @ points.T + lines[:, 2:]).abs()
    near = away <= torch.minimum(reach[:, None], reaches)
    similar = torch.where(near, one @ two.T, -1.0)
    best, column = top(similar)
    rest = similar.clone()
    rows = torch.arange(len(one), device=one.device)
    if two.shape[0]:
        rest[rows, column.clamp(min=0)] = -1.0
    return best, column, top(rest)[0], top(similar.T)[1]


def match_within(points, places, flat, level, codes, lengths, looks, radius, least, same):
    """See ``ops.guided.match_within``; looks: both [N, 3] and [M, 3], or None."""
    offset = points[:, None] - places
    near = offset.square().sum(-1) <= radius**2
    if looks is not None:
        a, b = looks[0][:, None], looks[1]
        near &= (a[..., :2] * b[:, :2]).sum(-1) > same[0]
        near &= (a[..., 2] < same[1] * b[:, 2]) & (b[:, 2] < same[1] * a[..., 2])
    similar = (level[:, None] + flat @ codes.T) / lengths
    similar = torch.where(near & (similar >= least), similar, -1.0)
    best, column = top(similar)
    row = top(similar.T)[1]
    order = torch.arange(len(points), device=points.device)
    kept = column >= 0
    kept[kept.clone()] = row[column[kept]] == order[kept]
    return order[kept], column[kept], best[kept]


def top(similar: Tensor) -> tuple[Tensor, Tensor]:
    """[N] largest entries of [N, M] and the first columns that hold them; -1: none is above."""
    if similar.shape[1] == 0:
        none = similar.new_full((len(similar),), -1.0)
        return none, none.long()
    best = similar.amax(1)
    return best, torch.where(best > -1, similar.argmax(1), -1)
