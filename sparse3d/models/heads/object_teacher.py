"""What every voxel can learn of the objects about it, whatever a sentence asks for."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparse3d.registry import MODELS
from sparse3d.structures import Boxes, SparseVoxels, VoxelGrid

from .tsp3d_losses import box_loss, smallest_box


@MODELS.register_module()
class ObjectTeacher(nn.Module):
    """Class and box of the object that a voxel lies in: dense lessons for a backbone.

    A sentence teaches one box of a room; a backbone that starts from nothing learns much faster
    when every object counts. Used in training alone.

    Args:
        in_channels: of the voxels.
        grid: the base grid.
        class_names: what labels mean; voxels in no object, or in one of another class, are a class
            of their own.
        weight: of both losses.
    """

    def __init__(
        self, in_channels: int, grid: VoxelGrid, class_names: Sequence[str], weight: float = 1.0
    ):
        super().__init__()
        self.grid = grid
        self.weight = weight
        self.names = nn.Linear(in_channels, len(class_names) + 1)
        self.box = nn.Linear(in_channels, 6)

    def loss(
        self, voxels: SparseVoxels, boxes: list[Boxes], labels: list[Tensor]
    ) -> dict[str, Tensor]:
        """Cross entropy of the classes and 1 - DIoU of the boxes, each the mean over the voxels."""
        edge = voxels.stride[0] * self.grid.voxel_size[0]
        raw, logits = self.box(voxels.features).float(), self.names(voxels.features).float()
        centers = voxels.centers()
        found = torch.cat([centers + raw[:, :3], raw[:, 3:].exp()], 1)
        offset, rows, names = 0, [], []
        for scene, (objects, known) in enumerate(zip(boxes, labels, strict=True)):
            mine = voxels.coords[:, 0] == scene
            row = smallest_box(centers[mine], objects.tensor, edge / 2)
            none = logits.new_full((1,), logits.shape[1] - 1, dtype=torch.int64)
            named = torch.cat([torch.where(known >= 0, known, none), none])
            names.append(named[row])  # row -1 is the last: no object
            rows.append(torch.where(row >= 0, row + offset, -1))
            offset += len(objects)
        if not len(centers):
            return {}
        truth = torch.cat([objects.tensor[:, :6] for objects in boxes])
        return {
            "loss_object_class": self.weight * F.cross_entropy(logits, torch.cat(names)),
            "loss_object_box": self.weight * box_loss(found, torch.cat(rows), truth),
        }
