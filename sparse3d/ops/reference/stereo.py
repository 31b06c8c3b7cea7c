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
        least = torch.stack(costs).topk(best, 0, largest=False).values
        seen = least.isfinite()
        cost = torch.where(seen, least, 0.0).sum(0) / seen.sum(0).clamp(min=1)
        cost = torch.where(seen.any(0), cost, 2.0)
        parts.append((127.5 * cost + 0.5).clamp(max=255).to(torch.uint8))
    return torch.cat(parts).permute(1, 2, 0).contiguous()


def _unlike(reference, view, inverse, radius, mean, deviation, floor) -> Tensor:
    """[planes, H, W] 1 - correlation of the windows; infinite where the view shows none."""
    height, width = view.image.shape
    far = _pixels(reference) @ view.rotation.T
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
    return torch.where(inside, 1 - like, torch.inf)


def confirm_depths(
    depth: Tensor,
    inverse_K: Tensor,
    others: list,
    backs: list[Tensor],
    most_miss: float,
    most_apart: float,
    sine: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """As ``ops.stereo.confirm_depths``; ``backs``: the inverse of each other's rotation, ``sine``:
    that of the smallest angle."""
    pixels = _pixels(depth)
    voices, asked = torch.zeros(2, *depth.shape, dtype=torch.int32, device=depth.device)
    doubt = torch.full_like(depth, torch.inf)
    for other, back in zip(others, backs):
        back = back.to(depth)
        spot, far = _moved(pixels, depth, other.rotation, other.shift)
        height, width = other.image.shape
        inside = (spot >= 0).all(-1) & (spot < spot.new_tensor([width, height])).all(-1)
        column, row = (spot.where(inside[..., None], 0.0) + 0.5).long().unbind(-1)
        there = other.image[row.clamp(max=height - 1), column.clamp(max=width - 1)]
        spot = torch.cat([spot, torch.ones_like(spot[..., :1])], -1)
        again, distance = _moved(spot, there, back, -(back @ other.shift))
        miss = (again - pixels[..., :2]).norm(dim=-1)
        hit = torch.cat([again, torch.ones_like(again[..., :1])], -1) @ inverse_K.to(depth).T
        hit = hit * distance[..., None]
        center = inverse_K.to(depth) @ -(back @ other.shift)
        across = torch.linalg.cross(hit, hit - center).norm(dim=-1)
        lengths = hit.norm(dim=-1) * (hit - center).norm(dim=-1)
        turn = across / lengths.clamp(min=1e-20)
        good = (depth > 0) & (far > 0) & inside & (there > 0)
        asked += good & (there > (1 - most_apart) * far)
        good &= (distance > 0) & (miss < most_miss) & (turn > sine)
        good &= (distance / depth - 1).abs() < most_apart
        voices += good
        unsure = (miss + 0.25) / turn.clamp(min=1e-6)
        doubt = torch.where(good, torch.minimum(doubt, unsure), doubt)
    return voices, asked, doubt


def _pixels(image: Tensor) -> Tensor:
    """[H, W, 3] (x, y, 1) of the pixels of ``image`` [H, W]."""
    y, x = torch.meshgrid(
        *(torch.arange(size, device=image.device).float() for size in image.shape),
        indexing="ij",
    )
    return torch.stack([x, y, torch.ones_like(x)], -1)


def _moved(pixels: Tensor, depth: Tensor, rotation: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Where ``pixels`` [H, W, 3] at ``depth`` [H, W] lie in another picture: [H, W, 2] and [H, W]
    depths there; 0 or less: behind it, or not known."""
    known = torch.where(depth > 0, depth, 1.0)
    image = pixels @ rotation.T + shift / known[..., None]
    place = image[..., :2] / image[..., 2:].clamp(min=1e-6)
    return place, torch.where(image[..., 2] > 1e-6, image[..., 2] * known, 0.0)


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
