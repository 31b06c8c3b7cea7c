"""SparseVoxels, the one structure that carries features through every model.

Coordinate spaces, by name:
    world   metres, the frame of the points
    cell    integer (x, y, z) of the base grid: floor((world - origin) / voxel_size)
    coords  cells of the present stride: base cells [c * stride, (c + 1) * stride) per axis
"""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from sparse3d.ops.keys import KeySpace, find_sorted
from sparse3d.ops.voxelize import segment_reduce, voxelize

MOST_CELLS = 2**31 - 1  # along an axis: coordinates are int32
DUPLICATE_RULES = ("error", "first", "mean", "sum", "max")


@dataclass(frozen=True)
class VoxelGrid:
    """A regular grid in the world. x first.

    Attributes:
        voxel_size: edge lengths of a cell, metres.
        origin: lower corner of cell (0, 0, 0), metres.
        shape: number of cells along x, y, z, or None: unbounded, negative cells are legal.
    """

    voxel_size: tuple[float, ...]
    origin: tuple[float, ...]
    shape: tuple[int, ...] | None = None

    def __post_init__(self):
        if any(not 0 < size < math.inf for size in self.voxel_size):
            raise ValueError(f"voxel_size is {self.voxel_size}; every edge must be positive")
        cells = (1,) * len(self.voxel_size) if self.shape is None else self.shape
        if not len(self.voxel_size) == len(self.origin) == len(cells) or min(cells) < 1:
            raise ValueError(
                f"voxel_size {self.voxel_size}, origin {self.origin} and shape {self.shape} must "
                "have one number per axis, and a shape at least one cell"
            )
        if max(cells) > MOST_CELLS:
            raise ValueError(
                f"the grid has {max(cells)} cells along an axis, {MOST_CELLS} are possible; use a "
                "smaller range or larger voxels"
            )

    @classmethod
    def from_range(cls, point_range: Sequence[float], voxel_size: Sequence[float]) -> "VoxelGrid":
        """The grid that fills ``point_range`` (x0, y0, z0, x1, y1, z1) in metres.

        Raises:
            ValueError: a side is empty or no whole number of voxels; names the nearest that is.
        """
        dims = len(voxel_size)
        low, high = point_range[:dims], point_range[dims:]
        if len(point_range) != 2 * dims or not all(map(math.isfinite, (*point_range, *voxel_size))):
            raise ValueError(
                f"point_range is {list(point_range)} and voxel_size {list(voxel_size)}; low and "
                "high end of each axis (x0, y0, z0, x1, y1, z1) and as many edges are needed"
            )
        shape, suggestion = [], list(point_range)
        for axis, (least, most, size) in enumerate(zip(low, high, voxel_size)):
            if not size > 0 or not most > least:
                raise ValueError(
                    f"point_range {list(point_range)} and voxel_size {list(voxel_size)}: every "
                    "high end must lie above its low end, and every edge be positive"
                )
            cells = (most - least) / size
            whole = max(round(cells), 1)
            suggestion[dims + axis] = round(least + whole * size, 6)
            shape.append(whole if abs(cells - whole) < 1e-3 else 0)
        if not all(shape):
            raise ValueError(
                f"point_range {list(point_range)} is no whole number of voxels of "
                f"{list(voxel_size)} m; the nearest range that is: {suggestion}"
            )
        return cls(tuple(map(float, voxel_size)), tuple(map(float, low)), tuple(shape))

    @property
    def point_range(self) -> tuple[float, ...] | None:
        """(x0, y0, z0, x1, y1, z1) in metres; None when unbounded."""
        if self.shape is None:
            return None
        high = (o + n * s for o, n, s in zip(self.origin, self.shape, self.voxel_size))
        return (*self.origin, *high)


