"""TSP3D's targets and losses: what to keep, which voxels speak for the target, boxes and scores."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .center_losses import diou_loss


def focal_loss(logits: Tensor, target: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Sum of the sigmoid focal loss (https://arxiv.org/abs/1708.02002).

    Args:
        logits: any shape.
        target: the same shape, bool.
        alpha: weight of the positives; negatives have 1 - alpha.
        gamma: power of the miss.
    """
    truth = target.to(logits)
    probability = logits.sigmoid()
    miss = torch.where(target, 1 - probability, probability)
    weight = torch.where(target, alpha, 1 - alpha) * miss**gamma
    return (weight * F.binary_cross_entropy_with_logits(logits, truth, reduction="none")).sum()


def near_boxes(points: Tensor, centers: Tensor, side: float) -> Tensor:
    """Mask [N] of ``points`` [N, 3] strictly inside a cube of ``side`` metres about a centre.

    Args:
        points: [N, 3] metres.
        centers: [M, 3] metres; the objects' sizes do not count.
        side: metres.
    """
    away = (points[:, None] - centers[None]).abs().amax(2)
    return (away < side / 2).any(1)


def keep_loss(logits: Tensor, near: Tensor) -> Tensor:
    """Focal loss of "to be pruned" [N] where ``near`` [N] says what is to stay, over a third."""
    inside = int(near.sum())
    return focal_loss(logits, ~near) / max(inside or len(near), 1) / 3


def assign(points: Tensor, centers: Tensor, nearest: int) -> Tensor:
    """Row [N] of the box that each point speaks for, -1 for none.

    A box takes the points nearer to its centre than the one that comes ``nearest`` + 1st (the last
    one, where there are fewer); a point that several take goes to the nearest of them.

    Args:
        points: [N, 3] metres.
        centers: [M, 3] metres.
        nearest: points of a box.
    """
    if not len(points) or not len(centers):
        return torch.full((len(points),), -1, dtype=torch.int64, device=points.device)
    # squares of float64: what is equally far is so on every device
    distance = (points.double()[:, None] - centers.double()[None]).square().sum(2)
    limit = distance.topk(min(nearest + 1, len(points)), 0, largest=False).values[-1]
    distance = torch.where(distance < limit, distance, torch.inf)
    least, box = distance.min(1)
    return torch.where(least.isfinite(), box, -1)


def class_loss(logits: Tensor, assigned: Tensor) -> Tensor:
    """Focal loss of "speaks for the target" [N] over the number of those that do."""
    positive = assigned >= 0
    return focal_loss(logits, positive) / positive.sum().clamp(min=1)


def box_loss(boxes: Tensor, assigned: Tensor, truth: Tensor) -> Tensor:
    """Mean of 1 - DIoU over the points that speak for a box.

    Args:
        boxes: [N, 6] centre and size of each point's box.
        assigned: [N] row of ``truth``, or -1.
        truth: [M, 6].
    """
    positive = assigned >= 0
    return diou_loss(boxes[positive], truth[assigned[positive]])


def direct_box_loss(
    boxes: Tensor, assigned: Tensor, truth: Tensor, weights: Tensor | None = None
) -> Tensor:
    """Mean L1 of centres (metres) and of sizes' logarithms, and 1 - DIoU.

    Where boxes do not overlap yet, DIoU alone hardly says where to go. Arguments as ``box_loss``,
    and ``weights`` [N] of the means.
    """
    positive = assigned >= 0
    own, wanted = boxes[positive], truth[assigned[positive]]
    weight = own.new_ones(len(own)) if weights is None else weights[positive]
    centers = F.smooth_l1_loss(own[:, :3], wanted[:, :3], beta=0.02, reduction="none")
    sizes = F.smooth_l1_loss(own[:, 3:6].log(), wanted[:, 3:6].log(), beta=0.05, reduction="none")
    away = ((centers * 2 + sizes).sum(1) * weight).sum() / weight.sum().clamp(min=1e-6) / 3
    return away + diou_loss(own, wanted, weight)


def equal_shares(rows: Tensor, most: float = 8.0) -> Tensor:
    """[N] weights under which each object counts alike, however many voxels it has.

    Args:
        rows: [N] object of each voxel, -1 for none; those weigh 1, the others 1 on average.
        most: no voxel weighs more, so that an object of a single one does not rule.
    """
    weights = torch.ones(len(rows), device=rows.device)
    positive = rows >= 0
    if positive.any():
        counts = torch.bincount(rows[positive])
        mean = positive.sum() / (counts > 0).sum()
        weights[positive] = (mean / counts[rows[positive]]).clamp(max=most)
    return weights


def start_small(box: nn.Linear, size: float = 0.6) -> None:
    """Lets a layer of boxes begin with ``size`` metres, centred on the voxel."""
    nn.init.normal_(box.weight, std=0.01)
    nn.init.zeros_(box.bias)
    nn.init.constant_(box.bias[3:], math.log(size))


def smallest_box(points: Tensor, boxes: Tensor, margin: float) -> Tensor:
    """Row [N] of the smallest box that a point lies in, -1 where in none.

    Args:
        points: [N, 3] metres.
        boxes: [M, >=6] centre and size, taken as parallel to the axes.
        margin: metres by which every box is wider on each side.
    """
    if not len(boxes):
        return torch.full((len(points),), -1, dtype=torch.int64, device=points.device)
    away = (points[:, None] - boxes[None, :, :3]).abs() - boxes[None, :, 3:6] / 2
    volume = boxes[:, 3:6].prod(1).expand(len(points), -1)
    least, row = torch.where((away < margin).all(2), volume, torch.inf).min(1)
    return torch.where(least.isfinite(), row, -1)
