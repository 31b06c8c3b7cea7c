"""Sparse residual network in MinkowskiEngine's meaning of stride: TSP3D's backbone.

A strided convolution has exactly the cells floor(cell / stride); the shortcut of a halving block, a
1x1 convolution, therefore sees only the cells that lie on the coarse grid.
"""

from collections.abc import Sequence

from torch import nn

from sparse3d.registry import MODELS
from sparse3d.structures import SparseVoxels

from ..layers import (
    StridedConv,
    SubMConv,
    VoxelBatchNorm,
    VoxelPool,
    VoxelSequential,
    conv_norm,
)

DEPTHS = {14: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
"""Blocks of each stage by the name that the published networks have."""


class MinkBlock(nn.Module):
    """relu(shortcut(x) + norm2(conv2(relu(norm1(conv1 x))))); conv1 and the shortcut may stride."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.conv1 = _conv(in_channels, out_channels, 3, stride)
        self.norm1 = VoxelBatchNorm(out_channels)
        self.conv2 = SubMConv(out_channels, out_channels, 3)
        self.norm2 = VoxelBatchNorm(out_channels)
        self.downsample = None
        if stride > 1 or in_channels != out_channels:
            shortcut = _conv(in_channels, out_channels, 1, stride)
            self.downsample = VoxelSequential(shortcut, VoxelBatchNorm(out_channels))

    def forward(self, voxels: SparseVoxels) -> SparseVoxels:
        hidden = conv_norm(self.conv1, self.norm1, voxels, relu=True)
        shortcut = voxels if self.downsample is None else self.downsample(voxels)
        return conv_norm(self.conv2, self.norm2, hidden, True, shortcut.features)


@MODELS.register_module()
class MinkResNet(nn.Module):
    """A stem and stages that each halve the resolution first.

    With the defaults and depth 34 TSP3D's: strides 8, 16, 32, 64.

    Args:
        in_channels: channels of a voxel.
        depth: blocks per stage: one of ``DEPTHS``, or a sequence with a number for each stage.
        channels: width of each stage.
        stem_channels: width of the first convolution.
        stem_stride: its stride.
        pool: whether a maximum over 2x2x2 cells halves the resolution before the stages.

    Attributes:
        out_channels: width of the last stage.
        stage_channels: width of each stage.
        stage_strides: base cells per cell of each stage.
        out_stride: those of the last stage, per axis.

    Raises:
        ValueError: the depth is unknown, or widths and depths differ in number.
    """

    def __init__(
        self,
        in_channels: int,
        depth: int | Sequence[int] = 34,
        channels: Sequence[int] = (64, 128, 128, 128),
        stem_channels: int = 64,
        stem_stride: int = 2,
        pool: bool = True,
    ):
        super().__init__()
        if isinstance(depth, int) and depth not in DEPTHS:
            raise ValueError(
                f"depth is {depth}; it must be one of {sorted(DEPTHS)}, or blocks per stage"
            )
        counts = DEPTHS[depth][: len(channels)] if isinstance(depth, int) else tuple(depth)
        if len(counts) != len(channels) or not channels or min(*counts, *channels) < 1:
            raise ValueError(
                f"channels is {tuple(channels)} and the stages have {counts} blocks; give one "
                "positive number of each per stage"
            )
        self.conv1 = _conv(in_channels, stem_channels, 3, stem_stride)
        self.norm1 = VoxelBatchNorm(stem_channels)
        self.pool = VoxelPool("max", 2, 2) if pool else None
        stride, width = stem_stride * (2 if pool else 1), stem_channels
        self.stage_channels, self.stage_strides = tuple(channels), []
        for number, (count, wide) in enumerate(zip(counts, channels), start=1):
            blocks = [MinkBlock(width, wide, 2)]
            blocks += [MinkBlock(wide, wide, 1) for _ in range(count - 1)]
            self.add_module(f"layer{number}", nn.Sequential(*blocks))
            width, stride = wide, stride * 2
            self.stage_strides.append(stride)
        self.out_channels = width
        self.out_stride = (stride,) * 3

    def forward(self, voxels: SparseVoxels) -> list[SparseVoxels]:
        """The stages, finest first."""
        voxels = conv_norm(self.conv1, self.norm1, voxels, relu=True)
        if self.pool is not None:
            voxels = self.pool(voxels)
        stages = []
        for number in range(1, len(self.stage_channels) + 1):
            voxels = getattr(self, f"layer{number}")(voxels)
            stages.append(voxels)
        return stages


def _conv(in_channels: int, out_channels: int, kernel_size: int, stride: int) -> nn.Module:
    if stride == 1:
        return SubMConv(in_channels, out_channels, kernel_size)
    return StridedConv(in_channels, out_channels, kernel_size, stride, meaning="minkowski")
