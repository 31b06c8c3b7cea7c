"""Definitions in torch of the ops in ``ops/voxelize.py``."""

import torch
from torch import Tensor

from ..keys import KeySpace


def cells_of(points: Tensor, voxel_size: tuple[float, ...], origin: tuple[float, ...]) -> Tensor:
    """Cell numbers [P, D] as whole floats of ``points``: floor((point - origin) / voxel_size).

    Every step rounds in the dtype of the points, as in the published detectors: a point on the
    border between two cells then falls to the same side as theirs.
    """
    size = points.new_tensor(voxel_size)
    return torch.floor((points - points.new_tensor(origin)) / size)


def inside(cells: Tensor, shape: tuple[int, ...] | None) -> Tensor:
    """Mask [P] of the rows of ``cells`` [P, D] within a grid of ``shape``; all where it is None."""
    if shape is None:
        return torch.ones(len(cells), dtype=torch.bool, device=cells.device)
    return ((cells >= 0) & (cells < cells.new_tensor(shape))).all(1)


def unique_keys(keys: Tensor) -> tuple[Tensor, Tensor]:
    return torch.unique(keys, return_inverse=True)


def voxelize(
    points: Tensor,
    batch_index: Tensor,
    voxel_size: tuple[float, ...],
    origin: tuple[float, ...],
    shape: tuple[int, ...] | None,
) -> tuple[Tensor, Tensor]:
    cells = cells_of(points, voxel_size, origin)
    kept = inside(cells, shape)
    rows = torch.cat([batch_index[kept, None].long(), cells[kept].long()], 1)
    space = KeySpace.around(rows)
    keys, inverse = torch.unique(space.keys(rows), return_inverse=True)
    point_to_voxel = torch.full((len(points),), -1, dtype=torch.int64, device=points.device)
    point_to_voxel[kept] = inverse
    return space.coords(keys), point_to_voxel


def segment_reduce(
    values: Tensor, index: Tensor, segments: int, reduce: str
) -> tuple[Tensor, Tensor]:
    """The reduced rows [segments, C], and what the gradient needs.

    That is [segments, C] int64 rows of the maxima (-1 in an empty segment) for 'max', else the
    counts [segments, 1] int64. Sums run in float64, so that the order of the rows leaves no trace
    in float32.
    """
    kept = index >= 0
    rows, target = values[kept], index[kept]
    if len(index) and not -1 <= int(index.min()) <= int(index.max()) < segments:
        raise ValueError(
            f"index holds {int(index.min())}..{int(index.max())}; it must be in [-1, {segments})"
        )
    if reduce == "max":
        return _segment_max(rows, target, segments, kept.nonzero().squeeze(1))
    total = values.new_zeros(segments, values.shape[1], dtype=torch.float64)
    total = total.index_add(0, target, rows.double())
    counts = torch.bincount(target, minlength=segments)[:, None]
    if reduce == "mean":
        total = total / counts.clamp(min=1)
    return total.to(values.dtype), counts


def _segment_max(
    rows: Tensor, target: Tensor, segments: int, numbers: Tensor
) -> tuple[Tensor, Tensor]:
    wide = target[:, None].expand_as(rows)
    best = rows.new_full((segments, rows.shape[1]), float("-inf"))
    best = best.scatter_reduce(0, wide, rows, "amax")
    none = torch.iinfo(torch.int64).max
    winner = (rows == best[target]) | rows.isnan()
    candidate = torch.where(winner, numbers[:, None], none)
    first = torch.full(best.shape, none, dtype=torch.int64, device=rows.device)
    first = first.scatter_reduce(0, wide, candidate, "amin")
    empty = first == none
    return best.masked_fill(empty, 0), first.masked_fill(empty, -1)


def segment_reduce_backward(grad: Tensor, index: Tensor, extra: Tensor, reduce: str) -> Tensor:
    """Gradient [P, C] of the values, from ``grad`` [segments, C] and the second output above."""
    if reduce == "max":
        out = grad.new_zeros(len(index) + 1, grad.shape[1])  # the last row takes empty segments'
        rows = torch.where(extra < 0, len(index), extra)
        return out.scatter_add(0, rows, grad)[:-1]
    if reduce == "mean":
        grad = grad / extra.clamp(min=1)
    if not len(grad):
        return grad.new_zeros(len(index), grad.shape[1])
    return grad[index.clamp(min=0)].masked_fill((index < 0)[:, None], 0)


def segment_ranks(index: Tensor, segments: int) -> Tensor:
    """Rank [P] of each row among the rows of its segment, by row; -1 where the index is -1."""
    kept = index >= 0
    counts = torch.bincount(index[kept], minlength=segments)
    start = counts.cumsum(0) - counts
    order = kept.nonzero().squeeze(1)[index[kept].argsort(stable=True)]
    ranks = torch.full_like(index, -1)
    ranks[order] = torch.arange(len(order), device=index.device) - start[index[order]]
    return ranks


def canonical_order(values: Tensor, index: Tensor, segments: int) -> Tensor:
    """Rows [P'] with a segment, by segment and then by their values, first column slowest."""
    order = (index >= 0).nonzero().squeeze(1)
    bits = values.float().contiguous().view(torch.int32)  # as integers that keep the floats' order
    bits = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    for column in (*bits.unbind(1)[::-1], index):
        order = order[column[order].argsort(stable=True)]
    return order
