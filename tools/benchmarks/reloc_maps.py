"""Forms of a relocalization map at equal bytes: rendered, mean and single descriptors compared."""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from sparse3d.evaluation.relocalization import pose_errors, summarize
from sparse3d.models.relocalization import compression
from sparse3d.models.relocalization.builder import BuildSettings, survey
from sparse3d.models.relocalization.features import RootSIFT
from sparse3d.models.relocalization.landmarks import LandmarkMap
from sparse3d.models.relocalization.lens import Intrinsics
from sparse3d.models.relocalization.map_file import load_map, save_map
from sparse3d.models.relocalizer import QuerySettings, Relocalizer
from tools.relocalize import Bar, degraded, open_data, pictures

NUMBERS = ("median_cm", "median_deg", "recall_5cm_5deg", "recall_2cm_2deg", "failures")
ONCE = QuerySettings(radii=())
"""One match over the whole map, without a second look."""


@dataclass(frozen=True)
class Form:
    """How a map is stored and searched.

    Attributes:
        make: of the full map.
        storage: of the file.
        settings: of queries.
        directions: matches must have the direction and size that the pose expects.
        single: made of single observations.
    """

    make: Callable[[LandmarkMap], LandmarkMap]
    storage: str = "int8"
    settings: QuerySettings = field(default_factory=QuerySettings)
    directions: bool = True
    single: bool = False


def _mean(rank: int) -> Callable[[LandmarkMap], LandmarkMap]:
    return lambda full: compression.shorten(full.without_volumes(), rank)


def _volumes(rank: int, modes: int | None = None) -> Callable[[LandmarkMap], LandmarkMap]:
    def make(full: LandmarkMap) -> LandmarkMap:
        short = compression.shorten(full, rank)
        return short if modes is None else compression.reduce_modes(short, modes)

    return make


def _even(full: LandmarkMap) -> LandmarkMap:
    return compression.reduce_modes(compression.flatten_density(_volumes(32)(full)), 1)


