"""Gaussians for what no match covers: the surfaces around are continued as planes."""

import cv2
import numpy as np
import torch
from torch import Tensor

from .photographs import Photograph
from .triangulation import lift

AROUND = 5
"""Cells to each side among which one counts as foreground."""
FOREGROUND = 1.25
"""Times the inverse depth of what lies farther around: holes are mostly of the background."""
RIDGE = 0.003
"""Against slopes that few anchors on a line leave open, in squared reaches."""


def fill_holes(
    pictures: list[Photograph], points: Tensor, cell: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Points where, in some picture, none of ``points`` is seen.

    Each picture is cut into square cells; one into which no point falls gets one, at the depth that
    the cells around it suggest. A picture takes note of what was added for those before it.

    Args:
        pictures: of the place.
        points: [N, 3] those there are.
        cell: edge of a cell, pixels.

    Returns:
        Points [M, 3], their colours [M, 3] in 0..1 and the lengths [M] of their cells' edges.
    """
    found = [(points[:0], points[:0], points[:0, 0])]
    for picture in pictures:
        known = torch.cat([points, *(part[0] for part in found)])
        part = _fill_one(picture, known, cell)
        if part is not None:
            found.append(part)
    return tuple(torch.cat(column) for column in zip(*found))


def _fill_one(picture: Photograph, points: Tensor, cell: float):
    camera = picture.camera
    width, height = camera.size
    columns, rows = -(-width // cell), -(-height // cell)
    nearest = _nearest_inverse(camera, points, cell, int(columns), int(rows))
    empty = nearest <= 0
    if not empty.any() or empty.all():
        return None
    inverse = continue_planes(nearest)
    y, x = np.nonzero(empty)
    middle = np.stack([(x + 0.5) * cell - 0.5, (y + 0.5) * cell - 0.5], 1)
    middle = np.minimum(middle, [width - 1, height - 1])
    pixels = torch.from_numpy(middle).float()
    depth = torch.from_numpy(1 / inverse[empty]).float()
    blurred = cv2.blur(picture.image, (max(round(cell), 1),) * 2)
    spots = middle.round().astype(int)
    colors = torch.from_numpy(blurred[spots[:, 1], spots[:, 0]]).float() / 255
    focal = float(camera.K[0, 0] + camera.K[1, 1]) / 2
    return lift(camera, pixels, depth), colors, cell * depth / focal


def _nearest_inverse(camera, points: Tensor, cell: float, columns: int, rows: int) -> np.ndarray:
    """[rows, columns] the largest 1 / depth of the points in each cell; 0: there is none."""
    pixel, depth = camera.project(points)
    seen = camera.sees(points)
    spots = ((pixel[seen] + 0.5) / cell).long()
    flat = spots[:, 1].clamp(0, rows - 1) * columns + spots[:, 0].clamp(0, columns - 1)
    out = torch.zeros(rows * columns, dtype=torch.float64)
    out.scatter_reduce_(0, flat, 1 / depth[seen].double(), "amax")
    return out.reshape(rows, columns).numpy()


def continue_planes(inverse: np.ndarray) -> np.ndarray:
    """``inverse`` depths [H, W] with the empty cells (0) filled.

    The inverse depth of a plane is an affine function of the pixel: it is fitted to the cells that
    are known, weighed by a bell curve around the empty one, in the smallest reach that has enough.
    Cells that stand out before those around them are no part of the surface that is continued.
    """
    height, width = inverse.shape
    known = background(inverse).astype(np.float64)
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    basis = (np.ones_like(x), x, y)
    out, open_ = inverse.copy(), inverse <= 0
    low, high = np.percentile(inverse[inverse > 0], [1, 99])
    reach = 3.0
    while open_.any():
        blur = _bell(reach)
        square = np.empty((height, width, 3, 3))
        right = np.empty((height, width, 3))
        for i, a in enumerate(basis):
            right[..., i] = blur(known * inverse * a)
            for j, b in enumerate(basis[: i + 1]):
                square[..., i, j] = square[..., j, i] = blur(known * a * b)
        mass = square[..., 0, 0]
        last = reach > 2 * max(height, width)
        now = open_ & ((mass > 0.1) | last)
        if now.any():
            out[now] = _fit(square[now], right[now], x[now], y[now], reach / max(height, width))
        open_ &= ~now
        reach *= 2
    return np.where(inverse > 0, inverse, np.clip(out, low / 2, 1.1 * high))


def background(inverse: np.ndarray) -> np.ndarray:
    """Mask [H, W] of the known cells that are not much nearer than the farther ones around."""
    side = 2 * AROUND + 1
    known = np.where(inverse > 0, inverse, np.nan)
    padded = np.pad(known, AROUND, constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side))
    rows = inverse > 0
    far = np.nanquantile(windows[rows].reshape(-1, side * side), 0.3, axis=1)
    mask = np.zeros(inverse.shape, bool)
    mask[rows] = inverse[rows] <= FOREGROUND * far
    return mask


def _fit(square, right, x, y, reach) -> np.ndarray:
    """Value at (x, y) of the affine function with the normal equations ``square`` and ``right``."""
    mass = np.maximum(square[:, 0, 0], 1e-300)
    middle = square[:, 0] / mass[:, None]  # 1, and the mean place of the anchors
    value = right[:, 0] / mass
    spread = square[:, 1:, 1:] / mass[:, None, None] - middle[:, 1:, None] * middle[:, None, 1:]
    spread += RIDGE * reach**2 * np.eye(2)
    joint = right[:, 1:] / mass[:, None] - middle[:, 1:] * value[:, None]
    slope = np.linalg.solve(spread, joint[..., None])[..., 0]
    away = np.stack([x, y], 1) - middle[:, 1:]
    return value + (slope * away).sum(1)


def _bell(reach: float):
    """A blur by a bell curve of deviation ``reach`` cells, zero outside."""
    size = 2 * int(np.ceil(3 * reach)) + 1
    kernel = cv2.getGaussianKernel(size, reach, cv2.CV_64F)
    return lambda plane: cv2.sepFilter2D(plane, -1, kernel, kernel, borderType=cv2.BORDER_CONSTANT)
