"""Points to voxel features: a learned encoder and the plain mean."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparse3d.ops.voxelize import (
    canonical_order,
    hard_voxelize,
    segment_expand,
    segment_reduce,
    voxelize,
)
from sparse3d.registry import MODELS
from sparse3d.structures import SparseVoxels, VoxelGrid

from .norms import RowBatchNorm


@MODELS.register_module()
class DynamicEncoder(nn.Module):
    """Learned voxel features from all points of a voxel (dynamic PointNet encoder of OpenPCDet).

    A point enters as its own columns, its offset from the mean of its voxel's points and its offset
    from the voxel's centre. Each layer is linear, batch norm, ReLU and a maximum over the voxel;
    all but the last hand each point its own value beside its voxel's.

    Args:
        grid: bounded 3-D grid.
        point_channels: columns of a point, x, y, z first.
        channels: width after each layer; all but the last must be even.
        pillar: cells are columns of the grid's full height, and points above or below it are kept;
            else points outside the grid in any axis are dropped.

    Raises:
        ValueError: the grid is unbounded, or a pillar grid has several cells along z.
    """

    def __init__(
        self,
        grid: VoxelGrid,
        point_channels: int,
        channels: Sequence[int] = (64, 64),
        pillar: bool = False,
    ):
        super().__init__()
        if grid.shape is None or len(grid.shape) != 3:
            raise ValueError(
                f"grid has shape {grid.shape}; the encoder needs a bounded 3-D grid: build it with "
                "VoxelGrid.from_range(point_range, voxel_size)"
            )
        if pillar and grid.shape[2] != 1:
            height = grid.shape[2] * grid.voxel_size[2]
            raise ValueError(
                f"pillar=True needs one cell along z but the grid has {grid.shape[2]}; make the "
                f"voxel {height:g} m high, or set pillar=False"
            )
        if any(width % 2 for width in channels[:-1]):
            raise ValueError(
                f"channels are {list(channels)}; all but the last are shared by point and voxel "
                "and must be even"
            )
        self.grid = grid
        self.pillar = pillar
        self.out_channels = channels[-1]
        self.layers = nn.ModuleList()
        width = point_channels + 6
        for number, out in enumerate(channels):
            last = number == len(channels) - 1
            self.layers.append(PointLayer(width, out if last else out // 2))
            width = out

    def forward(self, points: Tensor, batch_index: Tensor, batch_size: int) -> SparseVoxels:
        """Voxels of ``points`` [P, C] (world metres); ``batch_index`` [P] int64.

        The points are put in an order of their own first, so that theirs leaves no trace. Always in
        single precision: metres do not fit into half.

        Raises:
            ValueError: a coordinate is NaN or infinite.
        """
        coords, index = self._cells(points, batch_index)
        order = canonical_order(points, index, coords.shape[0])
        points, index = points.index_select(0, order), index.index_select(0, order)
        voxels = SparseVoxels(
            points.new_zeros(coords.shape[0], 0),
            coords,
            self.grid,
            batch_size,
            shape=self.grid.shape,
        )
        rows, shared = self._describe(points, index, voxels), None
        with torch.autocast(points.device.type, enabled=False):
            for layer in self.layers:
                rows = layer(rows, shared, index)
                shared = segment_reduce(rows, index, coords.shape[0], "max")
        return voxels.replace(shared)

    def _cells(self, points: Tensor, batch_index: Tensor) -> tuple[Tensor, Tensor]:
        axes = 2 if self.pillar else 3
        grid = (self.grid.voxel_size[:axes], self.grid.origin[:axes], self.grid.shape[:axes])
        coords, index = voxelize(points[:, :axes], batch_index, *grid)
        checked = not torch.compiler.is_compiling()  # a compiled program takes values on trust
        if checked and not torch.isfinite(points[:, axes:3]).all():
            raise ValueError("points have a NaN or infinite z; remove them")
        return F.pad(coords, (0, 3 - axes)), index

    def _describe(self, points: Tensor, index: Tensor, voxels: SparseVoxels) -> Tensor:
        """[P, point_channels + 6]: the points, from their mean, from their voxel's centre."""
        mean = segment_reduce(points[:, :3], index, voxels.coords.shape[0], "mean")
        anchors = segment_expand(torch.cat([mean, voxels.centers().to(points.dtype)], 1), index)
        return torch.cat([points, points[:, :3].repeat(1, 2) - anchors], 1)


