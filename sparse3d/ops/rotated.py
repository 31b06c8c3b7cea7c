"""Oriented boxes: overlap seen from above, IoU, non-maximum suppression, points inside.

A box is (x, y, z of the centre, dx, dy, dz, yaw). Everything is computed in float64 and returned in
the type of the boxes. None of it has a gradient: an IoU here is a target or a measure, not a loss.
"""

import torch
from torch import Tensor

from . import native
from .arguments import check_floats
from .backend import choose
from .reference import rotated as reference

TINY = 1e-300


def bev_overlap(a: Tensor, b: Tensor) -> Tensor:
    """Common ground area of all pairs.

    Args:
        a: [N, >=7] boxes, metres and radians; further columns are ignored.
        b: [M, >=7].

    Returns:
        [N, M] m^2, in the type of ``a``.

    Raises:
        ValueError: a box has fewer than 7 columns or a value that is not finite, or boxes are
            integers.
    """
    _check(a, b)
    return _overlap_matrix(a, b).to(a.dtype)


def bev_iou(a: Tensor, b: Tensor) -> Tensor:
    """Common ground area over that of the union, [N, M]; arguments as ``bev_overlap``."""
    _check(a, b)
    common = _overlap_matrix(a, b)
    return _over_union(common, _area(a)[:, None], _area(b)[None]).to(a.dtype)


def iou3d(a: Tensor, b: Tensor) -> Tensor:
    """Common volume over that of the union, [N, M]; arguments as ``bev_overlap``."""
    _check(a, b)
    common = _overlap_matrix(a, b) * _common_height(a[:, None], b[None])
    return _over_union(common, _volume(a)[:, None], _volume(b)[None]).to(a.dtype)


def paired_bev_overlap(a: Tensor, b: Tensor) -> Tensor:
    """Common ground area [N] in m^2 of row i of ``a`` [N, >=7] and row i of ``b`` [N, >=7]."""
    _check(a, b, paired=True)
    return _overlap_pairs(a, b).to(a.dtype)


def paired_bev_iou(a: Tensor, b: Tensor) -> Tensor:
    """``bev_iou`` [N] of row i of ``a`` [N, >=7] and row i of ``b`` [N, >=7]."""
    _check(a, b, paired=True)
    return _over_union(_overlap_pairs(a, b), _area(a), _area(b)).to(a.dtype)


def paired_iou3d(a: Tensor, b: Tensor) -> Tensor:
    """``iou3d`` [N] of row i of ``a`` [N, >=7] and row i of ``b`` [N, >=7]."""
    _check(a, b, paired=True)
    common = _overlap_pairs(a, b) * _common_height(a, b)
    return _over_union(common, _volume(a), _volume(b)).to(a.dtype)


def nms(
    boxes: Tensor,
    scores: Tensor,
    threshold: float,
    pre_max: int | None = None,
    post_max: int | None = None,
) -> Tensor:
    """Non-maximum suppression: a box goes when its ``bev_iou`` with a kept better one is too large.

    Args:
        boxes: [N, >=7] boxes, metres and radians.
        scores: [N]; equal scores rank by row.
        threshold: a box goes when the IoU is larger than this.
        pre_max: only this many best boxes take part.
        post_max: at most this many are returned.

    Returns:
        [k] int64 rows by falling score.

    Raises:
        ValueError: as ``bev_overlap``, or the number of scores is another, or a score is NaN.
    """
    _check(boxes)
    if scores.shape != boxes.shape[:1] or bool(scores.isnan().any()):
        raise ValueError(
            f"scores have shape {tuple(scores.shape)} for {len(boxes)} boxes, "
            f"{int(scores.isnan().sum())} of them NaN; one number per box is needed"
        )
    order = scores.sort(descending=True, stable=True).indices[:pre_max]
    keep = choose(_NMS, boxes)(reference.prepare(boxes[order]), float(threshold))
    return order[keep][:post_max]


def points_in_boxes(points: Tensor, boxes: Tensor) -> Tensor:
    """Which points lie strictly inside which boxes.

    Args:
        points: [P, 3] metres.
        boxes: [B, >=7] metres and radians.

    Returns:
        Mask [B, P].

    Raises:
        ValueError: as ``bev_overlap``.
    """
    _check(boxes)
    if points.dim() != 2 or points.shape[1] != 3:
        raise ValueError(f"points have shape {tuple(points.shape)}; [P, 3] (x, y, z) is needed")
    return choose(_INSIDE, boxes)(points.detach(), boxes[:, :7].detach())


