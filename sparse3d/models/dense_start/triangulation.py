"""Points from dense matches of two posed photographs, and what to believe of them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sparse3d.structures import Camera


@dataclass(frozen=True, eq=False)
class Triangulated:
    """What matches say of the pixels of a reference.

    Attributes:
        depth: [M] along the reference camera's axis, world units.
        miss: [M] pixels between the point and its match in the neighbour.
        angle: [M] radians between the two rays.
        in_front: [M] bool, of both cameras.
    """

    depth: Tensor
    miss: Tensor
    angle: Tensor
    in_front: Tensor

    @property
    def doubt(self) -> Tensor:
        """[M] pixels of error over the sine of the angle: how far the depth may be off."""
        return (self.miss + 0.25) / self.angle.sin().clamp(min=1e-6)


def rays(camera: Camera, pixels: Tensor) -> Tensor:
    """[M, 3] directions in the camera's frame with z = 1 of ``pixels`` [M, 2]."""
    K = camera.K.to(pixels)
    return torch.cat([pixels, torch.ones_like(pixels[:, :1])], 1) @ torch.linalg.inv(K).T


def triangulate(a: Camera, pixels: Tensor, b: Camera, matches: Tensor) -> Triangulated:
    """Depths of ``pixels`` [M, 2] of camera ``a`` that lie at ``matches`` [M, 2] in ``b``.

    The point stays on the reference's ray, so that its colour is that of its pixel; its depth
    solves, by least squares, that the neighbour sees it at the match: the two equations of the
    direct linear transform, weighted by nothing.
    """
    forth = (b.world_to_cam.double() @ torch.linalg.inv(a.world_to_cam.double())).to(pixels)
    start = rays(a, pixels) @ forth[:3, :3].T  # the reference's ray in the neighbour's frame
    shift = forth[:3, 3].expand_as(start)
    seen = rays(b, matches)[:, :2]
    slope = start[:, :2] - seen * start[:, 2:]
    offset = shift[:, :2] - seen * shift[:, 2:]
    square = (slope * slope).sum(1)
    depth = -(slope * offset).sum(1) / square.clamp(min=1e-20)
    local = start * depth[:, None] + shift
    image = local @ b.K.to(pixels).T
    landed = image[:, :2] / torch.where(image[:, 2:] > 1e-9, image[:, 2:], 1.0)
    back = start * depth[:, None]  # from the reference's centre to the point
    cosine = torch.nn.functional.cosine_similarity(back, local, dim=1)
    in_front = (depth > 0) & (local[:, 2] > 1e-9) & (square > 1e-20)
    return Triangulated(depth, (landed - matches).norm(dim=1), cosine.clamp(-1, 1).acos(), in_front)


def lift(camera: Camera, pixels: Tensor, depth: Tensor) -> Tensor:
    """[M, 3] world points at ``depth`` [M] behind ``pixels`` [M, 2] of ``camera``."""
    local = rays(camera, pixels) * depth[:, None]
    pose = camera.world_to_cam.to(pixels)
    return (local - pose[:3, 3]) @ pose[:3, :3]
