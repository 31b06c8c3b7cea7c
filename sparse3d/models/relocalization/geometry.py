"""Rays, projections and triangulation of many points at once."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Tracks:
    """Observations of T points in V padded places each.

    Attributes:
        points: [T, V, 2] pixels.
        views: [T, V] int64, the picture of each observation.
        present: [T, V] bool.
    """

    points: Tensor
    views: Tensor
    present: Tensor

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, rows) -> "Tracks":
        return Tracks(self.points[rows], self.views[rows], self.present[rows])


def projections(K: Tensor, world_to_cam: Tensor) -> Tensor:
    """[..., 3, 4] matrices from the world to pixels."""
    return K @ world_to_cam[..., :3, :]


def project(matrices: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels [..., 2] and depths [...] of ``points`` [..., 3] by ``matrices`` [..., 3, 4]."""
    local = (matrices[..., :3] @ points[..., None])[..., 0] + matrices[..., 3]
    depth = local[..., 2]
    safe = torch.where(depth.abs() < 1e-9, 1e-9, depth)
    return local[..., :2] / safe[..., None], depth


def camera_centers(world_to_cam: Tensor) -> Tensor:
    """[..., 3] where cameras stand."""
    turn, shift = world_to_cam[..., :3, :3], world_to_cam[..., :3, 3]
    return -(turn.mT @ shift[..., None])[..., 0]


def triangulate_linear(matrices: Tensor, points: Tensor, weight: Tensor) -> Tensor:
    """[T, 3] least-squares points of [T, V, 3, 4] cameras, [T, V, 2] pixels, [T, V] weights.

    The direct linear transform; rows are scaled to unit length first.
    """
    rows = points[..., None] * matrices[..., 2:3, :] - matrices[..., :2, :]  # [T, V, 2, 4]
    rows = rows / rows[..., :3].norm(dim=-1, keepdim=True).clamp(min=1e-12)
    rows = rows * weight[..., None, None]
    rows = rows.flatten(1, 2)
    normal = rows.mT @ rows
    found = torch.linalg.eigh(normal)[1][..., 0]
    scale = torch.where(found[:, 3:].abs() < 1e-12, 1e-12, found[:, 3:])
    return found[:, :3] / scale


def reprojection_errors(matrices: Tensor, tracks: Tracks, points: Tensor) -> Tensor:
    """[T, V] pixels; infinite behind a camera and where nothing is present."""
    found, depth = project(matrices[tracks.views], points[:, None])
    error = (found - tracks.points).norm(dim=-1)
    return torch.where(tracks.present & (depth > 1e-6), error, torch.inf)


def triangulate(
    matrices: Tensor, tracks: Tracks, scale: float = 2.5, starts: int = 12, rounds: int = 15
) -> tuple[Tensor, Tensor]:
    """Points of tracks in which some observations may be wrong.

    The best of several two-view triangulations starts a Levenberg-Marquardt refinement of the
    Geman-McClure error over all views; without outliers it ends at the least-squares point.

    Args:
        matrices: [P, 3, 4] of the pictures.
        tracks: T tracks of two or more observations.
        scale: pixels beyond which an observation loses its say.
        starts: two-view triangulations tried.
        rounds: steps of the refinement.

    Returns:
        [T, 3] points and [T, V] errors in pixels (``reprojection_errors``).
    """
    if len(tracks) == 0:
        return matrices.new_zeros(0, 3), matrices.new_zeros(tracks.present.shape)
    points = matrices.new_zeros(len(tracks), 3)
    for rows, part in _by_length(tracks):
        points[rows] = _refined(matrices, part, scale, starts, rounds)
    return points, reprojection_errors(matrices, tracks, points)


def _by_length(tracks: Tracks) -> Iterator[tuple[Tensor, Tracks]]:
    """Rows of tracks of like length, and these, present places first and no wider than needed."""
    counts = tracks.present.sum(1)
    order = torch.argsort((~tracks.present).int(), dim=1, stable=True)
    shortest = -1
    for longest in (4, 8, 16, tracks.present.shape[1]):
        rows = ((counts > shortest) & (counts <= longest)).nonzero()[:, 0]
        shortest = longest
        if not len(rows):
            continue
        places = order[rows, : int(counts[rows].max().clamp(min=1))]
        pixels = tracks.points[rows].gather(1, places[..., None].expand(-1, -1, 2))
        views, present = (t[rows].gather(1, places) for t in (tracks.views, tracks.present))
        yield rows, Tracks(pixels, views, present)


