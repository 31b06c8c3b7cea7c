"""Definition in torch of the partition in ``ops/windows.py``."""

import torch
from torch import Tensor


def window_partition(
    coords: Tensor,
    windows: tuple[int, ...],
    size: tuple[int, ...],
    shift: tuple[int, ...],
    set_size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Window of each row, coordinates in it, rows in both orders, and where each set begins.

    Args:
        coords: [N, 4] integer, (batch, x, y, z).
        windows: number of windows along x, y, z.
        size: cells of a window along x, y, z.
        shift: cells added to the coordinates.
        set_size: slots of a set.
    """
    shifted = coords[:, 1:].long() + coords.new_tensor(shift, dtype=torch.int64)
    edges = coords.new_tensor(size, dtype=torch.int64)
    place, inside = shifted // edges, shifted % edges
    window = coords[:, 0].long()
    for axis in range(3):
        window = window * windows[axis] + place[:, axis]

    x, y, z = inside.unbind(1)
    order = torch.stack([_sorted_rows(window, y, x, z), _sorted_rows(window, x, y, z)])

    _, counts = torch.unique(window, return_counts=True)
    sets = -(-counts // set_size)
    begin = torch.repeat_interleave(counts.cumsum(0) - counts, sets)
    number = torch.arange(len(begin), device=coords.device)
    number = number - torch.repeat_interleave(sets.cumsum(0) - sets, sets)
    begin += number * torch.repeat_interleave(counts, sets) // torch.repeat_interleave(sets, sets)
    offsets = torch.cat([begin, begin.new_tensor([len(coords)])])
    return window, inside.int(), order, offsets


def _sorted_rows(*columns: Tensor) -> Tensor:
    """Rows in ascending order of ``columns`` [N], the first slowest."""
    order = torch.arange(len(columns[0]), device=columns[0].device)
    for column in reversed(columns):
        order = order[column[order].argsort(stable=True)]
    return order


def expand_sets(window: Tensor, order: Tensor, set_size: int) -> tuple[Tensor, Tensor]:
    """Rows [2, S, set_size] in the slots of all sets; True where a slot repeats the one before.

    Slot k of a window with N rows and S sets holds the row of rank floor(k * N / (S * set_size)).
    """
    _, counts = torch.unique(window, return_counts=True)
    sets = -(-counts // set_size)
    slots = sets * set_size
    begin = counts.cumsum(0) - counts
    of_slot = torch.repeat_interleave(torch.arange(len(counts), device=window.device), slots)
    k = torch.arange(len(of_slot), device=window.device) - (slots.cumsum(0) - slots)[of_slot]
    rank = k * counts[of_slot] // slots[of_slot]
    rows = order[:, begin[of_slot] + rank].reshape(2, -1, set_size)
    repeats = torch.zeros_like(rows, dtype=torch.bool)
    repeats[:, :, 1:] = rows[:, :, 1:] == rows[:, :, :-1]
    return rows, repeats
