"""Windows of a grid, cut into sets of voxels of bounded size, and cells of a coarser grid.

The partition of DSVT (https://arxiv.org/abs/2301.06051): attention runs inside a set; the sets of
one layer follow x, those of the next follow y.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from . import backend, native
from .keys import KeySpace, extremes
from .reference import windows as reference
from .voxelize import unique_keys

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


@dataclass(frozen=True, eq=False)
class WindowSets:
    """Two partitions of the same voxels: axis 0 orders a window by (y, x, z), axis 1 by (x, y, z).

    Attributes:
        order: [2, N] int64 rows, set by set.
        offsets: [S+1] int64, set s is order[axis, offsets[s]:offsets[s+1]] for both axes.
        window_index: [N] int64 window of each row.
        coords_in_window: [N, 3] int32 x, y, z.
        set_size: slots per set.
    """

    order: Tensor
    offsets: Tensor
    window_index: Tensor
    coords_in_window: Tensor
    set_size: int

    @cached_property
    def _slots(self) -> tuple[Tensor, Tensor]:
        return reference.expand_sets(self.window_index, self.order, self.set_size)

    @property
    def set_inds(self) -> Tensor:
        """[2, S, set_size] int64: the row in each slot; rows repeat to fill a set."""
        return self._slots[0]

    @property
    def set_mask(self) -> Tensor:
        """[2, S, set_size] bool: True where a slot repeats the slot before."""
        return self._slots[1]


def window_sets(
    coords: Tensor,
    shape: tuple[int, ...],
    window: tuple[int, ...],
    shift: tuple[int, ...],
    set_size: int,
) -> WindowSets:
    """Cuts the voxels into windows, and each window into sets of nearly equal size.

    Args:
        coords: [N, 4] integer, (batch, x, y, z), cells of the grid; any order.
        shape: cells of the grid along x, y, z.
        window: cells of a window along x, y, z.
        shift: cells by which the windows are displaced; along z it is ignored where a window is as
            high as the grid.
        set_size: most voxels of a set. A window of N voxels makes ceil(N / set_size) sets.

    Raises:
        ValueError: a size is less than 1, a shift is negative, or a row is no cell of the grid. A
            compiled program takes the rows on trust.
    """
    _check_cells(coords, shape)
    if min(window) < 1 or set_size < 1 or min(shift) < 0:
        raise ValueError(
            f"window {tuple(window)} and set_size {set_size} must be 1 or more, and shift "
            f"{tuple(shift)} 0 or more"
        )
    if window[2] == shape[2]:
        shift = (shift[0], shift[1], 0)
    windows = tuple(-(-cells // edge) + 1 for cells, edge in zip(shape, window))
    window_index, inside, order, offsets = _partition(coords, windows, window, shift, set_size)
    return WindowSets(order, offsets, window_index, inside, set_size)


def pool_cells(
    coords: Tensor, shape: tuple[int, ...], stride: tuple[int, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """The cells of a grid coarser by ``stride``.

    Args:
        coords: [N, 4] integer, (batch, x, y, z), cells of the grid.
        shape: cells along x, y, z.
        stride: fine cells per coarse cell along x, y, z.

    Returns:
        [M, 4] int32 coarse cells, ascending; [N] int64 coarse row of each fine row; [N] int64 slot
        in it, of stride_x * stride_y * stride_z, x slowest.

    Raises:
        ValueError: a stride is less than 1, or a row is no cell of the grid. A compiled program
            takes the rows on trust.
    """
    _check_cells(coords, shape)
    if min(stride) < 1:
        raise ValueError(f"stride is {tuple(stride)}; it must be 1 or more along every axis")
    samples = int(coords[:, 0].max()) + 1 if len(coords) else 1
    coarse = (-(-cells // step) for cells, step in zip(shape, stride))
    space = KeySpace((0, 0, 0, 0), (samples, *coarse))
    coords = coords.long()
    edges = coords.new_tensor(stride)
    cells = torch.cat([coords[:, :1], coords[:, 1:].div(edges, rounding_mode="floor")], 1)
    x, y, z = (coords[:, 1:] - cells[:, 1:] * edges).unbind(1)
    unique, cell_of_row = unique_keys(space.keys(cells))
    return space.coords(unique), cell_of_row, (x * stride[1] + y) * stride[2] + z


def _check_cells(coords: Tensor, shape: tuple[int, ...]) -> None:
    if coords.dim() != 2 or coords.shape[1] != 4 or coords.dtype not in _INTEGERS:
        raise ValueError(
            f"coords are {coords.dtype} of shape {tuple(coords.shape)}; integers [N, 4] (batch, x, "
            "y, z) are needed"
        )
    if torch.compiler.is_compiling():  # a compiled program takes the values on trust
        return
    limits = (2**31, *shape)  # as int32 the rows go on
    if not len(coords):
        return
    low, high = (column.tolist() for column in extremes(coords))
    if min(low) < 0 or any(most >= limit for most, limit in zip(high, limits)):
        rows = coords.long()  # a narrow type could not even hold the limits
        row = int(((rows < 0) | (rows >= rows.new_tensor(limits))).any(1).nonzero()[0])
        raise ValueError(
            f"row {row} of coords is {tuple(coords[row].tolist())}; it must lie in a grid of "
            f"{tuple(shape)} cells from 0: drop rows outside the grid"
        )


@torch.library.custom_op("sparse3d::window_partition", mutates_args=())
def _partition(
    coords: Tensor, windows: list[int], size: list[int], shift: list[int], set_size: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    run = backend.choose(_PARTITION, coords)
    return run(coords, tuple(windows), tuple(size), tuple(shift), set_size)


@_partition.register_fake
def _(coords, windows, size, shift, set_size):
    rows, sets = coords.shape[0], torch.library.get_ctx().new_dynamic_size()
    numbers = [(rows,), (2, rows), (sets,)]
    index, order, offsets = (coords.new_empty(n, dtype=torch.int64) for n in numbers)
    return index, coords.new_empty((rows, 3), dtype=torch.int32), order, offsets


def _native_partition(coords, windows, size, shift, set_size):
    coords = coords.int().contiguous()
    number = len(coords)
    window_index = torch.empty(number, dtype=torch.int64)
    inside = torch.empty(number, 3, dtype=torch.int32)
    order = torch.empty(2, number, dtype=torch.int64)
    offsets = torch.empty(number + 1, dtype=torch.int64)
    numbers = (torch.tensor(windows), torch.tensor(size), torch.tensor(shift), set_size)
    found = native.call(
        "s3d_window_partition",
        *(coords, number, *numbers, window_index, inside, order, offsets, native.threads()),
    )
    if found < 0:  # a compiled program's rows were not looked at before
        raise ValueError("coords hold negative numbers; drop rows outside the grid")
    return window_index, inside, order, offsets[: found + 1].clone()


_PARTITION = {
    "reference": reference.window_partition,
    "native": _native_partition,
    "cuda": reference.window_partition,
}
