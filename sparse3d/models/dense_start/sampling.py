"""Which pixels of a picture become Gaussians: many where it is detailed, few where it is plain."""

import cv2
import numpy as np
import torch
from torch import Tensor

CONTRAST = 0.075
"""Deviation of the colours about a pixel, rgb in 0..1, for which points have their usual distance:
about the mean of photographs of rooms and of carpets."""
NOISE = 0.01
"""Deviation that is added, as a plain wall has some, too."""
CLOSEST, WIDEST = 1 / 3, 3
"""Distances of points, in usual ones."""


def contrast(image: np.ndarray, reach: float) -> np.ndarray:
    """float32 [H, W] deviation of the colours about each pixel.

    Args:
        image: uint8 [H, W, 3].
        reach: standard deviation of the bell curve that weighs the pixels around, pixels.
    """
    colors = image.astype(np.float32) / 255
    plain = cv2.GaussianBlur(colors, (0, 0), reach)
    squared = ((colors - plain) ** 2).sum(2)
    return cv2.GaussianBlur(squared, (0, 0), reach) ** 0.5


def spacing(image: np.ndarray, usual: float) -> np.ndarray:
    """[H, W] distance that two points should have, pixels; at least 1.

    A piece of a picture with one colour errs by its size times the slope of the picture there. Of a
    given number of pieces, the squared errors add up to least if their number per area grows as the
    slope does. The measure is absolute: a picture that is detailed everywhere gets more points than
    one of plain walls.

    Args:
        image: uint8 [H, W, 3].
        usual: distance for a contrast of ``CONTRAST``, pixels.
    """
    slope = (contrast(image, usual / 2) + NOISE) / CONTRAST
    return np.maximum(usual * (slope**-0.5).clip(CLOSEST, WIDEST), 1.0)


def sample_spaced(
    good: np.ndarray, distance: np.ndarray, most: int, generator: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Pixels of ``good`` [H, W] as far apart as ``distance`` [H, W] says.

    Along a curve that keeps neighbours together each pixel has a share of a point; where the sum of
    the shares passes a whole number, there is one.

    Returns:
        Flat rows [M] int64, ascending, at most about ``most``, and the distance [M] of each to the
        next ones, pixels.
    """
    order = _along_curve(*good.shape)
    order = order[good.reshape(-1)[order]]
    distance = distance.reshape(-1)
    wanted = (distance[order] ** -2.0).sum()
    distance = distance * max(wanted / most, 1.0) ** 0.5
    total = np.cumsum(distance[order].astype(np.float64) ** -2) + generator.random()
    whole = np.floor(total)
    chosen = np.sort(order[np.diff(whole, prepend=0.0) > 0])
    return torch.from_numpy(chosen), torch.from_numpy(distance[chosen]).float()


def _along_curve(height: int, width: int) -> np.ndarray:
    """[H W] flat rows of all pixels along Morton's curve."""
    y, x = np.mgrid[0:height, 0:width].astype(np.int64)
    code = np.zeros_like(x)
    for bit in range(max(height, width).bit_length()):
        code |= ((x >> bit & 1) << 2 * bit) | ((y >> bit & 1) << 2 * bit + 1)
    return code.reshape(-1).argsort(kind="stable")
