"""Make, index and check data: python tools/prepare_data.py world | rooms | poses | check ..."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from sparse3d.datasets.base import PointDataset
from sparse3d.datasets.check import ERROR, judge, survey, table
from sparse3d.datasets.check_grounding import judge_sentences, sentence_table, survey_sentences
from sparse3d.datasets.check_views import judge_views, survey_views, view_table
from sparse3d.datasets.grounding import GroundingDataset
from sparse3d.datasets.sampling import build_database
from sparse3d.datasets.views import ViewDataset
from sparse3d.engine.command_line import add_config_options, plain_errors
from sparse3d.engine.runner import load_config
from sparse3d.registry import DATASETS


def find_transforms(config: dict, kind: str) -> list[dict]:
    """The dataset's transforms of type ``kind``."""
    return [t for t in config.get("transforms", ()) if t.get("type") == kind]


def dataset_config(args: argparse.Namespace) -> dict:
    """The data set that a config names for a subset.

    Raises:
        ValueError: it names none.
    """
    config = load_config(args.config, args.cfg_options)
    loader = config.get(f"{args.subset}_dataloader")
    if loader is None:
        has = [key for key in config if key.endswith("_dataloader")]
        raise ValueError(f"{args.config} has no {args.subset}_dataloader; it has {has or 'none'}")
    return loader.dataset.to_dict()


def open_plain(config: dict) -> PointDataset:
    """The data set without its augmentation."""
    return DATASETS.build({**config, "transforms": []})


def make_world(args: argparse.Namespace) -> int:
    """Generate the procedural streets."""
    from sparse3d.datasets.world import make_world

    counts = split_counts(args, {"train": 1000, "val": 200})
    folder = make_world(
        Path(args.root), args.name, args.sensor, counts, seed=args.seed, workers=args.workers
    )
    print(f"{folder}: {', '.join(f'{count} {split}' for split, count in counts.items())} frames")
    return 0


def make_rooms(args: argparse.Namespace) -> int:
    """Generate furnished rooms with sentences, and photographs of some."""
    from sparse3d.datasets.world.rooms import make_pictures, make_rooms

    root, pictures = Path(args.root), {"train": args.pictures}
    counts = split_counts(args, {} if args.pictures else {"train": 400, "val": 60})
    if counts:
        sizes = args.points, args.sentences
        folder = make_rooms(root, args.name, counts, args.seed, args.workers, *sizes)
        print(f"{folder}: {', '.join(f'{count} {split}' for split, count in counts.items())} rooms")
    if args.pictures:
        views = args.frames, args.queries, tuple(args.size)
        folder = make_pictures(root, args.name, pictures, args.seed, *views, workers=args.workers)
        print(f"{folder}: {args.pictures} rooms, {args.frames} pictures and {args.queries} queries")
    return 0


def make_scannet(args: argparse.Namespace) -> int:
    """Write ScanNet's scenes as one aligned .npz each: they load many times faster."""
    from sparse3d.datasets.scannet_scenes import prepare_scenes

    count = prepare_scenes(Path(args.scans), Path(args.out), args.workers)
    print(f"{args.out}: {count} scenes")
    return 0


def split_counts(args: argparse.Namespace, usual: dict[str, int]) -> dict[str, int]:
    """How many are asked for by split; ``usual`` where none are.

    Raises:
        ValueError: a negative number.
    """
    asked = {"train": args.train, "val": args.val, "test": args.test}
    if min(asked.values()) < 0:
        raise ValueError(f"{asked} are asked for; a number must be 0 or more")
    return {split: count for split, count in asked.items() if count} or usual


def make_sweeps(args: argparse.Namespace) -> int:
    """Generate sequences of sweeps with exact flow over the procedural streets."""
    from sparse3d.datasets.world.sweeps import make_sequences

    asked = {"train": args.train, "val": args.val, "test": args.test}
    if min(asked.values()) < 0:
        raise ValueError(f"{asked} sequences are asked for; a number must be 0 or more")
    counts = {split: count for split, count in asked.items() if count} or {"train": 160, "test": 20}
    folder = make_sequences(
        Path(args.root),
        args.name,
        tuple(args.sensors),
        counts,
        args.sweeps,
        args.seed,
        args.workers,
    )
    print(f"{folder}: {', '.join(f'{count} {split}' for split, count in counts.items())} sequences")
    return 0


def make_database(args: argparse.Namespace) -> int:
    """Cut out the objects for GroundTruthSampling."""
    config = dataset_config(args)
    named = find_transforms(config, "GroundTruthSampling")
    folder = args.out or (named[0]["database"] if named else None)
    if folder is None:
        raise ValueError(
            f"{args.config} has no GroundTruthSampling that says where: give --out FOLDER"
        )
    dataset = open_plain(config)
    dataset.check_classes()
    counts = build_database(dataset, folder, args.limit, args.seed)
    for name, count in counts.items():
        print(f"{name:<22}{count:>8} objects" + ("" if count else " (none: no file)"))
    print(f"written to {folder}")
    return 0


def make_poses(args: argparse.Namespace) -> int:
    """Find the cameras of a folder of photographs."""
    from sparse3d.datasets.photographs import find_poses

    found = find_poses(args.folder, args.camera_model, args.sequential)
    print(
        f"{found.registered} of {found.photographs} photographs have cameras; "
        f"{found.points} points, mean error {found.pixels:.2f} px: {args.folder}/sparse/0",
        *found.advice(),
        sep="\n",
    )
    return 0


