"""Random cells, and what dense torch says about them: for the tests of sparse operators."""

import torch
from torch import Tensor

IMPLEMENTATIONS = ("reference", "native")


def random_coords(
    shape: tuple[int, ...] = (9, 8, 7), batch: int = 2, share: float = 0.2, seed: int = 0
) -> Tensor:
    """[N, 1+D] int32 (batch, x, y[, z]), ascending: ``share`` of a grid's cells."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(batch, *shape, generator=generator) < share).nonzero().int().contiguous()


def sorted_coords(rows: list) -> Tensor:
    """Distinct rows in ascending order, int32."""
    return torch.unique(torch.tensor(rows, dtype=torch.int32), dim=0)


def to_dense(features: Tensor, coords: Tensor, shape: tuple[int, ...], batch: int) -> Tensor:
    """[B, C, Z, Y, X] (or [B, C, Y, X]); differentiable."""
    dense = features.new_zeros(batch, *shape, features.shape[1])
    dense = dense.index_put(tuple(coords.long().t()), features)
    return dense.permute(0, len(shape) + 1, *range(len(shape), 0, -1))


def at_cells(dense: Tensor, coords: Tensor) -> Tensor:
    """Rows [N, C] of a dense array [B, C, Z, Y, X] (or [B, C, Y, X]) at ``coords``."""
    columns = coords.long().unbind(1)
    return dense.movedim(1, -1)[(columns[0], *columns[:0:-1])]


def dense_weight(weight: Tensor, kernel_size: tuple[int, ...]) -> Tensor:
    """[K, Cin, Cout] -> [Cout, Cin, kz, ky, kx], what torch's convolutions take."""
    cells = weight.reshape(*kernel_size[::-1], *weight.shape[1:])
    dims = len(kernel_size)
    return cells.permute(dims + 1, dims, *range(dims))


def mask_of(coords: Tensor, shape: tuple[int, ...], batch: int) -> Tensor:
    """[B, 1, Z, Y, X] of ones at ``coords``."""
    return to_dense(torch.ones(len(coords), 1), coords, shape, batch)
