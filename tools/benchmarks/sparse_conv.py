"""Sparse convolution: maps, forward and backward against spconv, torch and the roofline.

Rows in order "random" come from voxels given in a random order. Our voxels are sorted when they are
made, so there the sorting is part of the pass "build", once per topology, and the other passes see
sorted rows; the peers convolve the rows as they are. Roofline: the fastest torch.mm with the same
multiply-adds, of three shapes. "backbone" builds its maps in every call.
"""

import argparse
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from sparse3d.models.backbones.sparse_resnet import SparseResNet
from sparse3d.ops import backend, conv, native
from sparse3d.ops.kernel_map import KernelMap, strided_map, submanifold_map
from sparse3d.structures import SparseVoxels
from tools.benchmarks import common, spconv_peer
from tools.benchmarks.common import DTYPES, Case, under
from tools.benchmarks.scenes import scene_voxels, tiled_room
from tools.benchmarks.sparse_conv_summary import FRESH, summary

__all__ = ["add_arguments", "run", "summary"]

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
ORDERS = ("sorted", "random")
PARTS = ("build", "layers", "memory", "backbone", "scaling")
WIDTHS = {"lidar": (16, 32, 64, 128), "indoor": (32, 64, 96)}
SIZES = (10_000, 30_000, 100_000, 300_000, 1_000_000, 3_000_000)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is measured; everything by default."""
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--scenes", nargs="+", choices=WIDTHS, default=tuple(WIDTHS))
    parser.add_argument("--channels", nargs="+", type=int, help="of submanifold layers")
    parser.add_argument("--orders", nargs="+", choices=ORDERS, default=ORDERS)
    parser.add_argument("--dtypes", nargs="+", type=_dtype, default=tuple(DTYPES.values()))
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES, help="voxels, for scaling")
    parser.add_argument("--no-peers", dest="peers", action="store_false", help="without spconv")
    parser.add_argument("--no-reference", dest="reference", action="store_false")


def _dtype(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(DTYPES)}")
    return DTYPES[name]


def run(args: argparse.Namespace) -> list[dict]:
    """Rows of all parts that ``args`` ask for."""
    args.peers = args.peers and spconv_peer.available()
    rows = common.measure_all(_cases(args), args, COLUMNS)
    return _fastest_roofline(rows)


def _cases(args: argparse.Namespace) -> Iterator[Case]:
    for scene in args.scenes:
        topologies = [_topology(scene, order, args) for order in args.orders]
        for part, cases in (("build", _build_cases), ("layers", _layer_cases)):
            for topology in topologies if part in args.parts else ():
                yield from cases(topology, args)
        if "memory" in args.parts:
            yield from _memory_cases(topologies[0], args)
        if "backbone" in args.parts and scene == "lidar":
            for topology in topologies:
                yield _backbone_case(topology, args)
    if "scaling" in args.parts:
        for size in args.sizes:
            yield from _scaling_cases(size)


# ---------------------------------------------------------------------- topologies


@dataclass
class Topology:
    """The voxels of a scene and the same in the order in which they were given."""

    scene: str
    order: str
    voxels: SparseVoxels
    given: Tensor  # [N, 4] int32
    features: Tensor  # [N, 4] float32, of the given rows

    def sort(self) -> SparseVoxels:
        """What our constructor makes of the given rows."""
        if self.order == "sorted":
            return SparseVoxels(
                self.features, self.given, self.voxels.grid, 1, (1,) * 3, self.shape
            )
        grid = self.voxels.grid
        return SparseVoxels.from_coords(self.given, self.features, grid, 1, shape=self.shape)[0]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.voxels.shape


def _topology(scene: str, order: str, args: argparse.Namespace) -> Topology:
    voxels = scene_voxels(scene, args.scale)
    generator = torch.Generator().manual_seed(0)
    place = torch.arange(len(voxels))
    if order == "random":
        place = torch.randperm(len(voxels), generator=generator)
    features = torch.randn(len(voxels), 4, generator=generator)
    return Topology(scene, order, voxels, voxels.coords[place].contiguous(), features)


def _names(args: argparse.Namespace) -> tuple[str, ...]:
    names = ("native",) if native.available() else ()
    return (*names, "reference") if args.reference or not names else names


# ---------------------------------------------------------------------- maps


def _build_cases(topology: Topology, args: argparse.Namespace) -> Iterator[Case]:
    builders = {
        "submanifold": lambda: submanifold_map(topology.sort().coords, 3),
        "strided": lambda: strided_map(topology.sort().coords, 3, 2, 1, shape=topology.shape),
    }
    for kind, build in builders.items():
        calls = {name: under(name, build) for name in _names(args)}
        if args.peers:
            pairs = spconv_peer.Pairs(topology.given, topology.shape, kind == "strided")
            calls["spconv"] = pairs.build
        row = {"workload": f"{topology.scene} {kind}", "voxels": len(topology.voxels)}
        yield Case({**row, "pass": "build", "order": topology.order}, calls)


# ---------------------------------------------------------------------- layers


def _layer_cases(topology: Topology, args: argparse.Namespace) -> Iterator[Case]:
    voxels = topology.voxels
    same = submanifold_map(voxels.coords, 3)
    down = strided_map(voxels.coords, 3, 2, 1, shape=voxels.shape)
    up = KernelMap(down.reverse, voxels.coords, voxels.shape, len(down.out_coords))
    layers = [("submanifold", same, c, c) for c in args.channels or WIDTHS[topology.scene]]
    for layer in [*layers, ("strided", down, 32, 64), ("inverse", up, 64, 32)]:
        for dtype in args.dtypes:
            yield from _conv_cases(topology, *layer, dtype, args)


def _conv_cases(
    topology: Topology,
    kind: str,
    found: KernelMap,
    inputs: int,
    outputs: int,
    dtype: torch.dtype,
    args: argparse.Namespace,
) -> Iterator[Case]:
    """Forward, and forward with backward, of one convolution."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(len(found.table), inputs, outputs, generator=generator) / inputs**0.5
    features = torch.randn(found.in_rows, inputs, generator=generator).to(dtype)
    cotangent = torch.randn(found.table.shape[1], outputs, generator=generator).to(dtype)
    functions = _implementations(topology, kind, found, dtype, args)
    own = [features.requires_grad_(), weight.requires_grad_()]
    theirs = [features, spconv_peer.filters(weight)]
    leaves = {name: theirs if name == "spconv" else own for name in functions}
    products = _products(found.table, inputs, outputs, dtype)
    gflop = 2e-9 * int((found.table >= 0).sum()) * inputs * outputs
    row = {
        "workload": f"{topology.scene} {kind}",
        "voxels": found.in_rows,
        "in_channels": inputs,
        "out_channels": outputs,
        "dtype": str(dtype).removeprefix("torch."),
        "order": topology.order,
    }
    calls = {name: partial(_forward, f, leaves[name]) for name, f in functions.items()}
    yield Case({**row, "pass": "forward"}, calls | products, gflop)
    calls = {name: partial(_both, f, leaves[name], cotangent) for name, f in functions.items()}
    thrice = {name: partial(_times, 3, product) for name, product in products.items()}
    yield Case({**row, "pass": "forward_backward"}, calls | thrice, 3 * gflop)


