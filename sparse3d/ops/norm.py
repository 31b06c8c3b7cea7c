"""Batch norm over rows, with the ReLU that mostly follows it: one pass instead of two.

Statistics are summed over fixed ranges of rows: unlike that of torch's batch norm, the result does
not depend on the number of threads.
"""

import torch
from torch import Tensor

from . import backend, native
from .arguments import as_floats, working_dtype
from .reference import norm as reference


def batch_norm(
    rows: Tensor, weight: Tensor, bias: Tensor, eps: float, relu: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalises each column by the statistics of its rows; differentiable once.

    Args:
        rows: [N, C] float, N > 0.
        weight: [C] float, what a standard deviation becomes.
        bias: [C] what the mean becomes.
        eps: added to the variance.
        relu: whether negative results become 0.

    Returns:
        [N, C], the mean [C] and the biased variance [C] in the dtype of ``rows``, whatever that of
        the weights; the statistics carry no gradient.

    Raises:
        ValueError: no rows, the channels differ, or integers.
    """
    channels = rows.shape[1:]
    if len(channels) != 1 or not len(rows) or not weight.shape == bias.shape == channels:
        raise ValueError(
            f"rows have shape {tuple(rows.shape)}, weight {tuple(weight.shape)} and bias "
            f"{tuple(bias.shape)}; they must be [N, C] with N > 0, [C] and [C]"
        )
    dtype = working_dtype("rows", rows)
    weight, bias = as_floats("weight", weight, dtype), as_floats("bias", bias, dtype)
    return _batch_norm(rows, weight, bias, eps, relu)


@torch.library.custom_op("sparse3d::batch_norm", mutates_args=())
def _batch_norm(
    rows: Tensor, weight: Tensor, bias: Tensor, eps: float, relu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    kernel = backend.choose(BATCH_NORM, rows)
    return kernel(rows.contiguous(), weight.contiguous(), bias.contiguous(), eps, relu)


@_batch_norm.register_fake
def _(rows, weight, bias, eps, relu):
    shape = rows.shape[1:]
    return rows.new_empty(rows.shape), rows.new_empty(shape), rows.new_empty(shape)


@torch.library.custom_op("sparse3d::batch_norm_backward", mutates_args=())
def _batch_norm_backward(
    grad: Tensor,
    rows: Tensor,
    out: Tensor,
    weight: Tensor,
    mean: Tensor,
    variance: Tensor,
    eps: float,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    tensors = (t.contiguous() for t in (grad, rows, out, weight, mean, variance))
    return backend.choose(BATCH_NORM_BACKWARD, grad)(*tensors, eps, relu)


@_batch_norm_backward.register_fake
def _(grad, rows, out, weight, mean, variance, eps, relu):
    return rows.new_empty(rows.shape), rows.new_empty(mean.shape), rows.new_empty(mean.shape)


def _setup(ctx, inputs, output):
    rows, weight, _, ctx.eps, ctx.relu = inputs
    out, mean, variance = output
    ctx.mark_non_differentiable(mean, variance)
    # without a ReLU the output says nothing that the rows do not
    ctx.save_for_backward(rows, out if ctx.relu else rows, weight, mean, variance)


def _backward(ctx, grad, _mean, _variance):
    return *_batch_norm_backward(grad, *ctx.saved_tensors, ctx.eps, ctx.relu), None, None


_batch_norm.register_autograd(_backward, setup_context=_setup)


# ---------------------------------------------------------------------- implementations


def _native_norm(rows, weight, bias, eps, relu):
    if rows.dtype != torch.float32:
        return reference.batch_norm(rows, weight, bias, eps, relu)
    out, mean, variance = (torch.empty_like(like) for like in (rows, bias, bias))
    given = (rows, *rows.shape, weight, bias, float(eps), int(relu))
    native.call("s3d_batch_norm", *given, out, mean, variance, native.threads())
    return out, mean, variance


def _native_backward(grad, rows, out, weight, mean, variance, eps, relu):
    if rows.dtype != torch.float32:
        return reference.batch_norm_backward(grad, rows, out, weight, mean, variance, eps, relu)
    found = [torch.empty_like(like) for like in (rows, weight, weight)]
    given = (grad, rows, out, *rows.shape, weight, mean, variance, float(eps), int(relu))
    native.call("s3d_batch_norm_backward", *given, *found, native.threads())
    return tuple(found)


BATCH_NORM = {
    "reference": reference.batch_norm,
    "native": _native_norm,
    "cuda": reference.batch_norm,
}
BATCH_NORM_BACKWARD = {
    "reference": reference.batch_norm_backward,
    "native": _native_backward,
    "cuda": reference.batch_norm_backward,
}
