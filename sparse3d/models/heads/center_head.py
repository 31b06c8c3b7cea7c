"""CenterHead: boxes as points of a bird's-eye heat map."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from sparse3d.registry import MODELS
from sparse3d.structures import Boxes, Detections, VoxelGrid

from .center_decode import CenterDecoding, merge_groups
from .center_losses import code_loss, diou_loss, heatmap_loss, iou_branch_loss
from .center_targets import CenterTargets, MapFrame, assign_centers, decode

BRANCHES = {"center": 2, "center_z": 1, "dim": 3, "rot": 2}
HEATMAP_PRIOR = -2.19
"""Bias of the heat map: a score of one tenth everywhere, so that training starts calm."""


@MODELS.register_module()
class CenterHead(nn.Module):
    """CenterPoint's head (https://arxiv.org/abs/2006.11275), with an optional IoU branch.

    Args:
        in_channels: channels of the map.
        grid: the base grid; the map's place in the world comes from it.
        stride: base cells per map cell.
        class_names: all classes.
        groups: class names of each group; a group shares boxes and NMS. One group if None.
        shared_channels: width of the shared convolution and of the branches.
        velocity: predict vx, vy.
        iou: predict the IoU of each box with the truth.
        num_convs: convolutions of each branch (by name; 2 where not named) or of all.
        bias_before_norm: give convolutions a bias though a norm follows, as some weights have.
        bn_eps: of the batch norms.
        bn_momentum: of the batch norms.
        overlap: IoU that fixes the radius of a heat map bump.
        min_radius: least radius in cells.
        box_reach: how many cells to each side of a centre's learn its box too; published: none.
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
        shared_channels: int = 64,
        velocity: bool = False,
        iou: bool = False,
        num_convs: int | Mapping[str, int] = 2,
        bias_before_norm: bool = False,
        bn_eps: float = 1e-5,
        bn_momentum: float = 0.1,
        overlap: float = 0.1,
        min_radius: int = 2,
        box_reach: int = 0,
        heatmap_weight: float = 1.0,
        box_weight: float = 2.0,
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
        self.overlap, self.min_radius, self.box_reach = overlap, min_radius, box_reach
        self.heatmap_weight, self.box_weight = heatmap_weight, box_weight
        self.iou_weight, self.code_weights = iou_weight, check_code_weights(code_weights, velocity)
        self.decoding = CenterDecoding(**(decoding or {}))
        self.decoding.check(self.class_names, iou)

        bn = {"eps": bn_eps, "momentum": bn_momentum}
        self.shared_conv = _conv_block(in_channels, shared_channels, bias_before_norm, bn)
        self.heads_list = nn.ModuleList()
        for group in self.groups:
            outputs = branch_outputs(len(group), velocity, iou)
            branches = {}
            for name, channels in outputs.items():
                count = num_convs if isinstance(num_convs, int) else num_convs.get(name, 2)
                branches[name] = _branch(shared_channels, channels, count, bias_before_norm, bn)
            self.heads_list.append(nn.ModuleDict(branches))
        self._init_weights()

    def _init_weights(self) -> None:
        for head in self.heads_list:
            for module in head.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight)
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)
            nn.init.constant_(head["hm"][-1].bias, HEATMAP_PRIOR)

    def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
        """Raw maps of each group from the map [B, C, H, W].

        Returns:
            Per group: center [B, 2, H, W] cells, center_z [B, 1, H, W] metres, dim [B, 3, H, W] log
            metres, rot [B, 2, H, W] cos and sin, hm [B, classes, H, W] logits, and where predicted
            vel [B, 2, H, W] and iou [B, 1, H, W].
        """
        x = self.shared_conv(x)
        return [
            {name: branch(x).float() for name, branch in head.items()} for head in self.heads_list
        ]

    def targets(
        self, boxes: list[Boxes], labels: list[Tensor], map_like: Tensor
    ) -> list[CenterTargets]:
        """Targets of each group for a map of the size and device of ``map_like`` [..., H, W]."""
        size = (map_like.shape[-1], map_like.shape[-2])
        return [
            assign_centers(
                boxes,
                labels,
                torch.tensor(group, device=map_like.device),
                self.frame,
                size,
                self.velocity,
                self.overlap,
                self.min_radius,
                self.box_reach,
            )
            for group in self.groups
        ]

    def loss(
        self, raw: list[dict[str, Tensor]], boxes: list[Boxes], labels: list[Tensor]
    ) -> dict[str, Tensor]:
        """Losses summed over the groups; their sum is what is minimised."""
        total: dict[str, Tensor] = {}
        for maps, target in zip(raw, self.targets(boxes, labels, raw[0]["hm"])):
            for name, value in self.group_loss(maps, target).items():
                total[name] = total.get(name, 0) + value
        return total

    def group_loss(self, maps: dict[str, Tensor], target: CenterTargets) -> dict[str, Tensor]:
        """Weighted losses of one group."""
        code = torch.cat([at_objects(maps[name], target) for name in code_names(maps)], 1)
        losses = {
            "loss_heatmap": self.heatmap_weight * heatmap_loss(maps["hm"], target.heatmap),
            "loss_box": self.box_weight * code_loss(code, target.code, self.code_weights),
        }
        boxes = decode(code, target.cell, self.frame)
        if self.iou:
            quality = at_objects(maps["iou"], target)[:, 0]
            losses["loss_iou"] = self.iou_weight * iou_branch_loss(quality, boxes, target.boxes)
        if self.diou:
            losses["loss_diou"] = self.box_weight * diou_loss(boxes, target.boxes)
        return losses

    @torch.no_grad()
    def predict(self, raw: list[dict[str, Tensor]]) -> list[Detections]:
        """Detections of each sample, by falling score."""
        batch, _, height, width = raw[0]["hm"].shape
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        cell = torch.stack([columns.flatten(), rows.flatten()], 1).to(raw[0]["hm"].device)
        found = []
        for sample in range(batch):
            parts = []
            for maps, group in zip(raw, self.groups):
                scores = maps["hm"][sample].sigmoid().flatten(1)
                code = code_map(maps)[sample].flatten(1).T
                iou = maps["iou"][sample].flatten() if self.iou else None
                classes = torch.tensor(group, device=code.device)
                parts.append(self.decoding.choose(scores, cell, code, iou, classes, self.frame))
            found.append(merge_groups(parts))
        return found