def _check(*boxes: Tensor, paired: bool = False) -> None:
    for rows in boxes:
        check_floats("boxes", rows)  # results come in their type
        if rows.dim() != 2 or rows.shape[1] < 7:
            raise ValueError(
                f"boxes have shape {tuple(rows.shape)}; [N, 7] (x, y, z, dx, dy, dz, yaw) or more "
                "columns are needed"
            )
        wrong = ~rows[:, :7].isfinite().all(1)
        if wrong.any():
            row = int(wrong.nonzero()[0])
            raise ValueError(
                f"{int(wrong.sum())} boxes are not finite, the first is row {row}: "
                f"{rows[row].tolist()}; remove them first"
            )
    if paired and len(boxes[0]) != len(boxes[1]):
        raise ValueError(f"{len(boxes[0])} and {len(boxes[1])} boxes cannot be paired")


def _overlap_matrix(a: Tensor, b: Tensor) -> Tensor:
    return choose(_OVERLAP, a)(reference.prepare(a.detach()), reference.prepare(b.detach()))


def _overlap_pairs(a: Tensor, b: Tensor) -> Tensor:
    return choose(_PAIRED, a)(reference.prepare(a.detach()), reference.prepare(b.detach()))


def _area(boxes: Tensor) -> Tensor:
    return boxes[..., 3:5].detach().double().prod(-1)


def _volume(boxes: Tensor) -> Tensor:
    return boxes[..., 3:6].detach().double().prod(-1)


def _common_height(a: Tensor, b: Tensor) -> Tensor:
    az, bz = a[..., 2].detach().double(), b[..., 2].detach().double()
    ah, bh = a[..., 5].detach().double() / 2, b[..., 5].detach().double() / 2
    return (torch.minimum(az + ah, bz + bh) - torch.maximum(az - ah, bz - bh)).clamp(min=0)


def _over_union(common: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Boxes without any extent have IoU 0, not 0/0."""
    return common / (a + b - common).clamp(min=TINY)


def _native_overlap(a: Tensor, b: Tensor) -> Tensor:
    out = a.new_empty(len(a), len(b))
    native.call("s3d_bev_overlap", a, len(a), b, len(b), out, native.threads())
    return out


def _native_paired(a: Tensor, b: Tensor) -> Tensor:
    out = a.new_empty(len(a))
    native.call("s3d_paired_bev_overlap", a, b, len(a), out)
    return out


def _native_nms(boxes: Tensor, threshold: float) -> Tensor:
    keep = torch.empty(len(boxes), dtype=torch.bool)
    native.call("s3d_rotated_nms", boxes, len(boxes), threshold, keep)
    return keep


def _cuda_nms(boxes: Tensor, threshold: float) -> Tensor:
    """On the CPU: each box waits for those before it, and a GPU would wait for each box."""
    nms = _native_nms if native.available() else reference.nms
    return nms(boxes.cpu(), threshold).to(boxes.device)


def _native_inside(points: Tensor, boxes: Tensor) -> Tensor:
    mask = torch.empty(len(boxes), len(points), dtype=torch.bool)
    points, boxes = points.double().T.contiguous(), boxes.double().contiguous()
    turn = torch.stack([boxes[:, 6].cos(), boxes[:, 6].sin()], 1)
    native.call(
        "s3d_points_in_boxes",
        points,
        points.shape[1],
        boxes,
        turn,
        len(boxes),
        mask,
        native.threads(),
    )
    return mask


_OVERLAP = {
    "reference": reference.overlap_matrix,
    "native": _native_overlap,
    "cuda": reference.overlap_matrix,
}
_PAIRED = {"reference": reference.overlap, "native": _native_paired, "cuda": reference.overlap}
_NMS = {"reference": reference.nms, "native": _native_nms, "cuda": _cuda_nms}
_INSIDE = {
    "reference": reference.points_in_boxes,
    "native": _native_inside,
    "cuda": reference.points_in_boxes,
}
