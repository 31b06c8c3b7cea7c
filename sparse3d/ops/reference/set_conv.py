"""Set convolution on a graph of neighbours: the torch definition."""

import torch
from torch import Tensor
from torch.nn import functional as F

from .norm import batch_norm


def set_conv(
    features: Tensor,
    index: Tensor,
    offsets: Tensor,
    layers: list[tuple[Tensor, Tensor, Tensor]],
    eps: float,
    slope: float,
) -> Tensor:
    """[P, C]: the maximum over a point's neighbours of layers on their features and offsets.

    Arguments as ``ops.set_conv.set_conv``.
    """
    rows = torch.cat([features[index.reshape(-1)], offsets], 1)
    for weight, scale, bias in layers:
        rows = F.linear(rows, weight)
        if len(rows):
            rows = F.leaky_relu(batch_norm(rows, scale, bias, eps, False)[0], slope)
    return rows.reshape(*index.shape, -1).amax(1) if len(rows) else rows
