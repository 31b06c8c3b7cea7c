"""Pooling of voxels to a coarser grid, between the stages of DSVT.

A coarse cell has one slot per fine cell, x slowest; a slot without a voxel is a zero vector and
takes part like any other.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparse3d.ops.voxelize import segment_reduce
from sparse3d.ops.windows import pool_cells
from sparse3d.structures import IndexCache, SparseVoxels

Triple = tuple[int, int, int]
_HEADS = 8  # of the attention reduction, whatever the stages have


class AttentionWeights(nn.Module):
    """Parameters of a multi-head attention, under the names of ``nn.MultiheadAttention``."""

    def __init__(self, channels: int):
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.empty(3 * channels, channels))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * channels))
        self.out_proj = nn.Linear(channels, channels)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)


class MaxPooling(nn.Module):
    """Largest value over the slots; an empty slot counts as zero.

    Args:
        stride: (x, y, z) fine cells per coarse cell.
        in_channels: width before.
        out_channels: width after; the same.
    """

    def __init__(self, stride: Triple, in_channels: int, out_channels: int):
        super().__init__()
        self.stride = stride

    def forward(self, voxels: SparseVoxels) -> SparseVoxels:
        coarse, cell, _ = coarse_cells(voxels, self.stride)
        return replace(coarse, features=slot_max(voxels.features, cell, len(coarse), self.stride))


class LinearPooling(nn.Module):
    """Linear map of all slots side by side, and a layer norm. Arguments as ``MaxPooling``'s."""

    def __init__(self, stride: Triple, in_channels: int, out_channels: int):
        super().__init__()
        self.stride = stride
        self.linear1 = nn.Linear(math.prod(stride) * in_channels, out_channels, bias=False)
        self.norm = nn.LayerNorm(out_channels)

    def forward(self, voxels: SparseVoxels) -> SparseVoxels:
        coarse, cell, slot = coarse_cells(voxels, self.stride)
        slots = in_slots(voxels.features, cell, slot, len(coarse), math.prod(self.stride))
        return replace(coarse, features=self.norm(self.linear1(slots.flatten(1))))


class AttentionPooling(nn.Module):
    """The slots' maximum attends to the slots. Arguments as ``MaxPooling``'s.

    Raises:
        ValueError: the width is no multiple of eight, the number of heads.
    """

    def __init__(self, stride: Triple, in_channels: int, out_channels: int):
        super().__init__()
        if in_channels % _HEADS:
            raise ValueError(
                f"channels {in_channels} do not split into the {_HEADS} heads of the attention "
                f"reduction; the nearest that do: {max(round(in_channels / _HEADS), 1) * _HEADS}"
            )
        self.stride = stride
        self.pos_embedding = nn.Parameter(torch.randn(math.prod(stride), in_channels))
        self.self_attn = AttentionWeights(in_channels)
        self.norm = nn.LayerNorm(in_channels)

    def forward(self, voxels: SparseVoxels) -> SparseVoxels:
        coarse, cell, slot = coarse_cells(voxels, self.stride)
        query = slot_max(voxels.features, cell, len(coarse), self.stride)
        features = self.norm(query + self._attend(query, voxels.features, cell, slot))
        return replace(coarse, features=features)

    def _attend(self, query: Tensor, features: Tensor, cell: Tensor, slot: Tensor) -> Tensor:
        """Attention [M, C] of ``query`` [M, C]; keys and values are projected per voxel."""
        weights, channels, volume = self.self_attn, query.shape[1], len(self.pos_embedding)
        bias = weights.in_proj_bias[channels:]
        q = F.linear(query, weights.in_proj_weight[:channels], weights.in_proj_bias[:channels])
        placed = F.linear(self.pos_embedding, weights.in_proj_weight[channels : 2 * channels])
        slots = F.linear(features, weights.in_proj_weight[channels:])
        slots = in_slots(slots, cell, slot, len(query), volume)
        slots = slots + (F.pad(placed, (0, channels)) + bias)
        k, v = slots.unflatten(2, (2, _HEADS, -1)).unbind(2)  # [M, V, heads, C / heads]
        scores = (q.unflatten(1, (1, _HEADS, -1)) * k).sum(3) / math.sqrt(channels // _HEADS)
        attended = (scores.softmax(1)[..., None] * v).sum(1)
        return weights.out_proj(attended.flatten(1))


def coarse_cells(voxels: SparseVoxels, stride: Triple) -> tuple[SparseVoxels, Tensor, Tensor]:
    """The cells that ``voxels`` pool to (no features), and cell and slot [N] of each voxel."""

    def compute():
        return (*pool_cells(voxels.coords, voxels.shape, stride), IndexCache())

    coords, cell, slot, cache = voxels.cache.get(("pool_cells", stride), compute)
    coarse = replace(
        voxels,
        features=voxels.features.new_zeros(len(coords), 0),
        coords=coords,
        stride=tuple(s * step for s, step in zip(voxels.stride, stride)),
        shape=tuple(cells // step for cells, step in zip(voxels.shape, stride)),
        cache=cache,
    )
    return coarse, cell, slot


def in_slots(values: Tensor, cell: Tensor, slot: Tensor, cells: int, volume: int) -> Tensor:
    """``values`` [N, C] in their slots [cells, volume, C]; zeros elsewhere."""
    out = values.new_zeros(cells * volume, values.shape[1])
    out = out.index_copy(0, cell * volume + slot, values)
    return out.view(cells, volume, values.shape[1])


def slot_max(values: Tensor, cell: Tensor, cells: int, stride: Triple) -> Tensor:
    """Maximum [cells, C] over all slots, of which the empty ones are zero."""
    largest = segment_reduce(values, cell, cells, "max")
    full = torch.bincount(cell, minlength=cells) == math.prod(stride)
    return torch.where(full[:, None], largest, largest.clamp(min=0))


POOLINGS = {"attention": AttentionPooling, "linear": LinearPooling, "maxpool": MaxPooling}
