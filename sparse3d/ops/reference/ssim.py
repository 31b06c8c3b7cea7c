"""Structural similarity and its gradient, by their definition in torch."""

import torch
from torch import Tensor
from torch.nn import functional as F


def ssim_and_gradient(
    a: Tensor, b: Tensor, window: Tensor, c1: float, c2: float
) -> tuple[Tensor, Tensor]:
    """Mean similarity of ``a`` and ``b`` [H, W, channels], and its gradient by ``a``."""
    weights = window.to(a)

    def blur(x: Tensor) -> Tensor:
        half = len(window) // 2
        x = x.permute(2, 0, 1)[:, None]
        x = F.conv2d(x, weights[None, None, :, None], padding=(half, 0))
        return F.conv2d(x, weights[None, None, None], padding=(0, half))[:, 0].permute(1, 2, 0)

    mean_a, mean_b = blur(a), blur(b)
    square_a, square_b, product = blur(a * a), blur(b * b), blur(a * b)
    top1 = 2 * mean_a * mean_b + c1
    top2 = 2 * (product - mean_a * mean_b) + c2
    low1 = mean_a**2 + mean_b**2 + c1
    low2 = square_a - mean_a**2 + square_b - mean_b**2 + c2
    value = top1 * top2 / (low1 * low2)
    # The map depends on a through three blurred pictures; a blur is its own adjoint.
    by_mean = 2 * mean_b * (top2 - top1) / (low1 * low2) + 2 * mean_a * value * (
        1 / low2 - 1 / low1
    )
    by_square, by_product = -value / low2, 2 * top1 / (low1 * low2)
    gradient = blur(by_mean) + 2 * a * blur(by_square) + b * blur(by_product)
    return torch.mean(value), gradient / a.numel()
