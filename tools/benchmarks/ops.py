"""Voxelization, windows, neighbours, rotated boxes, stereo: native against the definition."""

import argparse
from collections.abc import Iterator

import torch
from torch import Tensor

from sparse3d.ops.kernel_map import submanifold_map
from sparse3d.ops.neighbors import knn
from sparse3d.ops.rotated import iou3d, nms
from sparse3d.ops.stereo import View, plane_sweep, smooth_planes
from sparse3d.ops.voxelize import segment_reduce, voxelize
from sparse3d.ops.windows import window_sets
from tools.benchmarks.common import Case, measure_all, under
from tools.benchmarks.scenes import LIDAR_VOXEL, lidar_scan, scene_voxels


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None of its own."""


def run(args: argparse.Namespace) -> list[dict]:
    """Rows of every operator."""
    return measure_all(cases(args), args)


def cases(args: argparse.Namespace) -> Iterator[Case]:
    """Operators around the convolutions, native against the definition."""
    points = lidar_scan(columns=int(2600 * args.scale))
    voxels = scene_voxels("lidar", args.scale)
    pillars, shape = _pillars(points)
    batch = torch.zeros(len(points), dtype=torch.int64)
    centre = points[: max(int(4000 * args.scale), 8), :3].contiguous()
    boxes = _random_boxes(max(int(1000 * args.scale), 8))
    scores = torch.linspace(1, 0, len(boxes))
    index = torch.sort(torch.randint(0, max(len(points) // 4, 1), (len(points),)))[0]
    wide = torch.randn(len(points), 64)
    image, views, inverse = _pictures(int(320 * args.scale**0.5), int(240 * args.scale**0.5))
    cost = plane_sweep(image, views, inverse)
    calls = {
        "voxelize": (
            len(points),
            lambda: voxelize(points[:, :3], batch, LIDAR_VOXEL, (-75.0, -75.0, -5.0), None),
        ),
        "segment_reduce max 64": (
            len(points),
            lambda: segment_reduce(wide, index, int(index[-1]) + 1, "max"),
        ),
        "window_sets 12x12 36": (
            len(pillars),
            lambda: window_sets(pillars, shape, (12, 12, 1), (0, 0, 0), 36),
        ),
        "submanifold map 5": (len(voxels), lambda: submanifold_map(voxels.coords, 5)),
        "knn 16": (len(centre), lambda: knn(centre, centre, 16)),
        "iou3d": (len(boxes), lambda: iou3d(boxes, boxes)),
        "nms": (len(boxes), lambda: nms(boxes, scores, 0.2)),
        "plane sweep, 4 views, 64 planes": (
            image.numel(),
            lambda: plane_sweep(image, views, inverse),
        ),
        "smooth 64 planes": (image.numel(), lambda: smooth_planes(cost, image)),
    }
    for name, (count, call) in calls.items():
        row = {"workload": name, "voxels": count, "dtype": "float32", "pass": "forward"}
        yield Case(row, {n: under(n, call) for n in ("native", "reference")})


def _pillars(points: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
    """Coordinates (batch, x, y, 0) of 0.32 m pillars, and the grid's cells."""
    batch, cells = torch.zeros(len(points), dtype=torch.int64), (468, 468, 1)
    origin = (-74.88, -74.88, -5.0)
    return voxelize(points[:, :3], batch, (0.32, 0.32, 6.0), origin, cells)[0], cells


def _pictures(width: int, height: int) -> tuple[Tensor, list[View], Tensor]:
    """A picture, four others moved by up to 40 pixels, and the inverse depths of 64 planes."""
    image = torch.rand(max(height, 8), max(width, 8), generator=torch.Generator().manual_seed(0))
    moves = [torch.tensor([side * 20.0, 2.0, 0.02]) for side in (-2, -1, 1, 2)]
    views = [View(image, torch.eye(3), move) for move in moves]
    return image, views, torch.linspace(0, 1, 64)


def _random_boxes(count: int) -> Tensor:
    """[N, 7] overlapping boxes of the size of cars."""
    generator = torch.Generator().manual_seed(0)
    low = torch.tensor([-40.0, -40, -1, 3.5, 1.5, 1.4, -3.2])
    high = torch.tensor([40.0, 40, 1, 5.0, 2.1, 1.8, 3.2])
    return low + torch.rand(count, 7, generator=generator) * (high - low)
