"""Votes for a displacement: transport of whole neighbourhoods instead of single points."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparse3d.ops.interpolate import weighted_rows
from sparse3d.ops.neighbors import knn, radius_neighbors
from sparse3d.ops.voxelize import segment_expand, segment_reduce, voxelize

LEVEL = 0.15
"""Metres; what moves on a street stays at its height, give or take this standard deviation."""
STRETCH = 4.0
"""Of height, when partners are looked for: they lie in a flat disk."""


class DisplacementVotes(nn.Module):
    """Flow by votes: what lies together and looks alike moves together, and horizontally.

    A cell of the first cloud votes for every displacement to a cell of the second, by how alike
    both are: on a smooth side of a vehicle the votes of one cell say little. Each cell gathers its
    neighbours' votes, those of cells that look like it first, and believes in displacements by a
    softmax of what it gathered. The longer a displacement, the better it must fit, and how much
    better than staying at rest, a cell's features tell: walls and trees do not move. Then beliefs
    are gathered in the same way, and count beside the votes: the ends of a bus tell its middle.
    The flow is the mean displacement under the last beliefs.

    Args:
        channels: of the features.
        cell: edge of a cell, and step of the displacements, metres.
        steps: in each direction, x and y; farther than ``cell * steps`` nothing moves.
        pool: neighbours that a cell gathers from, and most cells that it votes for.
        rounds: of belief; from the second on the neighbours' beliefs count.

    Attributes:
        evidence: how many columns tell how sure a flow is.
    """

    evidence = 2

    def __init__(
        self, channels: int, cell: float = 0.3, steps: int = 6, pool: int = 96, rounds: int = 3
    ):
        super().__init__()
        if not (cell > 0 and min(steps, pool, rounds) >= 1):
            raise ValueError(
                f"cell is {cell}, steps {steps}, pool {pool} and rounds {rounds}; metres above 0 "
                "and whole numbers from 1 are needed"
            )
        self.cell, self.steps, self.pool, self.rounds = float(cell), steps, pool, rounds
        # learnt as logarithms: weights of cosines in votes and in gathering, of votes and of agreed
        # beliefs in belief; metres that gathering reaches; what a metre costs
        weights = {"likeness": 1.0, "kinship": 3.0, "sharpness": 20.0, "consent": 5.0}
        for name, value in {**weights, "reach": 2.0, "slowness": 0.01}.items():
            setattr(self, name, nn.Parameter(torch.tensor(math.log(value))))
        self.rest = nn.Linear(channels, 1)
        nn.init.zeros_(self.rest.weight)
        nn.init.constant_(self.rest.bias, 0.5)

    def forward(
        self, points: tuple[Tensor, Tensor], features: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Flow [P, 3] and evidence [P, 2]: how many votes it has, and how many rest has.

        Args:
            points: [P, 3] and [Q, 3] metres.
            features: [P, C] and [Q, C].
        """
        if not len(points[0]):
            return points[0], points[0][:, : self.evidence]
        xyz, unit, index = self.cells(points[0], features[0])
        others, other_units, _ = self.cells(points[1], features[1])
        near, weights = self.kin(xyz, unit)
        votes = weighted_rows(self.votes((xyz, others), (unit, other_units)), near, weights)
        moves = self.displacements(xyz)
        length = moves.norm(dim=1)
        at_rest = length == 0
        scores = self.sharpness.exp() * (votes - self.slowness.exp() * length)
        scores = scores + self.rest(weighted_rows(unit, near, weights)) * at_rest
        belief = scores.softmax(1)
        for _ in range(self.rounds - 1):
            agreed = weighted_rows(belief, near, weights)
            belief = (scores + self.consent.exp() * agreed).softmax(1)
        finer = moves + self.offsets(votes) * ~at_rest[:, None]
        flow = (belief[..., None] * finer).sum(1)
        columns = [flow, (belief * votes).sum(1, keepdim=True), votes[:, at_rest]]
        flow, evidence = segment_expand(torch.cat(columns, 1), index).split([3, 2], 1)
        return flow, evidence

    def cells(self, points: Tensor, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean positions [N, 3], features [N, C] of norm one, and the cell [P] of each point."""
        sample = torch.zeros(len(points), dtype=torch.int64, device=points.device)
        coords, index = voxelize(points, sample, (self.cell,) * 3, (0.0,) * 3, None)
        xyz = segment_reduce(points, index, len(coords), "mean")
        rows = segment_reduce(features, index, len(coords), "mean")
        return xyz, F.normalize(rows, dim=1, eps=1e-4), index

    def displacements(self, like: Tensor) -> Tensor:
        """[D, 3] what is voted for, y fastest."""
        axis = self.cell * torch.arange(-self.steps, self.steps + 1, device=like.device)
        moves = torch.cartesian_prod(axis, axis, axis.new_zeros(1))
        return moves.to(like.dtype)

    def offsets(self, votes: Tensor) -> Tensor:
        """[N, D, 3] metres from each displacement to the middle of the votes around it.

        Of votes [N, D] within a step; what all displacements there have in common is no sign.
        """
        wide = 2 * self.steps + 1
        image = votes.view(-1, 1, wide, wide)
        step = votes.new_tensor([-self.cell, 0.0, self.cell]).expand(3, 3)
        kernel = torch.stack([step.T, step, torch.ones_like(step)])[:, None]
        sums = F.conv2d(image, kernel, padding=1)
        floor = -F.max_pool2d(-F.pad(image, (1, 1, 1, 1)), 3, 1)
        middle = sums[:, :2] / (sums[:, 2:] - 9 * floor + 1e-4)
        return F.pad(middle.flatten(2).transpose(1, 2), (0, 1))

    def votes(self, xyz: tuple[Tensor, Tensor], units: tuple[Tensor, Tensor]) -> Tensor:
        """[N, D] votes of the first cloud's cells; one between steps is shared among the four."""
        wide, count = 2 * self.steps + 1, len(xyz[0])
        if not len(xyz[1]):
            return xyz[0].new_zeros(count, wide * wide)
        stretch = xyz[0].new_tensor([1.0, 1.0, STRETCH])
        radius = self.cell * self.steps
        near, _ = radius_neighbors(*(x * stretch for x in xyz), radius, self.pool)
        own, column = (near >= 0).nonzero(as_tuple=True)
        other = near[own, column]
        apart = xyz[1][other] - xyz[0][own]
        cosine = (segment_expand(units[0], own) * segment_expand(units[1], other)).sum(1)
        weight = self.likeness.exp() * (cosine - 1) - 0.5 * (apart[:, 2] / LEVEL).square()
        at = (apart[:, :2] / self.cell + self.steps).clamp(0, wide - 1)
        low = at.floor().clamp(max=wide - 2)
        part = at - low
        x, y = low.long().unbind(1)
        sides = torch.stack([1 - part, part])  # [2, E, 2]
        shares = (sides[:, None, :, 0] * sides[None, :, :, 1]).reshape(4, -1)
        first = (own * wide + x) * wide + y
        bins = torch.stack([first, first + 1, first + wide, first + wide + 1])
        values = (weight.exp() * shares).reshape(-1, 1)
        return segment_reduce(values, bins.reshape(-1), count * wide * wide, "sum").view(count, -1)

    def kin(self, xyz: Tensor, unit: Tensor) -> tuple[Tensor, Tensor]:
        """[N, pool] cells whose votes a cell gathers (-1: none), and weights that add up to 1."""
        near, squared = knn(xyz, xyz, self.pool)
        there = near >= 0
        around = segment_expand(unit, near.reshape(-1)).view(*near.shape, -1)
        alike = self.kinship.exp() * (unit[:, None] * around).sum(2)
        far = torch.where(there, squared, 0.0) / (2 * (2 * self.reach).exp())
        return near, (alike - far).masked_fill(~there, -torch.inf).softmax(1)
