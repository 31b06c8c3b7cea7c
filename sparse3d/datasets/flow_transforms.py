"""Augmentation of sweep pairs: callables (pair, generator) -> pair that change none in place."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from sparse3d.ops.ground import ground_mask
from sparse3d.ops.voxelize import voxelize
from sparse3d.registry import TRANSFORMS
from sparse3d.structures import SweepPair
from sparse3d.structures.sweeps import transform


def move_pair(pair: SweepPair, matrix: Tensor) -> SweepPair:
    """The pair with both frames changed by ``matrix`` [4, 4] (old coordinates -> new ones)."""
    back = torch.linalg.inv(matrix)

    def moved(points: Tensor) -> Tensor:
        xyz = transform(points[:, :3], matrix).to(points.dtype)
        return torch.cat([xyz, points[:, 3:]], 1)

    return replace(
        pair,
        source=moved(pair.source),
        target=moved(pair.target),
        flow=None if pair.flow is None else pair.flow @ matrix[:3, :3].T.to(pair.flow),
        ego_motion=None if pair.ego_motion is None else matrix @ pair.ego_motion @ back,
        history=[(moved(points), matrix @ motion @ back) for points, motion in pair.history],
    )


@TRANSFORMS.register_module()
class PairTurn:
    """Turn about the vertical by any angle, and mirror with probability one half."""

    def __call__(self, pair: SweepPair, generator: np.random.Generator) -> SweepPair:
        angle = generator.uniform(-math.pi, math.pi)
        cos, sin = math.cos(angle), math.sin(angle)
        matrix = torch.eye(4, dtype=torch.float64)
        matrix[:2, :2] = torch.tensor([[cos, -sin], [sin, cos]], dtype=torch.float64)
        if generator.random() < 0.5:
            matrix[:, 1] = -matrix[:, 1]
        return move_pair(pair, matrix)


@TRANSFORMS.register_module()
class PairFlip:
    """Mirror along x and along y, each with a ``probability``."""

    def __init__(self, probability: float = 0.5):
        self.probability = probability

    def __call__(self, pair: SweepPair, generator: np.random.Generator) -> SweepPair:
        signs = np.where(generator.random(2) < self.probability, -1.0, 1.0)
        if (signs > 0).all():
            return pair
        return move_pair(pair, torch.diag(torch.tensor([*signs, 1.0, 1.0], dtype=torch.float64)))


@TRANSFORMS.register_module()
class RemoveEgoMotion:
    """Lay the source and older sweeps into the target's frame: the flow is then WITHOUT ego motion.

    Raises:
        ValueError: the ego motion is not known.
    """

    def __call__(self, pair: SweepPair, generator: np.random.Generator) -> SweepPair:
        if pair.ego_motion is None:
            raise ValueError(f"the ego motion of pair {pair.sample_id!r} is not known: give poses")

        def laid(points: Tensor, motion: Tensor) -> Tensor:
            xyz = transform(points[:, :3], motion).to(points.dtype)
            return torch.cat([xyz, points[:, 3:]], 1)

        rest = torch.eye(4, dtype=torch.float64)
        return replace(
            pair,
            source=laid(pair.source, pair.ego_motion),
            flow=None if pair.flow is None else pair.flow - pair.ego_flow,
            ego_motion=rest,
            history=[(laid(points, motion), rest) for points, motion in pair.history],
        )


@TRANSFORMS.register_module()
class PairLift:
    """Raise both sweeps by a height drawn from ``height`` (low, high), metres."""

    def __init__(self, height: Sequence[float] = (-0.5, 2.0)):
        self.height = tuple(height)

    def __call__(self, pair: SweepPair, generator: np.random.Generator) -> SweepPair:
        matrix = torch.eye(4, dtype=torch.float64)
        matrix[2, 3] = generator.uniform(*self.height)
        return move_pair(pair, matrix)


@TRANSFORMS.register_module()
class PairCrop:
    """Keep a square seen from above, its middle mostly near something that moves.

    Args:
        size: edge, metres.
        moving: probability that a moving point is chosen as the middle, where there is one.
    """

    def __init__(self, size: float = 40.0, moving: float = 0.8):
        self.half = size / 2
        self.moving = moving

    def __call__(self, pair: SweepPair, generator: np.random.Generator) -> SweepPair:
        ego = torch.eye(4).double() if pair.ego_motion is None else pair.ego_motion
        seen = transform(pair.source[:, :3], ego)
        rows = torch.arange(len(seen))
        if pair.flow is not None and generator.random() < self.moving:
            own = (pair.flow - pair.ego_flow).norm(dim=1) > 0.5 * pair.interval
            rows = own.nonzero()[:, 0] if own.any() else rows
        if not len(rows):
            return pair
        middle = seen[int(rows[generator.integers(len(rows))])]
        middle = middle + torch.from_numpy(generator.uniform(-0.6, 0.6, 3)) * self.half
        history = [
            (points[self._inside(transform(points[:, :3], motion), middle)], motion)
            for points, motion in pair.history
        ]
        target = self._inside(pair.target[:, :3].double(), middle)
        cropped = pair.select(self._inside(seen, middle), target)
        return replace(cropped, history=history)

    def _inside(self, xyz: Tensor, middle: Tensor) -> Tensor:
        return ((xyz[:, :2] - middle[:2]).abs() < self.half).all(1)


@TRANSFORMS.register_module()
class PairThinning:
    """Keep the first point of each cell of ``size`` metres, in either cloud."""

    def __init__(self, size: float = 0.1):
        self.size = size

    def __call__(self, pair: SweepPair, generator: np.random.Generator) -> SweepPair:
        return pair.select(*(self._first(points) for points in (pair.source, pair.target)))

    def _first(self, points: Tensor) -> Tensor:
        batch = torch.zeros(len(points), dtype=torch.int64)
        size, origin = (self.size,) * 3, (0.0,) * 3
        coords, index = voxelize(points[:, :3], batch, size, origin, None)
        first = torch.full((len(coords),), len(points))
        first = first.scatter_reduce(0, index, torch.arange(len(points)), "amin")
        return first.sort().values


@TRANSFORMS.register_module()
class GroundLeak:
    """Call up to ``share`` of the ground no ground: nobody's ground segmentation is perfect."""

    def __init__(self, share: float = 0.05):
        self.share = share

    def __call__(self, pair: SweepPair, generator: np.random.Generator) -> SweepPair:
        share = generator.uniform(0, self.share)

        def leaky(ground: Tensor | None) -> Tensor | None:
            if ground is None:
                return None
            return ground & torch.from_numpy(generator.random(len(ground)) >= share)

        return replace(
            pair,
            source_ground=leaky(pair.source_ground),
            target_ground=leaky(pair.target_ground),
        )


@TRANSFORMS.register_module()
class RemoveGround:
    """Drop the points of the ground."""

    def __call__(self, pair: SweepPair, generator: np.random.Generator) -> SweepPair:
        masks = (
            ground_mask(points) if known is None else known
            for points, known in (
                (pair.source, pair.source_ground),
                (pair.target, pair.target_ground),
            )
        )
        return pair.select(*(~mask for mask in masks))


@TRANSFORMS.register_module()
class PointSampling:
    """Draw ``count`` points of each cloud, all of them where there are fewer.

    Args:
        count: points.
        radius: metres from the sensor, seen from above; only points nearer are drawn. None: all.
    """

    def __init__(self, count: int = 8192, radius: float | None = None):
        if count < 1:
            raise ValueError(f"count is {count}; it must be 1 or more")
        self.count = count
        self.radius = radius

    def __call__(self, pair: SweepPair, generator: np.random.Generator) -> SweepPair:
        rows = []
        for points in (pair.source, pair.target):
            near = torch.arange(len(points))
            if self.radius is not None:
                near = (points[:, :2].norm(dim=1) < self.radius).nonzero()[:, 0]
            order = torch.from_numpy(generator.permutation(len(near))[: self.count])
            rows.append(near[order])
        return pair.select(*rows)
