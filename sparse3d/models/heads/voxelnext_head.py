"""VoxelNeXt's head: boxes predicted at the voxels of a sparse map, with no dense map anywhere."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from sparse3d.registry import MODELS
from sparse3d.structures import Boxes, Detections, SparseVoxels, VoxelGrid

from ..backbones.sparse_resnet import conv_block
from ..layers import SubMConv, VoxelSequential
from .center_decode import CenterDecoding, merge_groups
from .center_head import (
    BRANCHES,
    HEATMAP_PRIOR,
    branch_outputs,
    check_code_weights,
    group_labels,
)
from .center_losses import code_loss, diou_loss, heatmap_loss, iou_branch_loss
from .center_targets import MapFrame, decode, encode, gather_objects, gaussian_radius

QUALITY_LOG_SIZE = 5.0
"""Boxes are cut to exp(-5)..exp(5) metres before their IoU becomes a target or a loss."""


@dataclass(frozen=True, eq=False)
class VoxelMaps:
    """What the head says about each voxel.

    Attributes:
        voxels: the sparse map, N voxels.
        groups: per class group and branch, [N, channels]: center in cells, center_z in metres, dim
            in log metres, rot as cos and sin, hm as logits, and vel in m/s, iou where predicted.
    """

    voxels: SparseVoxels
    groups: list[dict[str, Tensor]]


@dataclass(frozen=True, eq=False)
class VoxelTargets:
    """Targets of one class group: M objects, each learnt at one of N voxels.

    Attributes:
        heatmap: [N, classes], 1 at the objects' voxels.
        row: [M] int64 voxel of each object.
        code: [M, 8 or 10] box code, its offset relative to that voxel.
        boxes: [M, 7 or 9] the true boxes.
    """

    heatmap: Tensor
    row: Tensor
    code: Tensor
    boxes: Tensor


@MODELS.register_module()
class VoxelNeXtHead(nn.Module):
    """Fully sparse centre head (https://arxiv.org/abs/2303.11301).

    Args:
        in_channels: channels of the sparse map, and the width of the branches.
        grid: the base grid; the map's place in the world comes from it.
        stride: base cells per map cell.
        class_names: all classes.
        groups: class names of each group; a group shares boxes and NMS. One group if None.
        velocity: predict vx, vy.
        iou: predict the IoU of each box with the truth.
        kernel_size: of the branches' convolutions but the last, which is 1.
        num_convs: convolutions of each branch (by name; 2 where not named) or of all.
        bias_before_norm: give convolutions a bias though a norm follows, as published weights have.
        overlap: IoU that fixes the radius of a heat map bump.
        min_radius: least radius in cells.
        heatmap_weight: of the heat map's loss.
        box_weight: of the box code's loss, and of the DIoU loss.
        code_weights: of each code entry (x, y, z, three log sizes, cos, sin[, vx, vy]).
        iou_weight: of the IoU branch's loss.
        diou: add a DIoU loss on the decoded boxes.
        decoding: settings of ``CenterDecoding``.

    Raises:
        ValueError: groups that do not hold every class once, or settings of another length.
    """

    def __init__(
        self,
        in_channels: int,
        grid: VoxelGrid,
        stride: float,
        class_names: Sequence[str],
        groups: Sequence[Sequence[str]] | None = None,
        velocity: bool = False,
        iou: bool = False,
        kernel_size: int = 1,
        num_convs: int | Mapping[str, int] = 2,
        bias_before_norm: bool = True,
        overlap: float = 0.1,
        min_radius: int = 2,
        heatmap_weight: float = 1.0,
        box_weight: float = 0.25,
        code_weights: Sequence[float] | None = None,
        iou_weight: float = 1.0,
        diou: bool = False,
        decoding: Mapping | None = None,
    ):
        super().__init__()
        self.class_names = tuple(class_names)
        self.groups = group_labels(groups or [class_names], self.class_names)
        self.frame = MapFrame.of(grid, stride)
        self.velocity, self.iou, self.diou = velocity, iou, diou
        self.overlap, self.min_radius = overlap, min_radius
        self.heatmap_weight, self.box_weight = heatmap_weight, box_weight
        self.iou_weight, self.code_weights = iou_weight, check_code_weights(code_weights, velocity)
        self.decoding = CenterDecoding(**(decoding or {}))
        self.decoding.check(self.class_names, iou)
        self.heads_list = nn.ModuleList()
        for group in self.groups:
            branches = {}
            for name, channels in branch_outputs(len(group), velocity, iou).items():
                count = num_convs if isinstance(num_convs, int) else num_convs.get(name, 2)
                branches[name] = _branch(
                    in_channels, channels, count, kernel_size, bias_before_norm
                )
            self.heads_list.append(nn.ModuleDict(branches))
        self._init_weights()

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, SubMConv):
                kernel, inputs, _ = module.weight.shape
                nn.init.normal_(module.weight, std=(2 / (kernel * inputs)) ** 0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for head in self.heads_list:
            nn.init.constant_(head["hm"][-1].bias, HEATMAP_PRIOR)

    def forward(self, voxels: SparseVoxels) -> VoxelMaps:
        """Every branch's values at the voxels of a sparse map."""
        groups = [
            {name: branch(voxels).features.float() for name, branch in head.items()}
            for head in self.heads_list
        ]
        return VoxelMaps(voxels, groups)

    def targets(
        self, boxes: list[Boxes], labels: list[Tensor], voxels: SparseVoxels
    ) -> list[VoxelTargets]:
        """Targets of each group at ``voxels``."""
        return [
            assign_voxels(
                boxes,
                labels,
                torch.tensor(group, device=voxels.device),
                voxels,
                self.frame,
                self.velocity,
                self.overlap,
                self.min_radius,
            )
            for group in self.groups
        ]

    def loss(self, raw: VoxelMaps, boxes: list[Boxes], labels: list[Tensor]) -> dict[str, Tensor]:
        """Losses summed over the groups; their sum is what is minimised."""
        total: dict[str, Tensor] = {}
        for maps, target in zip(raw.groups, self.targets(boxes, labels, raw.voxels)):
            for name, value in self.group_loss(raw.voxels, maps, target).items():
                total[name] = total.get(name, 0) + value
        return total

    def group_loss(
        self, voxels: SparseVoxels, maps: dict[str, Tensor], target: VoxelTargets
    ) -> dict[str, Tensor]:
        """Weighted losses of one group."""
        code = box_code(maps)[target.row]
        losses = {
            "loss_heatmap": self.heatmap_weight * heatmap_loss(maps["hm"], target.heatmap),
            "loss_box": self.box_weight * code_loss(code, target.code, self.code_weights),
        }
        if self.iou or self.diou:
            size = code[:, 3:6].clamp(-QUALITY_LOG_SIZE, QUALITY_LOG_SIZE)
            bounded = torch.cat([code[:, :3], size, code[:, 6:]], 1)
            boxes = decode(bounded, voxels.coords[target.row, 1:], self.frame)
        if self.iou:
            quality = maps["iou"][target.row, 0]
            losses["loss_iou"] = self.iou_weight * iou_branch_loss(quality, boxes, target.boxes)
        if self.diou:
            losses["loss_diou"] = self.box_weight * diou_loss(boxes, target.boxes)
        return losses

    @torch.no_grad()
    def predict(self, raw: VoxelMaps) -> list[Detections]:
        """Detections of each sample, by falling score."""
        found = []
        for rows in sample_rows(raw.voxels):
            cell = raw.voxels.coords[rows, 1:]
            parts = []
            for maps, group in zip(raw.groups, self.groups):
                scores, code = maps["hm"][rows].sigmoid().T, box_code(maps)[rows]
                iou = maps["iou"][rows, 0] if self.iou else None
                classes = torch.tensor(group, device=code.device)
                parts.append(self.decoding.choose(scores, cell, code, iou, classes, self.frame))
            found.append(merge_groups(parts))
        return found


@torch.no_grad()
def assign_voxels(
    boxes: list[Boxes],
    labels: list[Tensor],
    classes: Tensor,
    voxels: SparseVoxels,
    frame: MapFrame,
    velocity: bool = False,
    overlap: float = 0.1,
    min_radius: int = 2,
) -> VoxelTargets:
    """Targets of one group of classes at the voxels of a sparse map.

    A box is learnt at the voxel of its sample whose index is nearest to its centre in cells; of
    equally near ones the first in coordinate order. Its heat is the larger of two Gaussians on all
    voxels, around the centre and around that voxel. Centres are first moved onto the map, as
    published. Boxes of a sample without any voxel have no target.

    Args:
        boxes: true boxes of each sample.
        labels: [N] int64 of each sample.
        classes: [C] int64, the labels of the group, in channel order.
        voxels: the sparse map.
        frame: of the map.
        velocity: whether the code has vx, vy.
        overlap: IoU that a box moved by the radius still has.
        min_radius: least radius in cells.

    Raises:
        ValueError: a box is not finite, or velocities are asked for and not given.
    """
    sample, rows, channel = gather_objects(boxes, labels, classes, velocity)
    parts = sample_rows(voxels)
    filled = torch.tensor([part.stop > part.start for part in parts], device=sample.device)[sample]
    sample, rows, channel = sample[filled], rows[filled], channel[filled]
    center = frame.to_cells(rows[:, :2])
    center = torch.minimum(center.clamp(min=0), center.new_tensor(voxels.shape) - 0.5)
    radius = (
        gaussian_radius(frame.scale_to_cells(rows[:, 3:5]), overlap).int().clamp(min=min_radius)
    )
    sharpness = 0.5 / ((2 * radius + 1) / 6) ** 2

    cells = voxels.coords[:, 1:].float()
    heatmap = cells.new_zeros(len(classes), len(voxels))
    nearest = torch.empty_like(sample)
    # one object at a time: an array of all objects times all voxels would be large
    for index, (plane, part) in enumerate(zip(channel.tolist(), sample.tolist())):
        own = cells[parts[part]]
        around_center = ((own - center[index]) ** 2).sum(1)
        first = around_center.argmin()
        around_voxel = ((own - own[first]) ** 2).sum(1)
        heat = torch.exp(-torch.minimum(around_center, around_voxel) * sharpness[index])
        drawn = heatmap[plane, parts[part]]
        torch.maximum(drawn, heat, out=drawn)
        nearest[index] = parts[part].start + first
    return VoxelTargets(heatmap.T, nearest, encode(rows, center - cells[nearest]), rows)


def sample_rows(voxels: SparseVoxels) -> list[slice]:
    """The rows of each sample; samples lie one after the other."""
    samples = torch.arange(voxels.batch_size + 1, device=voxels.device)
    bounds = torch.searchsorted(voxels.batch_index, samples).tolist()
    return [slice(low, high) for low, high in pairwise(bounds)]


def box_code(maps: dict[str, Tensor]) -> Tensor:
    """The box code [N, 8 or 10] of one group's branches."""
    names = [*BRANCHES, "vel"] if "vel" in maps else list(BRANCHES)
    return torch.cat([maps[name] for name in names], 1)


def _branch(width: int, channels: int, count: int, kernel_size: int, bias: bool) -> VoxelSequential:
    blocks = []
    for _ in range(count - 1):
        conv = SubMConv(width, width, kernel_size, bias=bias, dims=2)
        blocks.append(conv_block(conv, width, eps=1e-5, momentum=0.1))
    return VoxelSequential(*blocks, SubMConv(width, channels, 1, bias=True, dims=2))
