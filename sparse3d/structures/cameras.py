"""Pinhole cameras. x right, y down, z forward; pixel (0, 0) is the centre of the top left pixel."""

from dataclasses import dataclass, replace

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

    @classmethod
    def from_corner_K(cls, K: Tensor, world_to_cam: Tensor, size: tuple[int, int]) -> "Camera":
        """A camera whose ``K`` [3, 3] counts pixels from the picture's corner (COLMAP, gsplat)."""
        return cls(_moved_center(K, -0.5), world_to_cam, size)

    @property
    def corner_K(self) -> Tensor:
        """[3, 3] intrinsics for pixels counted from the picture's corner: centres lie at .5."""
        return _moved_center(self.K, 0.5)

    @property
    def center(self) -> Tensor:
        """[3] where the camera stands, world metres."""
        return -self.world_to_cam[:3, :3].T @ self.world_to_cam[:3, 3]

    @property
    def axis(self) -> Tensor:
        """[3] unit vector along which it looks, in the world."""
        return self.world_to_cam[2, :3]

    def to(self, device: str | torch.device) -> "Camera":
        return replace(self, K=self.K.to(device), world_to_cam=self.world_to_cam.to(device))

    def resized(self, size: tuple[int, int]) -> "Camera":
        """The camera of the same picture brought to ``size`` (width, height) pixels."""
        scale = self.K.new_tensor([size[0] / self.size[0], size[1] / self.size[1], 1.0])
        return Camera.from_corner_K(self.corner_K * scale[:, None], self.world_to_cam, size)

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
        """Mask [...] of world ``points`` in front of the camera whose pixel, in each direction, is
        at least 0 and less than the size.

        That is KITTI's rule. As whole numbers are the middles of pixels, half a pixel at the left
        and upper border does not count, and half a one beyond the others does.
        """
        pixel, depth = self.project(points)
        size = torch.tensor(self.size, dtype=pixel.dtype, device=pixel.device)
        return (depth > 0) & (pixel >= 0).all(-1) & (pixel < size).all(-1)


def _moved_center(K: Tensor, shift: float) -> Tensor:
    moved = K.clone()
    moved[:2, 2] += shift
    return moved
