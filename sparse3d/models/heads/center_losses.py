"""Losses of centre heads, on predictions already gathered at the objects."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sparse3d.ops import rotated


def heatmap_loss(logits: Tensor, target: Tensor) -> Tensor:
    """CornerNet's focal loss over the number of ones in ``target``; undivided where there is none.

    Args:
        logits: any shape, before the sigmoid.
        target: the same shape, 0..1.
    """
    p = logits.sigmoid().clamp(1e-4, 1 - 1e-4)
    positive = (target == 1).to(p)
    hit = p.log() * (1 - p) ** 2 * positive
    miss = (1 - p).log() * p**2 * (1 - target) ** 4 * (1 - positive)
    return -(hit + miss).sum() / positive.sum().clamp(min=1)


def code_loss(code: Tensor, target: Tensor, weights: Sequence[float] | None = None) -> Tensor:
    """L1 per code entry, weighted and summed, over the number of objects.

    Args:
        code: [M, K] predicted.
        target: [M, K].
        weights: of each entry; ones if None.
    """
    error = (code - target).abs()
    if weights is not None:
        error = error * error.new_tensor(weights)
    return error.sum() / max(len(code), 1)


def iou_branch_loss(predicted: Tensor, boxes: Tensor, target: Tensor) -> Tensor:
    """L1 of a predicted quality to 2 IoU - 1 of the predicted with the true box.

    Args:
        predicted: [M].
        boxes: [M, >=7] predicted boxes; no gradient reaches them.
        target: [M, >=7] true boxes.
    """
    iou = rotated.paired_iou3d(boxes.detach()[:, :7].contiguous(), target[:, :7].contiguous())
    return (predicted - (2 * iou.to(predicted) - 1)).abs().sum() / max(len(boxes), 1)


def diou_loss(boxes: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean (by ``weights`` [M]) of 1 - DIoU of boxes taken as axis-aligned, heading ignored.

    DIoU (https://arxiv.org/abs/1911.08287) is IoU less the squared distance of the centres over the
    squared diagonal of the box around both, cut to -1..1.

    Args:
        boxes: [M, >=6] predicted.
        target: [M, >=6].
    """
    low = torch.maximum(*(b[:, :3] - b[:, 3:6] / 2 for b in (boxes, target)))
    high = torch.minimum(*(b[:, :3] + b[:, 3:6] / 2 for b in (boxes, target)))
    outer_low = torch.minimum(*(b[:, :3] - b[:, 3:6] / 2 for b in (boxes, target)))
    outer_high = torch.maximum(*(b[:, :3] + b[:, 3:6] / 2 for b in (boxes, target)))
    inner = (high - low).clamp(min=0).prod(1)
    union = boxes[:, 3:6].prod(1) + target[:, 3:6].prod(1) - inner
    distance = ((boxes[:, :3] - target[:, :3]) ** 2).sum(1)
    diou = inner / union - distance / ((outer_high - outer_low) ** 2).sum(1)
    if weights is None:
        return (1 - diou.clamp(-1, 1)).sum() / max(len(boxes), 1)
    return ((1 - diou.clamp(-1, 1)) * weights).sum() / weights.sum().clamp(min=1e-6)
