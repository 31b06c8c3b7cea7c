"""Sparse convolution backbones of LiDAR detectors: SECOND's, its residual form, and VoxelNeXt's.

All take voxels of a bounded grid, convolve in spconv's meaning and halve the resolution three times
or more. Attribute names are those of OpenPCDet's VoxelBackBone8x, VoxelResBackBone8x and
VoxelResBackBone8xVoxelNeXt, so that a published state_dict needs no renaming.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from sparse3d.registry import MODELS
from sparse3d.structures import IndexCache, SparseVoxels, VoxelGrid

from ..layers import StridedConv, SubMConv, VoxelBatchNorm, VoxelSequential, conv_norm

# OpenPCDet's sparse backbones; part of what a published checkpoint means.
NORM = {"eps": 1e-3, "momentum": 0.01}


def conv_block(
    conv: nn.Module, channels: int, eps: float = 1e-3, momentum: float = 0.01
) -> VoxelSequential:
    """A convolution ("0"), its batch norm ("1") and a ReLU; eps and momentum are OpenPCDet's."""
    return VoxelSequential(conv, VoxelBatchNorm(channels, eps, momentum), nn.ReLU())


class BasicBlock(nn.Module):
    """relu(x + bn2(conv2(relu(bn1(conv1 x))))), submanifold, kernel 3."""

    def __init__(self, channels: int, bias: bool):
        super().__init__()
        self.conv1 = SubMConv(channels, channels, 3, bias=bias)
        self.bn1 = VoxelBatchNorm(channels, **NORM)
        self.conv2 = SubMConv(channels, channels, 3, bias=bias)
        self.bn2 = VoxelBatchNorm(channels, **NORM)

    def forward(self, voxels: SparseVoxels) -> SparseVoxels:
        hidden = conv_norm(self.conv1, self.bn1, voxels, relu=True)
        return conv_norm(self.conv2, self.bn2, hidden, relu=True, residual=voxels.features)


def _submanifold(inputs: int, outputs: int) -> VoxelSequential:
    return conv_block(SubMConv(inputs, outputs, 3), outputs)


def _blocks(width: int, count: int, residual: bool, bias: bool) -> list[nn.Module]:
    if residual:
        return [BasicBlock(width, bias) for _ in range(count)]
    return [_submanifold(width, width) for _ in range(count)]


def _halving(inputs: int, outputs: int, kernel: int, padding: tuple[int, ...]) -> VoxelSequential:
    conv = StridedConv(inputs, outputs, (kernel,) * 3, (2,) * 3, padding)
    return conv_block(conv, outputs)


