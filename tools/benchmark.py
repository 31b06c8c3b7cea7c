"""Time operators and detectors: python tools/benchmark.py sparse_conv --out numbers.json

Implementations of one case take turns, round after round, so that a busy machine slows all of them;
the median is reported. Compare rows of one run.

    sparse_conv   submanifold, strided and inverse convolutions on a LiDAR and an indoor scene
    ops           voxelization, windows, neighbours, rotated boxes
    detector      prediction by the models of configs: detector CONFIG [CONFIG ...]
"""

import argparse
import ctypes
import json
import os
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from sparse3d.ops import backend, conv, native
from sparse3d.ops.kernel_map import KernelMap, strided_map, submanifold_map
from sparse3d.ops.neighbors import knn
from sparse3d.ops.rotated import iou3d, nms
from sparse3d.ops.voxelize import segment_reduce, voxelize
from sparse3d.ops.windows import window_sets
from sparse3d.structures import Sample, SparseVoxels, VoxelGrid, collate

COLUMNS = (
    "workload",
    "voxels",
    "in_channels",
    "out_channels",
    "dtype",
    "pass",
    "order",
    "implementation",
    "ms",
    "gflops",
    "peak_mb",
)
LIDAR_VOXEL, INDOOR_VOXEL = (0.05, 0.05, 0.1), (0.02, 0.02, 0.02)


@dataclass
class Case:
    """One line of comparison.

    Attributes:
        row: the columns that describe it.
        calls: what is timed, by implementation.
        gflop: arithmetic of one call, 1e9 operations; None where that says nothing.
    """

    row: dict
    calls: dict[str, Callable[[], object]]
    gflop: float | None = None


# ---------------------------------------------------------------------- scenes


def lidar_scan(seed: int = 0, beams: int = 64, columns: int = 2600) -> Tensor:
    """[P, 4] float32 points of a spinning sensor among boxes on a plane: x, y, z, intensity."""
    rng = np.random.default_rng(seed)
    elevation, azimuth = np.meshgrid(
        np.deg2rad(np.linspace(-24.8, 2.0, beams)),
        np.linspace(-np.pi, np.pi, columns, endpoint=False),
        indexing="ij",
    )
    flat = np.cos(elevation)
    rays = np.stack([flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(elevation)], -1)
    rays = rays.reshape(-1, 3)
    with np.errstate(divide="ignore", invalid="ignore"):
        depth = np.where(rays[:, 2] < 0, -1.73 / rays[:, 2], np.inf)
        for centre, half in zip(*_boxes_around(rng)):
            near, far = (centre - half) / rays, (centre + half) / rays
            enter = np.minimum(near, far).max(1)
            hit = (np.maximum(near, far).min(1) >= enter) & (enter > 0)
            depth = np.where(hit, np.minimum(depth, enter), depth)
    seen = depth < 75
    points = rays[seen] * depth[seen, None] + rng.normal(0, 0.02, (seen.sum(), 3))
    intensity = rng.random((len(points), 1))
    return torch.from_numpy(np.concatenate([points, intensity], 1)).float()