def _refined(matrices: Tensor, tracks: Tracks, scale: float, starts: int, rounds: int) -> Tensor:
    points = _best_start(matrices, tracks, scale, starts)
    damping = points.new_full((len(points),), 1e-4)
    cost = _robust_cost(reprojection_errors(matrices, tracks, points), scale)
    for _ in range(rounds):
        moved = points + _step(matrices, tracks, points, scale, damping)
        found = _robust_cost(reprojection_errors(matrices, tracks, moved), scale)
        better = found < cost
        points = torch.where(better[:, None], moved, points)
        cost = torch.where(better, found, cost)
        damping = torch.where(better, damping / 5, damping * 5).clamp(1e-12, 1e6)
    return points


def _robust_cost(errors: Tensor, scale: float) -> Tensor:
    square = (errors / scale) ** 2
    return torch.where(square.isinf(), 1.0, square / (1 + square)).sum(1)


def _best_start(matrices: Tensor, tracks: Tracks, scale: float, starts: int) -> Tensor:
    """[T, 3] the two-view point of least robust cost, over pairs spread through each track."""
    counts = tracks.present.sum(1)
    best = cost = None
    order = torch.argsort((~tracks.present).int(), dim=1, stable=True)  # present ones first
    for pair in _pair_numbers(starts):
        first, second = (pair.to(counts.dtype) % counts[:, None]).unbind(1)
        second = torch.where(first == second, (second + 1) % counts, second)
        rows = order.gather(1, torch.stack([first, second], 1))
        views = tracks.views.gather(1, rows)
        pixels = tracks.points.gather(1, rows[..., None].expand(-1, -1, 2))
        found = triangulate_linear(matrices[views], pixels, torch.ones_like(pixels[..., 0]))
        value = _robust_cost(reprojection_errors(matrices, tracks, found), scale)
        if best is None:
            best, cost = found, value
        better = value < cost
        best, cost = torch.where(better[:, None], found, best), torch.where(better, value, cost)
    return best


def _pair_numbers(count: int) -> Tensor:
    """[count, 2] numbers that, modulo a track's length, name far and near observations."""
    steps = torch.arange(count)
    return torch.stack([steps, steps * 3 + 1 + steps // 3], 1)[:, None]


def _step(matrices, tracks, points, scale, damping) -> Tensor:
    chosen = matrices[tracks.views]  # [T, V, 3, 4]
    found, depth = project(chosen, points[:, None])
    seen = tracks.present & (depth > 1e-6)
    residual = torch.where(seen[..., None], found - tracks.points, 0)
    weight = torch.where(seen, (1 + (residual / scale).square().sum(-1)) ** -2, 0)
    safe = torch.where(depth.abs() < 1e-9, 1e-9, depth)[..., None, None]
    jacobian = (chosen[..., :2, :3] - found[..., None] * chosen[..., 2:, :3]) / safe
    weighted = jacobian * weight[..., None, None]
    normal = (weighted.mT @ jacobian).sum(1)
    slope = (weighted.mT @ residual[..., None]).sum(1)
    diagonal = torch.diagonal(normal, dim1=1, dim2=2).clamp(min=1e-12)
    normal = normal + torch.diag_embed(diagonal * damping[:, None])
    return -torch.linalg.solve_ex(normal, slope)[0][..., 0].nan_to_num()


def widest_angle(centers: Tensor, tracks: Tracks, points: Tensor) -> Tensor:
    """[T] radians, the largest angle between a track's rays and its first one, and back."""
    rays = points[:, None] - centers[tracks.views]
    rays = rays / rays.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    start = rays.gather(1, _first(tracks.present)[:, None, None].expand(-1, -1, 3))
    turned = torch.where(tracks.present, (rays * start).sum(-1), 1.0)
    far = rays.gather(1, turned.argmin(1)[:, None, None].expand(-1, -1, 3))
    cosine = torch.where(tracks.present, (rays * far).sum(-1), 1.0).amin(1)
    return torch.arccos(cosine.clamp(-1, 1))


def _first(mask: Tensor) -> Tensor:
    return mask.int().argmax(1)


def rotation_angle(first: Tensor, second: Tensor) -> Tensor:
    """[...] radians between rotations [..., 3, 3]; exact for small angles too."""
    turn = first.mT @ second
    skew = torch.stack(
        [
            turn[..., 2, 1] - turn[..., 1, 2],
            turn[..., 0, 2] - turn[..., 2, 0],
            turn[..., 1, 0] - turn[..., 0, 1],
        ],
        -1,
    )
    trace = torch.diagonal(turn, dim1=-2, dim2=-1).sum(-1)
    return torch.atan2(skew.norm(dim=-1), trace - 1)