def _cells(
    shape: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> tuple[int, ...]:
    """Cells per axis after a strided convolution in spconv's meaning."""
    return tuple((n + 2 * p - k) // s + 1 for n, k, s, p in zip(shape, kernel, stride, padding))


def _bounded_shape(grid: VoxelGrid) -> tuple[int, int, int]:
    """The backbones' shape: the grid's, with one more cell in z, as in the reference.

    Raises:
        ValueError: the grid is unbounded or a map.
    """
    if grid.shape is None or len(grid.shape) != 3:
        raise ValueError(
            f"grid has shape {grid.shape}; a sparse detector backbone needs a bounded 3-D grid: "
            "build it with VoxelGrid.from_range(point_range, voxel_size)"
        )
    x, y, z = grid.shape
    return x, y, z + 1


def _check_stages(channels: Sequence[int], stages: int) -> None:
    if len(channels) != stages or any(width < 1 for width in channels):
        raise ValueError(f"channels is {tuple(channels)}; {stages} positive widths are needed")


def _run(stages: list[nn.Module], voxels: SparseVoxels) -> list[SparseVoxels]:
    outputs = []
    for stage in stages:
        voxels = stage(voxels)
        outputs.append(voxels)
    return outputs


@MODELS.register_module()
class SparseResNet(nn.Module):
    """Four stages at strides 1, 2, 4, 8, then one convolution that thins z.

    With ``residual=False`` VoxelBackBone8x (SECOND, CenterPoint), with ``residual=True``
    VoxelResBackBone8x.

    Args:
        in_channels: channels of a voxel.
        grid: the bounded base grid.
        channels: widths of the four stages.
        out_channels: width of the output.
        residual: two basic blocks per stage instead of plain convolutions.
        bias: whether the basic blocks' convolutions have a bias; plain ones never do.

    Attributes:
        out_channels: width of the output.
        out_stride: base cells per output cell along x, y, z.
        out_shape: output cells along x, y, z.

    Raises:
        ValueError: the grid is unbounded or too small for four halvings, or a width is missing.
    """

    def __init__(
        self,
        in_channels: int,
        grid: VoxelGrid,
        channels: Sequence[int] = (16, 32, 64, 64),
        out_channels: int = 128,
        residual: bool = False,
        bias: bool = True,
    ):
        super().__init__()
        _check_stages(channels, 4)
        self.in_shape = shape = _bounded_shape(grid)
        self.conv_input = _submanifold(in_channels, channels[0])
        self.conv1 = nn.Sequential(*_blocks(channels[0], 2 if residual else 1, residual, bias))
        for number, padding in enumerate(((1, 1, 1), (1, 1, 1), (1, 1, 0)), start=2):
            narrow, wide = channels[number - 2 : number]
            begin = _halving(narrow, wide, 3, padding)
            stage = nn.Sequential(begin, *_blocks(wide, 2, residual, bias))
            self.add_module(f"conv{number}", stage)
            shape = _cells(shape, (3, 3, 3), (2, 2, 2), padding)
        thin = StridedConv(channels[3], out_channels, (1, 1, 3), (1, 1, 2), (0, 0, 0))
        self.conv_out = conv_block(thin, out_channels)
        self.out_shape = _cells(shape, (1, 1, 3), (1, 1, 2), (0, 0, 0))
        if min(self.out_shape) < 1:
            raise ValueError(
                f"a grid of {' x '.join(map(str, grid.shape))} cells is too small: the output "
                f"would have {self.out_shape} cells; z needs 24 cells or more"
            )
        self.out_channels = out_channels
        self.out_stride = (8, 8, 16)

    def forward(self, voxels: SparseVoxels) -> list[SparseVoxels]:
        """The four stages, finest first, and the output."""
        voxels = replace(voxels, shape=self.in_shape, cache=IndexCache())
        stages = [self.conv1, self.conv2, self.conv3, self.conv4, self.conv_out]
        return _run(stages, self.conv_input(voxels))


@MODELS.register_module()
class VoxelNeXtBackbone(nn.Module):
    """VoxelNeXt's backbone: six residual stages, summed over z to sparse cells of a map.

    Stages 5 and 6 widen the view; their cells are written into the grid of stage 4, and features of
    equal (x, y) are summed. Convolutions of a kernel of 5 keep the reference's padding of half a
    kernel. https://github.com/dvlab-research/VoxelNeXt

    Args:
        in_channels: channels of a voxel.
        grid: the bounded base grid.
        channels: widths of stages 1 to 5; the sixth has the fifth's.
        out_channels: width of the map.
        kernel_sizes: kernel of the convolution that begins stages 2, 3, 4 and 5; the sixth has the
            fifth's.
        bias: whether the basic blocks' convolutions have a bias.

    Attributes:
        out_channels: width of the map.
        out_stride: base cells per map cell along x, y.
        out_shape: map cells along x, y.

    Raises:
        ValueError: the grid is unbounded, widths or kernels are missing, or a kernel is even.
    """

    def __init__(
        self,
        in_channels: int,
        grid: VoxelGrid,
        channels: Sequence[int] = (16, 32, 64, 128, 128),
        out_channels: int = 128,
        kernel_sizes: Sequence[int] = (3, 3, 3, 3),
        bias: bool = True,
    ):
        super().__init__()
        _check_stages(channels, 5)
        if len(kernel_sizes) != 4 or any(kernel % 2 == 0 for kernel in kernel_sizes):
            raise ValueError(f"kernel_sizes is {tuple(kernel_sizes)}; four odd numbers are needed")
        if channels[3] != channels[4]:
            raise ValueError(
                f"channels is {tuple(channels)}; the fourth and fifth must be equal, because their "
                "features are summed"
            )
        self.in_shape = shape = _bounded_shape(grid)
        self.conv_input = _submanifold(in_channels, channels[0])
        self.conv1 = nn.Sequential(*_blocks(channels[0], 2, True, bias))
        widths, kernels = (*channels, channels[4]), (*kernel_sizes, kernel_sizes[3])
        for number, kernel in enumerate(kernels, start=2):
            narrow, wide = widths[number - 2 : number]
            padding = (kernel // 2,) * 3
            begin = _halving(narrow, wide, kernel, padding)
            self.add_module(f"conv{number}", nn.Sequential(begin, *_blocks(wide, 2, True, bias)))
            if number <= 4:
                shape = _cells(shape, (kernel,) * 3, (2, 2, 2), padding)
        spread = StridedConv(channels[4], out_channels, (3, 3), (1, 1), (1, 1), dims=2)
        self.conv_out = conv_block(spread, out_channels)
        shared = SubMConv(out_channels, out_channels, 3, bias=True, dims=2)
        self.shared_conv = conv_block(shared, out_channels, eps=1e-5, momentum=0.1)
        self.out_channels = out_channels
        self.out_stride = (8, 8)
        self.out_shape = shape[:2]

    def forward(self, voxels: SparseVoxels) -> list[SparseVoxels]:
        """The six stages, finest first, and the sparse map."""
        voxels = replace(voxels, shape=self.in_shape, cache=IndexCache())
        stages = [self.conv1, self.conv2, self.conv3, self.conv4, self.conv5, self.conv6]
        outputs = _run(stages, self.conv_input(voxels))
        flat = flatten_height(outputs[3], outputs[4:])
        return [*outputs, self.shared_conv(self.conv_out(flat))]


def flatten_height(voxels: SparseVoxels, coarser: Sequence[SparseVoxels] = ()) -> SparseVoxels:
    """The map of ``voxels``: features of equal (batch, x, y) summed over z.

    Args:
        voxels: 3-D, of a bounded grid.
        coarser: voxels of twice, four times, ... the stride and as many channels, that join by
            their lower corner.
    """
    parts = [voxels, *coarser]
    coords = torch.cat([_map_cells(part, 2**power) for power, part in enumerate(parts)])
    grid = voxels.grid
    flat = VoxelGrid(grid.voxel_size[:2], grid.origin[:2], grid.shape and grid.shape[:2])
    result, _ = SparseVoxels.from_coords(
        coords,
        torch.cat([part.features for part in parts]),
        flat,
        voxels.batch_size,
        voxels.stride[:2],
        voxels.shape and voxels.shape[:2],
        duplicates="sum",
    )
    return result


def _map_cells(voxels: SparseVoxels, factor: int) -> Tensor:
    """[N, 3] (batch, x, y) with x, y in cells ``factor`` times finer."""
    return voxels.coords[:, :3] * voxels.coords.new_tensor([1, factor, factor])
