"""Features at points between points: weighted sums of the nearest rows, with gradients."""

import torch
from torch import Tensor

from . import backend, native
from .arguments import as_floats, check_floats
from .neighbors import knn
from .reference import interpolate as reference

SOFTENING = 1e-7
"""Metres added to a distance, so that a point on top of another takes its value."""


def inverse_distance(
    query: Tensor,
    points: Tensor,
    k: int,
    query_batch: Tensor | None = None,
    points_batch: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Who a query's value comes from, and by which share: 1 / (distance + 1e-7), normalised.

    Args:
        query: [Q, 3] metres.
        points: [P, 3] metres.
        k: neighbours that count; all of them where a sample has fewer points.
        query_batch: [Q] int64; None: all are one sample.
        points_batch: [P] int64.

    Returns:
        [Q, k] int64 rows of ``points`` (-1: none) and [Q, k] weights, which add up to one unless
        the sample has no points.
    """
    index, squared = knn(query, points, k, query_batch, points_batch)
    weights = (squared.sqrt() + SOFTENING).reciprocal()  # 0 at infinity: where there is none
    total = weights.sum(1, keepdim=True)
    return index, weights / torch.where(total > 0, total, 1.0)


def weighted_rows(values: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """Sums of rows: out[q] = sum over k of weights[q, k] values[index[q, k]].

    Args:
        values: [N, C] float.
        index: [Q, K] int64 rows; -1 adds nothing.
        weights: [Q, K] float, taken in the dtype of the values.

    Returns:
        [Q, C]; differentiable in values and weights.

    Raises:
        ValueError: shapes or types that do not fit, or an index outside [-1, N).
    """
    if values.dim() != 2 or index.dim() != 2 or index.shape != weights.shape:
        raise ValueError(
            f"values have shape {tuple(values.shape)}, index {tuple(index.shape)} and weights "
            f"{tuple(weights.shape)}; they must be [N, C], [Q, K] and [Q, K]"
        )
    native.check_index("index", index.reshape(-1), index.numel(), len(values), least=-1)
    check_floats("values", values)
    return _weighted_rows(values, index, as_floats("weights", weights, values.dtype))


@torch.library.custom_op("sparse3d::weighted_rows", mutates_args=())
def _weighted_rows(values: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    return backend.choose(WEIGHTED_ROWS, values)(values, index, weights)


@_weighted_rows.register_fake
def _(values, index, weights):
    return values.new_empty(len(index), values.shape[1])


@torch.library.custom_op("sparse3d::weighted_rows_backward", mutates_args=())
def _weighted_rows_backward(
    grad: Tensor, values: Tensor, index: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    return backend.choose(WEIGHTED_ROWS_BACKWARD, grad)(grad, values, index, weights)


@_weighted_rows_backward.register_fake
def _(grad, values, index, weights):
    return torch.empty_like(values), torch.empty_like(weights)


def _setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad):
    d_values, d_weights = _weighted_rows_backward(grad, *ctx.saved_tensors)
    return d_values, None, d_weights


_weighted_rows.register_autograd(_backward, setup_context=_setup)


def _native_rows(values, index, weights):
    if values.dtype != torch.float32:
        return reference.weighted_rows(values, index, weights)
    out = values.new_empty(len(index), values.shape[1])
    given = (values.contiguous(), index.contiguous(), weights.contiguous())
    native.call("s3d_weighted_rows", *given, *index.shape, values.shape[1], out, native.threads())
    return out


def _native_backward(grad, values, index, weights):
    if values.dtype != torch.float32:
        return reference.weighted_rows_backward(grad, values, index, weights)
    d_values, d_weights = torch.empty_like(values), torch.empty_like(weights)
    given = (t.contiguous() for t in (grad, values, index, weights))
    sizes = (len(values), *index.shape, values.shape[1])
    native.call("s3d_weighted_rows_backward", *given, *sizes, d_values, d_weights, native.threads())
    return d_values, d_weights


WEIGHTED_ROWS = {
    "reference": reference.weighted_rows,
    "native": _native_rows,
    "cuda": reference.weighted_rows,
}
WEIGHTED_ROWS_BACKWARD = {
    "reference": reference.weighted_rows_backward,
    "native": _native_backward,
    "cuda": reference.weighted_rows_backward,
}
