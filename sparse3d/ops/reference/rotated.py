"""Overlap of oriented boxes seen from above: the torch definition, in float64."""

import torch
from torch import Tensor

PAIRS_AT_ONCE = 1 << 18


def prepare(boxes: Tensor) -> Tensor:
    """What the overlap needs of ``boxes`` [N, >=7]: [N, 6] float64 (x, y, dx/2, dy/2, cos, sin)."""
    boxes = boxes[:, :7].double()
    yaw = boxes[:, 6]
    return torch.cat([boxes[:, :2], boxes[:, 3:5] / 2, torch.stack([yaw.cos(), yaw.sin()], 1)], 1)


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """Common area [...] in m^2 of rectangles ``a`` and ``b`` [..., 6] (see ``prepare``).

    In the frame of ``a`` the other rectangle is a quadrilateral with the boundary (x(t), y(t)). The
    part of it inside ``a`` has, at each x, the length clamp(top) - clamp(bottom), so that the area
    in common is the line integral of -clamp(y) dx over the boundary, with x clamped too. No polygon
    is built, and an edge that (nearly) lies on another does no harm: the integrand is continuous.
    """
    ax, ay, ahx, ahy, acos, asin = a.unbind(-1)
    bx, by, bhx, bhy, bcos, bsin = b.unbind(-1)
    dx, dy = bx - ax, by - ay
    cos, sin = acos * bcos + asin * bsin, acos * bsin - asin * bcos
    x, y = dx * acos + dy * asin, dy * acos - dx * asin
    ux, uy, vx, vy = bhx * cos, bhx * sin, -bhy * sin, bhy * cos
    corner_x = (x + ux + vx, x - ux + vx, x - ux - vx, x + ux - vx)
    corner_y = (y + uy + vy, y - uy + vy, y - uy - vy, y + uy - vy)
    area = torch.zeros_like(x)
    for i in range(4):
        j = (i + 1) % 4
        area = area - _clamped_integral(
            corner_x[i], corner_y[i], corner_x[j], corner_y[j], ahx, ahy
        )
    # Exactly zero, not a rounding error, where an axis of either rectangle separates the two.
    along, across = dx * bcos + dy * bsin, dy * bcos - dx * bsin
    apart = (x.abs() >= ahx + ux.abs() + vx.abs()) | (y.abs() >= ahy + uy.abs() + vy.abs())
    apart |= along.abs() >= bhx + (ahx * cos).abs() + (ahy * sin).abs()
    apart |= across.abs() >= bhy + (ahx * sin).abs() + (ahy * cos).abs()
    return torch.where(apart, 0.0, area.clamp(min=0))


def _clamped_integral(x0, y0, x1, y1, half_x, half_y) -> Tensor:
    """Integral of clamp(y, +-half_y) dx along the segment, over x in [-half_x, half_x]."""
    left, right = x0.clamp(-half_x, half_x), x1.clamp(-half_x, half_x)
    run = torch.where(x1 == x0, 1.0, x1 - x0)
    ya, yb = y0 + (left - x0) / run * (y1 - y0), y0 + (right - x0) / run * (y1 - y0)
    rise = torch.where(yb == ya, 1.0, yb - ya)
    s, t = ((-half_y - ya) / rise).clamp(0, 1), ((half_y - ya) / rise).clamp(0, 1)
    s, t = torch.minimum(s, t), torch.maximum(s, t)
    # clamp(y) has its kinks at s and t and is straight between them.
    values = [ya, ya + s * (yb - ya), ya + t * (yb - ya), yb]
    start, low, high, end = (value.clamp(-half_y, half_y) for value in values)
    mean = s * (start + low) + (t - s) * (low + high) + (1 - t) * (high + end)
    return mean * (right - left) / 2


def overlap_matrix(a: Tensor, b: Tensor) -> Tensor:
    """Common areas [N, M] of all pairs of ``a`` [N, 6] and ``b`` [M, 6]."""
    rows = max(PAIRS_AT_ONCE // max(len(b), 1), 1)
    parts = [overlap(part[:, None], b[None]) for part in a.split(rows)]
    return torch.cat(parts) if parts else a.new_zeros(0, len(b))


def nms(boxes: Tensor, threshold: float) -> Tensor:
    """Mask [N] of the kept ``boxes`` [N, 6] (see ``prepare``), which come by falling score."""
    area = 4 * boxes[:, 2] * boxes[:, 3]
    keep = torch.ones(len(boxes), dtype=torch.bool, device=boxes.device)
    for row in range(len(boxes)):
        if keep[row]:
            common = overlap(boxes[row : row + 1], boxes[row + 1 :])
            iou = common / (area[row] + area[row + 1 :] - common).clamp(min=1e-300)
            keep[row + 1 :] &= iou <= threshold
    return keep


def points_in_boxes(points: Tensor, boxes: Tensor) -> Tensor:
    """Mask [B, P] of the ``points`` [P, 3] strictly inside ``boxes`` [B, 7]."""
    points, boxes = points.double(), boxes.double()
    rows = max(PAIRS_AT_ONCE // max(len(points), 1), 1)
    parts = [_inside(points, part) for part in boxes.split(rows)]
    mask = torch.zeros(0, len(points), dtype=torch.bool, device=points.device)
    return torch.cat([mask, *parts])


def _inside(points: Tensor, boxes: Tensor) -> Tensor:
    cos, sin = boxes[:, 6:].cos(), boxes[:, 6:].sin()
    dx, dy, dz = (points[None] - boxes[:, None, :3]).unbind(-1)
    x, y = dx * cos + dy * sin, dy * cos - dx * sin
    half = boxes[:, 3:6] / 2
    return (x.abs() < half[:, :1]) & (y.abs() < half[:, 1:2]) & (dz.abs() < half[:, 2:])
