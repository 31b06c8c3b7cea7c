"""Set convolution: a point's neighbours through normalised layers, and their maximum.

Source: FLOT, https://arxiv.org/abs/2007.11142.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from . import backend, native
from .arguments import as_floats, working_dtype
from .norm import batch_norm
from .reference import set_conv as reference
from .voxelize import segment_expand

LANES = 16
"""Channels of the native kernel come in whole multiples of this."""


def set_conv(
    features: Tensor,
    index: Tensor,
    offsets: Tensor,
    layers: Sequence[tuple[Tensor, Tensor, Tensor]],
    eps: float = 1e-5,
    slope: float = 0.1,
) -> Tensor:
    """Three times linear, norm over all edges (biased variance), leaky ReLU; then the maximum.

    Differentiable. Without gradients the native kernel holds the edges of a few points at a time,
    but for one layer's result.

    Args:
        features: [P, Cin] float, of the points.
        index: [P, k] int64 rows of each point's neighbours, k > 0.
        offsets: [P * k, 3] float, neighbour minus point, metres.
        layers: three of (weight, norm's weight [C], norm's bias [C]), floats; the first weight is
            [C, Cin + 3], the offsets last, the others are [C, C].
        eps: added to the variances.
        slope: of the ReLU below zero.

    Returns:
        [P, C] in the dtype of ``features``. Everything is computed in float64 where that is
        float64, else in float32.

    Raises:
        ValueError: shapes that do not fit, not three layers, integers where floats belong, or an
            index that is no row.
    """
    _check(features, index, offsets, layers)
    given, dtype = features.dtype, working_dtype("features", features)
    features, offsets = features.to(dtype), as_floats("offsets", offsets, dtype)
    layers = [tuple(as_floats("a layer", value, dtype) for value in layer) for layer in layers]
    return _convolve(features, index, offsets, layers, eps, slope).to(given)


def _convolve(features, index, offsets, layers, eps, slope) -> Tensor:
    if not len(features):
        return features.new_zeros(0, len(layers[0][0]))
    values = (features, offsets, *(value for layer in layers for value in layer))
    if torch.is_grad_enabled() and any(value.requires_grad for value in values):
        return _with_gradients(features, index, offsets, layers, eps, slope)
    return backend.choose(SET_CONV, features)(features, index, offsets, layers, eps, slope)


def _check(features, index, offsets, layers) -> None:
    fit = len(layers) == 3 and features.dim() == 2 and index.dim() == 2 and index.shape[1] > 0
    fit = fit and len(index) == len(features) and offsets.shape == (index.numel(), 3)
    if fit:
        channels, width = len(layers[0][0]), features.shape[1] + 3
        for weight, *norm in layers:
            fit = fit and weight.shape == (channels, width)
            fit = fit and all(value.shape == (channels,) for value in norm)
            width = channels
    if not fit:
        raise ValueError(
            f"features have shape {tuple(features.shape)}, index {tuple(index.shape)}, offsets "
            f"{tuple(offsets.shape)} and the weights {[tuple(w.shape) for w, *_ in layers]}; they "
            "must be [P, Cin], [P, k], [P * k, 3] and [C, Cin + 3], [C, C], [C, C], norms [C]"
        )
    native.check_index("index", index.reshape(-1), index.numel(), len(features))


def _with_gradients(features, index, offsets, layers, eps, slope) -> Tensor:
    (first, *_), channels = layers[0], features.shape[1]
    # the features' part of the first layer is multiplied once per point, not once per edge
    rows = segment_expand(F.linear(features, first[:, :channels]), index.reshape(-1))
    rows = rows + F.linear(offsets, first[:, channels:])
    for number, (weight, scale, bias) in enumerate(layers):
        rows = F.linear(rows, weight) if number else rows
        rows = F.leaky_relu(batch_norm(rows, scale, bias, eps)[0], slope)
    return rows.reshape(*index.shape, -1).amax(1)


def _native(features, index, offsets, layers, eps, slope) -> Tensor:
    if features.dtype != torch.float32:
        return reference.set_conv(features, index, offsets, layers, eps, slope)
    channels, points = features.shape[1], len(features)
    (first, *_), (second, *_), (third, sharpness, _) = layers
    spare = -len(first) % LANES
    # the last norm and ReLU rise with their input, and so come after the maximum, once it is
    # turned where the norm's weight is negative
    third = third * torch.where(sharpness < 0, -1.0, 1.0)[:, None]
    norms = torch.stack([value for _, *norm in layers for value in norm])
    norms[4] = norms[4].abs()
    out = features.new_empty(points, len(first) + spare)
    with torch.autocast(features.device.type, enabled=False):  # the kernel reads float32
        own = F.linear(features, first[:, :channels])
    native.call(
        "s3d_set_conv",
        F.pad(own, (0, spare)).contiguous(),
        index.contiguous(),
        offsets.contiguous(),
        *(points, index.shape[1], out.shape[1]),
        F.pad(first[:, channels:].T, (0, spare)).contiguous(),
        *(F.pad(weight.T, (0, spare, 0, spare)).contiguous() for weight in (second, third)),
        F.pad(norms, (0, spare)).contiguous(),
        *(float(eps), float(slope), out, native.threads()),
    )
    return out[:, : len(first)]


SET_CONV = {"reference": reference.set_conv, "native": _native, "cuda": reference.set_conv}
