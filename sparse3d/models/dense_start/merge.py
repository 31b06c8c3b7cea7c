"""One Gaussian where several views found the same piece of surface."""

import torch
from torch import Tensor

from sparse3d.ops.voxelize import segment_reduce
from sparse3d.structures import SparseVoxels, VoxelGrid

OCTAVE = VoxelGrid((1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
LARGEST = 2.0**24
"""Voxels are not made larger than so many times their own size: a place has fewer across."""


def merge_near(points: Tensor, sizes: Tensor, doubt: Tensor) -> Tensor:
    """Rows [M] int64, ascending, of the least doubtful point of every voxel.

    A point's voxel is as large as the point itself, to a factor of 1.5: points are sorted into
    octaves by size, each a sample of one SparseVoxels, so that near and far ones merge alike.

    Args:
        points: [N, 3] world units.
        sizes: [N] edge of a point's voxel, world units, positive.
        doubt: [N] the smallest stays; equal ones: the first.
    """
    if not len(points):
        return torch.zeros(0, dtype=torch.int64)
    octave = sizes.double().log2().round()
    edge = 2.0**octave
    sample = (octave - octave.min()).long()
    scaled = (points.double() / edge[:, None]).clamp(-(2.0**20), 2.0**20)
    voxels, row = SparseVoxels.from_points(
        scaled, sample, OCTAVE, int(sample.max()) + 1, -doubt[:, None].float(), reduce="max"
    )
    best = voxels.features[row, 0] == -doubt.float()
    order = torch.arange(len(points), dtype=torch.float64)
    first = segment_reduce(-order[best][:, None], row[best], len(voxels), "max")
    return (-first[:, 0]).long().sort().values


def merge_to(
    points: Tensor, sizes: Tensor, doubt: Tensor, most: int | None
) -> tuple[Tensor, float]:
    """``merge_near`` with voxels just large enough that at most ``most`` points stay.

    Returns:
        The rows, and by what factor the points that stay must grow to cover what all covered.
    """
    finer = rows = merge_near(points, sizes, doubt)
    octave = 1.0
    while most is not None and len(rows) > most and octave < LARGEST:
        octave *= 2
        finer, rows = rows, merge_near(points, sizes * octave, doubt)
    if most is not None and len(rows) > most:  # voxels of several octaves never become one
        rows = rows[doubt[rows].argsort(stable=True)[:most]].sort().values
    if most is not None and len(rows) < min(most, len(finer)):
        # Between two octaves: the surest of the finer ones come back.
        others = finer[~torch.isin(finer, rows)]
        back = others[doubt[others].argsort(stable=True)[: most - len(rows)]]
        rows = torch.cat([rows, back]).sort().values
    if octave == 1:
        return rows, 1.0
    return rows, (len(merge_near(points, sizes, doubt)) / max(len(rows), 1)) ** 0.5
