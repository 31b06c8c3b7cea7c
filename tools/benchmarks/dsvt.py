"""DSVT: the partition of the pillars of a LiDAR scan, and one block of set attention."""

import argparse
import contextlib
from collections.abc import Iterator
from functools import partial

import torch

from sparse3d.models.backbones.dsvt import DSVT
from sparse3d.ops import backend, native
from sparse3d.ops.voxelize import voxelize
from sparse3d.ops.windows import window_sets
from sparse3d.structures import SparseVoxels, VoxelGrid
from tools.benchmarks.common import Case, measure_all, under
from tools.benchmarks.scenes import lidar_scan

RANGE, PILLAR = (-74.88, -74.88, -5.0, 74.88, 74.88, 1.0), (0.32, 0.32, 6.0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Width of the block."""
    parser.add_argument("--channels", type=int, default=192)


def run(args: argparse.Namespace) -> list[dict]:
    """Rows of the partition and of the block, float32 and bfloat16 under autocast."""
    return measure_all(cases(args), args)


def cases(args: argparse.Namespace) -> Iterator[Case]:
    """Native and the definition; sets of 36 in windows of 12 x 12, as in the paper."""
    torch.manual_seed(0)
    grid = VoxelGrid.from_range(RANGE, PILLAR)
    points = lidar_scan(columns=int(2600 * args.scale))
    batch = torch.zeros(len(points), dtype=torch.int64)
    size, origin, shape = grid.voxel_size, grid.origin, grid.shape
    coords = voxelize(points[:, :3], batch, size, origin, shape)[0]
    features = torch.randn(len(coords), args.channels)
    names = ("native", "reference") if native.available() else ("reference",)
    row = {"workload": "DSVT", "voxels": len(coords), "in_channels": args.channels}
    row["out_channels"] = args.channels

    build = partial(window_sets, coords, grid.shape, (12, 12, 1), (6, 6, 0), 36)
    yield Case({**row, "pass": "partition"}, {name: under(name, build) for name in names})
    model = DSVT(args.channels, grid, args.channels, blocks=1)
    voxels = SparseVoxels(features, coords, grid, 1, (1, 1, 1), grid.shape)
    for dtype in ("float32", "bfloat16"):
        for training in (False, True):
            shown = {**row, "dtype": dtype, "pass": ("forward", "forward_backward")[training]}
            call = partial(_block, model, voxels, dtype, training)
            yield Case(shown, {name: partial(call, name) for name in names})


def _block(model: DSVT, voxels: SparseVoxels, dtype: str, training: bool, name: str) -> None:
    model.train(training)
    half = dtype == "bfloat16"
    mixed = torch.autocast("cpu", torch.bfloat16) if half else contextlib.nullcontext()
    with backend.forced(name), torch.set_grad_enabled(training), mixed:
        out = model(voxels)[-1].features
        if training:
            torch.autograd.grad(out.float().sum(), list(model.parameters()), allow_unused=True)
