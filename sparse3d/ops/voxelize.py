"""Points to voxels: cells, reductions over the points of a voxel, and hard (capped) voxels."""

import math

import torch
from torch import Tensor

from . import backend, native
from .arguments import check_floats, working_dtype
from .keys import KeySpace
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
    """The occupied cells, and the cell of each point: floor((point - origin) / voxel_size).

    Args:
        points: [P, D] float, world metres; computed in float64 or, if narrower, in float32.
        batch_index: [P] integer, the sample of each point.
        voxel_size: metres, per axis, above 0.
        origin: lower corner of cell 0, metres, per axis.
        shape: cells per axis; None for an unbounded grid.

    Returns:
        [N, 1+D] int32 (batch, x, y, z), ascending and unique, and [P] int64 rows of it, -1 for
        points outside the grid.

    Raises:
        ValueError: a coordinate is NaN or infinite, a batch index is negative, a cell number does
            not fit int32, the keys of all cells do not fit 63 bits, or the cells are not described
            by one finite number per axis.
    """
    if points.dim() != 2 or points.shape[1] != len(voxel_size):
        raise ValueError(
            f"points have shape {tuple(points.shape)}; [P, {len(voxel_size)}] is needed for the "
            f"voxel_size {tuple(voxel_size)}: pass the coordinate columns only"
        )
    if batch_index.shape != points.shape[:1] or batch_index.is_floating_point():
        raise ValueError(
            f"batch_index has shape {tuple(batch_index.shape)} and type {batch_index.dtype}; one "
            f"integer per point, ({len(points)},), is needed"
        )
    cells = (1,) * len(voxel_size) if shape is None else shape
    numbers = (*voxel_size, *origin)
    if not len(voxel_size) == len(origin) == len(cells) or not all(map(math.isfinite, numbers)):
        raise ValueError(
            f"voxel_size {tuple(voxel_size)}, origin {tuple(origin)} and shape {shape} must have "
            "one finite number per axis"
        )
    if min(voxel_size) <= 0:
        raise ValueError(f"voxel_size is {tuple(voxel_size)}; every edge must be positive")
    points = points.to(working_dtype("points", points))
    return _voxelize(points, batch_index.long(), voxel_size, origin, shape)


def unique_keys(keys: Tensor) -> tuple[Tensor, Tensor]:
    """The different ``keys`` [P] int64 (0 or more), ascending, and the place [P] of each there.

    Raises:
        ValueError: keys of another type or shape.
    """
    if keys.dtype != torch.int64 or keys.dim() != 1:
        raise ValueError(f"keys are {keys.dtype} of shape {tuple(keys.shape)}; int64 [P] is needed")
    return _unique_keys(keys)


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
        ValueError: ``reduce`` is unknown, shapes or types do not fit, or an index is outside
            [-1, segments).
    """
    if reduce not in REDUCTIONS:
        raise ValueError(f"reduce is {reduce!r}; it must be one of {', '.join(REDUCTIONS)}")
    if values.dim() != 2 or index.shape != values.shape[:1] or index.dtype != torch.int64:
        raise ValueError(
            f"values have shape {tuple(values.shape)} and index is {index.dtype} of shape "
            f"{tuple(index.shape)}; [P, C] and int64 [P] are needed"
        )
    check_floats("values", values)
    if segments < 0:
        raise ValueError(f"segments is {segments}; it must be 0 or more")
    return _segment_reduce(values, index, segments, reduce)[0]


def segment_expand(values: Tensor, index: Tensor) -> Tensor:
    """Row [P, C] of ``values`` [segments, C] for each ``index`` [P] (0 where it is -1).

    As indexing, but the gradient adds up in an order that does not depend on threads. Integers are
    copied exactly.

    Raises:
        ValueError: shapes do not fit, or ``index`` is not int64 in [-1, segments).
    """
    if values.dim() != 2 or index.dim() != 1 or index.dtype != torch.int64:
        raise ValueError(
            f"values have shape {tuple(values.shape)} and index is {index.dtype} of shape "
            f"{tuple(index.shape)}; [segments, C] and int64 [P] are needed"
        )
    return _segment_expand(values, index)


def hard_voxelize(
    points: Tensor,
    batch_index: Tensor,
    voxel_size: tuple[float, ...],
    origin: tuple[float, ...],
    shape: tuple[int, ...] | None,
    max_points: int,
    max_voxels: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Voxels of at most ``max_points`` points, at most ``max_voxels`` per sample.

    The caps keep what comes first in the order of ``points``, as the published detectors do: this
    is the one op whose result depends on the order of its input. Shuffle the points to sample.

    Args:
        points: [P, C] float, coordinates first, as for ``voxelize``.
        batch_index: [P] integer.
        voxel_size: metres, per axis.
        origin: lower corner of cell 0, metres.
        shape: cells per axis; None for an unbounded grid.
        max_points: points kept per voxel.
        max_voxels: voxels kept per sample; None for all.

    Returns:
        [N, max_points, C] points, zeros behind the last; [N, 1+D] int32 coords, ascending; [N]
        int64 number of points in each voxel.

    Raises:
        ValueError: as ``voxelize``, or a cap is less than 1.
    """
    for name, cap in (("max_points", max_points), ("max_voxels", max_voxels)):
        if cap is not None and cap < 1:
            raise ValueError(f"{name} is {cap}; it must be 1 or more")
    dims = len(voxel_size)
    if points.dim() != 2:
        raise ValueError(f"points have shape {tuple(points.shape)}; [P, C] is needed")
    coords, index = voxelize(points[:, :dims], batch_index, voxel_size, origin, shape)
    if max_voxels is not None:
        coords, index = _first_voxels(coords, index, max_voxels)
    ranks = backend.choose(_RANKS, index)(index, len(coords))
    kept = (index >= 0) & (ranks < max_points)
    voxels = points.new_zeros(len(coords), max_points, points.shape[1])
    voxels[index[kept], ranks[kept]] = points[kept]
    return voxels, coords, torch.bincount(index[kept], minlength=len(coords))


