"""Bird's-eye-view maps: from voxels to a dense map, and the 2-D network that runs on it."""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparse3d.registry import MODELS
from sparse3d.structures import SparseVoxels

BN = {"eps": 1e-3, "momentum": 0.01}


def to_bev(voxels: SparseVoxels) -> Tensor:
    """[B, C*D, Y, X]: dense voxels, height folded into channels (channel-major, then depth).

    Raises:
        ValueError: the voxels' grid is unbounded.
    """
    dense = voxels.dense()  # a view of [B, Z, Y, X, C]
    if dense.dim() == 4:
        return dense
    last = dense.permute(0, 3, 4, 1, 2).flatten(3)  # [B, Y, X, C * Z]: one copy, channels last
    return last.permute(0, 3, 1, 2)


def _channels_last(x: Tensor) -> Tensor:
    """``x`` with its channels last, said in strides that torch believes.

    Of a batch of one map any first stride is legal, but by one that does not span the map torch
    takes it for channels first, and every convolution of ``x`` begins with a copy.
    """
    batch, channels, height, width = x.shape
    flat = x.permute(0, 2, 3, 1).reshape(-1)
    return flat.view(batch, height, width, channels).permute(0, 3, 1, 2)


@MODELS.register_module()
class BEVBackbone(nn.Module):
    """A pyramid of 2-D convolutions, brought back to one resolution and concatenated.

    BaseBEVBackbone and, with ``residual``, BaseBEVResBackbone of OpenPCDet; keys are theirs.

    Args:
        in_channels: channels of the map.
        layer_nums: convolutions (or residual blocks) of each level after its first, strided one.
        strides: stride of each level over the one before.
        channels: width of each level.
        up_strides: upsampling of each level; below 1 it is a strided convolution by the inverse.
        up_channels: width of each upsampled level.
        residual: residual blocks instead of plain convolutions.

    Attributes:
        out_channels: channels of the output map.
        out_stride: input cells per output cell.

    Raises:
        ValueError: the lists differ in length, or the levels meet at different resolutions.
    """

    def __init__(
        self,
        in_channels: int,
        layer_nums: Sequence[int] = (5, 5),
        strides: Sequence[int] = (1, 2),
        channels: Sequence[int] = (128, 256),
        up_strides: Sequence[float] = (1, 2),
        up_channels: Sequence[int] = (256, 256),
        residual: bool = False,
    ):
        super().__init__()
        self.strides, self.up_strides = tuple(strides), tuple(up_strides)
        self.out_stride = _common_stride(layer_nums, strides, channels, up_strides, up_channels)
        self.out_channels = sum(up_channels)
        level = _residual_level if residual else _plain_level
        widths = (in_channels, *channels)
        self.blocks = nn.ModuleList(
            level(widths[i], width, stride, layer_nums[i])
            for i, (width, stride) in enumerate(zip(channels, strides))
        )
        self.deblocks = nn.ModuleList(map(_upsampling, channels, up_channels, up_strides))

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, Y, X] to [B, out_channels, Y / out_stride, X / out_stride]."""
        # Channels last is twice as fast on a CPU, but its float32 batch statistics are less exact.
        exact = self.training and not torch.is_autocast_enabled("cpu")
        x = x.contiguous() if exact else _channels_last(x)
        levels = []
        for block, deblock in zip(self.blocks, self.deblocks):
            x = block(x)
            levels.append(deblock(x))
        return torch.cat(levels, 1)

    def out_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Cells of the output map for an input map of ``shape`` cells.

        Raises:
            ValueError: the levels would not fit together; names the nearest size that works.
        """
        out = []
        for cells in shape:
            sizes = self._level_sizes(cells)
            if len(set(sizes)) > 1 or sizes[0] < 1:
                unit = prod(self.strides)
                nearest = max(round(cells / unit), 1) * unit
                raise ValueError(
                    f"a map of {tuple(shape)} cells does not fit the BEV backbone: its levels "
                    f"would have {sizes} cells along one side; use a point range or voxel size "
                    f"that gives a multiple of {unit} cells, such as {nearest}"
                )
            out.append(sizes[0])
        return tuple(out)

    def _level_sizes(self, cells: int) -> list[int]:
        sizes = []
        for stride, up in zip(self.strides, self.up_strides):
            cells = (cells - 1) // stride + 1
            sizes.append(cells * int(up) if up >= 1 else cells // round(1 / up))
        return sizes


class ResidualBlock2d(nn.Module):
    """relu(shortcut + bn(conv(relu(bn(conv x))))), 3x3; a 1x1 shortcut where ``project``."""

    def __init__(self, in_channels: int, channels: int, stride: int = 1, project: bool = False):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels, **BN)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels, **BN)
        self.downsample_layer = nn.Identity()
        if project:
            self.downsample_layer = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False),
                nn.BatchNorm2d(channels, **BN),
            )

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.downsample_layer(x))


def _residual_level(in_channels: int, channels: int, stride: int, layers: int) -> nn.Sequential:
    first = ResidualBlock2d(in_channels, channels, stride, project=True)
    return nn.Sequential(first, *(ResidualBlock2d(channels, channels) for _ in range(layers)))


def _plain_level(in_channels: int, channels: int, stride: int, layers: int) -> nn.Sequential:
    parts = [nn.ZeroPad2d(1), nn.Conv2d(in_channels, channels, 3, stride, bias=False)]
    for _ in range(layers):
        parts += [nn.BatchNorm2d(channels, **BN), nn.ReLU()]
        parts += [nn.Conv2d(channels, channels, 3, padding=1, bias=False)]
    return nn.Sequential(*parts, nn.BatchNorm2d(channels, **BN), nn.ReLU())


def _upsampling(channels: int, up_channels: int, stride: float) -> nn.Sequential:
    if stride >= 1:
        size = int(stride)
        conv = nn.ConvTranspose2d(channels, up_channels, size, size, bias=False)
    else:
        size = round(1 / stride)
        conv = nn.Conv2d(channels, up_channels, size, size, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(up_channels, **BN), nn.ReLU())


def _common_stride(layer_nums, strides, channels, up_strides, up_channels) -> float:
    lengths = [len(v) for v in (layer_nums, strides, channels, up_strides, up_channels)]
    if len(set(lengths)) > 1:
        raise ValueError(
            "layer_nums, strides, channels, up_strides and up_channels need one entry per level; "
            f"they have {lengths}"
        )
    levels = [prod(strides[: i + 1]) / up for i, up in enumerate(up_strides)]
    if max(levels) - min(levels) > 1e-6:
        fitting = [prod(strides[: i + 1]) / levels[0] for i in range(len(strides))]
        raise ValueError(
            f"strides {list(strides)} and up_strides {list(up_strides)} bring the levels to "
            f"strides {levels}, which cannot be concatenated; up_strides {fitting} would fit"
        )
    return levels[0]
