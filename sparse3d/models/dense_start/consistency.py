"""Depths of references, and points that other references contradict: these see through them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sparse3d.structures import Camera

AGREES = 0.05
"""Relative difference of two depths of the same surface."""
CONTRADICTS = 0.10
"""A point that lies nearer than a view's surface by more hangs in the air before it."""


@dataclass(frozen=True, eq=False)
class Depths:
    """What is known of a reference.

    Attributes:
        depth: [H, W] along the camera's axis, world units; 0: not known.
        doubt: [H, W] pixels of error over the sine of the angle of the rays: how far the depth may
            be off.
    """

    depth: Tensor
    doubt: Tensor


def contradicted(
    points: Tensor, own: int, views: list[int], cameras: list[Camera], depths: dict[int, Tensor]
) -> Tensor:
    """Mask [N] of the points that some views see through, and no more than these see.

    Args:
        points: [N, 3], of view ``own``.
        own: which does not count.
        views: those asked.
        cameras: of all views.
        depths: of some views [H, W]; 0: not known.
    """
    balance = torch.zeros(len(points), dtype=torch.int64)
    pierced = torch.zeros(len(points), dtype=torch.bool)
    for view in views:
        if view == own or view not in depths:
            continue
        camera, surface = cameras[view], depths[view]
        pixel, depth = camera.project(points)
        inside = camera.sees(points)
        column = pixel[:, 0].round().long().clamp(0, surface.shape[1] - 1)
        row = pixel[:, 1].round().long().clamp(0, surface.shape[0] - 1)
        there = torch.where(inside, surface[row, column], 0.0)
        known = there > 0
        through = known & (depth < (1 - CONTRADICTS) * there)
        pierced |= through
        balance += through.long() - (known & ((depth / there - 1).abs() < AGREES)).long()
    return pierced & (balance >= 0)
