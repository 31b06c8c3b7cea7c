"""SparseVoxels, the one structure that carries features through every model.

Coordinate spaces, by name:
    world   metres, the frame of the points
    cell    integer (x, y, z) of the base grid: floor((world - origin) / voxel_size)
    coords  cells of the present stride: base cells [c * stride, (c + 1) * stride) per axis
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from sparse3d.ops.arguments import check_floats, check_shape, check_type
from sparse3d.ops.keys import extremes, find_rows, sort_rows
from sparse3d.ops.voxelize import segment_expand, segment_reduce, voxelize

from .grid import IndexCache, VoxelGrid

DUPLICATE_RULES = ("error", "first", "mean", "sum", "max")


@dataclass(frozen=True, eq=False)
class SparseVoxels:
    """Features on the occupied cells of a grid, rows in ascending order of (batch, x, y, z).

    Build one by a named constructor; those sort and check. N = 0 and empty samples are legal.

    Attributes:
        features: [N, C] float.
        coords: [N, 1+D] int32, (batch, x, y, z), or (batch, x, y) for a map; unique, ascending.
        grid: the base grid, shared by all strides.
        batch_size: number of samples.
        stride: cells of the base grid per cell of ``coords``, per axis.
        shape: number of present cells per axis, None when unbounded.
        cache: what is known about this topology.
    """

    features: Tensor
    coords: Tensor
    grid: VoxelGrid
    batch_size: int
    stride: tuple[int, ...] = (1, 1, 1)
    shape: tuple[int, ...] | None = None
    cache: IndexCache = field(default_factory=IndexCache, repr=False)

    def __post_init__(self):
        _check_shapes(self.features, self.coords)
        for name in ("stride", "shape"):
            value = getattr(self, name)
            if value is not None and len(value) != self.dims:
                raise ValueError(
                    f"{name} is {tuple(value)} but coords have {self.dims} axes beside the batch; "
                    "give one number for each"
                )

    def __len__(self) -> int:
        return len(self.coords)

    @property
    def dims(self) -> int:
        """3, or 2 for a map."""
        return self.coords.shape[1] - 1

    @property
    def channels(self) -> int:
        return self.features.shape[1]

    @property
    def device(self) -> torch.device:
        return self.features.device

    @property
    def counts(self) -> list[int]:
        """[B] voxels of each sample."""
        return torch.bincount(self.batch_index, minlength=self.batch_size).tolist()

    @property
    def batch_index(self) -> Tensor:
        """[N] int64, the sample of each row."""
        return self.coords[:, 0].long()

    # ------------------------------------------------------------------ constructors

    @classmethod
    def from_points(
        cls,
        points: Tensor,
        batch_index: Tensor,
        grid: VoxelGrid,
        batch_size: int,
        features: Tensor | None = None,
        reduce: str = "mean",
    ) -> tuple["SparseVoxels", Tensor]:
        """Voxels that hold at least one point, and the voxel of each point.

        Args:
            points: [P, >=3] float, world xyz first.
            batch_index: [P] integer, the sample of each point.
            grid: bounded grids drop points outside, unbounded ones drop none.
            batch_size: number of samples.
            features: [P, C] float, what a voxel carries; the points' own columns if None.
            reduce: 'mean', 'max' or 'sum' over a voxel's points.

        Returns:
            The voxels, and [P] int64 rows into them, -1 for points outside the grid.

        Raises:
            ValueError: a coordinate is NaN or infinite, a batch index outside [0, batch_size),
                shapes do not fit, points or features are integers, or keys would overflow.
        """
        dims = len(grid.voxel_size)
        if points.dim() != 2 or points.shape[1] < dims:
            raise ValueError(
                f"points have shape {tuple(points.shape)}; [P, {dims}] or more columns are needed"
            )
        coords, point_to_voxel = voxelize(
            points[:, :dims], batch_index, grid.voxel_size, grid.origin, grid.shape
        )
        checked = not torch.compiler.is_compiling()  # a compiled program takes values on trust
        if checked and len(coords) and int(coords[-1, 0]) >= batch_size:  # rows ascend by batch
            raise ValueError(
                f"batch_index goes up to {int(coords[-1, 0])} but batch_size is {batch_size}"
            )
        if features is not None:
            check_floats("features", features)
        values = segment_reduce(
            points if features is None else features, point_to_voxel, coords.shape[0], reduce
        )
        voxels = cls(values, coords, grid, batch_size, (1,) * dims, grid.shape)
        return voxels, point_to_voxel

    @classmethod
    def from_coords(
        cls,
        coords: Tensor,
        features: Tensor,
        grid: VoxelGrid,
        batch_size: int,
        stride: tuple[int, ...] | None = None,
        shape: tuple[int, ...] | None = None,
        duplicates: str = "error",
    ) -> tuple["SparseVoxels", Tensor]:
        """Voxels from coordinates in any order.

        Args:
            coords: [N, 1+D] integer, (batch, x, y, z) in cells of ``stride``.
            features: [N, C]; floats where cells may be given twice.
            grid: the base grid.
            batch_size: number of samples.
            stride: base cells per cell; all ones if None.
            shape: present cells per axis; ``grid.shape`` if None and the stride is one.
            duplicates: 'error', 'first', 'mean', 'sum' or 'max' where a cell is given twice.

        Returns:
            The voxels, and [N] int64, the row in them of each given row.

        Raises:
            ValueError: a wrong type, a batch outside [0, batch_size), a cell outside ``shape`` or a
                duplicate under 'error', of which it names the first row; ``stride`` or ``shape``
                not of D numbers.
        """
        if coords.dtype not in (torch.int32, torch.int64, torch.int16, torch.int8, torch.uint8):
            raise ValueError(f"coords are {coords.dtype}; they must be integers")
        _check_shapes(features, coords)
        if duplicates not in DUPLICATE_RULES:
            raise ValueError(f"duplicates is {duplicates!r}; it must be one of {DUPLICATE_RULES}")
        stride = stride or (1,) * (coords.shape[1] - 1)
        if shape is None and all(s == 1 for s in stride):
            shape = grid.shape
        _check_rows(coords, batch_size, shape)
        if duplicates in ("mean", "sum", "max"):
            check_floats("features", features)
        unique, first, inverse = sort_rows(coords.int())
        if torch.compiler.is_compiling() and duplicates != "first":  # how many there are is unknown
            rule = "sum" if duplicates == "error" else duplicates
            features = segment_reduce(features, inverse, unique.shape[0], rule)
        elif duplicates == "first" or len(unique) == len(coords):
            exact = not features.is_floating_point()  # only floats pass through segment_expand
            features = features[first] if exact else segment_expand(features, first)
        elif duplicates == "error":
            counts = torch.bincount(inverse)
            cell = tuple(unique[counts > 1][0].tolist())
            raise ValueError(
                f"cell {cell} (batch, x, y, z) is given {int(counts.max())} times; "
                "say duplicates='mean', 'sum', 'max' or 'first', or remove them"
            )
        else:
            features = segment_reduce(features, inverse, len(unique), duplicates)
        return cls(features, unique, grid, batch_size, tuple(stride), shape), inverse

    @classmethod
    def from_dense(
        cls, dense: Tensor, grid: VoxelGrid, keep: Tensor | None = None
    ) -> "SparseVoxels":
        """Cells of ``dense`` [B, C, Z, Y, X] (or [B, C, Y, X]) with a nonzero channel.

        Args:
            dense: the array.
            grid: its grid.
            keep: [B, Z, Y, X] bool, the cells to take instead.
        """
        dims = dense.dim() - 2
        mask = (dense != 0).any(1) if keep is None else keep
        mask = mask.permute(
            0, *range(dims, 0, -1)
        )  # to (batch, x, y, z): nonzero is then in key order
        coords = mask.nonzero()
        values = dense.permute(0, *range(dims + 1, 1, -1), 1)[mask]
        shape = tuple(dense.shape[:1:-1])
        return cls(values, coords.int().contiguous(), grid, len(dense), (1,) * dims, shape)

    @classmethod
    def empty(
        cls, channels: int, grid: VoxelGrid, batch_size: int, device: str | torch.device = "cpu"
    ) -> "SparseVoxels":
        """No voxel in any of ``batch_size`` samples."""
        dims = len(grid.voxel_size)
        return cls(
            torch.zeros(0, channels, device=device),
            torch.zeros(0, 1 + dims, dtype=torch.int32, device=device),
            grid,
            batch_size,
            (1,) * dims,
            grid.shape,
        )

    # ------------------------------------------------------------------ same topology

    def replace(self, features: Tensor) -> "SparseVoxels":
        """The same cells with other ``features`` [N, C']; shares the cache."""
        return replace(self, features=features)

    def same_cells(self, other: "SparseVoxels") -> bool:
        """Whether both have the same cells (then their rows correspond)."""
        if self.cache is other.cache:
            return True
        return self.coords.shape == other.coords.shape and torch.equal(self.coords, other.coords)

    def concat(self, *others: "SparseVoxels") -> "SparseVoxels":
        """Features side by side.

        Raises:
            ValueError: the cells differ.
        """
        for other in others:
            if not self.same_cells(other):
                raise ValueError(
                    f"cannot concatenate voxels of different cells ({len(self)} and {len(other)} "
                    "rows); use union() to add them, or lookup() to align them"
                )
        return self.replace(torch.cat([self.features, *(o.features for o in others)], 1))

    def to(self, device: str | torch.device) -> "SparseVoxels":
        """The voxels on ``device``; the cache is kept only when nothing moves."""
        if self.features.device == torch.device(device):
            return self
        return replace(
            self,
            features=self.features.to(device),
            coords=self.coords.to(device),
            cache=IndexCache(),
        )

    # ------------------------------------------------------------------ other topology

    def prune(self, mask: Tensor) -> "SparseVoxels":
        """The rows where ``mask`` [N] bool is true; pruning everything is legal.

        Raises:
            ValueError: the mask is not bool [N].
        """
        check_type("mask", mask, torch.bool)
        check_shape("mask", mask, (len(self),))
        rows = mask.nonzero()[:, 0]  # index_select is many times as fast as a mask
        return replace(
            self,
            features=self.features.index_select(0, rows),
            coords=self.coords.index_select(0, rows),
            cache=IndexCache(),
        )

    def best(self, scores: Tensor, limit: int) -> Tensor:
        """Mask [N] bool of the ``limit`` rows of highest ``scores`` [N] in each sample.

        Equal scores are decided by the coordinates, the smaller first.

        Raises:
            ValueError: there is not one score for each row, or one is NaN.
        """
        check_shape("scores", scores, (len(self),))
        checked = not torch.compiler.is_compiling()  # a compiled program takes values on trust
        if checked and scores.isnan().any():
            row = int(scores.isnan().nonzero()[0])
            raise ValueError(f"scores[{row}] is NaN: what makes the scores has gone wrong")
        order = scores.argsort(descending=True, stable=True)
        order = order[self.batch_index[order].argsort(stable=True)]
        counts = torch.bincount(self.batch_index, minlength=self.batch_size)
        first = (counts.cumsum(0) - counts).repeat_interleave(counts)
        mask = torch.zeros(len(self), dtype=torch.bool, device=self.device)
        mask[order[torch.arange(len(self), device=self.device) - first < limit]] = True
        return mask

    def complete(self, other: "SparseVoxels") -> "SparseVoxels":
        """Cells of either; the features of ``other`` only where this has no voxel.

        Raises:
            ValueError: grids, strides, channels or batch sizes differ.
        """
        return self.union(other.prune(self.lookup(other.coords) < 0))

    def union(self, other: "SparseVoxels") -> "SparseVoxels":
        """Cells of either; features are summed on shared cells.

        Raises:
            ValueError: grids, strides, channels or batch sizes differ.
        """
        for name in ("grid", "stride", "channels", "batch_size"):
            if getattr(self, name) != getattr(other, name):
                raise ValueError(
                    f"cannot unite voxels of {name} {getattr(self, name)} "
                    f"and {getattr(other, name)}"
                )
        if self.same_cells(other):
            return self.replace(self.features + other.features)
        both, _ = self.from_coords(
            torch.cat([self.coords, other.coords]),
            torch.cat([self.features, other.features]),
            self.grid,
            self.batch_size,
            self.stride,
            self.shape,
            duplicates="sum",
        )
        return both

    def split(self) -> list["SparseVoxels"]:
        """One SparseVoxels of batch size one per sample."""
        parts = []
        for index in range(self.batch_size):
            rows = self.coords[:, 0] == index
            coords = self.coords[rows].clone()
            coords[:, 0] = 0
            parts.append(
                replace(
                    self,
                    features=self.features[rows],
                    coords=coords,
                    batch_size=1,
                    cache=IndexCache(),
                )
            )
        return parts

    def averaged(self, cells: "SparseVoxels") -> "SparseVoxels":
        """``cells`` with the mean of these voxels in each of them; 0 where none is.

        Raises:
            ValueError: the stride of ``cells`` is no multiple of this one.
        """
        strides = list(zip(cells.stride, self.stride))
        if any(coarse % fine for coarse, fine in strides):
            raise ValueError(f"stride {cells.stride} is no multiple of stride {self.stride}")
        ratio = self.coords.new_tensor([1, *(coarse // fine for coarse, fine in strides)])
        row = cells.lookup(self.coords.div(ratio, rounding_mode="floor"))
        return cells.replace(segment_reduce(self.features, row, len(cells), "mean"))

    def samples_at(self, samples: Sequence[int]) -> "SparseVoxels":
        """The samples numbered ``samples``, in this order; one may come several times."""
        counts = torch.bincount(self.batch_index, minlength=self.batch_size)
        ends = counts.cumsum(0).tolist()
        parts = [torch.arange(ends[i] - int(counts[i]), ends[i]) for i in samples]
        rows = torch.cat(parts).to(self.device) if parts else self.batch_index[:0]
        coords = self.coords.index_select(0, rows)
        lengths = torch.tensor([len(part) for part in parts], dtype=torch.int64)
        new = torch.arange(len(parts), dtype=coords.dtype).repeat_interleave(lengths)
        coords[:, 0] = new.to(self.device)
        return replace(
            self,
            features=segment_expand(self.features, rows),
            coords=coords,
            batch_size=len(parts),
            cache=IndexCache(),
        )

    # ------------------------------------------------------------------ reading

    def centers(self) -> Tensor:
        """[N, D] float32 world coordinates of the cells' centres."""
        size = self.features.new_tensor(self.grid.voxel_size, dtype=torch.float32)
        origin = self.features.new_tensor(self.grid.origin, dtype=torch.float32)
        stride = self.features.new_tensor(self.stride, dtype=torch.float32)
        return origin + (self.coords[:, 1:] + 0.5) * stride * size

    def dense(self) -> Tensor:
        """[B, C, Z, Y, X] (a map: [B, C, Y, X]), zeros where there is no voxel.

        Raises:
            ValueError: the grid is unbounded.
        """
        if self.shape is None:
            raise ValueError(
                "an unbounded grid has no dense array: give the grid a shape (VoxelGrid.from_range)"
            )
        out = self.features.new_zeros(self.batch_size, *self.shape[::-1], self.channels)
        out.index_put_(
            tuple(self.coords[:, i].long() for i in (0, *range(self.dims, 0, -1))), self.features
        )
        return out.movedim(-1, 1)

    def lookup(self, coords: Tensor) -> Tensor:
        """Rows [M] int64 of foreign ``coords`` [M, 1+D], in cells of this stride; -1: no voxel.

        Raises:
            ValueError: ``coords`` have another number of columns.
        """
        return find_rows(self.coords, coords)

    def features_at(self, coords: Tensor) -> Tensor:
        """Features [M, C] at foreign ``coords`` [M, 1+D] of this stride; 0 where no voxel is."""
        return segment_expand(self.features, self.lookup(coords))

    def sample_at(self, points: Tensor, batch_index: Tensor) -> Tensor:
        """Trilinear features [M, C] at world ``points`` [M, D].

        A voxel's value sits at its cell's integer coordinate (MinkowskiEngine's convention: no
        half-cell shift). Absent corners count zero and the weights are not renormalised.
        """
        size = points.new_tensor(self.grid.voxel_size)
        origin = points.new_tensor(self.grid.origin)
        stride = points.new_tensor(self.stride, dtype=points.dtype)
        return self._trilinear((points - origin) / size / stride, batch_index)

    def sample_cells(self, coords: Tensor, stride: Sequence[int]) -> Tensor:
        """As ``sample_at``, at the cells ``coords`` [M, 1+D] of another ``stride``: no metres."""
        ratio = torch.tensor(stride, device=self.device) / torch.tensor(
            self.stride, device=self.device
        )
        return self._trilinear(coords[:, 1:] * ratio, coords[:, 0])

    def _trilinear(self, position: Tensor, batch_index: Tensor) -> Tensor:
        """Features [M, C] at ``position`` [M, D] in cells of this stride."""
        base = position.floor()
        fraction = position - base
        result = self.features.new_zeros(len(position), self.channels)
        for corner in range(2**self.dims):
            step = position.new_tensor([(corner >> axis) & 1 for axis in range(self.dims)])
            weight = (1 - (step - fraction).abs()).prod(1, keepdim=True)
            cell = torch.cat([batch_index[:, None].int(), (base + step).int()], 1)
            result = result + self.features_at(cell) * weight
        return result


def _check_shapes(features: Tensor, coords: Tensor) -> None:
    """Refuses features and coords that are not [N, C] and [N, 1+D]."""
    if features.dim() != 2 or coords.dim() != 2 or features.shape[0] != coords.shape[0]:
        raise ValueError(
            f"features have {len(features)} rows but coords have {len(coords)} (shapes "
            f"{tuple(features.shape)} and {tuple(coords.shape)}); [N, C] and [N, 1+D] are needed"
        )


def _check_rows(coords: Tensor, batch_size: int, shape: tuple[int, ...] | None) -> None:
    """Refuses rows [N, 1+D] outside the batch, int32 or the grid."""
    if torch.compiler.is_compiling() or not len(coords):  # a compiled program takes rows on trust
        return
    low, high = (extreme.tolist() for extreme in extremes(coords))
    limits = (batch_size, *(shape or ()))
    inside = min(low[: len(limits)]) >= 0 and all(v < most for v, most in zip(high, limits))
    if inside and min(low) >= -(2**31) and max(high) < 2**31:
        return
    coords = coords.long()  # a narrow type could not even hold the shape
    wide = (coords != coords.int()).any(1)
    if wide.any():
        row = int(wide.nonzero()[0])
        raise ValueError(
            f"row {row} of coords is {tuple(coords[row].tolist())}, which int32 cannot hold; "
            "remove far outliers or use larger voxels"
        )
    wrong = (coords[:, 0] < 0) | (coords[:, 0] >= batch_size)
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"row {row} of coords is {tuple(coords[row].tolist())}: its batch "
            f"{int(coords[row, 0])} is outside [0, {batch_size})"
        )
    if shape is not None:
        cells = coords[:, 1:]
        wrong = ((cells < 0) | (cells >= cells.new_tensor(shape))).any(1)
        if wrong.any():
            row = int(wrong.nonzero()[0])
            raise ValueError(
                f"row {row} of coords is {tuple(coords[row].tolist())}: its cell is outside the "
                f"grid of {' x '.join(map(str, shape))} cells; drop such rows or use an "
                "unbounded grid"
            )
