"""The map: landmarks with a descriptor each, and small volumes that say how views change it."""

import functools
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sparse3d.ops.volume import RaySettings, ray_weights
from sparse3d.structures import SparseVoxels, VoxelGrid

NODES = 3
GRID = VoxelGrid((1.0,) * 3, (0.0,) * 3, (NODES,) * 3)
"""Nodes of a landmark's box, in edges of its own voxels: boxes differ in size, not in shape."""


@dataclass(frozen=True, eq=False)
class LandmarkMap:
    """M landmarks of one place. Nothing in it changes by localizing.

    A landmark seen along a ray looks like ``offset + (base + change) @ basis``, made a unit vector,
    where ``change`` is rendered from its voxels. A landmark without voxels looks alike from
    everywhere.

    Attributes:
        positions: [M, 3] float32, world metres.
        half: [M] half an edge of the box, metres.
        tangents: [M, 3] unit, the world direction in which key points there are oriented.
        sizes: [M] diameter of what key points there see, metres.
        base: [M, r] codes.
        offset: [C] mean descriptor of all landmarks.
        basis: [r, C] orthonormal rows that turn codes into descriptors.
        voxels: batch = landmark, cells of ``GRID``; features [V, 1 + K]: density and K numbers.
        codes: [M, K, r] by which the K numbers are multiplied; None: K = r, they are codes.
        frames: poses [P, 4, 4] of the pictures it was made from, for retrieval.
        seen: [P, M] bool, which landmark was seen in which picture.
        meta: plain data: kind of features, thresholds, origin, ground truth.
    """

    positions: Tensor
    half: Tensor
    tangents: Tensor
    sizes: Tensor
    base: Tensor
    offset: Tensor
    basis: Tensor
    voxels: SparseVoxels
    codes: Tensor | None = None
    frames: Tensor = field(default_factory=lambda: torch.zeros(0, 4, 4))
    seen: Tensor | None = None
    meta: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def rank(self) -> int:
        """r, numbers per code."""
        return self.base.shape[1]

    @property
    def renders(self) -> bool:
        """Whether any landmark looks different from different sides."""
        return len(self.voxels) > 0

    @property
    def box(self) -> tuple[Tensor, Tensor]:
        """[M, 3] lower and upper corners."""
        return self.positions - self.half[:, None], self.positions + self.half[:, None]

    @functools.cached_property  # not the voxels' cache, which maps of other features share
    def dense(self) -> tuple[Tensor, Tensor, Tensor]:
        """Density [M, 3, 3, 3], mask likewise and values [M, 27, K] of all nodes."""
        shape = (len(self), NODES, NODES, NODES)
        cells = tuple(self.voxels.coords.long().T)
        table = torch.zeros(*shape, self.voxels.channels)
        mask = torch.zeros(shape, dtype=torch.bool)
        table[cells], mask[cells] = self.voxels.features, True
        return table[..., 0].contiguous(), mask, table[..., 1:].flatten(1, 3).contiguous()

    def render(self, rows: Tensor, center: Tensor) -> Tensor:
        """[K, r] codes of landmarks ``rows`` [K] as a camera at ``center`` [3] sees them."""
        if not self.renders:
            return self.base[rows]
        density, mask, values = self.dense
        lower, upper = self.box
        center = center.to(self.positions)
        rays = (self.positions[rows] - center)[:, None]
        found = ray_weights(
            center.expand_as(rays).contiguous(),
            rays,
            *(lower[rows], upper[rows], density[rows], mask[rows]),
            None,
            RaySettings(near=0.0),
        )
        table = rows[:, None] * values.shape[1] + torch.arange(values.shape[1])
        change = F.embedding_bag(  # found.nodes @ values[rows], of which no copy is made
            table, values.flatten(0, 1), mode="sum", per_sample_weights=found.nodes[:, 0]
        )
        if self.codes is not None:
            change = (change[:, None] @ self.codes[rows])[:, 0]
        return self.base[rows] + change

    def descriptors(self, codes: Tensor) -> Tensor:
        """[K, C] unit descriptors of ``codes`` [K, r]."""
        return F.normalize(self.offset + codes @ self.basis, dim=1)

    def similarity(self, descriptors: Tensor, codes: Tensor) -> Tensor:
        """[N, K] cosines of unit ``descriptors`` [N, C] and ``codes`` [K, r], in r dimensions."""
        flat, level = self.flatten(descriptors)
        lengths = self.lengths(codes)[:, None]
        codes = torch.cat([codes, torch.ones_like(lengths)], 1) / lengths
        return torch.cat([flat, level[:, None]], 1) @ codes.T

    def flatten(self, descriptors: Tensor) -> tuple[Tensor, Tensor]:
        """[N, r] and [N], all that ``similarity`` needs of ``descriptors`` [N, C]."""
        return descriptors @ self.basis.T, descriptors @ self.offset

    def lengths(self, codes: Tensor) -> Tensor:
        """[K] lengths of ``offset + codes @ basis`` of ``codes`` [K, r]."""
        length = self.offset.square().sum() + 2 * (codes @ (self.basis @ self.offset))
        return (length + codes.square().sum(1)).clamp(min=1e-12).sqrt()

    def select(self, rows: Tensor) -> "LandmarkMap":
        """The map of landmarks ``rows`` [K] int64, in that order; repeated ones have no volumes."""
        names = ("positions", "half", "tangents", "sizes", "base")
        parts = {name: getattr(self, name)[rows] for name in names}
        number = torch.full((len(self),), -1)
        number[rows] = torch.arange(len(rows))
        batch = number[self.voxels.batch_index]
        coords = torch.cat([batch[:, None], self.voxels.coords[:, 1:].long()], 1)[batch >= 0]
        voxels, _ = SparseVoxels.from_coords(
            coords, self.voxels.features[batch >= 0], GRID, max(len(rows), 1)
        )
        codes = None if self.codes is None else self.codes[rows]
        seen = None if self.seen is None else self.seen[:, rows]
        return replace(self, **parts, voxels=voxels, codes=codes, seen=seen)

    def without_volumes(self) -> "LandmarkMap":
        """The map in which every landmark looks alike from everywhere."""
        voxels = SparseVoxels.empty(1 + self.rank, GRID, max(len(self), 1))
        return replace(self, voxels=voxels, codes=None)


def voxels_of(density: Tensor, values: Tensor, keep: Tensor) -> SparseVoxels:
    """Voxels of the nodes ``keep`` [M, 27] of densities [M, 3, 3, 3] and values [M, 27, K]."""
    landmark, node = keep.nonzero().unbind(1)
    cells = (node // 9, node // 3 % 3, node % 3)
    coords = torch.stack([landmark, *cells], 1)
    features = torch.cat([density.flatten(1)[keep][:, None], values[keep]], 1)
    return SparseVoxels.from_coords(coords, features, GRID, max(len(keep), 1))[0]
