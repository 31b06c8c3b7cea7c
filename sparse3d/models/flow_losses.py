"""Losses of scene flow: supervised, of consistency, and without any labels."""

import torch
from torch import Tensor

from sparse3d.ops.neighbors import knn

MOTION_GROUPS = (0.4, 1.0)
"""m/s: points slower than the first, between, and faster than the second count alike (DeFlow)."""
REACH = 2.0
"""Metres; a point farther from the other cloud has no partner in it."""


def component_error(flow: Tensor, truth: Tensor, mask: Tensor) -> Tensor:
    """Mean absolute error of the components of ``flow`` [P, 3] over points of ``mask`` [P]."""
    chosen = mask.bool()
    return (flow - truth)[chosen].abs().sum() / (3 * chosen.sum().clamp(min=1))


def consistency(points: Tensor, features: Tensor, flow: Tensor, k: int = 32, tau: float = 0.45):
    """Feature-aware spatial consistency [P]: like neighbours should move alike.

    Per point i the sum over its k nearest j (itself included) of |flow_j - flow_i| w_ij, over
    k - 1; w_ij = 1 - exp(-cos(F_i, F_j) / tau), negative where the cosine is. The features get no
    gradient.

    Args:
        points: [P, 3] metres.
        features: [P, C].
        flow: [P, 3].
        k: neighbours.
        tau: sharpness.

    Source: SCTN, https://arxiv.org/abs/2105.04447.
    """
    if not len(points):
        return flow.new_zeros(0)
    k = min(k, len(points))
    index = knn(points, points, k)[0]
    unit = torch.nn.functional.normalize(features.detach(), dim=1, eps=1e-8)
    alike = (unit[index] * unit[:, None]).sum(2)
    weight = 1 - torch.exp(-alike / tau)
    apart = flow[index] - flow[:, None]
    # at zero the norm has no slope; a point differs from itself by nothing
    squared = apart.square().sum(2)
    length = torch.where(squared > 0, squared, 1.0).sqrt() * (squared > 0)
    return (length * weight).sum(1) / max(k - 1, 1)


def balanced_error(flow: Tensor, truth: Tensor, mask: Tensor, interval: float) -> Tensor:
    """Sum of the mean end-point errors of slow, medium and fast points; an empty group counts 0.

    Args:
        flow: [P, 3] found, without ego motion.
        truth: [P, 3].
        mask: [P] bool, points that count.
        interval: seconds between the sweeps.

    Source: DeFlow, https://arxiv.org/abs/2401.16122.
    """
    error = end_point_error(flow, truth)
    speed = truth.norm(dim=1) / interval
    slow, fast = MOTION_GROUPS
    groups = (speed < slow, (speed >= slow) & (speed <= fast), speed > fast)
    total = error.new_zeros(())
    for group in groups:
        chosen = group & mask
        total = total + (error * chosen).sum() / chosen.sum().clamp(min=1)
    return total


def end_point_error(flow: Tensor, truth: Tensor) -> Tensor:
    """[P] length of the difference; its gradient is 0 where there is none."""
    squared = (flow - truth).square().sum(1)
    return torch.where(squared > 0, squared, 1.0).sqrt() * (squared > 0)


def self_supervised(points, flow: Tensor, back: Tensor | None, cycle_weight: float):
    """Losses of a residual flow without any truth, by name.

    Args:
        points: ``xyz`` [P, 3], ``frame`` [P] (0 target, 1 source) and ``sample`` [P].
        flow: [S, 3] of the source points, in their order.
        back: [T, 3] flow of the target points towards the source, or None.
        cycle_weight: of the cycle term.
    """
    source, target = points.frame == 1, points.frame == 0
    start, goal = points.xyz[source], points.xyz[target]
    batches = points.sample[source], points.sample[target]
    moved = start + flow
    losses = {
        "loss_near": _truncated_distance(moved, goal, *batches)
        + _truncated_distance(goal, moved, *batches[::-1]),
        "loss_smooth": _smoothness(start, flow, batches[0]),
    }
    if back is not None:
        index = knn(moved, goal, 1, *batches)[0][:, 0]
        met = index >= 0
        gone = end_point_error(flow[met], -back[index[met]])
        losses["loss_cycle"] = cycle_weight * gone.sum() / max(len(gone), 1)
    return losses


def _truncated_distance(query: Tensor, points: Tensor, *batches: Tensor) -> Tensor:
    """Mean distance to the nearest point; what has none within 2 m has lost its partner."""
    index = knn(query, points, 1, *batches)[0][:, 0]
    met = index >= 0
    distance = end_point_error(query[met], points[index[met]])
    near = distance < REACH
    return distance[near].sum() / max(len(query), 1)


def _smoothness(points: Tensor, flow: Tensor, batch: Tensor) -> Tensor:
    """Mean difference of the flow to that of the nearest neighbours."""
    if not len(points):
        return flow.sum()
    index = knn(points, points, 8, batch, batch)[0]
    there = index >= 0
    own = torch.arange(len(points), device=points.device)[:, None].expand_as(index)[there]
    return end_point_error(flow[own], flow[index[there]]).mean()