def code_map(maps: dict[str, Tensor]) -> Tensor:
    """The box code [B, 8 or 10, H, W] of one group's raw maps."""
    return torch.cat([maps[name] for name in code_names(maps)], 1)


def code_names(maps: dict[str, Tensor]) -> list[str]:
    """The maps that make the box code, in its order."""
    return [*BRANCHES, "vel"] if "vel" in maps else list(BRANCHES)


def at_objects(maps: Tensor, target: CenterTargets) -> Tensor:
    """Values [M, C] of ``maps`` [B, C, H, W] at the cells that learn boxes."""
    return maps[target.sample, :, target.cell[:, 1], target.cell[:, 0]]


def branch_outputs(classes: int, velocity: bool, iou: bool) -> dict[str, int]:
    """Output channels of each branch of a group, in published order."""
    optional = {"vel": 2} if velocity else {}
    quality = {"iou": 1} if iou else {}
    return {**BRANCHES, **optional, **quality, "hm": classes}


def group_labels(groups: Sequence[Sequence[str]], class_names: Sequence[str]) -> list[list[int]]:
    """The labels of each group.

    Raises:
        ValueError: the groups do not hold every class exactly once.
    """
    named = [name for group in groups for name in group]
    if sorted(named) != sorted(class_names):
        raise ValueError(
            f"groups hold {named}; together they must hold each of {list(class_names)} exactly once"
        )
    return [[list(class_names).index(name) for name in group] for group in groups]


def check_code_weights(weights: Sequence[float] | None, velocity: bool) -> Sequence[float] | None:
    """``weights``, refused where their number is not the code's."""
    entries = 10 if velocity else 8
    if weights is not None and len(weights) != entries:
        raise ValueError(
            f"code_weights has {len(weights)} entries; the box code has {entries} "
            f"({'with' if velocity else 'without'} velocity)"
        )
    return weights


def _conv_block(in_channels: int, channels: int, bias: bool, bn: dict) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, channels, 3, padding=1, bias=bias)
    return nn.Sequential(conv, nn.BatchNorm2d(channels, **bn), nn.ReLU())


def _branch(width: int, channels: int, count: int, bias: bool, bn: dict) -> nn.Sequential:
    blocks = [_conv_block(width, width, bias, bn) for _ in range(count - 1)]
    return nn.Sequential(*blocks, nn.Conv2d(width, channels, 3, padding=1))