FORMS = {
    "mean 64 fp16, once": Form(_mean(64), "float16", ONCE),
    "mean 64 fp16, any direction": Form(_mean(64), "float16", directions=False),
    "mean 64 fp16": Form(_mean(64), "float16"),
    "mean 16 int8, once": Form(_mean(16), settings=ONCE),
    "mean 16 int8, any direction": Form(_mean(16), directions=False),
    "mean 16 int8": Form(_mean(16)),
    "observations 16 int8, 3 pictures": Form(
        _mean(16), settings=QuerySettings(retrieval=3), single=True
    ),
    "volumes 64 fp16": Form(_volumes(64), "float16"),
    "volumes 16 int8": Form(_volumes(16)),
    "volumes 16 int8, 1 mode": Form(_volumes(16, 1)),
    "volumes 16 int8, 1 mode, any direction": Form(_volumes(16, 1), directions=False),
    "volumes 16 int8, 3 modes": Form(_volumes(16, 3)),
    "volumes 32 int8, 1 mode, even": Form(_even),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Scenes and sizes."""
    parser.add_argument("--data", nargs="+", required=True, help="folders of scenes")
    parser.add_argument("--views", type=int, nargs="+", default=[6], help="mapping pictures (6)")
    parser.add_argument("--megabytes", type=float, nargs="+", default=[0.05], help="at most (0.05)")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS), metavar="FORM")
    parser.add_argument(
        "--unused", action="store_true", help="mapping pictures that a map leaves out are queries"
    )
    parser.add_argument(
        "--depth", type=float, help="metres that the median landmark is away (as the poses say)"
    )


def run(args: argparse.Namespace) -> list[dict]:
    """Rows of all scenes, numbers of mapping pictures, sizes and forms, shown as they come."""
    rows = []
    for folder in args.data:
        for views in args.views:
            for row in scene(folder, views, args):
                print(line(row), flush=True)
                rows.append(row)
    return rows


def line(row: dict) -> str:
    """One row as a person reads it."""
    return (
        f"{row['scene']:16} {row['views']:3} views {row['implementation']:38} "
        f"{row['landmarks']:5} landmarks {row['mb']:.3f} MB "
        f"{row['queries']:8} {row['group']:5} {row['count']:3}: "
        f"{row['median_cm']:.2f} cm {row['median_deg']:.2f} deg, 5 cm {row['recall_5cm_5deg']:.0f} "
        f"%, 2 cm {row['recall_2cm_2deg']:.0f} %, failures {row['failures']}, {row['ms']:.0f} ms"
    )


@dataclass(frozen=True, eq=False)
class Scene:
    """What all forms share: full maps and the queries' features."""

    full: LandmarkMap
    single: LandmarkMap
    queries: dict[str, list]
    cameras: list
    groups: list[str] | None
    scale: float


def scene(folder: str, views: int, args: argparse.Namespace) -> Iterator[dict]:
    """Rows of one scene mapped by so many pictures."""
    found = prepare(folder, views, args)
    about = {"scene": Path(folder).name, "views": views}
    for megabytes in args.megabytes:
        for name in args.forms:
            form = FORMS[name]
            place, size = fit(
                form.make(found.single if form.single else found.full), form, megabytes
            )
            for kind, features in found.queries.items():
                row = about | {"implementation": name, "landmarks": len(place), "mb": size / 1e6}
                yield from results(place, form, found, features, row | {"queries": kind})


def prepare(folder: str, views: int, args: argparse.Namespace) -> Scene:
    """Full maps of ``views`` evenly chosen pictures, and features of all queries."""
    extractor, bar = RootSIFT(), Bar()
    data = open_data(folder, "train", None, views)
    test = open_data(folder, "test", None)
    known = survey(pictures(data), len(data), extractor, bar)
    full, flat = known.build(BuildSettings(), bar), known.build(BuildSettings(frames=True), bar)
    asked = list(pictures(test))
    groups = test.categories() if hasattr(test, "categories") else None
    if args.unused:
        rest = open_data(folder, "train", None)
        asked += [view for view in pictures(rest) if view[0] not in known.names]
        groups = groups and groups + ["rest"] * (len(asked) - len(groups))
    queries = {
        "clean": [extractor.extract(image) for _, image, _ in asked],
        "degraded": [extractor.extract(degraded(im, i)) for i, (_, im, _) in enumerate(asked)],
    }
    away = (known.posed.centers[:, None].float() - full.positions).norm(dim=-1)[full.seen].median()
    scale = 1.0 if args.depth is None else args.depth / float(away)
    return Scene(full, flat, queries, [camera for *_, camera in asked], groups, scale)


def fit(place: LandmarkMap, form: Form, megabytes: float) -> tuple[LandmarkMap, int]:
    """The map of most landmarks whose file is not larger, as read from it, and its bytes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "map.npz"

        def size(count: int) -> int:
            small = compression.prune(place, count)
            small = small if form.settings.retrieval else compression.drop_frames(small)
            return save_map(small, path, form.storage)

        low, high = 1, len(place)
        if size(high) > megabytes * 1e6:
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if size(middle) <= megabytes * 1e6 else (low, middle)
            high = low
        written = size(high)
        return load_map(path), written


def results(place, form: Form, found: Scene, features: list, row: dict) -> Iterator[dict]:
    """Rows of all queries and of each group of them."""
    extractor = RootSIFT()
    extractor.covariant = form.directions
    locate = Relocalizer(place, extractor, form.settings)
    errors, started = [], time.process_time()
    for given, camera in zip(features, found.cameras):
        lens = Intrinsics.of(camera)
        answer = locate.localize_features(given, lens)
        metres, degrees = pose_errors(answer.pose, camera.world_to_cam.numpy())
        errors.append((metres * found.scale, degrees))
    ms = (time.process_time() - started) / max(len(errors), 1) * 1e3  # processor time
    table = summarize(errors, "", found.groups)
    for group in ("", *sorted(set(found.groups or ()))):
        prefix = f"{group}/" if group else ""
        numbers = {name: table[prefix + name] for name in NUMBERS}
        count = table[f"{prefix}queries"]
        yield row | {"group": group or "all", "count": count, "ms": round(ms, 2)} | numbers
