"""Pinhole cameras. x right, y down, z forward; pixel (0, 0) is the centre of the top left pixel."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Camera:
    """One pinhole camera.

    Attributes:
        K: [3, 3] intrinsics, pixels.
        world_to_cam: [4, 4] rigid transform into the camera's frame, metres.
        size: (width, height) in pixels.
    """

    K: Tensor
    world_to_cam: Tensor
    size: tuple[int, int]

    def __post_init__(self):
        if tuple(self.K.shape) != (3, 3) or tuple(self.world_to_cam.shape) != (4, 4):
            raise ValueError(
                f"K is {tuple(self.K.shape)} and world_to_cam {tuple(self.world_to_cam.shape)}; "
                "[3, 3] and [4, 4] are needed"
            )

    def to_camera(self, points: Tensor) -> Tensor:
        """World ``points`` [..., 3] in the camera's frame."""
        matrix = self.world_to_cam.to(points)
        return points @ matrix[:3, :3].T + matrix[:3, 3]

    def project(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels [..., 2] and depths [...] in metres of world ``points`` [..., 3].

        Pixels of points with a depth that is not positive mean nothing.
        """
        local = self.to_camera(points)
        depth = local[..., 2]
        image = local @ self.K.to(points).T
        return image[..., :2] / image[..., 2:].clamp(min=1e-6), depth

    def sees(self, points: Tensor) -> Tensor:
        """Mask [...] of world ``points`` in front of the camera and inside its picture."""
        pixel, depth = self.project(points)
        size = torch.tensor(self.size, dtype=pixel.dtype, device=pixel.device)
        return (depth > 0) & (pixel >= 0).all(-1) & (pixel < size).all(-1)