def _implementations(
    topology: Topology, kind: str, found: KernelMap, dtype: torch.dtype, args: argparse.Namespace
) -> dict[str, Callable]:
    """Convolutions (features, weight) -> features, by name; bfloat16 under autocast."""

    def ours(name: str, table: Tensor, reverse: Tensor, features: Tensor, weight: Tensor) -> Tensor:
        half = dtype == torch.bfloat16
        mixed = torch.autocast("cpu", dtype) if half else contextlib.nullcontext()
        with backend.forced(name), mixed:
            return conv.sparse_conv(features, weight, table, reverse)

    names = _names(args) if dtype == torch.float32 else _names(args)[:1]
    tables = {name: (found.table, found.reverse) for name in names}  # noqa: C420, they may differ
    if topology.order == "random" and "reference" in tables:
        tables["reference"] = _shuffled(found)
    functions = {name: partial(ours, name, *given) for name, given in tables.items()}
    if args.peers and dtype == torch.float32:
        pairs = spconv_peer.Pairs(topology.given, topology.shape, kind != "submanifold")
        functions["spconv"] = pairs.convolution(kind == "inverse")
    return functions


def _shuffled(found: KernelMap) -> tuple[Tensor, Tensor]:
    """The table and its reverse for input and output rows in random orders."""
    generator = torch.Generator().manual_seed(0)
    columns = found.table.shape[1]
    inputs = torch.randperm(found.in_rows, generator=generator).int()
    outputs = inputs.long() if found.mirrored else torch.randperm(columns, generator=generator)
    moved = torch.where(found.table >= 0, inputs[found.table.clamp(min=0).long()], -1)
    table = torch.empty_like(moved)
    table[:, outputs] = moved
    return table, KernelMap(table, found.out_coords, None, found.in_rows).reverse


