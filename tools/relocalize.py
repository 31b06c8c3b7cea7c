"""Find where photographs were taken: python tools/relocalize.py build DATA MAP.npz, then query.

build     a map of a folder's mapping pictures
query     where one picture was taken
evaluate  all queries of a folder against their known poses
info      what a map holds
compress  a smaller map of a map
"""

import argparse
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import sparse3d  # noqa: F401  before torch: says how its threads wait

# isort: split
import numpy as np
import torch

from sparse3d.datasets.colmap import ColmapViews
from sparse3d.datasets.relocalization import CambridgeViews, SevenScenesViews
from sparse3d.datasets.views import VIEW, ViewDataset, read_picture
from sparse3d.engine.command_line import check_output, plain_errors
from sparse3d.engine.progress import left
from sparse3d.evaluation.relocalization import lines, pose_errors, summarize
from sparse3d.models.relocalization import compression
from sparse3d.models.relocalization.builder import BuildSettings, Survey, survey
from sparse3d.models.relocalization.features import make_extractor
from sparse3d.models.relocalization.lens import Intrinsics
from sparse3d.models.relocalization.map_file import STORAGE, load_map, save_map
from sparse3d.models.relocalization.uncertainty import coverage, score
from sparse3d.models.relocalizer import QuerySettings, Relocalizer

FORMATS = {"7scenes": SevenScenesViews, "cambridge": CambridgeViews, "colmap": ColmapViews}
CONFIDENCE = 0.9
FAILED = 1e9
"""Score of a picture that was not localized; JSON has no infinity."""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="a map of a folder's mapping pictures")
    build.add_argument("data", help="folder: 7-Scenes, Cambridge, or images with a COLMAP model")
    build.add_argument("map", help="file to write")
    build.add_argument("--views", type=int, help="evenly chosen mapping pictures (all)")
    build.add_argument("--landmarks", type=int, default=1500, help="at most (1500)")
    build.add_argument("--rank", type=int, default=64, help="numbers per descriptor (64)")
    build.add_argument(
        "--kind",
        choices=("volumes", "mean", "frames"),
        default="volumes",
        help="volumes; or a baseline: one mean descriptor per landmark, or one per observation",
    )
    build.add_argument("--features", default="rootsift", help="kind of features (rootsift)")
    build.add_argument("--storage", choices=STORAGE, default="float32")
    build.add_argument(
        "--calibrate",
        type=int,
        default=0,
        metavar="RUNS",
        help="in so many runs leave every so many-th picture out, to learn how far off poses are",
    )
    query = commands.add_parser("query", help="where one picture was taken")
    query.add_argument("map")
    query.add_argument("image")
    query.add_argument("--focal", type=float, required=True, help="pixels of this picture")
    query.add_argument("--center", type=float, nargs=2, help="principal point (the middle)")
    query.add_argument("--radial", type=float, nargs="+", default=[], help="k1 [k2], OpenCV's")
    query.add_argument("--prior", help="file of a 4 x 4 matrix, world to camera")
    evaluate = commands.add_parser("evaluate", help="all queries against their known poses")
    evaluate.add_argument("map")
    evaluate.add_argument("data")
    evaluate.add_argument("--degrade", action="store_true", help="blur, darken and add noise")
    evaluate.add_argument("--no-render", action="store_true", help="match mean descriptors")
    evaluate.add_argument("--once", action="store_true", help="match once, without a second look")
    evaluate.add_argument("--retrieval", type=int, default=0, help="most alike pictures to match")
    evaluate.add_argument("--out", type=Path, help="a json file for the numbers")
    info = commands.add_parser("info", help="what a map holds")
    info.add_argument("map")
    compress = commands.add_parser("compress", help="a smaller map")
    compress.add_argument("map")
    compress.add_argument("out")
    compress.add_argument("--landmarks", type=int, help="keep so many")
    compress.add_argument("--rank", type=int, help="numbers per descriptor")
    compress.add_argument("--modes", type=int, help="numbers per node; 0: no volumes")
    compress.add_argument("--no-frames", action="store_true", help="leave out retrieval")
    compress.add_argument("--storage", choices=STORAGE, default="int8")
    for each in (build, query, evaluate):
        each.add_argument("--weights", help="state dict of the features' network")
    for each in (build, evaluate):
        each.add_argument("--format", choices=FORMATS, help="of the folder (recognized)")
    return parser.parse_args(argv)


class Bar:
    """One line that fills; elsewhere than on a terminal a line now and then."""

    def __init__(self):
        self.live = sys.stdout.isatty()
        self.stage, self.started, self.shown = "", time.time(), 0.0

    def __call__(self, share: float, text: str) -> None:
        now, stage = time.time(), text.split(" ")[0]
        if stage != self.stage:
            self.stage, self.started, self.shown = stage, now, 0.0
        if now - self.shown < (0.1 if self.live else 10) and share < 1:
            return
        self.shown = now
        rest = left((now - self.started) * (1 - share) / max(share, 1e-9))
        filled = round(20 * share)
        line = f"[{'#' * filled}{'.' * (20 - filled)}] {text}, left {rest}"
        print(f"\r\033[K{line}" if self.live else line, end="" if self.live and share < 1 else "\n")
        sys.stdout.flush()