class IndexCache:
    """What has been computed for one set of coordinates: kernel maps, window sets, key tables.

    Write-once: ``get`` computes a missing entry and never changes one that is there. Every tensor
    with the same coordinates shares the cache, so a layer pays only once per topology.
    """

    def __init__(self):
        self._entries: dict[Hashable, Any] = {}

    def get(self, key: Hashable, compute: Callable[[], Any]) -> Any:
        if key not in self._entries:
            self._entries[key] = compute()
        return self._entries[key]

    def __contains__(self, key: Hashable) -> bool:
        return key in self._entries


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
            features: [P, C] what a voxel carries; the points' own columns if None.
            reduce: 'mean', 'max' or 'sum' over a voxel's points.

        Returns:
            The voxels, and [P] int64 rows into them, -1 for points outside the grid.

        Raises:
            ValueError: a coordinate is NaN or infinite, a batch index outside [0, batch_size),
                shapes do not fit, or keys would overflow.
        """
        dims = len(grid.voxel_size)
        if points.dim() != 2 or points.shape[1] < dims:
            raise ValueError(
                f"points have shape {tuple(points.shape)}; [P, {dims}] or more columns are needed"
            )
        coords, point_to_voxel = voxelize(
            points[:, :dims], batch_index, grid.voxel_size, grid.origin, grid.shape
        )
        if len(coords) and int(coords[-1, 0]) >= batch_size:  # rows ascend by batch
            raise ValueError(
                f"batch_index goes up to {int(coords[-1, 0])} but batch_size is {batch_size}"
            )
        values = segment_reduce(
            points if features is None else features, point_to_voxel, len(coords), reduce
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
            features: [N, C].
            grid: the base grid.
            batch_size: number of samples.
            stride: base cells per cell; all ones if None.
            shape: present cells per axis; ``grid.shape`` if None and the stride is one.
            duplicates: 'error', 'first', 'mean', 'sum' or 'max' where a cell is given twice.

        Returns:
            The voxels, and [N] int64, the row in them of each given row.

        Raises:
            ValueError: a wrong type, a batch outside [0, batch_size), a cell outside ``shape`` or a
                duplicate under 'error'; names the first offending row.
        """
        if coords.dtype not in (torch.int32, torch.int64, torch.int16, torch.int8, torch.uint8):
            raise ValueError(f"coords are {coords.dtype}; they must be integers")
        _check_shapes(features, coords)
        if duplicates not in DUPLICATE_RULES:
            raise ValueError(f"duplicates is {duplicates!r}; it must be one of {DUPLICATE_RULES}")
        stride = stride or (1,) * (coords.shape[1] - 1)
        if shape is None and all(s == 1 for s in stride):
            shape = grid.shape
        coords = coords.long()  # a narrow type could not even hold the shape
        _check_rows(coords, batch_size, shape)
        space = KeySpace.around(coords)
        unique, inverse, counts = torch.unique(
            space.keys(coords), return_inverse=True, return_counts=True
        )
        if len(unique) < len(coords):
            if duplicates == "error":
                cell = tuple(space.coords(unique[counts > 1][:1])[0].tolist())
                raise ValueError(
                    f"cell {cell} (batch, x, y, z) is given {int(counts.max())} times; "
                    "say duplicates='mean', 'sum', 'max' or 'first', or remove them"
                )
            features = _merge(features, inverse, len(unique), duplicates)
        else:
            features = features[torch.argsort(inverse)]
        voxels = cls(features, space.coords(unique), grid, batch_size, tuple(stride), shape)
        return voxels, inverse

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
        """The rows where ``mask`` [N] is true; pruning everything is legal."""
        return replace(
            self, features=self.features[mask], coords=self.coords[mask], cache=IndexCache()
        )

    def union(self, other: "SparseVoxels") -> "SparseVoxels":
        """Cells of either; features are summed on shared cells.

        Raises:
            ValueError: strides, channels or batch sizes differ.
        """
        for name in ("stride", "channels", "batch_size"):
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
        out = out.index_put(
            tuple(self.coords[:, i].long() for i in (0, *range(self.dims, 0, -1))), self.features
        )
        return out.movedim(-1, 1)

    def lookup(self, coords: Tensor) -> Tensor:
        """Rows [M] int64 of foreign ``coords`` [M, 1+D], in cells of this stride; -1: no voxel."""
        space, keys = self._keys()
        inside = space.contains(coords)
        rows = torch.full((len(coords),), -1, dtype=torch.int64, device=coords.device)
        rows[inside] = find_sorted(keys, space.keys(coords[inside]))
        return rows

    def sample_at(self, points: Tensor, batch_index: Tensor) -> Tensor:
        """Trilinear features [M, C] at world ``points`` [M, D].

        A voxel's value sits at its cell's integer coordinate (MinkowskiEngine's convention: no
        half-cell shift). Absent corners count zero and the weights are not renormalised.
        """
        size = points.new_tensor(self.grid.voxel_size)
        origin = points.new_tensor(self.grid.origin)
        stride = points.new_tensor(self.stride, dtype=points.dtype)
        position = (points - origin) / size / stride
        base = position.floor()
        fraction = position - base
        result = self.features.new_zeros(len(points), self.channels)
        for corner in range(2**self.dims):
            step = points.new_tensor([(corner >> axis) & 1 for axis in range(self.dims)])
            weight = (1 - (step - fraction).abs()).prod(1, keepdim=True)
            cell = torch.cat([batch_index[:, None].int(), (base + step).int()], 1)
            rows = self.lookup(cell)
            value = self.features[rows.clamp(min=0)] if len(self) else result
            result = result + torch.where(rows[:, None] >= 0, value * weight, 0.0)
        return result

    def _keys(self) -> tuple[KeySpace, Tensor]:
        def compute():
            space = KeySpace.around(self.coords)
            return space, space.keys(self.coords)

        return self.cache.get("keys", compute)


def _check_shapes(features: Tensor, coords: Tensor) -> None:
    """Refuses features and coords that are not [N, C] and [N, 1+D]."""
    if features.dim() != 2 or coords.dim() != 2 or len(features) != len(coords):
        raise ValueError(
            f"features have {len(features)} rows but coords have {len(coords)} (shapes "
            f"{tuple(features.shape)} and {tuple(coords.shape)}); [N, C] and [N, 1+D] are needed"
        )


def _check_rows(coords: Tensor, batch_size: int, shape: tuple[int, ...] | None) -> None:
    """Refuses rows [N, 1+D] int64 outside the batch, int32 or the grid."""
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


def _merge(features: Tensor, index: Tensor, rows: int, rule: str) -> Tensor:
    if rule == "first":
        order = torch.arange(len(index), device=index.device)
        first = torch.full((rows,), len(index), device=index.device)
        first = first.scatter_reduce(0, index, order, "amin")
        return features[first]
    return segment_reduce(features, index, rows, rule)