def _products(table: Tensor, inputs: int, outputs: int, dtype: torch.dtype) -> dict[str, Callable]:
    """torch.mm with the multiply-adds of ``table``: per offset, in one, offsets side by side."""
    counts = [count for count in (table >= 0).sum(1).tolist() if count]
    pairs, offsets = sum(counts), len(table)
    rows = torch.ones(pairs, inputs, dtype=dtype)
    weight = torch.ones(inputs, outputs, dtype=dtype)
    out = torch.empty(pairs, outputs, dtype=dtype)
    wide = torch.ones(-(-pairs // offsets), offsets * inputs, dtype=dtype)
    tall = torch.ones(offsets * inputs, outputs, dtype=dtype)
    parts = list(zip(rows.split(counts), out.split(counts)))

    def per_offset():
        for part, target in parts:
            torch.mm(part, weight, out=target)

    return {
        "roofline 1": per_offset,
        "roofline 2": lambda: torch.mm(rows, weight, out=out),
        "roofline 3": lambda: torch.mm(wide, tall),
    }


def _fastest_roofline(rows: list[dict]) -> list[dict]:
    """One roofline row per case: the fastest."""
    kept: list[dict] = []
    best: dict[str, dict] = {}
    for row in rows:
        if row["implementation"].startswith("roofline"):
            row = {**row, "implementation": "roofline"}
            have = best.setdefault(common.label(row), row)
            if have is not row:
                if row["ms"] < have["ms"]:
                    have.update(row)
                continue
        kept.append(row)
    return kept


@torch.no_grad()
def _forward(function: Callable, leaves: list[Tensor]) -> Tensor:
    return function(*leaves)


def _both(function: Callable, leaves: list[Tensor], cotangent: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(function(*leaves), leaves, cotangent)


def _times(number: int, call: Callable) -> None:
    for _ in range(number):
        call()


# ---------------------------------------------------------------------- memory


def _memory_cases(topology: Topology, args: argparse.Namespace) -> Iterator[Case]:
    """A forward with a map that nothing is known of yet, made in the call: what it takes in all."""
    table = submanifold_map(topology.voxels.coords, 3).table
    generator = torch.Generator().manual_seed(0)
    for width in args.channels or WIDTHS[topology.scene]:
        features = torch.randn(len(topology.voxels), width, generator=generator)
        weight = torch.randn(27, width, width, generator=generator)

        def forward(features=features, weight=weight):
            return conv.sparse_conv(features, weight, table.clone(), None)

        row = {"workload": f"{topology.scene} {FRESH}", "voxels": len(features)}
        row |= {"in_channels": width, "out_channels": width, "dtype": "float32"}
        calls = {name: under(name, forward) for name in _names(args)}
        gflop = 2e-9 * int((table >= 0).sum()) * width**2
        yield Case({**row, "pass": "forward", "order": topology.order}, calls, gflop)


# ---------------------------------------------------------------------- a whole network


def _backbone_case(topology: Topology, args: argparse.Namespace) -> Case:
    """VoxelResBackBone8x in evaluation, maps included."""
    torch.manual_seed(0)
    ours = SparseResNet(4, topology.voxels.grid, (16, 32, 64, 128), 128, residual=True).eval()
    calls = {name: under(name, lambda: ours(topology.sort())) for name in _names(args)}
    if args.peers:
        theirs = spconv_peer.ResBackbone(4, (16, 32, 64, 128), 128).eval()
        indices = topology.given[:, [0, 3, 2, 1]].contiguous()
        shape = list(ours.in_shape[::-1])
        calls["spconv"] = torch.no_grad()(lambda: theirs(topology.features, indices, shape))
    row = {"workload": "lidar VoxelResBackBone8x with build", "voxels": len(topology.voxels)}
    row |= {"in_channels": 4, "out_channels": 128, "dtype": "float32", "pass": "forward"}
    return Case({**row, "order": topology.order}, calls)


# ---------------------------------------------------------------------- scaling


def _scaling_cases(size: int) -> Iterator[Case]:
    """Ours from a small room to a building: map from random rows, forward, forward and backward."""
    voxels = tiled_room(size)
    generator = torch.Generator().manual_seed(0)
    given = voxels.coords[torch.randperm(len(voxels), generator=generator)]
    room = Topology("scaling", "random", voxels, given, torch.zeros(len(voxels), 1))
    row = {"workload": f"scaling {size}", "voxels": len(voxels), "order": "sorted"}
    name = "native" if native.available() else "reference"
    build = {name: under(name, lambda: submanifold_map(room.sort().coords, 3))}
    yield Case({**row, "pass": "build", "order": "random"}, build)
    found = submanifold_map(voxels.coords, 3)
    leaves = [
        torch.randn(len(voxels), 32, generator=generator).requires_grad_(),
        torch.randn(27, 32, 32, generator=generator).requires_grad_(),
    ]
    cotangent = torch.ones(len(voxels), 32)

    def call(features: Tensor, weight: Tensor) -> Tensor:
        return conv.sparse_conv(features, weight, found.table, found.reverse)

    row |= {"in_channels": 32, "out_channels": 32, "dtype": "float32"}
    gflop = 2e-9 * int((found.table >= 0).sum()) * 32 * 32
    yield Case({**row, "pass": "forward"}, {name: partial(_forward, call, leaves)}, gflop)
    both = {name: partial(_both, call, leaves, cotangent)}
    yield Case({**row, "pass": "forward_backward"}, both, 3 * gflop)
