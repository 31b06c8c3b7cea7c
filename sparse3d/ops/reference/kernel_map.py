"""Kernel maps in torch: sort, search, unique. The definition of ``ops.kernel_map``.

One relation joins a fine cell f, a coarse cell o and a kernel offset k, per axis:

    f = stride * o - padding + dilation * k        k = 0 .. kernel_size - 1

"Down" reads fine cells and writes coarse ones, "up" the other way round.
"""

import itertools

import torch
from torch import Tensor

from sparse3d.ops.keys import KeySpace, find_sorted

_INT32 = torch.iinfo(torch.int32)
Axes = tuple[int, ...]


def kernel_offsets(kernel_size: Axes) -> list[Axes]:
    """All offsets (kx, ky, kz) of a kernel in the order of its weights: x fastest."""
    ranges = [range(size) for size in reversed(kernel_size)]
    return [offset[::-1] for offset in itertools.product(*ranges)]


def related_cells(
    coarse: Tensor, offset: Axes, stride: Axes, padding: Axes, dilation: Axes
) -> Tensor:
    """Fine cells [M, 1+D] int64 that meet kernel ``offset`` at each row of ``coarse`` [M, 1+D]."""
    shift = [d * k - p for d, k, p in zip(dilation, offset, padding)]
    scale = coarse.new_tensor([1, *stride], dtype=torch.int64)
    return coarse.long() * scale + coarse.new_tensor([0, *shift], dtype=torch.int64)


def offset_table(
    fine: Tensor, coarse: Tensor, kernel_size: Axes, stride: Axes, padding: Axes, dilation: Axes
) -> Tensor:
    """Table [K, M] int32: the row of ``fine`` [N, 1+D] per offset and ``coarse`` row, or -1."""
    geometry = (stride, padding, dilation)
    offsets = kernel_offsets(kernel_size)
    wanted = [related_cells(coarse, offset, *geometry) for offset in offsets]
    # the first and the last offset are opposite corners of all the cells that can be asked for
    space = KeySpace.around(fine.long(), wanted[0], wanted[-1])
    keys = space.keys(fine)
    for name, own, ascending in (
        ("fine", fine, keys),
        ("coarse", coarse, space.keys(wanted[0])),
    ):
        check_ascending(name, own, ascending)
    rows = [find_sorted(keys, space.keys(cells)) for cells in wanted]
    return torch.stack(rows).int()


def check_ascending(name: str, coords: Tensor, keys: Tensor) -> None:
    """Refuses rows of ``coords`` [N, 1+D] whose ``keys`` [N] do not ascend strictly."""
    wrong = (keys[1:] <= keys[:-1]).nonzero()
    if len(wrong):
        refuse_order(name, coords, int(wrong[0]) + 1)


def refuse_order(name: str, coords: Tensor, row: int) -> None:
    before, here = coords[row - 1].tolist(), coords[row].tolist()
    raise ValueError(
        f"row {row} of the {name} coords is {here} and follows {before}; rows must be distinct and "
        "ascend by (batch, x, y, z): SparseVoxels.from_coords sorts them"
    )


def reached_cells(
    fine: Tensor,
    kernel_size: Axes,
    stride: Axes,
    padding: Axes,
    dilation: Axes,
    shape: Axes | None,
) -> Tensor:
    """Coarse cells [M, 1+D] int32, ascending, that some fine cell reaches, inside ``shape``."""
    scale = fine.new_tensor([1, *stride], dtype=torch.int64)
    found = []
    for offset in kernel_offsets(kernel_size):
        shift = [0, *(p - d * k for p, d, k in zip(padding, dilation, offset))]
        cells = fine.long() + fine.new_tensor(shift, dtype=torch.int64)
        whole = (cells % scale == 0).all(1)
        found.append(torch.div(cells[whole], scale, rounding_mode="floor"))
    return _distinct(torch.cat(found), shape)


def spread_cells(
    coarse: Tensor,
    kernel_size: Axes,
    stride: Axes,
    padding: Axes,
    dilation: Axes,
    shape: Axes | None,
) -> Tensor:
    """Fine cells [M, 1+D] int32, ascending, that some coarse cell reaches, inside ``shape``."""
    offsets = kernel_offsets(kernel_size)
    found = [related_cells(coarse, offset, stride, padding, dilation) for offset in offsets]
    return _distinct(torch.cat(found), shape)


def reverse_table(table: Tensor, rows: int) -> Tensor:
    """Table [K, rows] int32 with the output row for each offset and input row, or -1."""
    reverse = table.new_full((len(table), rows + 1), -1)
    inputs = torch.where(table >= 0, table, rows).long()  # what has no input goes to a spare column
    outputs = torch.arange(table.shape[1], dtype=torch.int32, device=table.device)
    reverse.scatter_(1, inputs, outputs.expand_as(table))
    return reverse[:, :rows].contiguous()


def _distinct(cells: Tensor, shape: Axes | None) -> Tensor:
    """Distinct rows, ascending, as int32; those outside ``shape`` are left out."""
    if shape is not None:
        inside = (cells[:, 1:] >= 0) & (cells[:, 1:] < cells.new_tensor(shape))
        cells = cells[inside.all(1)]
    if len(cells) and (int(cells.min()) < _INT32.min or int(cells.max()) > _INT32.max):
        raise ValueError(
            f"output cells run from {int(cells.min())} to {int(cells.max())}, past the 32-bit "
            "coordinates; remove far outliers (crop the points to a range)"
        )
    space = KeySpace.around(cells)
    return space.coords(torch.unique(space.keys(cells)))
