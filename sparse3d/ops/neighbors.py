"""Nearest neighbours of points in space, within samples of a batch."""

import torch
from torch import Tensor

from . import native
from .backend import choose
from .reference import neighbors as reference


def knn(
    query: Tensor,
    points: Tensor,
    k: int,
    query_batch: Tensor | None = None,
    points_batch: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The ``k`` nearest points of each query, nearest first, equal distances by smaller index.

    A query that is one of ``points`` finds itself (or an equal point of smaller index) first. The
    distances carry no gradient: where one is wanted, compute them again from the index.

    Args:
        query: [Q, 3] metres; float64, or else computed in float32.
        points: [P, 3] metres.
        k: neighbours per query, at least 1.
        query_batch: [Q] integer sample of each query; None: all are one sample.
        points_batch: [P] integer sample of each point; only points of its own sample are a query's
            neighbours.

    Returns:
        index: [Q, k] int64 rows of ``points``; -1 where the sample has fewer than ``k``.
        squared: [Q, k] squared distance in m^2; inf where the index is -1.

    Raises:
        ValueError: a wrong shape, a value that is not finite, ``k`` below 1, only one batch given.
    """
    return _nearest(query, points, k, float("inf"), query_batch, points_batch)


def radius_neighbors(
    query: Tensor,
    points: Tensor,
    radius: float,
    limit: int,
    query_batch: Tensor | None = None,
    points_batch: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The points at most ``radius`` metres from each query, the nearest ``limit`` of them.

    Arguments, results and errors as ``knn`` with ``limit`` for ``k``.
    """
    if not radius >= 0:
        raise ValueError(f"radius is {radius}; a distance in metres, 0 or more, is needed")
    return _nearest(query, points, limit, float(radius), query_batch, points_batch)


def _nearest(query, points, k, radius, query_batch, points_batch) -> tuple[Tensor, Tensor]:
    if k < 1:
        raise ValueError(f"{k} neighbours are asked for; ask for at least 1")
    if (query_batch is None) != (points_batch is None):
        raise ValueError("give query_batch and points_batch both, or neither")
    _check("query", query, query_batch)
    _check("points", points, points_batch)
    dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
    query, points = query.detach().to(dtype), points.detach().to(dtype)
    if query_batch is None:
        query_batch = torch.zeros(len(query), dtype=torch.int64, device=query.device)
        points_batch = torch.zeros(len(points), dtype=torch.int64, device=query.device)
    query_batch, points_batch = query_batch.long(), points_batch.long()
    return choose(_NEAREST, query)(query, points, k, radius, query_batch, points_batch)


def _check(name: str, points: Tensor, batch: Tensor | None) -> None:
    if points.dim() != 2 or points.shape[1] != 3:
        raise ValueError(f"{name} has shape {tuple(points.shape)}; [N, 3] (x, y, z) is needed")
    wrong = ~points.isfinite().all(1)
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"{int(wrong.sum())} rows of {name} are not finite, the first is row {row}: "
            f"{points[row].tolist()}; remove them first"
        )
    if batch is None:
        return
    if (
        batch.shape != points.shape[:1]
        or batch.is_floating_point()
        # a narrower type cannot be compared with 2**31: it would wrap there
        or bool(((batch < 0) | (batch.long() >= 2**31)).any())
    ):
        raise ValueError(
            f"{name}_batch is {batch.dtype} of shape {tuple(batch.shape)} for {len(points)} rows, "
            "or has an entry that is no sample; one integer from 0 per row is needed"
        )


def _native(query, points, k, radius, query_batch, points_batch) -> tuple[Tensor, Tensor]:
    """A k-d tree per sample; see csrc/neighbors.cpp."""
    batches = 1 + max(
        int(batch.max()) if len(batch) else 0 for batch in (query_batch, points_batch)
    )
    order = points_batch.sort(stable=True).indices
    starts = torch.zeros(batches + 1, dtype=torch.int64)
    starts[1:] = torch.bincount(points_batch, minlength=batches).cumsum(0)
    index = torch.empty(len(query), k, dtype=torch.int64)
    squared = query.new_empty(len(query), k)
    native.call(
        "s3d_knn_f64" if query.dtype == torch.float64 else "s3d_knn_f32",
        points.contiguous(),
        order,
        starts,
        batches,
        query.contiguous(),
        query_batch.contiguous(),
        len(query),
        k,
        float(radius),
        index,
        squared,
        native.threads(),
    )
    return index, squared


_NEAREST = {"reference": reference.nearest, "native": _native, "cuda": reference.nearest}
