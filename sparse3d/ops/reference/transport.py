"""Products with the transport kernel, block of rows by block of rows: the torch definition."""

import torch
from torch import Tensor

from .neighbors import PAIRS_AT_ONCE, squared_distances


def kernel_rows(
    features0: Tensor,
    features1: Tensor,
    points0: Tensor,
    points1: Tensor,
    batch0: Tensor,
    batch1: Tensor,
    eps: Tensor,
    radius: float,
) -> Tensor:
    """K [N, M] = exp((f0 . f1 - 1) / eps) for pairs of a sample nearer than ``radius``, else 0."""
    kernel = torch.exp((features0 @ features1.T - 1) / eps)
    near = squared_distances(points0, points1) < radius**2
    return torch.where(near & (batch0[:, None] == batch1[None]), kernel, 0.0)


def product(
    sides: tuple[Tensor, ...],
    eps: Tensor,
    radius: float,
    values: Tensor,
    left: Tensor | None = None,
    right: Tensor | None = None,
) -> Tensor:
    """K X, or (K o P Q^T) X: [N, D].

    Args:
        sides: features [N, C] and [M, C], points [N, 3] and [M, 3], batch [N] and [M] int64.
        eps: scalar, what the cost 1 - f0 . f1 is divided by.
        radius: metres.
        values: X [M, D].
        left: P [N, R], or None.
        right: Q [M, R].
    """
    features0, features1, points0, points1, batch0, batch1 = sides
    rows = max(PAIRS_AT_ONCE // max(len(points1), 1), 1)
    out = values.new_zeros(len(points0), values.shape[1])
    for start in range(0, len(points0), rows):
        part = slice(start, start + rows)
        block = (features0[part], features1, points0[part], points1, batch0[part], batch1)
        kernel = kernel_rows(*block, eps, radius)
        if left is not None:
            kernel = kernel * (left[part] @ right.T)
        out[part] = kernel @ values
    return out
