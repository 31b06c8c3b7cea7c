"""Gaussians for what no depth covers: the surfaces around are continued as planes."""

from collections.abc import Callable

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
    return _one_by_one(pictures, (points,), lambda *one: _fill_one(*one, cell))


def fill_behind(
    pictures: list[Photograph], points: Tensor, colors: Tensor, cell: float, reach: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Points behind the edges of things, where pictures show only what stands before.

    Other views look past these edges. What is hidden for good fades in training: nothing holds it.

    Args:
        pictures: of the place.
        points: [N, 3] those there are.
        colors: [N, 3] theirs, in 0..1.
        cell: edge of a cell, pixels.
        reach: cells to each side among which the farther ones count as background.

    Returns:
        As ``fill_holes``.
    """
    known = (points, colors)
    return _one_by_one(pictures, known, lambda *one: _fill_one_behind(*one, cell, reach))


def _one_by_one(pictures: list[Photograph], known: tuple[Tensor, ...], fill: Callable):
    """What ``fill(picture, *known by then)`` adds for one picture after the other.

    ``known``: points, or points and colours, which what was added follows.
    """
    points = known[0]
    found = [(points[:0], points[:0], points[:0, 0])]
    for picture in pictures:
        so_far = [torch.cat(column) for column in zip(known, *found)]
        part = fill(picture, *so_far)
        if part is not None:
            found.append(part)
    return tuple(torch.cat(column) for column in zip(*found))


def _fill_one_behind(picture: Photograph, points: Tensor, colors: Tensor, cell: float, reach: int):
    farthest = _inverse_depths(picture.camera, points, cell, "amin")
    far = _far_around(farthest, reach)
    hidden = (farthest > 0) & (farthest > FOREGROUND * far)
    layer = np.where(hidden, 0.0, farthest)
    if not hidden.any() or not layer.any():
        return None
    inverse = np.minimum(continue_planes(layer), far)
    # The picture's own colours would mix in what stands before, at its edge.
    mean, known = _colors_at(picture.camera, points, colors, layer, cell)
    return _in_cells(picture.camera, hidden, inverse, _continued(mean, known)[hidden], cell)


def _colors_at(camera, points: Tensor, colors: Tensor, inverse: np.ndarray, cell: float):
    """[rows, columns, 3] mean colour of the points in each cell that are not much nearer than
    its ``inverse`` depth says, and a mask, float32, of the cells that have one."""
    flat, seen, own = _cells_of(camera, points, cell, inverse.shape)
    level = torch.from_numpy(inverse.reshape(-1))[flat]
    there = (level > 0) & (own <= FOREGROUND * level)
    flat, rgb = flat[there], colors[seen][there]
    total = torch.zeros(inverse.size, 3).index_add_(0, flat, rgb.float())
    count = torch.bincount(flat, minlength=inverse.size)
    mean = total / count.clamp(min=1)[:, None]
    known = (count > 0).float()
    return mean.reshape(*inverse.shape, 3).numpy(), known.reshape(inverse.shape).numpy()


def _continued(image: np.ndarray, known: np.ndarray) -> np.ndarray:
    """``image`` [H, W, 3] with the cells that are not ``known`` [H, W] blurred from those that are,
    over the smallest reach that finds some."""
    out, open_ = np.zeros_like(image), np.ones(known.shape, bool)
    reach = 1.5
    while open_.any():
        mass = cv2.GaussianBlur(known, (0, 0), reach)
        spread = cv2.GaussianBlur(image * known[..., None], (0, 0), reach)
        now = open_ & ((mass > 0.05) | (reach > 2 * max(known.shape)))
        out[now] = spread[now] / np.maximum(mass[now], 1e-9)[:, None]
        open_ &= ~now
        reach *= 2
    return out


def _fill_one(picture: Photograph, points: Tensor, cell: float):
    camera = picture.camera
    nearest = _inverse_depths(camera, points, cell, "amax")
    empty = nearest <= 0
    if not empty.any() or empty.all():
        return None
    blurred = cv2.blur(picture.image, (max(round(cell), 1),) * 2)
    spots = _middles(camera, empty, cell).round().astype(int)
    colors = blurred[spots[:, 1], spots[:, 0]] / 255
    return _in_cells(camera, empty, continue_planes(nearest), colors, cell)


def _middles(camera, cells: np.ndarray, cell: float) -> np.ndarray:
    """[M, 2] the pixels in the middle of the marked ``cells`` [rows, columns]."""
    y, x = np.nonzero(cells)
    middle = np.stack([(x + 0.5) * cell - 0.5, (y + 0.5) * cell - 0.5], 1)
    return np.minimum(middle, [camera.size[0] - 1, camera.size[1] - 1])


def _in_cells(camera, cells: np.ndarray, inverse: np.ndarray, colors: np.ndarray, cell: float):
    """Points, colours and lengths of edges of the marked ``cells`` at ``inverse`` depths."""
    pixels = torch.from_numpy(_middles(camera, cells, cell)).float()
    depth = torch.from_numpy(1 / inverse[cells]).float()
    focal = float(camera.K[0, 0] + camera.K[1, 1]) / 2
    points = lift(camera, pixels, depth)
    return points, torch.from_numpy(np.asarray(colors)).float(), cell * depth / focal


def _inverse_depths(camera, points: Tensor, cell: float, which: str) -> np.ndarray:
    """[rows, columns] the largest ('amax') or least ('amin') 1 / depth of the points in each cell;
    0: there is none."""
    columns, rows = (int(-(-side // cell)) for side in camera.size)
    flat, _, inverse = _cells_of(camera, points, cell, (rows, columns))
    out = torch.zeros(rows * columns, dtype=torch.float64)
    out.scatter_reduce_(0, flat, inverse, which, include_self=False)
    return out.reshape(rows, columns).numpy()


def _cells_of(camera, points: Tensor, cell: float, shape: tuple[int, int]):
    """Flat cell [M] of each point that ``camera`` sees, a mask [N] of these, and 1 / depth [M]."""
    pixel, depth = camera.project(points)
    seen = camera.sees(points)
    spots = ((pixel[seen] + 0.5) / cell).long()
    flat = spots[:, 1].clamp(0, shape[0] - 1) * shape[1] + spots[:, 0].clamp(0, shape[1] - 1)
    return flat, seen, 1 / depth[seen].double()


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
    return (inverse > 0) & (inverse <= FOREGROUND * _far_around(inverse, AROUND))


def _far_around(inverse: np.ndarray, reach: int) -> np.ndarray:
    """[H, W] inverse depth of the farther ones of the known cells around each known one; else 0."""
    side, rows = 2 * reach + 1, inverse > 0
    padded = np.pad(np.where(rows, inverse, np.inf), reach, constant_values=np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side))
    far = np.zeros(inverse.shape)
    ordered = np.sort(windows[rows].reshape(-1, side * side), axis=1)
    # The quantile of the known ones; np.nanquantile takes a hundred times as long.
    place = 0.3 * (np.isfinite(ordered).sum(1) - 1)
    low = place.astype(int)
    one = np.arange(len(ordered))
    above = ordered[one, np.ceil(place).astype(int)]
    far[rows] = ordered[one, low] + (place - low) * (above - ordered[one, low])
    return far


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
