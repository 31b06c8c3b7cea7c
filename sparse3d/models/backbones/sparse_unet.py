"""Sparse U-Nets: down by strided convolutions, back up onto the very cells that were left.

Both halve in MinkowskiEngine's meaning (coarse cells are floor(cell / 2)): every fine cell has a
parent at every stride, and no range has to be chosen.
"""

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from sparse3d.registry import MODELS
from sparse3d.structures import SparseVoxels

from ..layers import (
    InverseConv,
    StridedConv,
    SubMConv,
    VoxelBatchNorm,
    VoxelInstanceNorm,
    VoxelSequential,
    voxel_relu,
)

MEANING = "minkowski"


class InstanceBlock(nn.Module):
    """relu(x + norm2(conv2(relu(norm1(conv1 x))))), instance norms, kernel 3."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = SubMConv(channels, channels, 3)
        self.norm1 = VoxelInstanceNorm(channels)
        self.conv2 = SubMConv(channels, channels, 3)
        self.norm2 = VoxelInstanceNorm(channels)

    def forward(self, voxels: SparseVoxels) -> SparseVoxels:
        hidden = voxel_relu(self.norm1(self.conv1(voxels)))
        hidden = self.norm2(self.conv2(hidden))
        return voxel_relu(voxels.replace(voxels.features + hidden.features))


class InstanceEncoder(nn.Module):
    """Strides 1, 2, 4, 8: a convolution and its norm (no ReLU between), then a block.

    Args:
        in_channels: of the voxels.
        channels: width of each stride.
        kernel_size: of the first convolution; the others have 3.
    """

    def __init__(self, in_channels: int, channels: Sequence[int], kernel_size: int):
        super().__init__()
        self.levels = len(channels)
        for level, width in enumerate(channels, 1):
            conv = (
                SubMConv(in_channels, width, kernel_size)
                if level == 1
                else StridedConv(in_channels, width, 3, 2, meaning=MEANING)
            )
            setattr(self, f"conv{level}", conv)
            setattr(self, f"norm{level}", VoxelInstanceNorm(width))
            setattr(self, f"block{level}", InstanceBlock(width))
            in_channels = width

    def forward(self, voxels: SparseVoxels) -> tuple[SparseVoxels, list[SparseVoxels]]:
        """The coarsest voxels, and what each finer stride had before its block, finest first."""
        skips = []
        for level in range(1, self.levels + 1):
            voxels = getattr(self, f"conv{level}")(voxels)
            voxels = getattr(self, f"norm{level}")(voxels)
            skips.append(voxels)
            voxels = getattr(self, f"block{level}")(voxels)
        return voxels, skips[:-1]


class InstanceDecoder(nn.Module):
    """Back to stride 1, each step beside what the encoder had there; two 1 x 1 convolutions.

    Args:
        channels: widths of the encoder's strides.
        up_channels: width after each step up, coarse to fine, then that of the hidden 1 x 1 layer.
        out_channels: of the result.
    """

    def __init__(self, channels: Sequence[int], up_channels: Sequence[int], out_channels: int):
        super().__init__()
        *steps, hidden = up_channels
        width, self.levels = channels[-1], len(channels)
        for level, up in zip(range(self.levels, 1, -1), steps):
            setattr(self, f"conv{level}_tr", InverseConv(width, up, 3, 2, meaning=MEANING))
            setattr(self, f"norm{level}_tr", VoxelInstanceNorm(up))
            setattr(self, f"block{level}_tr", InstanceBlock(up))
            width = up + channels[level - 2]
        self.conv1_tr = SubMConv(width, hidden, 1)
        self.final = SubMConv(hidden, out_channels, 1, bias=True)

    def forward(self, voxels: SparseVoxels, skips: list[SparseVoxels]) -> SparseVoxels:
        for level, skip in zip(range(self.levels, 1, -1), skips[::-1]):
            voxels = getattr(self, f"conv{level}_tr")(voxels, like=skip)
            voxels = getattr(self, f"norm{level}_tr")(voxels)
            voxels = getattr(self, f"block{level}_tr")(voxels).concat(skip)
        return self.final(voxel_relu(self.conv1_tr(voxels)))


@MODELS.register_module()
class InstanceUNet(nn.Module):
    """SCTN's voxel branch: instance norms, features of every cell of stride 1.

    Args:
        in_channels: of the voxels.
        channels: widths at strides 1, 2, 4, 8.
        up_channels: widths after the steps up to strides 4, 2, 1, and of the hidden 1 x 1 layer.
        out_channels: of the result.
        kernel_size: of the first convolution.

    Source: https://arxiv.org/abs/2105.04447. Parts are named as in its published state dicts.
    """

    def __init__(
        self,
        in_channels: int = 3,
        channels: Sequence[int] = (64, 64, 128, 128),
        up_channels: Sequence[int] = (128, 128, 128, 64),
        out_channels: int = 64,
        kernel_size: int = 7,
    ):
        super().__init__()
        if len(up_channels) != len(channels):
            raise ValueError(
                f"channels is {tuple(channels)} and up_channels {tuple(up_channels)}; both must be "
                "as long: one step up for each halving, and the hidden layer"
            )
        self.out_channels = out_channels
        self.encoder = InstanceEncoder(in_channels, channels, kernel_size)
        self.decoder = InstanceDecoder(channels, up_channels, out_channels)

    def forward(self, voxels: SparseVoxels) -> SparseVoxels:
        return self.decoder(*self.encoder(voxels))


class ResidualBlock(nn.Module):
    """relu(shortcut(x) + net(x)): two kernel-3 convolutions with batch norm.

    The shortcut is the identity, or where the width changes a 1 x 1 convolution with batch norm.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.net = VoxelSequential(
            SubMConv(in_channels, out_channels, 3),
            VoxelBatchNorm(out_channels),
            nn.ReLU(),
            SubMConv(out_channels, out_channels, 3),
            VoxelBatchNorm(out_channels),
        )
        self.downsample = None
        if in_channels != out_channels:
            self.downsample = VoxelSequential(
                SubMConv(in_channels, out_channels, 1, bias=True), VoxelBatchNorm(out_channels)
            )

    def forward(self, voxels: SparseVoxels) -> SparseVoxels:
        shortcut = voxels if self.downsample is None else self.downsample(voxels)
        hidden = self.net(voxels)
        return voxel_relu(hidden.replace(shortcut.features + hidden.features))


