"""Losses of scene flow: supervised, of consistency, and without any labels."""

import torch
from torch import Tensor

from sparse3d.ops.neighbors import knn

MOTION_GROUPS = (0.4, 1.0)
"""m/s: points slower than the first, between, and faster than the second count alike (DeFlow)."""


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
