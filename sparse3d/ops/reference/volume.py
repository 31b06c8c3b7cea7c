"""Volume rendering through small voxel grids, in torch. The definition of ``ops.volume``."""

import itertools
import math

import torch
from torch import Tensor
from torch.nn import functional as F

MOST_STEPS = 1_000_000
"""Of a ray; more are wanted only where rounding has eaten the box."""


def ray_box(
    origins: Tensor, directions: Tensor, lower: Tensor, upper: Tensor, near: float, far: float
) -> tuple[Tensor, Tensor]:
    """Entry and exit [M, R] of rays [M, R, 3] in boxes [M, 3], in lengths of the direction."""
    direction = torch.where(directions == 0, 1e-6, directions)
    first = (lower[:, None] - origins) / direction
    second = (upper[:, None] - origins) / direction
    enter = torch.minimum(first, second).amax(-1).clamp(near, far)
    leave = torch.maximum(first, second).amin(-1).clamp(near, far)
    return enter, leave


def ray_weights(
    origins: Tensor,
    directions: Tensor,
    lower: Tensor,
    upper: Tensor,
    density: Tensor,
    mask: Tensor,
    step: Tensor,
    settings: tuple[float, ...],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See ``ops.volume.ray_weights``; ``step`` [M] is in metres."""
    near, far, interval, shift, threshold, stop = settings
    shape = density.shape[1:]
    enter, leave = ray_box(origins, directions, lower, upper, near, far)
    length = directions.norm(dim=-1)
    steps = ((leave - enter) * length / step[:, None]).ceil().clamp(1, MOST_STEPS).long()
    most = int(steps.max()) if steps.numel() else 0
    index = torch.arange(most, device=density.device)
    along = index * step[:, None, None] / length[..., None] + enter[..., None]  # [M, R, S]
    points = origins[:, :, None] + along[..., None] * directions[:, :, None]
    low, high = lower[:, None, None], upper[:, None, None]
    inside = ((points >= low) & (points <= high)).all(-1) & (index < steps[..., None])
    place = (points - low) / (high - low)  # 0 at the first node, 1 at the last
    corners, weights = corner_weights(place, shape)
    values = density.flatten(1).gather(1, corners.flatten(1)).view(corners.shape)
    softplus = F.softplus((values * weights).sum(-1) + shift, threshold=40)
    kept = inside & nearest_mask(place, mask)
    kept = kept & (-torch.expm1(-interval * softplus.detach()) > threshold)
    depth = interval * softplus * kept  # optical depth of each sample
    before = torch.exp(depth - depth.cumsum(-1))
    kept = kept & (before.detach() >= stop)
    depth = depth * kept
    share = before * -torch.expm1(-depth)
    share = share * (kept & (share.detach() > threshold))
    nodes = share.new_zeros(*enter.shape, math.prod(shape)).scatter_add(
        2, corners.flatten(2), (share[..., None] * weights).flatten(2)
    )
    left = torch.exp(-depth.sum(-1))
    return nodes, left, (share.detach() * index).sum(-1), (share > 0).sum(-1)


def corner_weights(place: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Flat node indices and trilinear weights [..., 8] of ``place`` [..., 3] in 0..1 per axis."""
    size = torch.tensor(shape, device=place.device)
    scaled = place.clamp(0, 1) * (size - 1)
    cell = scaled.floor().long().minimum((size - 2).clamp(min=0))
    fraction = scaled - cell
    corners, weights = [], []
    for offset in itertools.product((0, 1), repeat=3):
        moved = torch.tensor(offset, device=place.device)
        node = (cell + moved).minimum(size - 1)
        corners.append((node[..., 0] * shape[1] + node[..., 1]) * shape[2] + node[..., 2])
        weights.append(torch.where(moved == 1, fraction, 1 - fraction).prod(-1))
    return torch.stack(corners, -1), torch.stack(weights, -1)


def nearest_mask(place: Tensor, mask: Tensor) -> Tensor:
    """``mask`` [M, X, Y, Z] at the node nearest to ``place`` [M, R, S, 3]; halves round up."""
    size = torch.tensor(mask.shape[1:], device=place.device)
    node = (place.clamp(0, 1) * (size - 1) + 0.5).floor().long().minimum(size - 1)
    flat = (node[..., 0] * size[1] + node[..., 1]) * size[2] + node[..., 2]
    return mask.flatten(1).gather(1, flat.flatten(1)).view(flat.shape)


def total_variation_gradient(grid: Tensor) -> Tensor:
    """See ``ops.volume.total_variation_gradient``."""
    out = torch.zeros_like(grid)
    for axis in (-3, -2, -1):
        slope = grid.diff(dim=axis).clamp(-1, 1)
        length = slope.shape[axis]
        out.narrow(axis, 1, length).add_(slope)
        out.narrow(axis, 0, length).sub_(slope)
    return out
