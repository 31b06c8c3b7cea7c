"""Gaussian splatting: whole pictures and their parts, against a naive torch rasterizer.

Two workloads of 100,000 Gaussians at 640 x 480: "random" (median deviation 2 pixels) and, where its
file is found, "garden" (points of a photographed scene, deviations from the 3 nearest neighbours).
A pair of a Gaussian and a pixel is useful where its alpha is at least 1/255 and the light has not
ended; FLOP_FORWARD and FLOP_BACKWARD operations are counted for each, whatever a program spends.
"""

import argparse
import os
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sparse3d.ops.neighbors import knn
from sparse3d.ops.reference import splat as definition
from sparse3d.ops.reference import splat_pixels as blending
from sparse3d.ops.splat import (
    fully_fused_projection,
    isect_offset_encode,
    isect_tiles,
    rasterization,
    rasterize_to_pixels,
)
from tools.benchmarks.common import CLOCKS, Case, by, measure, show

GAUSSIANS, SIZE, TILE = 100_000, (640, 480), 16
FLOP_FORWARD, FLOP_BACKWARD = 35, 90  # per useful pair
GARDEN = "splat/garden_npz/test_garden.npz"
COLUMNS = ("workload", "pass", "gaussians", "pixels", "useful_million", "implementation", "ms")
COLUMNS += ("ns_per_useful", "share_of_peak", "gflops", "peak_mb")
LEAVES = ("means", "quats", "scales", "opacities", "colors", "viewmats")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the garden lies, and whether to wait for the naive rasterizer."""
    folder = os.environ.get("SPARSE3D_REAL_DATA") or Path(__file__).parents[3] / "shared" / "data"
    parser.add_argument("--garden", type=Path, default=Path(folder) / GARDEN, help="an npz file")
    parser.add_argument("--no-naive", action="store_true", help="leave the naive program out")
    parser.add_argument("--no-growth", action="store_true", help="leave the growth out")


def run(args: argparse.Namespace) -> list[dict]:
    """Rows of whole pictures, parts, the naive program, and other sizes."""
    count = max(int(GAUSSIANS * args.scale), 100)
    scenes = {"random": random_scene(count)}
    if args.garden.exists():
        scenes["garden"] = garden_scene(args.garden, count)
    else:
        print(f"no garden: {args.garden} is not there; name it with --garden")
    peak = matrix_gflops(CLOCKS[args.clock])
    print(f"peak: a matrix product of 1024^3 does {peak:.1f} GFLOP/s in float32")
    rows = []
    for name, scene in scenes.items():
        useful = useful_pairs(scene)
        for case in cases(name, scene):
            for row in measure(case, args.rounds, args.seconds, CLOCKS[args.clock]):
                rows.append(_finish(row, useful, peak))
        if not args.no_naive:
            for row in naive_rows(name, scene, CLOCKS[args.clock]):
                rows.append(_finish(row, useful, peak))
    if not args.no_growth:
        for case in growth(count):
            for row in measure(case, args.rounds, args.seconds, CLOCKS[args.clock]):
                rows.append(_finish(row, None, peak))
    return rows


def matrix_gflops(clock: Callable[[], float]) -> float:
    """1e9 operations per second of a large matrix product, the best of several."""
    square, times = torch.ones(1024, 1024), []
    for _ in range(12):
        start = clock()
        square @ square
        times.append(clock() - start)
    return 2 * 1024**3 / min(times) / 1e9


def _finish(row: dict, useful: int | None, peak: float) -> dict:
    """Adds what the arithmetic of useful pairs says, and shows the row."""
    row = dict.fromkeys(COLUMNS) | row
    flop = {"forward": FLOP_FORWARD, "blending": FLOP_FORWARD}.get(row["pass"])
    flop = {"forward+backward": FLOP_FORWARD + FLOP_BACKWARD}.get(row["pass"], flop)
    flop = {"blending's gradient": FLOP_BACKWARD}.get(row["pass"], flop)
    if useful and flop:
        row["useful_million"] = round(useful / 1e6, 2)
        row["ns_per_useful"] = round(row["ms"] * 1e6 / useful, 3)
        row["gflops"] = round(useful * flop / row["ms"] / 1e6, 2)
        row["share_of_peak"] = round(row["gflops"] / peak, 4)
    show({k: v for k, v in row.items() if v is not None})
    return row


def summary(rows: list[dict]) -> list[str]:
    """The ratios, the distance from the arithmetic limit, and the growth."""
    lines = []
    for row in rows:
        if row["implementation"] == "naive torch":
            own = next(
                r
                for r in rows
                if (r["workload"], r["pass"]) == (row["workload"], row["pass"])
                and r["implementation"] == "native"
            )
            lines.append(
                f"{row['workload']}, {row['pass']}: {row['ms'] / own['ms']:.0f} times faster than "
                f"the naive torch rasterizer ({own['ms']:.1f} ms, {row['ms']:.0f} ms)"
            )
        elif row["share_of_peak"]:
            lines.append(
                f"{row['workload']}, {row['pass']}: {row['ns_per_useful']} ns per useful pair, "
                f"{1 / row['share_of_peak']:.1f} times the arithmetic limit "
                f"({100 * row['share_of_peak']:.0f} % of the matrix product's speed)"
            )
    for column in ("gaussians", "pixels"):
        points = [(r[column], r["ms"]) for r in rows if r["workload"] == f"more {column}"]
        if len(points) > 1:
            x, y = np.log(np.array(points)).T
            grows = ", ".join(f"{n}: {ms:.1f} ms" for n, ms in points)
            lines.append(f"{column} to the power {np.polyfit(x, y, 1)[0]:.2f} ({grows})")
    return lines


# ---------------------------------------------------------------------- scenes


def random_scene(count: int, size: tuple[int, int] = SIZE, seed: int = 0) -> dict:
    """Gaussians all over the picture at depths of 2 to 10, nearly round, opacities .3 to 1."""
    g = torch.Generator().manual_seed(seed)
    (width, height), focal = size, 500.0
    z = torch.rand(count, generator=g) * 8 + 2
    u, v = (torch.rand(count, generator=g) * n - n / 2 for n in size)
    pixels = 2 * torch.exp(
        0.5 * torch.randn(count, 1, generator=g) + 0.2 * torch.randn(count, 3, generator=g)
    )
    K = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
    return {
        "means": torch.stack([u * z / focal, v * z / focal, z], 1),
        "quats": torch.randn(count, 4, generator=g),
        "scales": pixels * z[:, None] / focal,
        "opacities": 0.3 + 0.7 * torch.rand(count, generator=g),
        "colors": torch.rand(count, 3, generator=g),
        **{"viewmats": torch.eye(4)[None], "Ks": K[None], "width": width, "height": height},
    }


def garden_scene(path: Path, count: int) -> dict:
    """Points of a photographed garden; each as wide as its 3 nearest neighbours are far."""
    with np.load(path) as data:
        points = torch.from_numpy(data["means3d"]).float()
        colors = torch.from_numpy(data["colors"]).float() / 255
        views, Ks = (torch.from_numpy(data[k][:1]).float() for k in ("viewmats", "Ks"))
        sizes = int(data["width"]), int(data["height"])
    chosen = torch.randperm(len(points), generator=torch.Generator().manual_seed(0))[:count]
    points, colors = points[chosen].contiguous(), colors[chosen]
    squares = knn(points, points, 4)[1][:, 1:]
    width = squares.mean(1).clamp(min=1e-8).sqrt()
    Ks = Ks * torch.tensor([SIZE[0] / sizes[0], SIZE[1] / sizes[1], 1])[:, None]
    return {
        "means": points,
        "quats": torch.tensor([1.0, 0, 0, 0]).repeat(len(points), 1),
        "scales": width[:, None].repeat(1, 3),
        "opacities": torch.full((len(points),), 0.5),
        "colors": colors,
        **{"viewmats": views, "Ks": Ks, "width": SIZE[0], "height": SIZE[1]},
    }


# ---------------------------------------------------------------------- native cases


def cases(name: str, scene: dict) -> Iterator[Case]:
    """Whole pictures, with colours and with harmonics, and the parts of the first."""
    size = {"gaussians": len(scene["means"]), "pixels": scene["width"] * scene["height"]}
    for step, call in passes(scene).items():
        yield Case({"workload": name, "pass": step, **size}, {"native": by("native", call)})
    g = torch.Generator().manual_seed(1)
    harmonics = 0.3 * torch.randn(len(scene["means"]), 16, 3, generator=g)
    for step, call in passes({**scene, "colors": harmonics, "sh_degree": 3}).items():
        row = {"workload": f"{name}, SH 3", "pass": step, **size}
        yield Case(row, {"native": by("native", call)})
    for step, call in parts(scene).items():
        yield Case({"workload": name, "pass": step, **size}, {"native": by("native", call)})


def passes(scene: dict) -> dict[str, Callable]:
    """A picture without gradients, and one with the gradients of everything."""
    leaves = {name: scene[name].clone().requires_grad_() for name in LEAVES}
    cotangent = torch.randn(
        1, scene["height"], scene["width"], 3, generator=torch.Generator().manual_seed(2)
    ).to(scene["means"])

    def forward():
        with torch.no_grad():
            return rasterization(**scene, packed=False)

    def both():
        picture, _, _ = rasterization(**{**scene, **leaves}, packed=False)
        return torch.autograd.grad(picture, list(leaves.values()), cotangent)

    return {"forward": forward, "forward+backward": both}


def _project(scene: dict):
    names = ("quats", "scales", "viewmats", "Ks", "width", "height")
    shape = (scene[name] for name in names)
    return fully_fused_projection(scene["means"], None, *shape, opacities=scene["opacities"])


def _tiles(scene: dict) -> tuple[int, int]:
    return -(-scene["width"] // TILE), -(-scene["height"] // TILE)


def parts(scene: dict) -> dict[str, Callable]:
    """Projection, tile lists, blending and its gradient, each alone."""
    radii, means2d, depths, conics, _ = _project(scene)
    opacities, across, down = scene["opacities"][None], *_tiles(scene)

    def tiles():
        found = isect_tiles(
            *(means2d, radii, depths, TILE, across, down), conics=conics, opacities=opacities
        )
        return found[2], isect_offset_encode(found[1], 1, across, down)

    rows, offsets = tiles()
    leaves = [x.clone().requires_grad_() for x in (means2d, conics, scene["colors"][None])]
    leaves.append(opacities.clone().requires_grad_())
    size = (scene["width"], scene["height"])

    def blend():
        return rasterize_to_pixels(*leaves, *size, TILE, offsets, rows)[0]

    picture = blend()
    cotangent = torch.randn(picture.shape, generator=torch.Generator().manual_seed(2))

    def gradient():
        return torch.autograd.grad(picture, leaves, cotangent, retain_graph=True)

    return {
        "projection": lambda: _project(scene),
        "tile lists": tiles,
        "blending": blend,
        "blending's gradient": gradient,
    }


def growth(count: int) -> Iterator[Case]:
    """Forward and backward for more Gaussians, and for larger pictures of one scene."""
    for factor in (0.25, 0.5, 1, 2):
        scene = random_scene(int(count * factor))
        row = {"workload": "more gaussians", "pass": "forward+backward"}
        row |= {"gaussians": int(count * factor), "pixels": SIZE[0] * SIZE[1]}
        yield Case(row, {"native": by("native", passes(scene)["forward+backward"])})
    for factor in (0.5, 1, 2):
        scene = random_scene(count)
        scene["Ks"] = scene["Ks"] * torch.tensor([factor, factor, 1])[:, None]
        scene["width"], scene["height"] = (int(n * factor) for n in SIZE)
        row = {"workload": "more pixels", "pass": "forward+backward"}
        row |= {"gaussians": count, "pixels": scene["width"] * scene["height"]}
        yield Case(row, {"native": by("native", passes(scene)["forward+backward"])})


# ---------------------------------------------------------------------- the naive peer


def _lists(scene: dict) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
    """Inputs with gradients, what a tile reads (with graph), and lists of boxes in tiles."""
    leaves = [scene[name].clone().requires_grad_() for name in LEAVES]
    means, quats, scales, opacities, colors, views = leaves
    size, (across, down) = (scene["width"], scene["height"]), _tiles(scene)
    limits_of_depth = ((0.01, 1e10), 0.0, False, "pinhole")
    shape = (means[None], None, quats[None], scales[None], views[None], scene["Ks"][None])
    with torch.no_grad():
        found = definition.project(*shape, opacities[None], size, 0.3, *limits_of_depth)
        rows = [found[0][0, 0], *(x[0, 0] for x in found[1:3])]
        counts = blending.count_tiles(rows[1], rows[0], TILE, (across, down))
        image = torch.zeros(len(means), dtype=torch.int64)
        _, keys, ids = blending.list_tiles(
            *(rows[1], rows[0], rows[2], image, None, None, counts, TILE, (across, down), 1)
        )
        offsets = blending.tile_starts(keys, 1, (across, down))
    flat = definition.project_seen(*shape, found[0], size, 0.3, "pinhole")
    return leaves, [flat[0][0, 0], flat[2][0, 0], colors, opacities], offsets, ids


def naive(scene: dict, gradient: bool) -> Tensor | tuple[Tensor, ...]:
    """Every tile's list blended as whole tensors, differentiated by autograd tile by tile."""
    leaves, inputs, offsets, ids = _lists(scene)
    width, height = scene["width"], scene["height"]
    picture = torch.zeros(height, width, 3)
    cotangent = torch.randn(1, height, width, 3, generator=torch.Generator().manual_seed(2))[0]
    sums = [torch.zeros_like(x) for x in inputs]
    for _, rows, columns, entries, _ in blending.tiles_of(
        offsets, ids, None, (width, height), TILE
    ):
        tile = ids[entries.start : entries.stop].long()
        if not len(tile):
            continue
        own = [x.detach()[tile].requires_grad_(gradient) for x in inputs]
        pixels = blending.pixel_centres(rows, columns, picture)
        blend = blending.blend_tile(own[0][None], *own[1:], pixels)[0]
        weight = cotangent[rows, columns]
        picture[rows, columns] = blend.detach().reshape(weight.shape)
        if gradient:
            found = torch.autograd.grad(blend, own, weight.reshape(blend.shape))
            for total, part in zip(sums, found):
                total.index_add_(0, tile, part)
    return torch.autograd.grad(inputs, leaves, sums) if gradient else picture


