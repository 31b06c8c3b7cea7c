"""Augmentation: a transform is a callable (sample, generator) -> sample that changes none in place.

Published order: ground-truth sampling, flips, rotation, scaling, translation; then the filters and
the shuffle. Cameras turn along, so that points and boxes keep falling on the same pixels.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from sparse3d.ops.voxelize import canonical_order, voxelize
from sparse3d.registry import TRANSFORMS
from sparse3d.structures import Boxes, Sample

from .base import above_range, in_range, select_boxes, select_points


def move(sample: Sample, matrix: Tensor, move_boxes: Callable[[Boxes], Boxes]) -> Sample:
    """The sample in other coordinates.

    Args:
        sample: its points, flow and cameras are moved.
        matrix: [4, 4] float64, affine: old coordinates to new ones.
        move_boxes: does the same to boxes.
    """
    linear, shift = matrix[:3, :3].to(sample.points), matrix[:3, 3].to(sample.points)
    xyz = sample.points[:, :3] @ linear.T + shift
    back = torch.linalg.inv(matrix)
    cameras = {
        name: replace(c, world_to_cam=c.world_to_cam @ back.to(c.world_to_cam))
        for name, c in sample.cameras.items()
    }
    return replace(
        sample,
        points=torch.cat([xyz, sample.points[:, 3:]], 1),
        boxes=None if sample.boxes is None else move_boxes(sample.boxes),
        flow=None if sample.flow is None else sample.flow @ linear.T,
        cameras=cameras,
    )


@TRANSFORMS.register_module()
class RandomFlip:
    """Mirror the scene about the x axis and about the y axis."""

    def __init__(self, axes: Sequence[str] = ("x", "y"), probability: float = 0.5):
        """Args:
            axes: 'x' (y changes sign), 'y' (x changes sign), each drawn by itself.
            probability: of each.

        Raises:
            ValueError: another axis.
        """
        if set(axes) - {"x", "y"}:
            raise ValueError(f"axes is {list(axes)}; 'x' and 'y' are possible")
        self.axes = tuple(axes)
        self.probability = probability

    def __call__(self, sample: Sample, generator: np.random.Generator) -> Sample:
        for axis in self.axes:
            if generator.random() < self.probability:
                signs = [1.0, -1.0, 1.0, 1.0] if axis == "x" else [-1.0, 1.0, 1.0, 1.0]
                matrix = torch.diag(torch.tensor(signs, dtype=torch.float64))
                sample = move(sample, matrix, lambda boxes, axis=axis: boxes.flip(axis))
        return sample


@TRANSFORMS.register_module()
class RandomRotation:
    """Turn the scene about the z axis by an angle drawn from ``angle`` (low, high), radians."""

    def __init__(self, angle: Sequence[float] = (-math.pi / 4, math.pi / 4)):
        self.angle = _interval("angle", angle)

    def __call__(self, sample: Sample, generator: np.random.Generator) -> Sample:
        angle = generator.uniform(*self.angle)
        matrix = torch.eye(4, dtype=torch.float64)
        cos, sin = math.cos(angle), math.sin(angle)
        matrix[:2, :2] = torch.tensor([[cos, -sin], [sin, cos]], dtype=torch.float64)
        return move(sample, matrix, lambda boxes: boxes.rotate(angle))


@TRANSFORMS.register_module()
class RandomScaling:
    """Scale the scene, box sizes and velocities by a factor drawn from ``factor`` (low, high)."""

    def __init__(self, factor: Sequence[float] = (0.95, 1.05)):
        """Raises:
        ValueError: a factor that is not positive.
        """
        self.factor = _interval("factor", factor)
        if self.factor[0] <= 0:
            raise ValueError(f"factor is {self.factor}; it must be positive")

    def __call__(self, sample: Sample, generator: np.random.Generator) -> Sample:
        factor = generator.uniform(*self.factor)
        matrix = torch.diag(torch.tensor([factor, factor, factor, 1.0], dtype=torch.float64))
        return move(sample, matrix, lambda boxes: boxes.scale(factor))


@TRANSFORMS.register_module()
class RandomTranslation:
    """Shift the scene by a normal deviate; ``std`` (x, y, z) in metres."""

    def __init__(self, std: Sequence[float] = (0.5, 0.5, 0.5)):
        """Raises:
        ValueError: not three values, or a negative one.
        """
        if len(std) != 3 or min(std) < 0:
            raise ValueError(
                f"std is {list(std)}; three values of 0 or more, in metres, are needed"
            )
        self.std = tuple(std)

    def __call__(self, sample: Sample, generator: np.random.Generator) -> Sample:
        shift = torch.from_numpy(generator.normal(0.0, self.std))
        matrix = torch.eye(4, dtype=torch.float64)
        matrix[:3, 3] = shift
        return move(sample, matrix, lambda boxes: boxes.translate(shift.float()))


@TRANSFORMS.register_module()
class PointRangeFilter:
    """Drop points outside ``point_range`` (x0, y0, z0, x1, y1, z1), metres."""

    def __init__(self, point_range: Sequence[float]):
        self.point_range = _range(point_range)

    def __call__(self, sample: Sample, generator: np.random.Generator) -> Sample:
        return select_points(sample, in_range(sample.points, self.point_range))


@TRANSFORMS.register_module()
class BoxRangeFilter:
    """Drop boxes whose centre, seen from above, is outside ``point_range`` (x0, .., z1), metres."""

    def __init__(self, point_range: Sequence[float]):
        self.point_range = _range(point_range)

    def __call__(self, sample: Sample, generator: np.random.Generator) -> Sample:
        if sample.boxes is None:
            return sample
        return select_boxes(sample, above_range(sample.boxes.centers, self.point_range))


@TRANSFORMS.register_module()
class PointShuffle:
    """Bring the points into a random order, as encoders with a point cap want it."""

    def __call__(self, sample: Sample, generator: np.random.Generator) -> Sample:
        return select_points(sample, torch.from_numpy(generator.permutation(len(sample.points))))


@TRANSFORMS.register_module()
class PointThinning:
    """Keep one point of each cell of ``size`` metres: a scanner sees near things far too often.

    The cell's point with the least coordinates stays, whatever the order of the points.
    """

    def __init__(self, size: float):
        if not size > 0:
            raise ValueError(f"size is {size}; it must be positive, in metres")
        self.size = size

    def __call__(self, sample: Sample, generator: np.random.Generator) -> Sample:
        points = sample.points[:, :3].contiguous()
        one = torch.zeros(len(points), dtype=torch.int64)
        cells, index = voxelize(points, one, (self.size,) * 3, (0.0,) * 3, None)
        order = canonical_order(sample.points, index, len(cells))
        first = torch.ones(len(order), dtype=torch.bool)
        first[1:] = index[order].diff() != 0
        return select_points(sample, order[first])


def _interval(name: str, values: Sequence[float]) -> tuple[float, float]:
    if len(values) != 2 or values[0] > values[1]:
        raise ValueError(f"{name} is {list(values)}; (low, high) with low <= high is needed")
    return tuple(values)


def _range(values: Sequence[float]) -> tuple[float, ...]:
    if len(values) != 6 or any(low >= high for low, high in zip(values[:3], values[3:])):
        raise ValueError(
            f"point_range is {list(values)}; (x0, y0, z0, x1, y1, z1) with each low end below its "
            "high end is needed"
        )
    return tuple(map(float, values))
