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
ROWS_AT_ONCE = 1 << 22
"""Cells that one step looks at: what bounds its memory."""


def kernel_offsets(kernel_size: Axes) -> list[Axes]:
    """All offsets (kx, ky, kz) of a kernel in the order of its weights: x fastest."""
    ranges = [range(size) for size in reversed(kernel_size)]
    return [offset[::-1] for offset in itertools.product(*ranges)]


def relative_cells(kernel_size: Axes, padding: Axes, dilation: Axes) -> list[Axes]:
    """dilation * k - padding of all kernel offsets k."""
    geometry = list(zip(dilation, padding))
    return [
        tuple(d * k - p for k, (d, p) in zip(offset, geometry))
        for offset in kernel_offsets(kernel_size)
    ]


def offset_table(
    fine: Tensor, coarse: Tensor, kernel_size: Axes, stride: Axes, padding: Axes, dilation: Axes
) -> Tensor:
    """Table [K, M] int32: the row of ``fine`` [N, 1+D] per offset and ``coarse`` row, or -1."""
    shifts = relative_cells(kernel_size, padding, dilation)
    start = coarse.long() * coarse.new_tensor([1, *stride], dtype=torch.int64)
    # the first and the last offset are opposite corners of all the cells that can be asked for
    first, last = (
        start + start.new_tensor([0, *shift]) if len(start) else start
        for shift in (shifts[0], shifts[-1])
    )
    space = KeySpace.around(fine.long(), first, last)
    keys, wanted = space.keys(fine), space.keys(first)
    check_ascending("fine", fine, keys)
    check_ascending("coarse", coarse, wanted)
    # inside the box a neighbour's key is a constant away
    steps = torch.tensor([[a - b for a, b in zip(shift, shifts[0])] for shift in shifts])
    steps = (steps * torch.tensor(space.strides[1:])).sum(1).to(keys.device)
    parts = [find_sorted(keys, wanted + some[:, None]).int() for some in _few(steps, len(wanted))]
    return torch.cat(parts)


def _few(values: Tensor, rows: int) -> tuple[Tensor, ...]:
    """``values`` in parts; a part times ``rows`` is a tensor of moderate size."""
    return values.split(max(ROWS_AT_ONCE // max(rows, 1), 1))


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
    shifts = [[0, *(-x for x in shift)] for shift in relative_cells(kernel_size, padding, dilation)]
    shifts = fine.new_tensor(shifts, dtype=torch.int64)
    scale = shifts.new_tensor([1, *stride])
    found = []
    for some in _few(shifts, len(fine)):
        cells = (fine.long() + some[:, None]).flatten(0, 1)
        cells = cells[(cells % scale == 0).all(1)]
        found.append(torch.div(cells, scale, rounding_mode="floor"))
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
    shifts = [[0, *shift] for shift in relative_cells(kernel_size, padding, dilation)]
    start = coarse.long() * coarse.new_tensor([1, *stride], dtype=torch.int64)
    found = (start + start.new_tensor(shifts)[:, None]).flatten(0, 1)
    return _distinct(found, shape)


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
