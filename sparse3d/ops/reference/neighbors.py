"""Nearest neighbours by the distances of all pairs: the torch definition."""

import torch
from torch import Tensor

PAIRS_AT_ONCE = 1 << 22


def nearest(
    query: Tensor, points: Tensor, k: int, radius: float, query_batch: Tensor, points_batch: Tensor
) -> tuple[Tensor, Tensor]:
    """The ``k`` nearest ``points`` [P, 3] of each ``query`` [Q, 3] no farther than ``radius``.

    Points of another batch are no candidates. Equal distances rank by index (the sort is stable).

    Returns:
        index [Q, k] int64 (-1: fewer than ``k`` were found), squared distance [Q, k] (inf there).
    """
    rows = max(PAIRS_AT_ONCE // max(len(points), 1), 1)
    index = query.new_full((len(query), k), -1, dtype=torch.int64)
    squared = query.new_full((len(query), k), torch.inf)
    for start in range(0, len(query), rows):
        part = slice(start, start + rows)
        distance = squared_distances(query[part], points)
        legal = query_batch[part, None] == points_batch[None]
        legal &= distance <= distance.new_tensor(radius) ** 2
        distance = torch.where(legal, distance, torch.inf)
        best, order = (column[:, :k] for column in distance.sort(dim=1, stable=True))
        index[part, : order.shape[1]] = torch.where(legal.gather(1, order), order, -1)
        squared[part, : order.shape[1]] = best
    return index, squared


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """[N, M] squared distances of ``a`` [N, 3] and ``b`` [M, 3].

    From the differences: the faster form |a|^2 - 2ab + |b|^2 loses all digits far from the origin.
    """
    dx, dy, dz = (a[:, None] - b[None]).unbind(-1)
    return dx * dx + dy * dy + dz * dz
