"""Whole detectors, from points to boxes: detector CONFIG [CONFIG ...]"""

import argparse
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from mmengine.config import Config

from sparse3d.models.detector import VoxelDetector
from sparse3d.ops import backend
from sparse3d.registry import MODELS
from sparse3d.structures import Batch, Sample
from tools.benchmarks.common import DTYPES, Case, measure_all, under
from tools.benchmarks.scenes import lidar_scan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which models, and how they run."""
    parser.add_argument("configs", nargs="+")
    parser.add_argument(
        "--implementations", nargs="+", choices=backend.NAMES, default=["native", "reference"]
    )
    parser.add_argument(
        "--dtypes", nargs="+", choices=DTYPES, default=["float32"], help="bfloat16: autocast"
    )


def run(args: argparse.Namespace) -> list[dict]:
    """Rows of every config and implementation."""
    rows = measure_all(cases(args), args)
    return [{**row, "frames_per_second": round(1000 / row["ms"], 2)} for row in rows]


def summary(rows: list[dict]) -> list[str]:
    """Frames per second."""
    return [
        f"{row['workload']:50} {row['dtype']:9} {row['implementation']:10} "
        f"{row['frames_per_second']:8.2f} frames/s"
        for row in rows
    ]


def cases(args: argparse.Namespace) -> Iterator[Case]:
    """Prediction for one scan by models of configs, freshly initialised."""
    for path in args.configs:
        model, batch = model_and_scan(path, args.scale)
        row = {"workload": f"{Path(path).stem}, {len(batch.points)} points", "pass": "predict"}
        for dtype in args.dtypes:
            call = partial(_predict, model, batch, DTYPES[dtype])
            calls = {name: under(name, call) for name in args.implementations}
            yield Case({**row, "dtype": dtype}, calls)


def _predict(model: VoxelDetector, batch: Batch, dtype: torch.dtype) -> None:
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        model.predict(batch)


def model_and_scan(path: str | Path, scale: float = 1.0) -> tuple[VoxelDetector, Batch]:
    """A config's detector and a batch of one scan, cut to its range."""
    config = Config.fromfile(path)
    torch.manual_seed(0)
    model = MODELS.build(config.model).eval()
    points = lidar_scan(columns=int(2600 * scale))
    low, high = torch.tensor(config.model.point_range, dtype=torch.float32).split(3)
    points = points[((points[:, :3] >= low) & (points[:, :3] < high)).all(1)]
    extra = torch.zeros(len(points), max(config.model.get("point_channels", 4) - 4, 0))
    return model, Batch([Sample(torch.cat([points, extra], 1))])
