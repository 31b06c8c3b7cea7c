"""Points to voxels: cells, reductions over the points of a voxel, and hard (capped) voxels."""

import torch
from torch import Tensor

from . import backend
from .reference import voxelize as reference

REDUCTIONS = ("mean", "max", "sum")
_INT32 = 2**31


def voxelize(
    points: Tensor,
    batch_index: Tensor,
    voxel_size: tuple[float, ...],
    origin: tuple[float, ...],
    shape: tuple[int, ...] | None,
) -> tuple[Tensor, Tensor]:
    """The occupied cells, and the cell of each point.

    Args:
        points: [P, D] float, world metres.
        batch_index: [P] integer, the sample of each point.
        voxel_size: metres, per axis.
        origin: lower corner of cell 0, metres, per axis.
        shape: cells per axis; None for an unbounded grid.

    Returns:
        [N, 1+D] int32 (batch, x, y, z), ascending and unique, and [P] int64 rows of it, -1 for
        points outside the grid.

    Raises:
        ValueError: a coordinate is NaN or infinite, a batch index is negative, a cell number does
            not fit int32, or the keys of all cells do not fit 63 bits.
    """
    _check_points(points, batch_index, voxel_size, origin, shape)
    return backend.choose(_VOXELIZE, points)(points, batch_index, voxel_size, origin, shape)


def segment_reduce(values: Tensor, index: Tensor, segments: int, reduce: str) -> Tensor:
    """Reduces the rows of ``values`` that share a segment; differentiable.

    Args:
        values: [P, C] float.
        index: [P] int64 segment of each row, -1 to leave a row out.
        segments: number of segments.
        reduce: 'mean', 'max' or 'sum'. The gradient of a maximum that several rows share goes to
            the smallest row.

    Returns:
        [segments, C]; an empty segment gives 0.

    Raises:
        ValueError: ``reduce`` is unknown, or an index is outside [-1, segments).
    """
    if reduce not in REDUCTIONS:
        raise ValueError(f"reduce is {reduce!r}; it must be one of {', '.join(REDUCTIONS)}")
    return _segment_reduce(values, index, segments, reduce)[0]


@torch.library.custom_op("sparse3d::segment_reduce", mutates_args=())
def _segment_reduce(
    values: Tensor, index: Tensor, segments: int, reduce: str
) -> tuple[Tensor, Tensor]:
    return backend.choose(_SEGMENT_REDUCE, values)(values, index, segments, reduce)


@_segment_reduce.register_fake
def _(values, index, segments, reduce):
    columns = values.shape[1] if reduce == "max" else 1
    return (
        values.new_empty(segments, values.shape[1]),
        index.new_empty((segments, columns), dtype=torch.int64),
    )


@torch.library.custom_op("sparse3d::segment_reduce_backward", mutates_args=())
def _segment_reduce_backward(grad: Tensor, index: Tensor, extra: Tensor, reduce: str) -> Tensor:
    return backend.choose(_SEGMENT_BACKWARD, grad)(grad, index, extra, reduce)


@_segment_reduce_backward.register_fake
def _(grad, index, extra, reduce):
    return grad.new_empty(len(index), grad.shape[1])


def _setup(ctx, inputs, output):
    _, index, _, ctx.reduce = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(index, output[1])


def _backward(ctx, grad, _):
    index, extra = ctx.saved_tensors
    return _segment_reduce_backward(grad, index, extra, ctx.reduce), None, None, None


_segment_reduce.register_autograd(_backward, setup_context=_setup)


def _check_points(points, batch_index, voxel_size, origin, shape) -> None:
    finite = torch.isfinite(points).all(1)
    if not finite.all():
        rows = (~finite).nonzero().squeeze(1)
        raise ValueError(
            f"{len(rows)} of {len(points)} points have a NaN or infinite coordinate, first row "
            f"{int(rows[0])}: {points[rows[0]].tolist()}; remove them, e.g. "
            "points[points.isfinite().all(1)]"
        )
    if len(points) and int(batch_index.min()) < 0:
        row = int(batch_index.argmin())
        raise ValueError(f"batch_index[{row}] is {int(batch_index[row])}; it must be 0 or more")
    if shape is None and len(points):
        cells = reference.cells_of(points, voxel_size, origin)
        wide = ((cells < -_INT32) | (cells >= _INT32)).any(1)
        if wide.any():
            row = int(wide.nonzero()[0])
            raise ValueError(
                f"point {row} at {points[row].tolist()} lies in cell {cells[row].tolist()} of size "
                f"{tuple(voxel_size)}: that does not fit 32 bits; remove far outliers (crop the "
                "points to a range) or use larger voxels"
            )


_VOXELIZE = {
    "reference": reference.voxelize,
    "native": reference.voxelize,
    "cuda": reference.voxelize,
}
_SEGMENT_REDUCE = {
    "reference": reference.segment_reduce,
    "native": reference.segment_reduce,
    "cuda": reference.segment_reduce,
}
_SEGMENT_BACKWARD = {
    "reference": reference.segment_reduce_backward,
    "native": reference.segment_reduce_backward,
    "cuda": reference.segment_reduce_backward,
}