def check(args: argparse.Namespace) -> int:
    """Say what is wrong with the data; 1 if something serious is."""
    config = dataset_config(args)
    while isinstance(config.get("dataset"), dict):  # of sentences by room
        config = config["dataset"]
    views = issubclass(DATASETS.get(config["type"]) or object, ViewDataset)
    dataset = DATASETS.build(config) if views else open_plain(config)
    if views:
        found = survey_views(dataset, args.limit or None)
        problems, numbers = judge_views(found), view_table(found)
    elif isinstance(dataset, GroundingDataset):
        found = survey_sentences(dataset, args.limit or None)
        problems, numbers = judge_sentences(found), sentence_table(found)
    else:
        found = survey(dataset, args.limit or None)
        problems, numbers = judge(found), table(found)
    print(numbers, *problems, sep="\n")
    errors = sum(problem.level == ERROR for problem in problems)
    print(f"{errors} serious problems" if errors else "nothing serious found")
    return int(errors > 0)


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Make, index and check data.")
    commands = parser.add_subparsers(
        required=True, metavar="world | rooms | scannet | sweeps | database | poses | check"
    )

    world = commands.add_parser("world", help="generate procedural streets")
    world.add_argument("--root", default="data/world")
    world.add_argument("--name", default="streets")
    world.add_argument(
        "--sensor", default="hdl64", help="a name in sparse3d.datasets.world.SENSORS"
    )
    for split in ("train", "val", "test"):
        text = "frames (none of the three given: 1000 to train, 200 to validate)"
        world.add_argument(f"--{split}", type=int, default=0, help=text)
    world.add_argument("--seed", type=int, default=0)
    world.add_argument("--workers", type=int, default=1, help="processes (1)")
    world.set_defaults(run=make_world)

    rooms = commands.add_parser("rooms", help="generate furnished rooms with sentences")
    rooms.add_argument("--root", default="data/world")
    rooms.add_argument("--name", default="rooms")
    for split in ("train", "val", "test"):
        text = "rooms (none of the three given: 400 to train, 60 to validate)"
        rooms.add_argument(f"--{split}", type=int, default=0, help=text)
    rooms.add_argument("--seed", type=int, default=0)
    rooms.add_argument("--workers", type=int, default=1, help="processes (1)")
    rooms.add_argument("--points", type=int, default=50_000, help="most points of a scan (50000)")
    rooms.add_argument("--sentences", type=int, default=12, help="most sentences per room (12)")
    text = "train rooms to take posed pictures of, into NAME/pictures (0)"
    rooms.add_argument("--pictures", type=int, default=0, help=text)
    rooms.add_argument("--frames", type=int, default=60, help="mapping pictures of a room (60)")
    rooms.add_argument("--queries", type=int, default=20, help="pictures of another walk (20)")
    rooms.add_argument("--size", type=int, nargs=2, default=(640, 480), help="pixels (640 480)")
    rooms.set_defaults(run=make_rooms)

    scannet = commands.add_parser("scannet", help="write ScanNet's scenes as files that load fast")
    scannet.add_argument("scans", help="folder with the scenes' folders, such as ScanNet/scans")
    scannet.add_argument("--out", default="data/scannet")
    scannet.add_argument("--workers", type=int, default=1, help="processes (1)")
    scannet.set_defaults(run=make_scannet)

    sweeps = commands.add_parser("sweeps", help="generate streets in motion, with exact flow")
    sweeps.add_argument("--root", default="data/world")
    sweeps.add_argument("--name", default="sweeps")
    text = "names in sparse3d.datasets.world.SENSORS, taken in turns (hdl64 double32)"
    sweeps.add_argument("--sensors", nargs="+", default=["hdl64", "double32"], help=text)
    for split in ("train", "val", "test"):
        text = "sequences (none of the three given: 160 to train, 20 to test)"
        sweeps.add_argument(f"--{split}", type=int, default=0, help=text)
    sweeps.add_argument("--sweeps", type=int, default=2, help="of a sequence (2)")
    sweeps.add_argument("--seed", type=int, default=0)
    sweeps.add_argument("--workers", type=int, default=1, help="processes (1)")
    sweeps.set_defaults(run=make_sweeps)

    database = commands.add_parser("database", help="cut out objects for ground-truth sampling")
    database.add_argument("--out", help="folder (the one that the config's transform names)")
    database.add_argument("--limit", type=int, help="most objects of a class (all)")
    database.add_argument("--seed", type=int, default=0, help="of the choice under --limit")
    database.set_defaults(run=make_database)

    poses = commands.add_parser("poses", help="find the cameras of photographs (pycolmap)")
    poses.add_argument("folder", help="with the photographs in it or in its folder images")
    poses.add_argument("--camera-model", default="SIMPLE_RADIAL", help="of COLMAP (SIMPLE_RADIAL)")
    poses.add_argument("--sequential", action="store_true", help="the pictures are a video's")
    poses.set_defaults(run=make_poses)

    checking = commands.add_parser("check", help="look for what is wrong with a data set")
    checking.add_argument("--limit", type=int, default=500, help="most frames (500; 0: all)")
    checking.set_defaults(run=check)

    for command in (database, checking):
        command.add_argument("config", help="a file of configs/")
        command.add_argument("--subset", choices=("train", "val", "test"), default="train")
        add_config_options(command)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the chosen command; its exit code."""
    args = parse_args(arguments)
    with plain_errors():
        return args.run(args)


if __name__ == "__main__":
    sys.exit(main())
