"""Gaussians that lie flat in the surface that their neighbours describe."""

from dataclasses import replace

import torch
from scipy.spatial.transform import Rotation

from sparse3d.ops.neighbors import knn
from sparse3d.structures import Gaussians

AROUND = 12
"""Neighbours, itself included, that say how a surface lies."""
WIDEST = 1.5
"""Most that a Gaussian becomes wider along one axis than it was."""


def flattened(gaussians: Gaussians, flat: float) -> Gaussians:
    """Round ``gaussians`` as discs, turned and stretched as the points about them are spread.

    Training finds this by itself, but scales move slowly: a start that knows the surface saves most
    of that time. In a plane a Gaussian keeps its width.

    Args:
        gaussians: round ones.
        flat: thickness of the flattest, in widths; 1: all stay round.
    """
    if flat >= 1 or len(gaussians) < AROUND:
        return gaussians
    points = gaussians.means.double()
    index, _ = knn(gaussians.means, gaussians.means, AROUND)
    around = points[index] - points[index].mean(1, keepdim=True)
    spread, axes = torch.linalg.eigh(around.transpose(1, 2) @ around)
    spread = spread.clamp(min=0).sqrt()  # ascending
    wide = ((spread[:, 1] * spread[:, 2]).sqrt()).clamp(min=1e-12)
    factor = (spread / wide[:, None]).clamp(flat, WIDEST)
    axes = axes * torch.linalg.det(axes)[:, None, None]  # a rotation, not a mirror
    x, y, z, w = torch.from_numpy(Rotation.from_matrix(axes.numpy()).as_quat()).float().unbind(1)
    return replace(
        gaussians,
        scales=gaussians.scales + factor.log().float(),
        quats=torch.stack([w, x, y, z], 1),
    )