class PointLayer(nn.Module):
    """Linear, batch norm and ReLU on points; OpenPCDet's eps and momentum."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.linear = nn.Linear(in_channels, out_channels, bias=False)
        self.norm = RowBatchNorm(out_channels, eps=1e-3, momentum=0.01)

    def forward(self, rows: Tensor, shared: Tensor | None, index: Tensor) -> Tensor:
        """Each point's ``rows`` [P, A] and, behind them, its voxel's ``shared`` [N, B].

        The two are not concatenated: the voxel's part is multiplied once per voxel.
        """
        weight, own = self.linear.weight, rows.shape[1]
        hidden = F.linear(rows, weight[:, :own])
        if shared is not None:
            hidden = hidden + segment_expand(F.linear(shared, weight[:, own:]), index)
        return self.norm(hidden, relu=True)


@MODELS.register_module()
class MeanEncoder(nn.Module):
    """Mean of the points of a voxel, as sparse convolution detectors take it. Nothing is learned.

    Args:
        grid: the grid; unbounded is legal.
        point_channels: columns of a point, x, y, z first.
        max_points: points of a voxel that count, the first ones; None for all.
        max_voxels: voxels per sample, the first ones reached; None for all.
    """

    def __init__(
        self,
        grid: VoxelGrid,
        point_channels: int,
        max_points: int | None = None,
        max_voxels: int | None = None,
    ):
        super().__init__()
        self.grid = grid
        self.out_channels = point_channels
        self.max_points = max_points
        self.max_voxels = max_voxels

    def forward(self, points: Tensor, batch_index: Tensor, batch_size: int) -> SparseVoxels:
        """Voxels of ``points`` [P, C] (world metres); ``batch_index`` [P] int64.

        Raises:
            ValueError: a coordinate is NaN or infinite.
        """
        if self.max_points is None and self.max_voxels is None:
            return SparseVoxels.from_points(points, batch_index, self.grid, batch_size)[0]
        grid = (self.grid.voxel_size, self.grid.origin, self.grid.shape)
        most = self.max_points or max(len(points), 1)
        rows, coords, counts = hard_voxelize(points, batch_index, *grid, most, self.max_voxels)
        mean = rows.sum(1) / counts[:, None].clamp(min=1)
        return SparseVoxels(mean, coords, self.grid, batch_size, shape=self.grid.shape)


@MODELS.register_module()
class PlacedEncoder(nn.Module):
    """Mean of a voxel's points, with where in the voxel it lies: finer than the voxels are.

    A voxel carries the mean's offset from the voxel's centre as a share of the voxel's edge (x, y,
    z), the mean's height in metres and the mean of the other columns. Where in the world it lies
    sideways it does not say. Nothing is learned.

    Args:
        grid: the grid; unbounded is legal.
        point_channels: columns of a point, x, y, z first.
    """

    def __init__(self, grid: VoxelGrid, point_channels: int):
        super().__init__()
        self.grid = grid
        self.out_channels = point_channels + 1

    def forward(self, points: Tensor, batch_index: Tensor, batch_size: int) -> SparseVoxels:
        """Voxels of ``points`` [P, C] (world metres); ``batch_index`` [P] int64.

        Raises:
            ValueError: a coordinate is NaN or infinite.
        """
        voxels, _ = SparseVoxels.from_points(points, batch_index, self.grid, batch_size)
        mean = voxels.features
        edge = mean.new_tensor(self.grid.voxel_size)
        offset = (mean[:, :3] - voxels.centers().to(mean)) / edge
        return voxels.replace(torch.cat([offset, mean[:, 2:]], 1))
