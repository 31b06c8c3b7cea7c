"""Order and identity of voxel coordinates: one int64 key per row, over the rows' own bounding box.

A key keeps the lexicographic order of (batch, x, y, z), needs no fixed bit widths and makes a
neighbour a constant difference, because the box has a border as wide as the caller asks for.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from . import backend, native

_LIMIT = 2**63


@dataclass(frozen=True)
class KeySpace:
    """A box of cells whose cells are numbered in lexicographic order.

    Attributes:
        low: the least legal coordinate of each column of coords (batch, x, y[, z]).
        extent: the number of cells along each column.
    """

    low: tuple[int, ...]
    extent: tuple[int, ...]

    @classmethod
    def around(cls, *coords: Tensor, border: int = 0) -> "KeySpace":
        """The box around all rows of ``coords`` ([N, 1+D] each), ``border`` cells wider all round.

        Raises:
            ValueError: the box has 2**63 cells or more, so that keys would overflow.
        """
        filled = [c for c in coords if len(c)]
        columns = coords[0].shape[1]
        if not filled:
            return cls((0,) * columns, (1,) * columns)
        low = torch.stack([c.amin(0) for c in filled]).amin(0).tolist()
        high = torch.stack([c.amax(0) for c in filled]).amax(0).tolist()
        borders = [0] + [border] * (columns - 1)
        low = [value - b for value, b in zip(low, borders)]
        extent = [value + b - least + 1 for value, b, least in zip(high, borders, low)]
        cells = 1
        for size in extent:
            cells *= size
        if cells >= _LIMIT:
            names = ["batch", "x", "y", "z"]
            axis = max(range(columns), key=lambda a: extent[a])
            joined = torch.cat(filled)
            row = joined[int(joined[:, axis].abs().argmax())].tolist()
            raise ValueError(
                f"voxel coordinates span {' x '.join(map(str, extent))} cells (batch, x, y, z), "
                f"which does not fit a 64-bit key; voxel {tuple(row)} stretches {names[axis]}. "
                "Remove far outliers (crop the points to a range) or use larger voxels."
            )
        return cls(tuple(low), tuple(extent))

    @property
    def strides(self) -> tuple[int, ...]:
        """Key difference of one step along each column."""
        strides = [1]
        for size in reversed(self.extent[1:]):
            strides.append(strides[-1] * size)
        return tuple(reversed(strides))

    def contains(self, coords: Tensor) -> Tensor:
        """Mask [N] of the rows of ``coords`` inside the box."""
        low, extent = (coords.new_tensor(v, dtype=torch.int64) for v in (self.low, self.extent))
        shifted = coords.long() - low
        return ((shifted >= 0) & (shifted < extent)).all(1)

    def keys(self, coords: Tensor) -> Tensor:
        """Keys [N] int64 of rows that lie inside the box (not checked)."""
        low, strides = (coords.new_tensor(v, dtype=torch.int64) for v in (self.low, self.strides))
        return ((coords.long() - low) * strides).sum(1)

    def coords(self, keys: Tensor) -> Tensor:
        """Coordinates [N, 1+D] int32 of ``keys`` [N] int64."""
        columns = []
        for stride, size, least in zip(self.strides, self.extent, self.low):
            columns.append(torch.div(keys, stride, rounding_mode="floor") % size + least)
        return torch.stack(columns, 1).int()


def extremes(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the largest number of each column of ``rows`` [N, C], N at least 1."""
    many = len(rows) // 16 * 16
    if not many or not rows.is_contiguous():
        return torch.aminmax(rows, dim=0)
    wide = rows[:many].view(many // 16, -1)  # a vector unit is wider than a row
    low, high = (x.view(16, -1) for x in (wide.amin(0), wide.amax(0)))
    rest = rows[many:]
    return torch.cat([low, rest]).amin(0), torch.cat([high, rest]).amax(0)


def sort_rows(coords: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The different rows of ``coords`` [N, 1+D] int32 in lexicographic order.

    Returns:
        [M, 1+D] int32 rows, ascending; [M] int64, the first given row of each; [N] int64, the place
        of each given row among them.

    Raises:
        ValueError: the rows span 2**63 cells or more, or are not int32.
    """
    _check_rows(coords)
    return _sort_rows(coords)


def find_sorted(sorted_keys: Tensor, wanted: Tensor) -> Tensor:
    """Rows [M] int64 of ``wanted`` [M] keys in ``sorted_keys`` [N] (ascending, unique), or -1."""
    if not len(sorted_keys):
        return torch.full_like(wanted, -1)
    rows = torch.searchsorted(sorted_keys, wanted)
    rows = rows.clamp_(max=len(sorted_keys) - 1)
    return torch.where(sorted_keys[rows] == wanted, rows, -1)


def find_rows(coords: Tensor, wanted: Tensor) -> Tensor:
    """Rows [M] int64 of ``wanted`` [M, 1+D] in ``coords`` [N, 1+D] int32 (ascending), or -1.

    Raises:
        ValueError: ``coords`` is no such tensor, or ``wanted`` has other columns.
    """
    _check_rows(coords)
    if wanted.dim() != 2 or wanted.shape[1] != coords.shape[1] or wanted.is_floating_point():
        raise ValueError(
            f"wanted is {wanted.dtype} of shape {tuple(wanted.shape)}; integers of "
            f"{coords.shape[1]} columns are needed, those of the rows that are searched"
        )
    return _find_rows(coords, wanted)


def _check_rows(coords: Tensor) -> None:
    fit = coords.dim() == 2 and 1 <= coords.shape[1] <= 4  # kernels have room for no more
    if not fit or coords.dtype != torch.int32:
        raise ValueError(
            f"coords are {coords.dtype} of shape {tuple(coords.shape)}; int32 [N, 1+D] with D of 0 "
            "to 3 is needed"
        )


@torch.library.custom_op("sparse3d::sort_rows", mutates_args=())
def _sort_rows(coords: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return backend.choose(SORT_ROWS, coords)(coords)


@_sort_rows.register_fake
def _(coords):
    found = torch.library.get_ctx().new_dynamic_size()
    rows = coords.new_empty((coords.shape[0],), dtype=torch.int64)
    return coords.new_empty((found, coords.shape[1])), rows.new_empty(found), rows


@torch.library.custom_op("sparse3d::find_rows", mutates_args=())
def _find_rows(coords: Tensor, wanted: Tensor) -> Tensor:
    return backend.choose(FIND_ROWS, coords)(coords, wanted)


@_find_rows.register_fake
def _(coords, wanted):
    return wanted.new_empty((wanted.shape[0],), dtype=torch.int64)


# ---------------------------------------------------------------------- implementations


def _reference_sort(coords: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    space = KeySpace.around(coords)
    unique, inverse = torch.unique(space.keys(coords), return_inverse=True)
    rows = torch.arange(len(coords), device=coords.device)
    first = torch.full_like(unique, len(coords)).scatter_reduce(0, inverse, rows, "amin")
    return space.coords(unique), first, inverse


def _native_sort(coords: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    coords = coords.contiguous()
    rows, columns = coords.shape
    unique = native.empty(rows, columns, dtype=torch.int32)
    first, inverse = (native.empty(rows, dtype=torch.int64) for _ in range(2))
    given = (coords, rows, columns, unique, first, inverse, native.threads())
    found = native.call("s3d_sort_rows", *given)
    if found < 0:
        return _reference_sort(coords)  # says which voxel is too far
    return (
        (unique, first, inverse)
        if found == rows
        else (unique[:found].clone(), first[:found], inverse)
    )


def _reference_find(coords: Tensor, wanted: Tensor) -> Tensor:
    space = KeySpace.around(coords)
    inside = space.contains(wanted)
    rows = torch.full((len(wanted),), -1, dtype=torch.int64, device=wanted.device)
    rows[inside] = find_sorted(space.keys(coords), space.keys(wanted[inside]))
    return rows


def _native_find(coords: Tensor, wanted: Tensor) -> Tensor:
    if coords.dtype != torch.int32 or wanted.dtype != torch.int32 or coords.shape[1] > 4:
        return _reference_find(coords, wanted)
    coords, wanted = coords.contiguous(), wanted.contiguous()
    rows = torch.empty(len(wanted), dtype=torch.int64)
    sizes = (len(wanted), coords.shape[1])
    given = (coords, len(coords), wanted, *sizes, rows, native.threads())
    native.call("s3d_find_rows", *given)
    return rows


SORT_ROWS = {"reference": _reference_sort, "native": _native_sort, "cuda": _reference_sort}
FIND_ROWS = {"reference": _reference_find, "native": _native_find, "cuda": _reference_find}