def canonical_order(values: Tensor, index: Tensor, segments: int) -> Tensor:
    """Rows ordered by segment and inside it by value: the same sequence for any order of the rows.

    Args:
        values: [P, C] float, read as float32; the first column is the slowest key.
        index: [P] int64 segment of each row; rows of -1 are left out.
        segments: number of segments.

    Returns:
        [P'] int64 rows.

    Raises:
        ValueError: shapes do not fit, or ``index`` is not int64 in [-1, segments).
    """
    if values.dim() != 2:
        raise ValueError(f"values have shape {tuple(values.shape)}; [P, C] is needed")
    return _canonical_order(values, index, segments)


def _first_voxels(coords: Tensor, index: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Keeps the ``most`` voxels of each sample that the points reach first."""
    numbers = torch.arange(len(index), device=index.device)
    first = torch.full((len(coords) + 1,), len(index), device=index.device)
    first = first.scatter_reduce(0, index % (len(coords) + 1), numbers, "amin")[:-1]
    order = first.argsort()  # first points are all different
    batch = coords[order, 0].long()
    ranks = reference.segment_ranks(batch, int(batch.max()) + 1 if len(batch) else 0)
    kept = torch.zeros(len(coords), dtype=torch.bool, device=coords.device)
    kept[order] = ranks < most
    place = torch.where(kept, kept.cumsum(0) - 1, -1)
    place = torch.cat([place, place.new_full((1,), -1)])  # for points outside: their index is -1
    return coords[kept], place[index]


def _explain(points, batch_index, voxel_size, origin, shape) -> None:
    """Raises the ValueError that says which point cannot be used, if one cannot."""
    finite = torch.isfinite(points).all(1)
    if not finite.all():
        rows = (~finite).nonzero().squeeze(1)
        raise ValueError(
            f"{len(rows)} of {len(points)} points have a NaN or infinite coordinate, first row "
            f"{int(rows[0])}: {points[rows[0]].tolist()}; remove them, e.g. "
            "points[points.isfinite().all(1)]"
        )
    wrong = (batch_index < 0) | (batch_index >= _INT32)
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ValueError(f"batch_index[{row}] is {int(batch_index[row])}; it must be 0 or more")
    if shape is None:
        cells = reference.cells_of(points, voxel_size, origin)
        wide = ((cells < -_INT32) | (cells >= _INT32)).any(1)
        if wide.any():
            row = int(wide.nonzero()[0])
            raise ValueError(
                f"point {row} at {points[row].tolist()} lies in cell {cells[row].tolist()} of size "
                f"{tuple(voxel_size)}: that does not fit 32 bits; remove far outliers (crop the "
                "points to a range) or use larger voxels"
            )


# ---------------------------------------------------------------------- implementations


def _reference_voxelize(points, batch_index, voxel_size, origin, shape):
    _explain(points, batch_index, voxel_size, origin, shape)
    return reference.voxelize(points, batch_index, voxel_size, origin, shape)


def _native_voxelize(points, batch_index, voxel_size, origin, shape):
    if points.dtype != torch.float32:
        return _reference_voxelize(points, batch_index, voxel_size, origin, shape)
    points, batch_index = points.contiguous(), batch_index.long().contiguous()
    number, columns = len(points), points.shape[1] + 1
    cells = torch.empty(number, columns, dtype=torch.int32)
    bounds = torch.empty(2, columns, dtype=torch.int64)
    limits = None if shape is None else torch.tensor(shape)
    problem = native.call(
        "s3d_cells",
        *(points, batch_index, number, columns - 1),
        *(points.new_tensor(voxel_size), points.new_tensor(origin), limits),
        *(cells, bounds, native.threads()),
    )
    if problem:
        _explain(points, batch_index, voxel_size, origin, shape)
    low, high = bounds.tolist()
    if low[0] > high[0]:
        return cells[:0], torch.full((number,), -1)
    space = KeySpace(tuple(low), tuple(most - least + 1 for least, most in zip(low, high)))
    if math.prod(space.extent) >= 2**63:
        space = KeySpace.around(cells[cells[:, 0] >= 0])  # raises, and names the voxel
    keys = torch.empty(number, dtype=torch.int64)
    low, strides = torch.tensor(low), torch.tensor(space.strides)
    native.call("s3d_cell_keys", cells, number, columns, low, strides, keys, native.threads())
    _, first, inverse = _native_sorted(keys)
    return cells.index_select(0, first), inverse


def _native_unique(keys):
    unique, _, inverse = _native_sorted(keys)
    return unique, inverse


def _native_sorted(keys):
    """The different keys, the first row of each, and the place of every row (-1: negative key)."""
    keys = keys.contiguous()
    unique, first, inverse = (torch.empty_like(keys) for _ in range(3))
    sizes = (len(keys), unique, first, inverse)
    found = native.call("s3d_unique_keys", keys, *sizes, native.threads())
    return unique[:found].clone(), first[:found], inverse


def _native_reduce(values, index, segments, reduce):
    if values.dtype == torch.float64:
        return reference.segment_reduce(values, index, segments, reduce)
    if values.dtype != torch.float32:
        out, extra = _native_reduce(values.float(), index, segments, reduce)
        return out.to(values.dtype), extra
    values, index = values.contiguous(), index.contiguous()
    channels = values.shape[1]
    out = torch.empty(segments, channels)
    extra = torch.empty(segments, channels if reduce == "max" else 1, dtype=torch.int64)
    sizes = (index, len(values), channels, segments)
    if reduce == "max":
        failed = native.call("s3d_segment_max", values, *sizes, out, extra, native.threads())
    else:
        sizes = (channels, *sizes, int(reduce == "mean"))
        failed = native.call("s3d_segment_sum", values, *sizes, out, extra, native.threads())
    if failed:
        raise ValueError(
            f"index holds {int(index.min())}..{int(index.max())}; it must be in [-1, {segments})"
        )
    return out, extra


def _native_reduce_backward(grad, index, extra, reduce):
    if grad.dtype == torch.float64 or not grad.is_floating_point():  # float32 rounds integers
        return reference.segment_reduce_backward(grad, index, extra, reduce)
    if grad.dtype != torch.float32:
        return _native_reduce_backward(grad.float(), index, extra, reduce).to(grad.dtype)
    grad, index = grad.contiguous(), index.contiguous()
    number, channels = len(index), grad.shape[1]
    if reduce == "max":
        out = torch.zeros(number, channels)
        sizes = (len(grad), channels)
        native.call("s3d_segment_max_spread", grad, extra, *sizes, out, native.threads())
        return out
    counts = extra if reduce == "mean" else None
    out = torch.empty(number, channels)
    native.call("s3d_segment_spread", grad, index, counts, number, channels, out, native.threads())
    return out


def _reference_expand(values, index):
    native.check_index("index", index, index.numel(), len(values), least=-1)
    return _cuda_expand(values, index)


def _cuda_expand(values, index):  # torch checks indices there
    return reference.segment_reduce_backward(values, index, index[:0], "sum")


def _native_expand(values, index):
    native.check_index("index", index, index.numel(), len(values), least=-1)
    return _native_reduce_backward(values, index, index[:0], "sum")


def _native_ranks(index, segments):
    ranks = torch.empty_like(index)
    native.call("s3d_segment_ranks", index.contiguous(), len(index), segments, ranks)
    return ranks


def _reference_order(values, index, segments):
    native.check_index("index", index, len(values), segments, least=-1)
    return reference.canonical_order(values, index, segments)


def _native_order(values, index, segments):
    native.check_index("index", index, len(values), segments, least=-1)
    values, index = values.float().contiguous(), index.contiguous()
    order = torch.empty_like(index)
    sizes = (*values.shape, segments)
    found = native.call("s3d_canonical_order", values, index, *sizes, order, native.threads())
    return order[:found]


# ---------------------------------------------------------------------- operators of torch


@torch.library.custom_op("sparse3d::voxelize", mutates_args=())
def _voxelize(
    points: Tensor,
    batch_index: Tensor,
    voxel_size: list[float],
    origin: list[float],
    shape: list[int] | None,
) -> tuple[Tensor, Tensor]:
    run = backend.choose(_VOXELIZE, points)
    return run(points, batch_index, tuple(voxel_size), tuple(origin), shape and tuple(shape))


@_voxelize.register_fake
def _(points, batch_index, voxel_size, origin, shape):
    size = (torch.library.get_ctx().new_dynamic_size(), 1 + len(voxel_size))
    rows = points.new_empty(points.shape[0], dtype=torch.int64)
    return points.new_empty(size, dtype=torch.int32), rows


@torch.library.custom_op("sparse3d::canonical_order", mutates_args=())
def _canonical_order(values: Tensor, index: Tensor, segments: int) -> Tensor:
    return backend.choose(_ORDER, values)(values, index, segments)


@_canonical_order.register_fake
def _(values, index, segments):
    return index.new_empty(torch.library.get_ctx().new_dynamic_size())


@torch.library.custom_op("sparse3d::unique_keys", mutates_args=())
def _unique_keys(keys: Tensor) -> tuple[Tensor, Tensor]:
    return backend.choose(_UNIQUE, keys)(keys)


@_unique_keys.register_fake
def _(keys):
    return keys.new_empty(torch.library.get_ctx().new_dynamic_size()), torch.empty_like(keys)


# ---------------------------------------------------------------------- gradients


@torch.library.custom_op("sparse3d::segment_reduce", mutates_args=())
def _segment_reduce(
    values: Tensor, index: Tensor, segments: int, reduce: str
) -> tuple[Tensor, Tensor]:
    return backend.choose(_REDUCE, values)(values, index, segments, reduce)


@_segment_reduce.register_fake
def _(values, index, segments, reduce):
    columns = values.shape[1] if reduce == "max" else 1
    return (
        values.new_empty(segments, values.shape[1]),
        index.new_empty((segments, columns), dtype=torch.int64),
    )


@torch.library.custom_op("sparse3d::segment_reduce_backward", mutates_args=())
def _segment_reduce_backward(grad: Tensor, index: Tensor, extra: Tensor, reduce: str) -> Tensor:
    return backend.choose(_REDUCE_BACKWARD, grad)(grad, index, extra, reduce)


@_segment_reduce_backward.register_fake
def _(grad, index, extra, reduce):
    return grad.new_empty(index.shape[0], grad.shape[1])


def _setup_reduce(ctx, inputs, output):
    _, index, _, ctx.reduce = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(index, output[1])


def _reduce_gradient(ctx, grad, _):
    index, extra = ctx.saved_tensors
    return _segment_reduce_backward(grad, index, extra, ctx.reduce), None, None, None


_segment_reduce.register_autograd(_reduce_gradient, setup_context=_setup_reduce)


@torch.library.custom_op("sparse3d::segment_expand", mutates_args=())
def _segment_expand(values: Tensor, index: Tensor) -> Tensor:
    return backend.choose(_EXPAND, values)(values, index)


@_segment_expand.register_fake
def _(values, index):
    return values.new_empty(index.shape[0], values.shape[1])


def _setup_expand(ctx, inputs, output):
    values, index = inputs
    ctx.segments = len(values)
    ctx.save_for_backward(index)


def _expand_gradient(ctx, grad):
    return _segment_reduce(grad, ctx.saved_tensors[0], ctx.segments, "sum")[0], None


_segment_expand.register_autograd(_expand_gradient, setup_context=_setup_expand)


def _table(definition, kernel):
    return {"reference": definition, "native": kernel, "cuda": definition}


_VOXELIZE = _table(_reference_voxelize, _native_voxelize)
_UNIQUE = _table(reference.unique_keys, _native_unique)
_REDUCE = _table(reference.segment_reduce, _native_reduce)
_REDUCE_BACKWARD = _table(reference.segment_reduce_backward, _native_reduce_backward)
_EXPAND = {"reference": _reference_expand, "native": _native_expand, "cuda": _cuda_expand}
_RANKS = _table(reference.segment_ranks, _native_ranks)
_ORDER = {
    "reference": _reference_order,
    "native": _native_order,
    "cuda": reference.canonical_order,
}
