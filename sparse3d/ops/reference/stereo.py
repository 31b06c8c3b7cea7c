"""A plane sweep and semi-global matching, by their definitions in torch."""

import torch
from torch import Tensor
from torch.nn import functional as F

TOGETHER = 8
"""Planes worked on at once."""


def window_mean(image: Tensor, radius: int) -> Tensor:
    """Mean of ``image`` [N, H, W] over the part of each pixel's window that is in the picture."""
    return F.avg_pool2d(image[:, None], 2 * radius + 1, 1, radius, count_include_pad=False)[:, 0]


def window_moments(image: Tensor, radius: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each pixel's window of ``image`` [N, H, W]."""
    mean = window_mean(image, radius)
    return mean, (window_mean(image * image, radius) - mean**2).clamp(min=0).sqrt()


def plane_sweep(
    reference: Tensor, views: list, inverse: Tensor, radius: int, best: int, floor: float
) -> Tensor:
    """As ``ops.stereo.plane_sweep``."""
    mean, deviation = window_moments(reference[None], radius)
    parts = []
    for some in inverse.split(TOGETHER):
        costs = [_unlike(reference, view, some, radius, mean, deviation, floor) for view in views]
        least = torch.stack(costs).topk(best, 0, largest=False).values.mean(0)
        parts.append((127.5 * least + 0.5).to(torch.uint8))
    return torch.cat(parts).permute(1, 2, 0).contiguous()


def _unlike(reference, view, inverse, radius, mean, deviation, floor) -> Tensor:
    """[planes, H, W] 1 - correlation of the windows; 2 where the view shows nothing."""
    height, width = view.image.shape
    y, x = torch.meshgrid(
        *(torch.arange(size, device=reference.device).float() for size in reference.shape),
        indexing="ij",
    )
    far = torch.stack([x, y, torch.ones_like(x)], -1) @ view.rotation.T
    u, v, w = (far + view.shift * inverse[:, None, None, None]).unbind(-1)
    u, v = u / w.clamp(min=1e-6), v / w.clamp(min=1e-6)
    inside = (u >= -0.5) & (u <= width - 0.5) & (v >= -0.5) & (v <= height - 0.5) & (w > 1e-6)
    grid = torch.stack([(2 * u + 1) / width - 1, (2 * v + 1) / height - 1], -1)
    shown = F.grid_sample(
        view.image.expand(len(inverse), 1, height, width),
        grid.clamp(-4, 4),
        padding_mode="border",
        align_corners=False,
    )[:, 0]
    own, spread = window_moments(shown, radius)
    both = window_mean(reference * shown, radius) - mean * own
    like = (both / (deviation * spread + floor)).clamp(-1, 1)
    return torch.where(inside, 1 - like, 2.0)


def smooth_planes(cost: Tensor, small: int, along: Tensor, across: Tensor) -> Tensor:
    """As ``ops.stereo.smooth_planes``, with the costs of jumps [H, W] for each pixel."""
    cost = cost.int()
    total = torch.zeros_like(cost)
    for lines, jumps, out in (
        (cost.transpose(0, 1), along.T, total.transpose(0, 1)),
        (cost, across, total),
    ):
        out += _paths(lines, small, jumps[1:])
        out += _paths(lines.flip(0), small, jumps[1:].flip(0)).flip(0)
    planes = total.shape[2]
    best = (total.long() * planes + torch.arange(planes, device=cost.device)).amin(2) % planes
    if planes < 3:
        return best.float()
    inner = best.clamp(1, planes - 2)
    low, middle, high = (total.gather(2, (inner + d)[..., None])[..., 0] for d in (-1, 0, 1))
    bend = low + high - 2 * middle
    shift = 0.5 * (low - high).float() / bend.clamp(min=1).float()
    return best.float() + torch.where((bend > 0) & (inner == best), shift, 0.0)


def _paths(lines: Tensor, small: int, jumps: Tensor) -> Tensor:
    """Least costs [L, M, planes] of paths along the first dimension that end at each pixel."""
    found = [lines[0]]
    for cost, jump in zip(lines[1:], jumps.int()):
        before = found[-1]
        least = before.amin(1, keepdim=True)
        padded = F.pad(before, (1, 1), value=0x7FFF)
        side = torch.minimum(padded[:, :-2], padded[:, 2:]) + small
        way = torch.minimum(torch.minimum(before, side), least + jump[:, None])
        found.append(way + cost - least)
    return torch.stack(found)
