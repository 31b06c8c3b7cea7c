"""Boxes in a room: what lies in them, how they lie to each other, how much they overlap."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparse3d.ops.rotated import points_in_boxes
from sparse3d.structures import SparseVoxels

PAIR_FEATURES = 10


def pair_features(boxes: Tensor, there: Tensor) -> Tensor:
    """[B, K, K, 10] how box j lies to box i.

    Offset, distances, gaps and ratio of volumes; then the sine and cosine of the angle to the left
    at which i is seen from j by who looks toward the middle of all boxes.

    Args:
        boxes: [B, K, 6] centre and size, metres.
        there: [B, K] bool, which of them count for the middle.
    """
    center, half = boxes[..., :3], boxes[..., 3:] / 2
    offset = center[:, None] - center[:, :, None]
    gap = (offset.abs() - half[:, None] - half[:, :, None]).clamp(min=0)
    flat = offset[..., :2].norm(dim=-1, keepdim=True)
    apart = gap[..., :2].norm(dim=-1, keepdim=True)
    volume = boxes[..., 3:].clamp(min=1e-3).log().sum(-1)
    ratio = (volume[:, None] - volume[:, :, None])[..., None]
    weight = there[..., None].to(boxes)
    middle = (center[..., :2] * weight).sum(1) / weight.sum(1).clamp(min=1)
    look, way = (middle[:, None] - center[..., :2])[:, None], -offset[..., :2]
    turn = torch.stack(
        [look[..., 0] * way[..., 1] - look[..., 1] * way[..., 0], (look * way).sum(-1)], -1
    )
    turn = turn / (look.norm(dim=-1) * way.norm(dim=-1)).clamp(min=1e-3)[..., None]
    return torch.cat(
        [offset, flat, torch.log1p(4 * flat), apart, gap[..., 2:], ratio / 3, turn], -1
    )


class BoxLook(nn.Module):
    """What lies in and around a box, cell by cell of a grid over it.

    Args:
        channels: of the voxels that are looked at.
        out_channels: of what is said of a box.
        hidden: width between.
        cells: of the grid, along each side.
        reach: side of the grid over the box's.
        least: metres; a thinner box is looked at as one of this size.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        hidden: int = 128,
        cells: int = 6,
        reach: float = 1.4,
        least: float = 0.24,
    ):
        super().__init__()
        self.reach, self.least = reach, least
        steps = ((torch.arange(cells) + 0.5) / cells - 0.5) * reach
        self.register_buffer("steps", torch.cartesian_prod(steps, steps, steps), persistent=False)
        self.narrow = nn.Linear(channels, 16)
        self.layers = nn.Sequential(
            nn.Linear(16 * cells**3, hidden), nn.ReLU(), nn.Linear(hidden, out_channels)
        )

    def forward(self, voxels: SparseVoxels, boxes: Tensor) -> Tensor:
        """[B, K, out_channels] of ``boxes`` [B, K, 6], centre and size in metres."""
        size = boxes[..., None, 3:].clamp(min=self.least)
        points = boxes[..., None, :3] + self.steps * size
        edge = points.new_tensor(voxels.grid.voxel_size) * points.new_tensor(voxels.stride)
        cells = ((points - points.new_tensor(voxels.grid.origin)) / edge).floor().int()
        scene = torch.arange(len(boxes), dtype=torch.int32, device=cells.device)
        scene = scene[:, None, None, None].expand(*cells.shape[:3], 1)
        coords = torch.cat([scene, cells], -1).reshape(-1, 4)
        narrow = voxels.replace(F.relu(self.narrow(voxels.features)))
        seen = narrow.features_at(coords)
        return self.layers(seen.reshape(*boxes.shape[:2], self.layers[0].in_features))


class BoxMean(nn.Module):
    """What the voxels in a box have on average, their colours and heights, after a layer.

    Args:
        channels: of the voxels.
        out_channels: of what is said of a box.
        hidden: width between.
    """

    def __init__(self, channels: int, out_channels: int, hidden: int = 32):
        super().__init__()
        self.first = nn.Linear(channels, hidden)
        self.last = nn.Linear(hidden, out_channels)

    def forward(self, voxels: SparseVoxels, boxes: Tensor) -> Tensor:
        """[B, K, out_channels] of ``boxes`` [B, K, 6], centre and size in metres.

        A box thinner than two voxels counts as one of two: none slips between their middles.
        """
        edge = boxes.new_tensor(voxels.grid.voxel_size) * boxes.new_tensor(voxels.stride)
        size = torch.maximum(boxes[..., 3:], 2 * edge)
        boxes = torch.cat([boxes[..., :3], size], -1)
        hidden = F.relu(self.first(voxels.features))
        hidden = torch.cat([hidden, torch.ones_like(hidden[:, :1])], 1)
        scenes = (hidden.split(voxels.counts), voxels.centers().split(voxels.counts))
        found = []
        for rows, points, own in zip(*scenes, boxes, strict=True):
            total = inside(points, own).to(rows) @ rows
            found.append(total[:, :-1] / total[:, -1:].clamp(min=1))
        return self.last(torch.stack(found))


def inside(points: Tensor, boxes: Tensor) -> Tensor:
    """[K, N] bool, whether ``points`` [N, 3] lie in ``boxes`` [K, 6], centre and size."""
    return points_in_boxes(points, F.pad(boxes, (0, 1)))


def shifted(boxes: Tensor, shift: Tensor) -> Tensor:
    """Boxes [..., 6] with each face moved by ``shift`` [..., 6], in shares of half the box's size.

    Thin boxes move in shares of 10 cm; sizes stay positive.
    """
    unit = boxes[..., 3:].clamp(min=0.2) / 2
    low = boxes[..., :3] - boxes[..., 3:] / 2 + shift[..., :3] * unit
    high = boxes[..., :3] + boxes[..., 3:] / 2 + shift[..., 3:] * unit
    return torch.cat([(low + high) / 2, (high - low).clamp(min=0.01)], -1)


def overlaps(boxes: Tensor, others: Tensor, margin: float = 0.0) -> Tensor:
    """[N, M] IoU of ``boxes`` [N, 6] with ``others`` [M, 6], taken as parallel to the axes.

    With a ``margin`` in metres all boxes count as larger by it: pictures and doors are so thin that
    two centimetres decide over their IoU, which says little of how near a box is.
    """
    wider = torch.tensor([0.0] * 3 + [margin] * 3, device=boxes.device)
    boxes, others = boxes + wider, others + wider
    low, high = ((boxes[:, :3] + s * boxes[:, 3:] / 2).T for s in (-1, 1))
    other_low, other_high = ((others[:, :3] + s * others[:, 3:] / 2).T for s in (-1, 1))
    inner = 1.0
    for axis in range(3):  # axis by axis: much faster than one array [N, M, 3]
        end = torch.minimum(high[axis, :, None], other_high[axis])
        inner = inner * (end - torch.maximum(low[axis, :, None], other_low[axis])).clamp(min=0)
    union = boxes[:, 3:].prod(1)[:, None] + others[:, 3:].prod(1) - inner
    return inner / union.clamp(min=1e-9)