def naive_rows(name: str, scene: dict, clock: Callable[[], float]) -> Iterator[dict]:
    """One call each: they take long."""
    size = {"gaussians": len(scene["means"]), "pixels": scene["width"] * scene["height"]}
    for step in ("forward", "forward+backward"):
        times = []
        for _ in range(1 if size["gaussians"] > 20_000 else 3):
            start = clock()
            naive(scene, step != "forward")
            times.append(clock() - start)
        row = {"workload": name, "pass": step, **size, "implementation": "naive torch"}
        yield row | {"ms": round(statistics.median(times) * 1e3, 1)}


@torch.no_grad()
def useful_pairs(scene: dict) -> int:
    """Pairs of a Gaussian and a pixel with an alpha of 1/255 before the light has ended."""
    _, inputs, offsets, ids = _lists(scene)
    size, total = (scene["width"], scene["height"]), 0
    means2d, conics, _, opacities = (x.detach() for x in inputs)
    for _, rows, columns, entries, _ in blending.tiles_of(offsets, ids, None, size, TILE):
        tile = ids[entries.start : entries.stop].long()
        dx, dy = (means2d[tile] - blending.pixel_centres(rows, columns, means2d)[:, None]).unbind(
            -1
        )
        a, b, c = conics[tile].unbind(-1)
        sigma = 0.5 * (a * dx * dx + c * dy * dy) + b * dx * dy
        alpha = (opacities[tile] * (-sigma).exp()).clamp(max=blending.ALPHA_MAX)
        alpha = torch.where(alpha >= definition.ALPHA_MIN, alpha, 0)
        light = (1 - alpha).cumprod(1)
        total += int(((alpha > 0) & (light > blending.TRANSMITTANCE_MIN)).sum())
    return total
