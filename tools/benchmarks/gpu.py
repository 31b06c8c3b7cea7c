"""One GPU beside this machine's CPU: maps, convolutions, whole networks, splatting.

Both run the same calls on the same inputs: the CPU our native kernels ("native"), the GPU spconv's
or gsplat's where there is one and torch elsewhere ("cuda"; "definition": torch throughout). A call
on the GPU ends when the GPU has finished; peak_mb of such a row is memory of the GPU.
"""

import argparse
import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from mmengine.config import Config
from torch import Tensor, nn

from sparse3d.ops import conv
from sparse3d.ops.kernel_map import strided_map, submanifold_map
from sparse3d.registry import MODELS
from sparse3d.structures import Batch, Boxes, Sample
from tools.benchmarks import common, splat
from tools.benchmarks.common import Case, by
from tools.benchmarks.detector import model_and_scan
from tools.benchmarks.flow import street_pair
from tools.benchmarks.ground import room
from tools.benchmarks.scenes import scan_boxes, scene_voxels

FOLDER = Path(__file__).parents[2] / "configs"
CONFIGS = ("second_kitti", "dsvt_pillar_kitti", "dsvt_voxel_kitti", "voxelnext_nuscenes")
WIDTHS = (32, 64, 128)
COLUMNS = ("workload", "pass", "implementation", "ms", "gflops", "peak_mb")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is measured; everything by default."""
    parser.add_argument("--parts", nargs="+", choices=CASES, default=tuple(CASES))


def run(args: argparse.Namespace) -> list[dict]:
    """Rows of all parts that ``args`` ask for."""
    if not torch.cuda.is_available():
        raise SystemExit("torch finds no GPU: this benchmark compares one with the CPU")
    print(f"GPU: {torch.cuda.get_device_name()}")
    rows = []
    for part in args.parts:
        for case in CASES[part](args):
            for row in common.measure(case, args.rounds, args.seconds):
                call = case.calls[row["implementation"]]
                if isinstance(call, OnGpu):
                    row["peak_mb"] = call.peak_megabytes()
                rows.append(dict.fromkeys(COLUMNS) | row)
                common.show(rows[-1])
    return rows


def summary(rows: list[dict]) -> list[str]:
    """How much faster the GPU is."""
    found = common.ratios(rows, "native", "cuda", ("workload", "pass"))
    return [f"{' '.join(key):64} {ratio:8.1f} times as fast" for key, ratio in found.items()]


class OnGpu:
    """A call by implementation ``name`` that waits for the GPU."""

    def __init__(self, call: Callable, name: str = "cuda"):
        self.call = by(name, call)

    def __call__(self) -> object:
        result = self.call()
        torch.cuda.synchronize()
        return result

    def peak_megabytes(self) -> float:
        """Memory of the GPU that one call adds at its peak."""
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        self()
        return round((torch.cuda.max_memory_allocated() - before) / 2**20, 1)


def _maps(args: argparse.Namespace) -> Iterator[Case]:
    for scene in ("lidar", "indoor"):
        voxels = scene_voxels(scene, args.scale)
        builders = {
            "submanifold": partial(submanifold_map, kernel_size=3),
            "strided": partial(strided_map, kernel_size=3, stride=2, padding=1, shape=voxels.shape),
        }
        for kind, build in builders.items():
            row = {"workload": f"{scene} {kind}, {len(voxels)} voxels", "pass": "map"}
            calls = {"native": by("native", partial(build, voxels.coords))}
            calls["cuda"] = OnGpu(partial(build, voxels.coords.cuda()))
            yield Case(row, calls)


def _layers(args: argparse.Namespace) -> Iterator[Case]:
    """Submanifold convolutions of equal widths."""
    generator = torch.Generator().manual_seed(0)
    for scene in ("lidar", "indoor"):
        voxels = scene_voxels(scene, args.scale)
        found = submanifold_map(voxels.coords, 3)
        here, there = [found.table, found.reverse], [found.table.cuda(), found.reverse.cuda()]
        pairs = int((found.table >= 0).sum())
        for width in WIDTHS:
            leaves = [
                torch.randn(len(voxels), width, generator=generator),
                torch.randn(27, width, width, generator=generator) / width**0.5,
            ]
            theirs = [leaf.cuda() for leaf in leaves]
            for step, call, times in (("forward", _forward, 1), ("forward+backward", _both, 3)):
                calls = {"native": by("native", partial(call, leaves, *here))}
                for name, kind in (("cuda", "cuda"), ("definition", "reference")):
                    calls[name] = OnGpu(partial(call, theirs, *there), kind)
                row = {"workload": f"{scene} submanifold {width}", "pass": step}
                yield Case(row, calls, 2e-9 * pairs * width**2 * times)


@torch.no_grad()
def _forward(leaves: list[Tensor], table: Tensor, reverse: Tensor) -> Tensor:
    return conv.sparse_conv(*leaves, table, reverse)


def _both(leaves: list[Tensor], table: Tensor, reverse: Tensor) -> tuple[Tensor, ...]:
    leaves = [leaf.requires_grad_() for leaf in leaves]
    out = conv.sparse_conv(*leaves, table, reverse)
    return torch.autograd.grad(out, leaves, out.detach())


def _models(args: argparse.Namespace) -> Iterator[tuple[str, nn.Module, Batch]]:
    """Networks of published size with what they are given."""
    for name in CONFIGS:
        model, batch = model_and_scan(FOLDER / "detection" / f"{name}.py", args.scale)
        yield f"{name}, {len(batch.points)} points", model, batch
    pair, network = street_pair(), {"type": "DeltaFlow", "backbone": {"type": "SparseUNet"}}
    for name, more in (("", {}), (" and groups", {"refine": {"type": "RigidFlow"}})):
        torch.manual_seed(0)
        model = MODELS.build(network | more).eval()
        yield f"DeltaFlow{name}, {len(pair.source)} points", model, Batch([pair])
    few = pair.select(*(torch.arange(8192) * 10 for _ in range(2)))
    sctn = MODELS.build({"type": "SCTN", "backbone": {"type": "InstanceUNet"}}).eval()
    yield "SCTN, 8192 points", sctn, Batch([few])
    config = Config.fromfile(FOLDER / "grounding" / "tsp3d_scanrefer.py").model
    config.text = {"type": "HashedWords", "channels": 768}  # RoBERTa may not be there
    scan = room(int(50_000 * args.scale))
    yield f"tsp3d_scanrefer, {len(scan.points)} points", MODELS.build(config).eval(), Batch([scan])


def _networks(args: argparse.Namespace) -> Iterator[Case]:
    """Prediction, from points to answers."""
    for name, model, batch in _models(args):
        there, moved = copy.deepcopy(model).cuda(), batch.to("cuda")
        calls = {"native": by("native", partial(model.predict, batch))}
        calls["cuda"] = OnGpu(partial(there.predict, moved))
        yield Case({"workload": name, "pass": "predict"}, calls)


def _training(args: argparse.Namespace) -> Iterator[Case]:
    """Losses of detectors on two scans, and their gradients."""
    for name in CONFIGS:
        model, batch = model_and_scan(FOLDER / "detection" / f"{name}.py", args.scale)
        places, halves = (torch.from_numpy(x).float() for x in scan_boxes())
        box = torch.cat([places, 2 * halves, torch.zeros(len(places), 1)], 1)
        box = torch.cat([box, torch.zeros(len(box), 2 * getattr(model.head, "velocity", 0))], 1)
        labels = torch.zeros(len(box), dtype=torch.int64)
        sample = Sample(batch.samples[0].points, Boxes(box), labels)
        batch = Batch([sample, replace(sample)])
        model = model.train()
        there, moved = copy.deepcopy(model).cuda(), batch.to("cuda")
        calls = {"native": by("native", partial(_step, model, batch))}
        calls["cuda"] = OnGpu(partial(_step, there, moved))
        row = {"workload": f"{name}, {len(batch.points)} points", "pass": "loss+gradient"}
        yield Case(row, calls)


def _step(model: nn.Module, batch: Batch) -> None:
    model.zero_grad()
    losses = model(batch, mode="loss")
    sum(value for name, value in losses.items() if "loss" in name).backward()


def _splat(args: argparse.Namespace) -> Iterator[Case]:
    """Pictures of 100,000 Gaussians, and their gradients; SH: harmonics of degree 3."""
    scene = splat.random_scene(int(splat.GAUSSIANS * args.scale))
    generator = torch.Generator().manual_seed(1)
    harmonics = 0.3 * torch.randn(len(scene["means"]), 16, 3, generator=generator)
    for name, more in (("random", {}), ("random, SH 3", {"colors": harmonics, "sh_degree": 3})):
        here = scene | more
        there = {k: v.cuda() if isinstance(v, Tensor) else v for k, v in here.items()}
        theirs = splat.passes(there)
        for step, call in splat.passes(here).items():
            calls = {"native": by("native", call), "cuda": OnGpu(theirs[step])}
            yield Case({"workload": name, "pass": step}, calls)


CASES = {
    "maps": _maps,
    "layers": _layers,
    "networks": _networks,
    "training": _training,
    "splat": _splat,
}