def open_data(folder: str, split: str, kind: str | None, views: int | None = None) -> ViewDataset:
    """The data set of a folder."""
    root = Path(folder)
    if kind is None:
        if (root / "dataset_train.txt").is_file():
            kind = "cambridge"
        elif (root / "TrainSplit.txt").is_file() or (root / "pgt_sfm_train.txt").is_file():
            kind = "7scenes"
        else:
            kind = "colmap"
    return FORMATS[kind](folder, split=split, train_views=views, cache_gb=0)


def pictures(data: ViewDataset, rows: list[int] | None = None):
    """(name, image, camera) of views."""
    for row in range(len(data)) if rows is None else rows:
        sample = data[row]
        yield data.views[row].name, sample.images[VIEW].numpy(), sample.cameras[VIEW]


def build(args: argparse.Namespace) -> None:
    """Build and write.

    Raises:
        ValueError: a number of views or of runs that cannot be.
    """
    if args.views is not None and args.views < 1:
        raise ValueError(f"--views is {args.views}; it must be 1 or more (all without it)")
    check_output("map", args.map)
    data = open_data(args.data, "train", args.format, args.views)
    extractor = make_extractor(args.features, args.weights)
    kinds = {"volumes": args.kind == "volumes", "frames": args.kind == "frames"}
    settings = BuildSettings(args.landmarks, args.rank, **kinds)
    truth = getattr(data, "ground_truth", "") or f"{data.name} model"
    started = time.time()
    about = {"data": data.name, "ground_truth": truth}
    known = survey(pictures(data), len(data), extractor, Bar())
    if args.calibrate:
        if not 2 <= args.calibrate <= len(data):
            raise ValueError(f"--calibrate is {args.calibrate}; 2 to {len(data)} runs are possible")
        about["calibration"] = calibrate(known, data, extractor, settings, args.calibrate)
    place = known.build(settings, Bar(), **about)
    size = save_map(place, args.map, args.storage)
    print(
        f"wrote {args.map}: {len(place)} landmarks of {len(data)} pictures, {size / 1e6:.3f} MB, "
        f"{time.time() - started:.0f} s"
    )


def calibrate(known: Survey, data, extractor, settings: BuildSettings, runs: int) -> list[float]:
    """Conformal scores of all mapping pictures; a run leaves out every ``runs``-th.

    Neighbours of the pictures left out stay, so that they lie about as far from the map as pictures
    between those of the whole map do.
    """
    bar, scores = Bar(), []
    for run in range(runs):
        held = range(run, len(data), runs)
        bar(run / runs, f"calibrating, run {run + 1} of {runs}")
        locate = Relocalizer(known.build(settings, without=held), extractor)
        for row in held:
            camera = data[row].cameras[VIEW]
            answer = locate.localize_features(known.features[row], Intrinsics.of(camera))
            metres, degrees = pose_errors(answer.pose, camera.world_to_cam.numpy())
            sigma = answer.sigma or (np.inf, np.inf)
            scores.append(min(score((metres, np.deg2rad(degrees)), sigma), FAILED))
    return scores


def read_prior(path: Path) -> torch.Tensor:
    """The matrix of a text file."""
    if not path.is_file():
        raise FileNotFoundError(f"--prior {path} does not exist")
    try:
        return torch.from_numpy(np.loadtxt(path))
    except ValueError as error:
        raise ValueError(
            f"--prior {path} cannot be read ({error}); four lines of four numbers, world to "
            "camera, are needed"
        ) from error


def query(args: argparse.Namespace) -> None:
    """One picture."""
    locate = Relocalizer.load(args.map, args.weights)
    image = read_picture(Path(args.image), np.zeros(3, np.float32))
    x, y = args.center or ((image.shape[1] - 1) / 2, (image.shape[0] - 1) / 2)
    lens = Intrinsics([[args.focal, 0, x], [0, args.focal, y], [0, 0, 1]], tuple(args.radial))
    prior = None if args.prior is None else read_prior(Path(args.prior))
    started = time.time()
    answer = locate.localize(image, lens, prior)
    if not answer.success:
        print(f"no pose (score {answer.score:.2f}): {answer.reason}")
        raise SystemExit(2)
    metres, radians = answer.sigma
    print(
        "world to camera:", *(" ".join(f"{v: .6f}" for v in row) for row in answer.pose), sep="\n"
    )
    print(
        f"centre {np.round(answer.center, 4).tolist()} m, sigma {metres * 100:.2f} cm "
        f"{np.rad2deg(radians):.2f} deg, {answer.inliers} inliers, score {answer.score:.2f}, "
        f"{time.time() - started:.2f} s"
    )
    if radius := answer.pose_set(CONFIDENCE):
        print(
            f"true pose within {radius[0] * 100:.2f} cm and {np.rad2deg(radius[1]):.2f} deg in "
            f"{CONFIDENCE:.0%} of such queries"
        )


