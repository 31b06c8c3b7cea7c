"""Lessons beside the target's box: classes and boxes of all objects, the class of the target."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparse3d.registry import MODELS
from sparse3d.structures import Boxes, SparseVoxels, VoxelGrid

from .tsp3d_losses import direct_box_loss, equal_shares, smallest_box, start_small


@MODELS.register_module()
class ObjectTeacher(nn.Module):
    """Class and box of the object that a voxel lies in, and the class that a sentence means.

    A sentence teaches one box of a room; a network that starts from nothing learns much faster when
    every object counts. Naming the target's class from the words alone is ScanRefer's lesson.
    Nothing of it is used after training.

    Args:
        in_channels: of the voxels of all levels.
        sentence_channels: of the words that stand for sentences.
        grid: the base grid.
        class_names: what labels mean; voxels in no object, or in one of another class, are a class
            of their own.
        weight: of all its losses.
        levels: how many of the given levels it teaches, the finest ones.
    """

    def __init__(
        self,
        in_channels: int,
        sentence_channels: int,
        grid: VoxelGrid,
        class_names: Sequence[str],
        weight: float = 1.0,
        levels: int = 2,
    ):
        super().__init__()
        self.grid = grid
        self.weight = weight
        classes = len(class_names) + 1
        self.names = nn.ModuleList(nn.Linear(in_channels, classes) for _ in range(levels))
        self.box = nn.ModuleList(nn.Linear(in_channels, 6) for _ in range(levels))
        self.meant = nn.Linear(sentence_channels, classes)
        for layer in self.box:
            start_small(layer)

    def loss(
        self, stages: Sequence[SparseVoxels], boxes: list[Boxes], labels: list[Tensor]
    ) -> dict[str, Tensor]:
        """Cross entropy of the classes and errors of the boxes, means over objects and levels.

        Args:
            stages: voxels of the levels, finest first.
            boxes: all objects of each scene.
            labels: their classes, -1 for others.
        """
        levels = list(zip(stages, self.names, self.box))
        truth = torch.cat([objects.tensor[:, :6] for objects in boxes])
        share = self.weight / len(levels)
        total = {"loss_object_class": 0.0, "loss_object_box": 0.0}
        for voxels, names, box in levels:
            rows, wanted = self._targets(voxels, boxes, labels)
            raw, logits = box(voxels.features).float(), names(voxels.features).float()
            found = torch.cat([voxels.centers() + raw[:, :3], raw[:, 3:].exp()], 1)
            weights = equal_shares(rows)
            named = F.cross_entropy(logits, wanted, reduction="none") * weights
            total["loss_object_class"] += share * named.sum() / weights.sum().clamp(min=1)
            total["loss_object_box"] += share * direct_box_loss(found, rows, truth, weights)
        return total

    def _targets(
        self, voxels: SparseVoxels, boxes: list[Boxes], labels: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Row [N] of each voxel's object in all scenes' (-1: none), and its class [N]."""
        edge, centers = voxels.stride[0] * self.grid.voxel_size[0], voxels.centers()
        none = labels[0].new_full((1,), self.meant.out_features - 1)
        offset, rows, names = 0, [], []
        for scene, (objects, known) in enumerate(zip(boxes, labels, strict=True)):
            mine = voxels.coords[:, 0] == scene
            row = smallest_box(centers[mine], objects.tensor, edge / 2)
            named = torch.cat([torch.where(known >= 0, known, none), none])
            names.append(named[row])  # row -1 is the last: no object
            rows.append(torch.where(row >= 0, row + offset, -1))
            offset += len(objects)
        return torch.cat(rows), torch.cat(names)

    def sentence_loss(self, sentences: Tensor, names: Tensor) -> dict[str, Tensor]:
        """Cross entropy of the target's class.

        Args:
            sentences: [B, sentence_channels] the word that stands for each.
            names: [B] label of the target, -1 for another class.
        """
        names = torch.where(names >= 0, names, self.meant.out_features - 1)
        loss = F.cross_entropy(self.meant(sentences).float(), names)
        return {"loss_sentence_class": self.weight * loss}
