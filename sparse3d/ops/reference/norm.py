"""Batch norm over rows in torch. The definition of ``ops.norm``."""

import torch
from torch import Tensor


def batch_norm(
    rows: Tensor, weight: Tensor, bias: Tensor, eps: float, relu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalised rows [N, C], their mean [C] and biased variance [C]; summed in float64."""
    wide = rows.double()
    mean, variance = wide.mean(0), wide.var(0, unbiased=False)
    out = (wide - mean) * (variance + eps).rsqrt() * weight + bias
    out = out.relu() if relu else out
    return tuple(value.to(rows.dtype) for value in (out, mean, variance))


def batch_norm_backward(
    grad: Tensor,
    rows: Tensor,
    out: Tensor,
    weight: Tensor,
    mean: Tensor,
    variance: Tensor,
    eps: float,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of rows, weight and bias."""
    wide = torch.where(out > 0, grad, 0).double() if relu else grad.double()
    inverse = (variance.double() + eps).rsqrt()
    normal = (rows.double() - mean) * inverse
    d_weight, d_bias = (wide * normal).sum(0), wide.sum(0)
    centred = wide - d_bias / len(rows) - normal * d_weight / len(rows)
    return tuple(v.to(rows.dtype) for v in (centred * inverse * weight, d_weight, d_bias))
