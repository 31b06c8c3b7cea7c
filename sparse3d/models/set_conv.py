"""Set convolution on a graph of neighbours, as FLOT and SCTN refine a flow with."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparse3d.ops.neighbors import knn
from sparse3d.ops.set_conv import set_conv


@dataclass(frozen=True, eq=False)
class NeighborGraph:
    """The nearest neighbours of each point of one cloud.

    Attributes:
        index: [P, k] int64 rows, the point itself first.
        offsets: [P * k, 3] neighbour minus point, metres.
    """

    index: Tensor
    offsets: Tensor

    @classmethod
    def of(cls, points: Tensor, k: int) -> "NeighborGraph":
        """The graph of ``points`` [P, 3]; of all of them where there are fewer than k."""
        index, _ = knn(points, points, max(min(k, len(points)), 1))
        offsets = points.index_select(0, index.reshape(-1)) - points.repeat_interleave(
            index.shape[1], 0
        )
        return cls(index, offsets)


class CloudNorm(nn.Module):
    """Weight and bias of an instance norm over the edges of one cloud; the op applies them."""

    def __init__(self, channels: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))


class SetConv(nn.Module):
    """Features and offsets of a point's neighbours through three layers, then their maximum.

    Args:
        in_channels: of the points.
        out_channels: of every layer.

    Source: FLOT, https://arxiv.org/abs/2007.11142. One cloud at a time: the norms are the cloud's.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.out_channels = out_channels
        widths = (in_channels + 3, out_channels, out_channels)
        for number, width in enumerate(widths, 1):
            setattr(self, f"fc{number}", nn.Linear(width, out_channels, bias=False))
            setattr(self, f"bn{number}", CloudNorm(out_channels))

    def forward(self, graph: NeighborGraph, features: Tensor) -> Tensor:
        """[P, C] from ``features`` [P, in_channels] of the graph's points."""
        layers = [
            (linear.weight, norm.weight, norm.bias)
            for linear, norm in ((self.fc1, self.bn1), (self.fc2, self.bn2), (self.fc3, self.bn3))
        ]
        return set_conv(features, graph.index, graph.offsets, layers, self.bn1.eps, 0.1)
