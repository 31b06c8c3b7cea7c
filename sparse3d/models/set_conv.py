"""Set convolution on a graph of neighbours, as FLOT and SCTN refine a flow with."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparse3d.ops.neighbors import knn
from sparse3d.ops.norm import batch_norm
from sparse3d.ops.voxelize import segment_expand


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
        offsets = points[index.reshape(-1)] - points.repeat_interleave(index.shape[1], 0)
        return cls(index, offsets)


class CloudNorm(nn.Module):
    """Instance norm of the rows of one cloud: biased variance, affine, no running statistics."""

    def __init__(self, channels: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, rows: Tensor) -> Tensor:
        """Normalised ``rows`` [R, C]."""
        if not len(rows):
            return rows
        return batch_norm(rows, self.weight, self.bias, self.eps)[0]


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
        points, k = graph.index.shape
        if points and not torch.is_grad_enabled():
            return self._without_gradients(graph, features)
        # the features' part of the first layer is multiplied once per point, not once per edge
        weight, channels = self.fc1.weight, features.shape[1]
        own = F.linear(features, weight[:, :channels])
        rows = segment_expand(own, graph.index.reshape(-1))
        rows = rows + F.linear(graph.offsets, weight[:, channels:])
        rows = F.leaky_relu(self.bn1(rows), 0.1)
        rows = F.leaky_relu(self.bn2(self.fc2(rows)), 0.1)
        rows = F.leaky_relu(self.bn3(self.fc3(rows)), 0.1)
        return rows.reshape(points, k, self.out_channels).amax(1) if points else rows

    def _without_gradients(self, graph: NeighborGraph, features: Tensor) -> Tensor:
        """The same in one buffer, a part of its rows at a time, so that they stay in the cache.

        The last norm and ReLU rise or fall with their input: they come after the maximum.
        """
        points, k = graph.index.shape
        weight, channels = self.fc1.weight, features.shape[1]
        own, index = F.linear(features, weight[:, :channels]), graph.index.reshape(-1)
        step = max(CACHED // (k * self.out_channels), 1)
        parts = [slice(i * k, min(i + step, points) * k) for i in range(0, points, step)]
        rows = own.new_empty(points * k, self.out_channels)
        moments = _Moments(rows)
        for part in parts:
            torch.mm(graph.offsets[part], weight[:, channels:].T, out=rows[part])
            moments.add(rows[part].add_(own[index[part]]))
        scale, shift = moments.norm(self.bn1)
        moments = _Moments(rows)
        for part in parts:
            hidden = F.leaky_relu_(rows[part] * scale + shift, 0.1)
            moments.add(torch.mm(hidden, self.fc2.weight.T, out=rows[part]))
        scale, shift = moments.norm(self.bn2)
        sign = torch.where(self.bn3.weight < 0, -1.0, 1.0)
        turned, moments, best = self.fc3.weight.T * sign, _Moments(rows), []
        for part in parts:
            hidden = F.leaky_relu_(rows[part].mul_(scale).add_(shift), 0.1)
            last = moments.add(hidden @ turned)
            best.append(last.reshape(-1, k, self.out_channels).amax(1))
        scale, shift = moments.norm(self.bn3, sign)
        return F.leaky_relu_(torch.cat(best) * scale + shift, 0.1)


CACHED = 1 << 19
"""Numbers of a part of the rows: 2 MB."""


class _Moments:
    """Mean and variance of rows that come in parts, summed about the first part's mean."""

    def __init__(self, like: Tensor):
        self.count, self.centre = 0, None
        self.sums = like.new_zeros(2, like.shape[1], dtype=torch.float64)

    def add(self, rows: Tensor) -> Tensor:
        """Counts ``rows`` [R, C] in, and gives them back."""
        if self.centre is None:
            self.centre = rows.mean(0)
        off = rows - self.centre
        self.sums[0] += off.sum(0)
        self.sums[1] += off.square_().sum(0)
        self.count += len(rows)
        return rows

    def norm(self, layer: CloudNorm, sign: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
        """Factor and summand [C] by which ``layer`` normalises rows, given times ``sign``."""
        mean, square = self.sums / self.count
        scale = (square - mean.square() + layer.eps).rsqrt() * layer.weight * sign
        shift = layer.bias - scale * (mean + self.centre)
        return scale.to(self.centre.dtype), shift.to(self.centre.dtype)
