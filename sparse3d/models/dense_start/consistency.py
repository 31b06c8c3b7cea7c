"""Depths of references, and points that other references contradict: these see through them."""

from dataclasses import dataclass

import cv2
import torch
from torch import Tensor

from sparse3d.structures import Camera

AGREES = 0.05
"""Relative difference of two depths of the same surface."""
CONTRADICTS = 0.10
"""A point that lies nearer than a view's surface by more hangs in the air before it."""


@dataclass(frozen=True, eq=False)
class Depths:
    """What is known of a reference, at the size of its picture or smaller.

    Attributes:
        camera: of these pixels.
        depth: [H, W] along the camera's axis, world units; 0: not known.
        doubt: [H, W] pixels of error over the sine of the angle of the rays: how far the depth may
            be off.
    """

    camera: Camera
    depth: Tensor
    doubt: Tensor

    def enlarged(self, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """``depth`` and ``doubt`` as [H, W] of another ``size``, each pixel that of the nearest."""
        if self.depth.shape == size:
            return self.depth, self.doubt
        planes = [
            cv2.resize(plane.numpy(), size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
            for plane in (self.depth, self.doubt)
        ]
        return torch.from_numpy(planes[0]), torch.from_numpy(planes[1])


def surface_at(camera: Camera, surface: Tensor, points: Tensor) -> Tensor:
    """[N] the depth that ``surface`` [H, W] of ``camera`` has where it sees ``points`` [N, 3]; 0:
    it does not see them, or does not know."""
    height, width = surface.shape
    spot = camera.project(points)[0].round().long()
    there = surface[spot[:, 1].clamp(0, height - 1), spot[:, 0].clamp(0, width - 1)]
    return torch.where(camera.sees(points), there, 0.0)


def contradicted(points: Tensor, own: int, views: list[int], known: dict[int, Depths]) -> Tensor:
    """Mask [N] of the points that some views see through, and no more than these see.

    Args:
        points: [N, 3], of view ``own``.
        own: which does not count.
        views: those asked.
        known: depths of some views.
    """
    balance = torch.zeros(len(points), dtype=torch.int64)
    pierced = torch.zeros(len(points), dtype=torch.bool)
    for view in views:
        if view == own or view not in known:
            continue
        camera, surface = known[view].camera, known[view].depth
        depth, there = camera.project(points)[1], surface_at(camera, surface, points)
        sure = there > 0
        through = sure & (depth < (1 - CONTRADICTS) * there)
        pierced |= through
        balance += through.long() - (sure & ((depth / there - 1).abs() < AGREES)).long()
    return pierced & (balance >= 0)
