"""Pooling over a kernel map, and over whole samples. Only cells that are present count."""

import torch
from torch import Tensor

from . import backend, native
from .arguments import check_floats
from .kernel_map import check_table, refuse_rows
from .reference import pool as reference
from .voxelize import segment_reduce

REDUCTIONS = ("max", "mean", "sum")


def sparse_pool(features: Tensor, table: Tensor, reverse: Tensor, reduce: str) -> Tensor:
    """Pools rows of features over a kernel map.

    Half precision is summed in float32.

    Args:
        features: [N, C] float.
        table: [K, M] int32, the input row for each offset and output row, -1 where none.
        reverse: [K, N] int32, the same triples read from the input.
        reduce: 'max': over present cells, negative values survive, and the gradient of equal values
            goes to the smallest coordinate; 'mean': divided by the number of present cells; 'sum'.

    Returns:
        [M, C]; 0 where no cell is present.

    Raises:
        ValueError: ``reduce`` is unknown, the tables do not fit, or the features are integers.
    """
    if reduce not in REDUCTIONS:
        raise ValueError(f"reduce is {reduce!r}; it must be one of {', '.join(REDUCTIONS)}")
    check_table("table", table)
    check_table("reverse", reverse)
    check_floats("features", features)
    if features.dim() != 2:
        raise ValueError(f"features have shape {tuple(features.shape)}; [N, C] is needed")
    if reverse.shape != (len(table), len(features)):
        raise ValueError(
            f"reverse has shape {tuple(reverse.shape)}; it must be {(len(table), len(features))}: "
            "one row per offset, one column per row of features"
        )
    values = features.float() if features.dtype.itemsize < 4 else features
    if reduce == "max":
        pooled = _pool_max(values, table, reverse)[0]
    else:
        pooled = _pool_sum(values, table, reverse)
    if reduce == "mean":
        pooled = pooled / (table >= 0).sum(0).clamp(min=1)[:, None].to(pooled.dtype)
    return pooled.to(features.dtype)


def global_pool(features: Tensor, batch_index: Tensor, batch_size: int, reduce: str) -> Tensor:
    """[B, C]: 'max', 'mean' or 'sum' over the rows of each sample; 0 for an empty sample.

    Args:
        features: [N, C] float.
        batch_index: [N] int64, the sample of each row.
        batch_size: B.
        reduce: as in ``sparse_pool``.
    """
    return segment_reduce(features, batch_index, batch_size, reduce)


@torch.library.custom_op("sparse3d::pool_sum", mutates_args=())
def _pool_sum(features: Tensor, table: Tensor, reverse: Tensor) -> Tensor:
    return backend.choose(POOL_SUM, features)(features.contiguous(), table.contiguous())


@_pool_sum.register_fake
def _(features, table, reverse):
    return features.new_empty(table.shape[1], features.shape[1])


@torch.library.custom_op("sparse3d::pool_max", mutates_args=())
def _pool_max(features: Tensor, table: Tensor, reverse: Tensor) -> tuple[Tensor, Tensor]:
    return backend.choose(POOL_MAX, features)(features.contiguous(), table.contiguous())


@_pool_max.register_fake
def _(features, table, reverse):
    shape = (table.shape[1], features.shape[1])
    return features.new_empty(shape), table.new_empty(shape)


@torch.library.custom_op("sparse3d::pool_max_grad", mutates_args=())
def _pool_max_grad(grad: Tensor, holder: Tensor, reverse: Tensor) -> Tensor:
    kernel = backend.choose(POOL_MAX_GRAD, grad)
    return kernel(grad.contiguous(), holder.contiguous(), reverse.contiguous())


@_pool_max_grad.register_fake
def _(grad, holder, reverse):
    return grad.new_empty(reverse.shape[1], grad.shape[1])


def _setup_sum(ctx, inputs, output):
    ctx.save_for_backward(*inputs[1:])


def _backward_sum(ctx, grad):
    table, reverse = ctx.saved_tensors
    return _pool_sum(grad, reverse, table), None, None


def _setup_max(ctx, inputs, output):
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1], inputs[2])


def _backward_max(ctx, grad, _):
    return _pool_max_grad(grad, *ctx.saved_tensors), None, None


_pool_sum.register_autograd(_backward_sum, setup_context=_setup_sum)
_pool_max.register_autograd(_backward_max, setup_context=_setup_max)

# ---------------------------------------------------------------------- implementations


def _native_sum(features: Tensor, table: Tensor) -> Tensor:
    if features.dtype != torch.float32:
        return reference.pool_sum(features, table)
    offsets, rows = table.shape
    out = features.new_empty(rows, features.shape[1])
    sizes = (len(features), rows, offsets, features.shape[1])
    wrong = native.call("s3d_pool_sum", features, table, *sizes, out, native.threads())
    refuse_rows(wrong, table, len(features))
    return out


def _native_max(features: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    if features.dtype != torch.float32:
        return reference.pool_max(features, table)
    offsets, rows = table.shape
    out = features.new_empty(rows, features.shape[1])
    holder = table.new_empty(out.shape)
    sizes = (len(features), rows, offsets, features.shape[1])
    wrong = native.call("s3d_pool_max", features, table, *sizes, out, holder, native.threads())
    refuse_rows(wrong, table, len(features))
    return out, holder


def _native_max_grad(grad: Tensor, holder: Tensor, reverse: Tensor) -> Tensor:
    if grad.dtype != torch.float32:
        return reference.pool_max_grad(grad, holder, reverse)
    offsets, rows = reverse.shape
    out = grad.new_empty(rows, grad.shape[1])
    sizes = (len(grad), rows, offsets, grad.shape[1])
    given = (grad, holder, reverse, *sizes, out, native.threads())
    refuse_rows(native.call("s3d_pool_max_grad", *given), reverse, len(grad))
    return out


POOL_SUM = {
    "reference": reference.pool_sum,
    "native": _native_sum,
    "cuda": reference.pool_sum,
}
POOL_MAX = {
    "reference": reference.pool_max,
    "native": _native_max,
    "cuda": reference.pool_max,
}
POOL_MAX_GRAD = {
    "reference": reference.pool_max_grad,
    "native": _native_max_grad,
    "cuda": reference.pool_max_grad,
}
