"""What a centre head learns: heat maps and box codes from true boxes.

CenterPoint (https://arxiv.org/abs/2006.11275) in the conventions of OpenPCDet. A box code is
(offset x, offset y from the cell's corner, z, log dx, log dy, log dz, cos yaw, sin yaw[, vx, vy]).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sparse3d.structures import Boxes, VoxelGrid

MAX_LOG_SIZE = 10.0
"""Sizes are cut at exp(10) metres, so that an untrained head gives no infinity."""


@dataclass(frozen=True)
class MapFrame:
    """Where the cells of a bird's-eye map lie in the world. Cells are (column, row): x, then y.

    Attributes:
        origin: lower corner of cell (0, 0), metres.
        voxel_size: edges of a base voxel, metres.
        stride: base voxels per map cell.
    """

    origin: tuple[float, float]
    voxel_size: tuple[float, float]
    stride: float

    @classmethod
    def of(cls, grid: VoxelGrid, stride: float) -> "MapFrame":
        return cls(grid.origin[:2], grid.voxel_size[:2], stride)

    def to_cells(self, metres: Tensor) -> Tensor:
        """[N, 2] metres to fractional cells."""
        return self.scale_to_cells(metres - metres.new_tensor(self.origin))

    def scale_to_cells(self, metres: Tensor) -> Tensor:
        """[N, 2] lengths in metres to lengths in cells."""
        return metres / metres.new_tensor(self.voxel_size) / self.stride

    def to_metres(self, cells: Tensor) -> Tensor:
        """[N, 2] fractional cells to metres."""
        return cells * self.stride * cells.new_tensor(self.voxel_size) + cells.new_tensor(
            self.origin
        )


@dataclass(frozen=True, eq=False)
class CenterTargets:
    """Targets of one class group over B samples: M cells that learn a box, one for each object.

    With a ``reach`` an object has its neighbours' cells too.

    Attributes:
        heatmap: [B, classes, H, W], 1 at the cells of centres.
        sample: [M] int64 sample of each cell.
        cell: [M, 2] int64 column and row.
        code: [M, 8] or [M, 10].
        boxes: [M, 7] or [M, 9] the true boxes.
    """

    heatmap: Tensor
    sample: Tensor
    cell: Tensor
    code: Tensor
    boxes: Tensor


@torch.no_grad()
def assign_centers(
    boxes: list[Boxes],
    labels: list[Tensor],
    classes: Tensor,
    frame: MapFrame,
    size: tuple[int, int],
    velocity: bool = False,
    overlap: float = 0.1,
    min_radius: int = 2,
    reach: int = 0,
) -> CenterTargets:
    """Targets of one group of classes.

    A box whose centre lies outside the map is learnt at the nearest border cell, as published.
    Boxes without a positive size, and labels that are not in the group, are left out.

    Args:
        boxes: true boxes of each sample.
        labels: [N] int64 of each sample.
        classes: [C] int64, the labels of the group, in channel order.
        frame: of the map.
        size: (W, H), cells of the map.
        velocity: whether the code has vx, vy.
        overlap: IoU that a box moved by the radius still has.
        min_radius: least radius in cells.
        reach: how many cells to each side of a centre's learn the box as well.

    Raises:
        ValueError: a box is not finite, or velocities are asked for and not given.
    """
    sample, rows, channel = gather_objects(boxes, labels, classes, velocity)
    cells = frame.to_cells(rows[:, :2])
    limit = cells.new_tensor(size) - 0.5
    cells = torch.minimum(cells.clamp(min=0), limit)
    cell = cells.long()
    radius = (
        gaussian_radius(frame.scale_to_cells(rows[:, 3:5]), overlap).int().clamp(min=min_radius)
    )
    planes = len(boxes) * len(classes)
    heatmap = draw_gaussians(planes, size, sample * len(classes) + channel, cell, radius.long())
    heatmap = heatmap.view(len(boxes), len(classes), *size[::-1])
    if reach:
        owner, cell = neighbour_cells(sample, cells, cell, size, reach)
        sample, cells, rows = sample[owner], cells[owner], rows[owner]
    return CenterTargets(heatmap, sample, cell, encode(rows, cells - cell), rows)


def neighbour_cells(
    sample: Tensor, center: Tensor, cell: Tensor, size: tuple[int, int], reach: int
) -> tuple[Tensor, Tensor]:
    """The cells around each centre that learn its box: those to which no other centre is nearer.

    So the heat map's best cell may be a neighbour of the right one and still find the centre
    (AFDet, https://arxiv.org/abs/2006.12671). The centre's own cell is always among them.

    Args:
        sample: [M] int64 sample of each object.
        center: [M, 2] fractional column and row.
        cell: [M, 2] int64 column and row.
        size: (W, H), cells of the map.
        reach: half side of the square of cells, without the middle one.

    Returns:
        Object [K] int64 and cell [K, 2] int64, object by object.
    """
    step = torch.arange(-reach, reach + 1, device=cell.device)
    around = (cell[:, None] + torch.cartesian_prod(step, step)).flatten(0, 1)
    owner = torch.arange(len(cell), device=cell.device).repeat_interleave(len(step) ** 2)
    inside = ((around >= 0) & (around < around.new_tensor(size))).all(1)
    owner, around = owner[inside], around[inside]
    distance = (around + 0.5 - center[owner]).norm(dim=1)
    place = (sample[owner] * size[1] + around[:, 1]) * size[0] + around[:, 0]
    _, place = place.unique(return_inverse=True)
    nearest = distance.new_full((len(place),), torch.inf)
    nearest = nearest.scatter_reduce(0, place, distance, "amin")
    keep = (distance == nearest[place]) | (around == cell[owner]).all(1)
    return owner[keep], around[keep]


def gather_objects(
    boxes: list[Boxes], labels: list[Tensor], classes: Tensor, velocity: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The boxes of ``classes`` from all samples.

    Returns:
        sample [M] int64, boxes [M, 7 or 9] float32, place of each label in ``classes`` [M] int64.

    Raises:
        ValueError: as ``assign_centers``.
    """
    columns = 9 if velocity else 7
    samples, rows, channels = [], [], []
    for index, (group, label) in enumerate(zip(boxes, labels)):
        tensor = group.tensor.to(classes.device, torch.float32)
        if tensor.shape[1] < columns and len(tensor):
            raise ValueError(
                "the head predicts velocity but the boxes have 7 columns: give boxes with vx, vy, "
                "or build the head with velocity=False"
            )
        if not torch.isfinite(tensor).all():
            row = int((~torch.isfinite(tensor)).any(1).nonzero()[0])
            raise ValueError(
                f"box {row} of sample {index} of the batch is not finite: {tensor[row].tolist()}"
            )
        match = label.to(classes.device)[:, None] == classes
        keep = match.any(1)
        if len(tensor):
            keep &= (tensor[:, 3:6] > 0).all(1)
        rows.append(tensor.new_zeros(0, columns) if not len(tensor) else tensor[keep, :columns])
        samples.append(torch.full((len(rows[-1]),), index, device=classes.device))
        channels.append(match[keep].int().argmax(1))
    return torch.cat(samples), torch.cat(rows), torch.cat(channels)


def gaussian_radius(sizes: Tensor, overlap: float) -> Tensor:
    """Radius in cells up to which a moved box keeps ``overlap`` with itself.

    CornerNet's three cases with the historical divisor 2, which trained weights depend on.

    Args:
        sizes: [M, 2] box sizes in cells.
        overlap: least IoU.

    Returns:
        [M] float.
    """
    total, area = sizes.sum(1), sizes.prod(1)
    m = overlap
    grown = (total + (total**2 - 4 * (area * (1 - m) / (1 + m))).sqrt()) / 2
    shrunk = (2 * total + ((2 * total) ** 2 - 16 * ((1 - m) * area)).sqrt()) / 2
    moved = (-2 * m * total + ((2 * m * total) ** 2 + 16 * m * ((1 - m) * area)).sqrt()) / 2
    return torch.minimum(torch.minimum(grown, shrunk), moved)


def draw_gaussians(
    planes: int, size: tuple[int, int], plane: Tensor, center: Tensor, radius: Tensor
) -> Tensor:
    """Gaussian bumps of height 1 on zero maps, merged by maximum and cut to squares.

    Args:
        planes: number of maps.
        size: (W, H).
        plane: [M] int64 map of each bump.
        center: [M, 2] int64 column and row; what lies outside the map is cut off.
        radius: [M] int64 half side of the square in cells; sigma is a sixth of the side.

    Returns:
        [planes, H, W] float32.
    """
    width, height = size
    maps = torch.zeros(planes, height, width, device=center.device)
    if not len(center):
        return maps
    reach = int(radius.max())
    step = torch.arange(-reach, reach + 1, device=center.device)
    dy, dx = (axis.flatten() for axis in torch.meshgrid(step, step, indexing="ij"))
    x, y = center[:, :1] + dx, center[:, 1:] + dy
    inside = (torch.maximum(dx.abs(), dy.abs()) <= radius[:, None]) & (x >= 0) & (x < width)
    inside &= (y >= 0) & (y < height)
    sigma = (2 * radius.double()[:, None] + 1) / 6
    value = torch.exp(-(dx * dx + dy * dy) / (2 * sigma * sigma)).float()
    target = (plane[:, None] * height + y) * width + x
    flat = maps.view(-1).scatter_reduce(0, target[inside], value[inside], "amax")
    return flat.view_as(maps)


def encode(boxes: Tensor, offset: Tensor) -> Tensor:
    """Code [M, 8 or 10] of ``boxes`` [M, 7 or 9] at ``offset`` [M, 2] within their cells."""
    yaw = boxes[:, 6:7]
    return torch.cat(
        [offset, boxes[:, 2:3], boxes[:, 3:6].log(), yaw.cos(), yaw.sin(), boxes[:, 7:]], 1
    )


def decode(code: Tensor, cell: Tensor, frame: MapFrame) -> Tensor:
    """Boxes [M, 7 or 9] of ``code`` [M, 8 or 10] at map cells ``cell`` [M, 2]."""
    center = frame.to_metres(cell + code[:, :2])
    sizes = code[:, 3:6].clamp(max=MAX_LOG_SIZE).exp()
    yaw = torch.atan2(code[:, 7:8], code[:, 6:7])
    return torch.cat([center, code[:, 2:3], sizes, yaw, code[:, 8:]], 1)