def _normed(conv: nn.Module, width: int) -> list[nn.Module]:
    return [conv, VoxelBatchNorm(width), nn.ReLU()]


class UpStep(nn.Module):
    """Onto the finer cells, beside what the encoder had there, through residual blocks."""

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int, blocks: int):
        super().__init__()
        self.conv = InverseConv(in_channels, out_channels, 2, 2, meaning=MEANING)
        self.norm = VoxelBatchNorm(out_channels)
        widths = [out_channels + skip_channels] + [out_channels] * (blocks - 1)
        self.blocks = nn.Sequential(*(ResidualBlock(width, out_channels) for width in widths))

    def forward(self, coarse: SparseVoxels, fine: SparseVoxels) -> SparseVoxels:
        up = self.norm(self.conv(coarse, like=fine), relu=True)
        return self.blocks(up.concat(fine))


@MODELS.register_module()
class SparseUNet(nn.Module):
    """Residual U-Net with batch norms, strides doubling, features of every cell of stride 1.

    Args:
        in_channels: of the voxels.
        channels: width at stride 1, 2, 4, ...
        up_channels: width after each step up, coarse to fine.
        blocks: residual blocks per stride on either side.

    Attributes:
        out_channels: of the result.

    Raises:
        ValueError: not one step up for each halving.

    Source: the backbone of DeltaFlow, https://arxiv.org/abs/2508.17054, whose widths are the
    defaults.
    """

    def __init__(
        self,
        in_channels: int = 16,
        channels: Sequence[int] = (32, 64, 128, 256, 256),
        up_channels: Sequence[int] = (128, 64, 32, 16),
        blocks: int = 2,
    ):
        super().__init__()
        if len(up_channels) != len(channels) - 1 or blocks < 1:
            raise ValueError(
                f"channels is {tuple(channels)}, up_channels {tuple(up_channels)} and blocks "
                f"{blocks}; there must be one step up for each halving ({len(channels) - 1}) and "
                "at least one block"
            )
        self.out_channels = up_channels[-1]
        first = channels[0]
        self.conv_input = VoxelSequential(
            *_normed(SubMConv(in_channels, first, 3), first),
            *_normed(SubMConv(first, first, 3), first),
        )
        self.stages = nn.ModuleList()
        for width, wider in pairwise(channels):
            down = StridedConv(width, width, 2, 2, meaning=MEANING)
            widths = [width] + [wider] * (blocks - 1)
            residual = [ResidualBlock(inputs, wider) for inputs in widths]
            self.stages.append(VoxelSequential(*_normed(down, width), *residual))
        self.ups = nn.ModuleList()
        width = channels[-1]
        for skip, up in zip(channels[-2::-1], up_channels):
            self.ups.append(UpStep(width, skip, up, blocks))
            width = up

    def forward(self, voxels: SparseVoxels) -> SparseVoxels:
        outputs = [self.conv_input(voxels)]
        for stage in self.stages:
            outputs.append(stage(outputs[-1]))
        coarse = outputs.pop()
        for up in self.ups:
            coarse = up(coarse, outputs.pop())
        return coarse
