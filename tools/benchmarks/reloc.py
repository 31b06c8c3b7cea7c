"""Rendering a map's descriptors and answering a query, beside OpenCV's SIFT of the same picture."""

import argparse
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch

from sparse3d.models.relocalization.features import RootSIFT, gray
from sparse3d.models.relocalization.landmarks import LandmarkMap
from sparse3d.models.relocalization.lens import Intrinsics
from sparse3d.models.relocalization.map_file import load_map
from sparse3d.models.relocalizer import QuerySettings, Relocalizer
from sparse3d.ops.volume import ray_weights, render
from tools.benchmarks.common import Case, measure_all, under

BASELINE = "sift"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A map and a picture of its place; without them only rendering is measured."""
    parser.add_argument("--map", help="of relocalize.py build; with --image: measures queries")
    parser.add_argument("--image", help="a picture of the map's place")
    parser.add_argument("--focal", type=float, help="pixels of the picture (the map's)")
    parser.add_argument("--landmarks", type=int, default=1500, help="rendered (1500)")
    parser.add_argument("--channels", type=int, default=128, help="of a descriptor (128)")


def run(args: argparse.Namespace) -> list[dict]:
    """Rows, each beside the extraction of SIFT."""
    cv2.setNumThreads(args.threads)
    return measure_all(cases(args), args)


def summary(rows: list[dict]) -> list[str]:
    """Each time as a share of SIFT's in the same case."""
    times = {row["implementation"]: row["ms"] for row in rows}
    lines = [f"native rendering is {times['reference'] / times['native']:.1f} times the definition"]
    for row in rows:
        base = next(
            r["ms"]
            for r in rows
            if r["implementation"] == BASELINE and r["workload"] == row["workload"]
        )
        if row["implementation"] != BASELINE:
            lines.append(
                f"{row['workload']:28} {row['implementation']:10} {row['ms']:8.2f} ms, "
                f"{row['ms'] / base:.3f} of SIFT's {base:.1f} ms"
            )
    return lines


def cases(args: argparse.Namespace) -> Iterator[Case]:
    """Rendering by both implementations; queries by kind of map."""
    image = picture(args.image)
    sift = partial(RootSIFT().extract, image)
    render_all = partial(rendered, *volumes(args.landmarks, args.channels))
    calls = {name: under(name, render_all) for name in ("native", "reference")}
    yield Case({"workload": f"render {args.landmarks} landmarks"}, calls | {BASELINE: sift})
    if args.map is None or args.image is None:
        return
    place = load_map(args.map)
    features = sift()
    yield Case(
        {"workload": "query without extraction"},
        queries(place, features, image, args.focal) | {BASELINE: sift},
    )


def queries(place: LandmarkMap, features, image: np.ndarray, focal: float | None) -> dict:
    """Answers to the picture by map and by its means, and by the classic way."""
    height, width = gray(image).shape
    focal = focal or place.meta["focal"]
    K = [[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]]
    lens = Intrinsics(K, size=(width, height))
    kinds = {
        "volumes": (place, QuerySettings()),
        "means": (place.without_volumes(), QuerySettings()),
        "means once": (place.without_volumes(), QuerySettings(radii=())),
    }
    return {
        name: partial(Relocalizer(kind, settings=how).localize_features, features, lens)
        for name, (kind, how) in kinds.items()
    }


def picture(path: str | None) -> np.ndarray:
    """The picture, or 640 x 480 blobs."""
    if path is not None:
        image = cv2.imread(str(Path(path)))
        if image is None:
            raise ValueError(f"{path} cannot be read as a picture")
        return np.ascontiguousarray(image[..., ::-1])
    random = np.random.default_rng(0)
    total = np.zeros((480, 640), np.float32)
    for cells in (15, 30, 60, 120):
        noise = random.normal(size=(cells, cells)).astype(np.float32)
        total += cv2.resize(noise, (640, 480), interpolation=cv2.INTER_CUBIC)
    return (total * 30 + 128).clip(0, 255).astype(np.uint8)


def volumes(count: int, channels: int) -> tuple:
    """Rays, boxes, densities and features of ``count`` landmarks seen from one place."""
    random = torch.Generator().manual_seed(0)
    lower = torch.randn(count, 3, generator=random)
    upper = lower + 0.02
    origins = torch.tensor([0.0, 0.0, -5.0]).expand(count, 1, 3).contiguous()
    rays = (lower + 0.01)[:, None] - origins
    density = 5 + torch.randn(count, 3, 3, 3, generator=random)
    features = torch.randn(count, 27, channels, generator=random)
    return origins, rays, lower, upper, density, features


def rendered(*given) -> torch.Tensor:
    """[M, 1, C] descriptors."""
    *volume, features = given
    return render(ray_weights(*volume), features)