def degraded(image: np.ndarray, seed: int) -> np.ndarray:
    """Half size, blurred by a pixel, darkened by gamma 1.8, noise of 6, and back to full size."""
    import cv2

    height, width = image.shape[:2]
    small = cv2.resize(image, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
    small = cv2.GaussianBlur(small, (0, 0), 1.0).astype(np.float64) / 255
    noise = np.random.default_rng(seed).normal(0, 6, small.shape)
    dark = (small**1.8 * 255 + noise).clip(0, 255).astype(np.uint8)
    return cv2.resize(dark, (width, height), interpolation=cv2.INTER_LINEAR)


def evaluate(args: argparse.Namespace) -> None:
    """All queries."""
    locate = Relocalizer.load(args.map, args.weights)
    options = {"radii": ()} if args.once else {}
    locate.settings = QuerySettings(render=not args.no_render, retrieval=args.retrieval, **options)
    data = open_data(args.data, "test", args.format)
    truth = getattr(data, "ground_truth", "") or f"{data.name} model"
    mapped = locate.place.meta.get("ground_truth", truth)
    if mapped != truth:
        raise ValueError(f"the map's poses are {mapped}, the queries' {truth}: never mix them")
    bar, errors, answers = Bar(), [], []
    for row, (_, image, camera) in enumerate(pictures(data)):
        answer = locate.localize(degraded(image, row) if args.degrade else image, camera)
        errors.append(pose_errors(answer.pose, camera.world_to_cam.numpy()))
        answers.append(answer)
        bar((row + 1) / len(data), f"query {row + 1} of {len(data)}")
    groups = data.categories() if hasattr(data, "categories") else None
    results = summarize(errors, truth, groups)
    results["map_mb"] = os.path.getsize(args.map) / 1e6
    print("\n".join(lines(results)))
    results |= report_coverage(locate, errors, answers, groups)
    if args.out:
        args.out.write_text(json.dumps(results, indent=1))


def report_coverage(locate, errors, answers, groups) -> dict:
    """Coverage of the pose sets, overall and per group; empty without calibration."""
    known = locate.place.meta.get("calibration")
    if not known:
        return {}
    out = {}
    for group in ["all", *sorted(set(groups or ()))]:
        rows = [i for i in range(len(errors)) if group == "all" or groups[i] == group]
        radians = [(errors[i][0], np.deg2rad(errors[i][1])) for i in rows]
        found = coverage(radians, [answers[i].sigma for i in rows], known, CONFIDENCE)
        print(
            f"{group:6} pose sets of {CONFIDENCE:.0%}: hold {100 * found['coverage']:.1f} %, "
            f"{found['unknown']} unknown, median {found['radius_cm']:.2f} cm "
            f"{found['radius_deg']:.2f} deg"
        )
        out |= {f"{group}/pose_set_{k}": v for k, v in found.items()}
    return out


def info(args: argparse.Namespace) -> None:
    """What a map holds."""
    place = load_map(args.map)
    size = os.path.getsize(args.map)
    print(
        f"{args.map}: {len(place)} landmarks, {size / 1e6:.3f} MB, "
        f"{size / max(len(place), 1):.0f} bytes each"
    )
    modes = "codes" if place.codes is None else f"{place.codes.shape[1]} modes"
    nodes = f"{len(place.voxels)} nodes of {modes}" if place.renders else "no volumes"
    print(f"descriptors of {place.rank} numbers, {nodes}, {len(place.frames)} pictures")
    for name, value in place.meta.items():
        print(f"{name}: {f'of {len(value)} pictures' if name == 'calibration' else value}")


def compress(args: argparse.Namespace) -> None:
    """A smaller map."""
    place = load_map(args.map)
    if args.landmarks:
        place = compression.prune(place, args.landmarks)
    if args.rank:
        place = compression.shorten(place, args.rank)
    if args.modes is not None:
        place = compression.reduce_modes(place, args.modes)
    if args.no_frames:
        place = compression.drop_frames(place)
    size = save_map(replace(place), args.out, args.storage)
    print(f"wrote {args.out}: {size / 1e6:.3f} MB of {os.path.getsize(args.map) / 1e6:.3f} MB")


def main(argv: list[str] | None = None) -> None:
    """Run a command."""
    args = parse_args(argv)
    torch.manual_seed(0)
    commands = {f.__name__: f for f in (build, query, evaluate, info, compress)}
    commands[args.command](args)


if __name__ == "__main__":
    with plain_errors():
        main()
