"""What TransFusion's queries learn: a Hungarian match with the true boxes.

A query's box code is (x, y in cells, z, log dx, log dy, log dz, sin yaw, cos yaw[, vx, vy]).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from sparse3d.ops import rotated
from sparse3d.structures import Boxes

from .center_targets import MAX_LOG_SIZE, MapFrame, draw_gaussians, gather_objects, gaussian_radius


@dataclass(frozen=True)
class MatchCosts:
    """Weights of the terms of a query's cost against a true box.

    Attributes:
        class_weight: focal cost of the class.
        center_weight: L1 of the centres in fractions of the range.
        iou_weight: 3-D IoU.
        alpha: of the focal cost.
        gamma: of the focal cost.
    """

    class_weight: float = 0.15
    center_weight: float = 0.25
    iou_weight: float = 0.25
    alpha: float = 0.25
    gamma: float = 2.0


@dataclass(frozen=True, eq=False)
class QueryTargets:
    """Targets of P queries of each sample.

    Attributes:
        labels: [B, P] int64; the number of classes where there is no box.
        matched: [B, P] bool.
        code: [B, P, 8 or 10]; zeros where there is no box.
        iou: [B, P] IoU with the matched box, zeros elsewhere; to watch training.
    """

    labels: Tensor
    matched: Tensor
    code: Tensor
    iou: Tensor


@torch.no_grad()
def match_queries(
    code: Tensor,
    logits: Tensor,
    boxes: list[Boxes],
    labels: list[Tensor],
    frame: MapFrame,
    point_range: Sequence[float],
    costs: MatchCosts,
) -> QueryTargets:
    """Pairs queries and true boxes one to one at the least total cost.

    Args:
        code: [B, P, 8 or 10] predicted.
        logits: [B, P, classes].
        boxes: true boxes of each sample; none is fine.
        labels: [N] int64 of each.
        frame: of the map.
        point_range: (x0, y0, z0, x1, y1, z1) in metres.
        costs: weights.
    """
    classes = logits.shape[-1]
    target = QueryTargets(
        torch.full(logits.shape[:2], classes, device=code.device),
        torch.zeros(logits.shape[:2], dtype=torch.bool, device=code.device),
        torch.zeros_like(code),
        code.new_zeros(logits.shape[:2]),
    )
    all_classes = torch.arange(classes, device=code.device)
    sample, truth, truth_label = gather_objects(boxes, labels, all_classes, code.shape[-1] == 10)
    predicted = decode_queries(code, frame)
    for index in range(len(code)):
        own = sample == index
        iou = bottom_iou3d(predicted[index], truth[own])
        cost = match_cost(
            predicted[index], logits[index], truth[own], truth_label[own], iou, point_range, costs
        )
        rows, columns = linear_sum_assignment(cost.nan_to_num(100.0, 100.0, -100.0).cpu().numpy())
        rows, columns = (torch.as_tensor(i, device=code.device) for i in (rows, columns))
        target.labels[index, rows] = truth_label[own][columns]
        target.matched[index, rows] = True
        target.code[index, rows] = encode_queries(truth[own][columns], frame)
        target.iou[index, rows] = iou[rows, columns].clamp(0, 1)
    return target


def match_cost(
    predicted: Tensor,
    logits: Tensor,
    truth: Tensor,
    truth_label: Tensor,
    iou: Tensor,
    point_range: Sequence[float],
    costs: MatchCosts,
) -> Tensor:
    """Cost [P, G] of each query against each true box."""
    p = logits.sigmoid()
    positive = -(p + 1e-12).log() * costs.alpha * (1 - p) ** costs.gamma
    negative = -(1 - p + 1e-12).log() * (1 - costs.alpha) * p**costs.gamma
    low, high = predicted.new_tensor(point_range).view(2, 3)[:, :2]
    places = [(b[:, :2] - low) / (high - low) for b in (predicted, truth)]
    return (
        costs.class_weight * (positive - negative)[:, truth_label]
        + costs.center_weight * torch.cdist(*places, p=1)
        - costs.iou_weight * iou
    )


def bottom_iou3d(a: Tensor, b: Tensor) -> Tensor:
    """IoU [N, M] of boxes whose z is taken as their bottom, as the published match does."""

    def raised(boxes: Tensor) -> Tensor:
        boxes = boxes[:, :7].clone()
        boxes[:, 2] += boxes[:, 5] / 2
        return boxes

    return rotated.iou3d(raised(a), raised(b)).to(a)


@torch.no_grad()
def query_heatmap(
    boxes: list[Boxes],
    labels: list[Tensor],
    like: Tensor,
    frame: MapFrame,
    overlap: float,
    min_radius: int,
) -> Tensor:
    """Target heat map of the shape of ``like`` [B, classes, H, W]; what lies outside is cut off."""
    batch, classes, height, width = like.shape
    all_classes = torch.arange(classes, device=like.device)
    sample, truth, channel = gather_objects(boxes, labels, all_classes, velocity=False)
    cell = frame.to_cells(truth[:, :2]).trunc().long()
    radius = (
        gaussian_radius(frame.scale_to_cells(truth[:, 3:5]), overlap).int().clamp(min=min_radius)
    )
    plane = sample * classes + channel
    maps = draw_gaussians(batch * classes, (width, height), plane, cell, radius.long())
    return maps.view_as(like)


def encode_queries(boxes: Tensor, frame: MapFrame) -> Tensor:
    """Code [M, 8 or 10] of ``boxes`` [M, 7 or 9]."""
    yaw = boxes[:, 6:7]
    place = frame.to_cells(boxes[:, :2])
    sizes = boxes[:, 3:6].log()
    return torch.cat([place, boxes[:, 2:3], sizes, yaw.sin(), yaw.cos(), boxes[:, 7:]], 1)


def decode_queries(code: Tensor, frame: MapFrame) -> Tensor:
    """Boxes [..., 7 or 9] of ``code`` [..., 8 or 10]."""
    center = frame.to_metres(code[..., :2])
    sizes = code[..., 3:6].clamp(max=MAX_LOG_SIZE).exp()
    yaw = torch.atan2(code[..., 6:7], code[..., 7:8])
    return torch.cat([center, code[..., 2:3], sizes, yaw, code[..., 8:]], -1)