def _boxes_around(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Centres and half sizes of cars, poles and two walls, none over the sensor."""
    place = rng.uniform(-55, 55, (120, 2))
    place = place[np.hypot(*place.T) > 5]
    half = rng.uniform((0.3, 0.3, 0.7), (2.5, 1.0, 0.9), (len(place), 3))
    centre = np.column_stack([place, np.full(len(place), -0.9)])
    walls = np.array([[0, 42, 0], [0, -38, 0]]), np.array([[70, 0.3, 3], [70, 0.3, 3]])
    return np.concatenate([centre, walls[0]]), np.concatenate([half, walls[1]])


def indoor_scan(seed: int = 0, density: float = 20000.0) -> Tensor:
    """[P, 3] float32 points on the surfaces of a furnished room, ``density`` per square metre."""
    rng = np.random.default_rng(seed)
    room = np.array([5.2, 4.4, 2.6])
    boxes = [(np.zeros(3), room)]
    for _ in range(14):
        size = rng.uniform((0.3, 0.3, 0.3), (1.3, 1.0, 1.1))
        boxes.append((np.append(rng.uniform(0.2, room[:2] - size[:2] - 0.2), 0), size))
    parts = []
    for corner, size in boxes:
        for axis in range(3):
            u, v = (a for a in range(3) if a != axis)
            for side in (0.0, 1.0):
                count = int(density * size[u] * size[v])
                points = rng.random((count, 3)) * size
                points[:, axis] = side * size[axis]
                parts.append(corner + points)
    points = np.concatenate(parts)
    return torch.from_numpy(points + rng.normal(0, 0.0025, points.shape) + 0.011).float()


def scene_voxels(name: str, scale: float) -> SparseVoxels:
    """Voxels of scene 'lidar' or 'indoor'; ``scale`` of the full number of points."""
    if name == "lidar":
        points, size = lidar_scan(columns=int(2600 * scale)), LIDAR_VOXEL
        half = (70.4, 70.4)
        grid = VoxelGrid.from_range((-half[0], -half[1], -3, half[0], half[1], 1), size)
    else:
        points, size = indoor_scan(), INDOOR_VOXEL
        points = points[points[:, 0] < 5.2 * scale]
        grid = VoxelGrid((*size,), (-1.0,) * 3, (384, 320, 256))
    batch = torch.zeros(len(points), dtype=torch.int64)
    return SparseVoxels.from_points(points, batch, grid, 1)[0]


# ---------------------------------------------------------------------- sparse convolution


def sparse_conv_cases(args: argparse.Namespace) -> Iterator[Case]:
    """Index, forward and forward with backward of every scene, kind and width."""
    for scene in args.scenes:
        voxels = scene_voxels(scene, args.scale)
        same = submanifold_map(voxels.coords, 3)
        down = strided_map(voxels.coords, 3, 2, 1, shape=voxels.shape)
        up = KernelMap(down.reverse, voxels.coords, voxels.shape, len(down.out_coords))
        yield from _index_cases(scene, voxels)
        for order in args.orders:
            for channels in args.channels:
                yield from _conv_cases(
                    f"{scene} submanifold", same, channels, channels, order, args
                )
            yield from _conv_cases(f"{scene} strided", down, 32, 64, order, args)
            yield from _conv_cases(f"{scene} inverse", up, 64, 32, order, args)


def _index_cases(scene: str, voxels: SparseVoxels) -> Iterator[Case]:
    builders = {
        "submanifold": partial(submanifold_map, voxels.coords, 3),
        "strided": partial(strided_map, voxels.coords, 3, 2, 1, shape=voxels.shape),
    }
    for kind, build in builders.items():
        row = {"workload": f"{scene} {kind}", "voxels": len(voxels), "pass": "index"}
        calls = {name: _under(name, build) for name in ("native", "reference")}
        yield Case({**row, "order": "lexicographic"}, calls)


def _conv_cases(
    workload: str, found: KernelMap, channels: int, outputs: int, order: str, args
) -> Iterator[Case]:
    """Forward, and forward with backward, of one convolution."""
    generator = torch.Generator().manual_seed(0)
    table, reverse = found.table, found.reverse
    if order == "random":
        table, reverse = _shuffled(table, generator)
    pairs = int((table >= 0).sum())
    features = torch.randn(found.in_rows, channels, generator=generator)
    weight = torch.randn(len(table), channels, outputs, generator=generator) / channels**0.5
    gflop = 2e-9 * pairs * channels * outputs
    row = {
        "workload": workload,
        "voxels": found.in_rows,
        "in_channels": channels,
        "out_channels": outputs,
        "order": order,
    }
    for dtype in args.dtypes:
        leaves = [v.to(dtype).requires_grad_() for v in (features, weight)]
        functions = _implementations(table, reverse, dtype, args.peers)
        shown = {**row, "dtype": str(dtype).removeprefix("torch.")}
        calls = {name: partial(_forward, f, leaves) for name, f in functions.items()}
        yield Case({**shown, "pass": "forward"}, calls, gflop)
        cotangent = torch.randn(table.shape[1], outputs, generator=generator).to(dtype)
        calls = {name: partial(_both, f, leaves, cotangent) for name, f in functions.items()}
        yield Case({**shown, "pass": "forward_backward"}, calls, 3 * gflop)


def _implementations(table: Tensor, reverse: Tensor, dtype: torch.dtype, peers: bool) -> dict:
    """Convolutions (features, weight) -> features, by name."""

    def ours(name: str, features: Tensor, weight: Tensor) -> Tensor:
        with backend.forced(name):
            return conv.sparse_conv(features, weight, table, reverse)

    names = ("native", "reference") if native.available() else ("reference",)
    found = {name: partial(ours, name) for name in names}
    if peers and dtype == torch.float32:
        peer = _spconv(table)
        found |= {"spconv": peer} if peer else {}
    return found


def _spconv(table: Tensor) -> Callable | None:
    """spconv's own function on our pairs, with its own backward; None where it is not installed."""
    try:
        from spconv.core import ConvAlgo
        from spconv.pytorch import functional
    except ImportError:
        return None
    pairs, counts = conv.spconv_pairs(table)
    rows = table.shape[1]

    def call(features: Tensor, weight: Tensor) -> Tensor:
        filters = weight.permute(2, 0, 1)[:, :, None, None, :].contiguous()
        return functional.indice_conv(features, filters, pairs, counts, rows, ConvAlgo.Native)

    return call


def _shuffled(table: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The table and its reverse for input and output rows in random orders."""
    inputs = int(table.max()) + 1
    place = torch.randperm(inputs, generator=generator).int()
    moved = torch.where(table >= 0, place[table.clamp(min=0).long()], -1)
    moved = moved[:, torch.randperm(table.shape[1], generator=generator)].contiguous()
    found = KernelMap(moved, torch.empty(table.shape[1], 0), None, inputs)
    return moved, found.reverse


@torch.no_grad()
def _forward(function: Callable, leaves: list[Tensor]) -> Tensor:
    return function(*leaves)


def _both(function: Callable, leaves: list[Tensor], cotangent: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(function(*leaves), leaves, cotangent)


# ---------------------------------------------------------------------- other operators


def op_cases(args: argparse.Namespace) -> Iterator[Case]:
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
    }
    for name, (count, call) in calls.items():
        row = {"workload": name, "voxels": count, "dtype": "float32", "pass": "forward"}
        yield Case(row, {n: _under(n, call) for n in ("native", "reference")})


def _pillars(points: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
    """Coordinates (batch, x, y, 0) of 0.32 m pillars, and the grid's cells."""
    batch, cells = torch.zeros(len(points), dtype=torch.int64), (468, 468, 1)
    origin = (-74.88, -74.88, -5.0)
    return voxelize(points[:, :3], batch, (0.32, 0.32, 6.0), origin, cells)[0], cells


def _random_boxes(count: int) -> Tensor:
    """[N, 7] overlapping boxes of the size of cars."""
    generator = torch.Generator().manual_seed(0)
    low = torch.tensor([-40.0, -40, -1, 3.5, 1.5, 1.4, -3.2])
    high = torch.tensor([40.0, 40, 1, 5.0, 2.1, 1.8, 3.2])
    return low + torch.rand(count, 7, generator=generator) * (high - low)


# ---------------------------------------------------------------------- detectors


def detector_cases(args: argparse.Namespace) -> Iterator[Case]:
    """Prediction for one scan by models of configs, freshly initialised."""
    from mmengine.config import Config

    from sparse3d.registry import MODELS

    for path in args.configs:
        config = Config.fromfile(path)
        torch.manual_seed(0)
        model = MODELS.build(config.model).eval()
        points = lidar_scan(columns=int(2600 * args.scale))
        low, high = torch.tensor(config.model.point_range, dtype=torch.float32).split(3)
        points = points[((points[:, :3] >= low) & (points[:, :3] < high)).all(1)]
        extra = torch.zeros(len(points), max(config.model.get("point_channels", 4) - 4, 0))
        batch = collate([Sample(torch.cat([points, extra], 1))])["batch"]
        row = {
            "workload": f"{Path(path).stem}, {len(points)} points",
            "dtype": "float32",
            "pass": "predict",
        }
        call = partial(model.predict, batch)
        yield Case(row, {name: _under(name, call) for name in args.implementations})


# ---------------------------------------------------------------------- timing


def _under(name: str, call: Callable) -> Callable:
    def run():
        with backend.forced(name), torch.no_grad():
            return call()

    return run


def measure(case: Case, rounds: int, seconds: float) -> list[dict]:
    """One row per implementation: the median over interleaved rounds.

    Args:
        case: what to run.
        rounds: turns of each implementation.
        seconds: no further round begins after this long; there is always one.
    """
    times: dict[str, list[float]] = {name: [] for name in case.calls}
    peaks = {name: peak_megabytes(call) for name, call in case.calls.items()}  # warms up, too
    start = time.perf_counter()
    for turn in range(rounds):
        if turn and time.perf_counter() - start > seconds:
            break
        for name, call in case.calls.items():
            before = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - before)
    return [_row(case, name, statistics.median(times[name]), peaks[name]) for name in case.calls]


def _row(case: Case, name: str, seconds: float, peak: float | None) -> dict:
    row = dict.fromkeys(COLUMNS) | case.row
    return row | {
        "implementation": name,
        "ms": round(seconds * 1e3, 4),
        "gflops": None if case.gflop is None else round(case.gflop / seconds, 2),
        "peak_mb": peak,
    }


def peak_megabytes(call: Callable[[], object]) -> float | None:
    """Resident memory that one call adds at its peak; None where Linux does not tell."""
    try:
        call()  # first-time costs stay out
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
        before = _status("VmRSS")
        call()
        return round(max(_status("VmHWM") - before, 0) / 1024, 1)
    except (OSError, AttributeError, KeyError):
        return None


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(dict(line.split(":", 1) for line in lines)[field].split()[0])


def machine() -> dict:
    """What the numbers depend on."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        pass
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "torch": torch.__version__,
        "native": native.available(),
    }


def show(row: dict) -> None:
    """One line of the table."""
    channels = f"{row['in_channels']}->{row['out_channels']}" if row["in_channels"] else ""
    gflops = f"{row['gflops']:8.1f} GFLOP/s" if row["gflops"] is not None else " " * 16
    peak = f"{row['peak_mb']:8.1f} MB" if row["peak_mb"] is not None else ""
    label = f"{row['workload']} {channels} {row['dtype'] or ''} {row['order'] or ''}"
    what = f"{label:58} {row['pass']:16} {row['implementation']:10}"
    print(f"{what} {row['ms']:10.2f} ms {gflops} {peak}", flush=True)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--out", type=Path, help="a json file for the numbers")
    common.add_argument("--rounds", type=int, default=7, help="turns of each implementation (7)")
    common.add_argument("--seconds", type=float, default=10, help="at most per case (10)")
    common.add_argument("--threads", type=int, default=torch.get_num_threads())
    common.add_argument("--scale", type=float, default=1.0, help="share of the scenes' points (1)")
    commands = parser.add_subparsers(dest="command", required=True)
    sparse = commands.add_parser("sparse_conv", parents=[common])
    sparse.set_defaults(cases=sparse_conv_cases)
    sparse.add_argument(
        "--scenes", nargs="+", choices=["lidar", "indoor"], default=["lidar", "indoor"]
    )
    sparse.add_argument("--channels", nargs="+", type=int, default=[16, 32, 64, 128])
    sparse.add_argument(
        "--orders", nargs="+", choices=["lexicographic", "random"], default=["lexicographic"]
    )
    sparse.add_argument("--dtypes", nargs="+", type=_dtype, default=[torch.float32])
    sparse.add_argument("--no-peers", dest="peers", action="store_false", help="without spconv")
    ops = commands.add_parser("ops", parents=[common])
    ops.set_defaults(cases=op_cases)
    detector = commands.add_parser("detector", parents=[common])
    detector.set_defaults(cases=detector_cases)
    detector.add_argument("configs", nargs="+")
    detector.add_argument(
        "--implementations", nargs="+", choices=backend.NAMES, default=["native", "reference"]
    )
    return parser.parse_args(argv)


def _dtype(name: str) -> torch.dtype:
    dtypes = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}
    if name not in dtypes:
        raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(dtypes)}")
    return dtypes[name]


def run(cases: Iterable[Case], rounds: int, seconds: float) -> list[dict]:
    """Rows of all cases, shown as they come."""
    rows = []
    for case in cases:
        for row in measure(case, rounds, seconds):
            show(row)
            rows.append(row)
    return rows


def main(argv: list[str] | None = None) -> None:
    """Measure, show and write."""
    warnings.filterwarnings("ignore", category=FutureWarning)  # spconv's, about torch.cuda.amp
    args = parse_args(argv)
    torch.set_num_threads(args.threads)
    about = machine()
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    rows = run(args.cases(args), args.rounds, args.seconds)
    if args.out:
        args.out.write_text(json.dumps({"machine": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
