"""Look at a sample and what a model finds: python tools/visualize.py CONFIG [CHECKPOINT]"""

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import sparse3d  # noqa: F401  before torch: says how its threads wait

# isort: split
import numpy as np
import torch
from scipy.spatial.transform import Rotation

from sparse3d.datasets.views import ViewDataset
from sparse3d.engine.checkpoints import load_weights
from sparse3d.engine.command_line import (
    add_config_options,
    check_output,
    check_score,
    plain_errors,
)
from sparse3d.engine.runner import load_config, model_config
from sparse3d.registry import DATASETS, MODELS
from sparse3d.structures import Gaussians, Rendering, Sample, collate
from sparse3d.visualization import open3d_view, renderings, report, web_view
from sparse3d.visualization.scene import Scene

SPLITS = ("val", "test", "train")
PICTURE = "scene.png"
ENDINGS = {
    "--out": (".png", ".jpg", ".jpeg"),
    "--video": (".mp4", ".avi"),
    "--export": (".ply", ".splat"),
    "--web": (".html",),
}
FEW = 4
"""Views through which no flight leads."""


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Draw a sample with its boxes.")
    parser.add_argument("config", help="a file of configs/")
    parser.add_argument("checkpoint", nargs="?", help="weights; without: only the true boxes")
    parser.add_argument("--index", type=int, default=0, help="of the sample in its split (0)")
    parser.add_argument(
        "--split", choices=SPLITS, help="of the config's data (the first of these that it has)"
    )
    parser.add_argument(
        "--out", help=f"file to write ({PICTURE}; of boxes none where --window or --web is given)"
    )
    parser.add_argument(
        "--view", choices=("bev", "3d"), default="bev", help="from above, or in 3-D by Open3D"
    )
    parser.add_argument("--window", action="store_true", help="open a 3-D window instead")
    parser.add_argument("--score", type=float, default=0.3, help="least score of a box (0.3)")
    parser.add_argument("--web", help="a page to write (NAME.html), or a port to serve it on")
    splats = parser.add_argument_group("of a scene of Gaussians")
    splats.add_argument(
        "--video",
        help="a flight through all views of the split, or of the data where those are few: .mp4 or "
        ".avi",
    )
    splats.add_argument("--frames", type=int, default=120, help="of the video (120)")
    splats.add_argument("--export", help="NAME.ply, NAME.compressed.ply or NAME.splat")
    add_config_options(parser)
    return parser.parse_args()


def check_arguments(args: argparse.Namespace) -> None:
    """Sees before the work what would fail after it.

    Raises:
        ValueError: a score beyond 0..1, a flight of fewer than two frames, or a file to write that
            is a folder or has an ending of no known kind.
        RuntimeError: a window, and no screen.
    """
    check_score("--score", args.score)
    if args.frames < 2:
        raise ValueError(f"--frames is {args.frames}; a flight has two at least")
    page = None if args.web is None or args.web.isdigit() else args.web
    named = {"--out": args.out, "--video": args.video, "--export": args.export, "--web": page}
    for option, path in named.items():
        check_output(option, path)
        if path is not None and Path(path).suffix.lower() not in ENDINGS[option]:
            raise ValueError(f"{option} {path}: end the name in {' or '.join(ENDINGS[option])}")
    if args.window:
        open3d_view.check_screen()


def check_kind(args: argparse.Namespace, of_views: bool) -> None:
    """Refuses options that would have no effect on the config's kind of data.

    Raises:
        ValueError: there are some.
    """
    if of_views and args.checkpoint:
        wrong, reason = ("window", "view"), "a scene of Gaussians is shown by --out, --web, --video"
    elif of_views:
        wrong, reason = ("video", "export"), "they need the weights of a scene: give CHECKPOINT"
    else:
        wrong, reason = ("video", "export"), f"they are of a scene of Gaussians, not {args.config}"
    given = [f"--{name}" for name in wrong if getattr(args, name) not in (None, False, "bev")]
    if given:
        raise ValueError(f"{' and '.join(given)} would have no effect: {reason}")


def find(args: argparse.Namespace) -> tuple:
    """The data set, the sample asked for, the model and what it finds; None without weights.

    Raises:
        ValueError: the config has no such split, the split no such sample, or an option would have
            no effect.
    """
    cfg = load_config(args.config, args.cfg_options)
    there = [split for split in SPLITS if cfg.get(f"{split}_dataloader")]
    split = args.split or (there or SPLITS)[0]
    if split not in there:
        raise ValueError(
            f"{args.config} has no {split}_dataloader; it has those of {there or 'no split'}"
        )
    dataset = DATASETS.build(cfg[f"{split}_dataloader"].dataset)
    check_kind(args, isinstance(dataset, ViewDataset))
    if not -len(dataset) <= args.index < len(dataset):
        raise ValueError(f"--index is {args.index}; the split has {len(dataset)} samples")
    sample = dataset[args.index]
    if isinstance(sample, list):  # sentences about one room: the first
        sample = sample[0]
    if args.video:
        dataset = views_to_fly_through(cfg[f"{split}_dataloader"].dataset, dataset)
    if args.checkpoint is None:
        return dataset, sample, None, None
    model = MODELS.build(model_config(cfg)).eval()
    load_weights(model, args.checkpoint)
    with torch.no_grad():
        return dataset, sample, model, model.test_step(collate([sample]))[0]


def views_to_fly_through(config: dict, dataset: ViewDataset) -> ViewDataset:
    """The views of the split; where they are few all of the data, or else the training views."""
    for split in ("all", "train") if len(dataset) < FEW else ():
        try:
            more = DATASETS.build({**config, "split": split})
        except FileNotFoundError:  # of data with a file for each split
            continue
        if len(more) > len(dataset):
            print(f"the split has {len(dataset)} views: the flight is through {len(more)}")
            return more
    return dataset


def with_sparse_points(sample: Sample, dataset: ViewDataset) -> Sample:
    """A view's sample with the points of the whole place, turned so that z is up.

    Up is away from the photographs' lower edges: structure from motion knows no vertical.
    """
    up = -np.mean([view.world_to_cam[1, :3] for view in dataset.views], 0)
    turn, _ = Rotation.align_vectors([[0.0, 0.0, 1.0]], [up])
    points = dataset.points.xyz @ torch.from_numpy(turn.as_matrix()).float().T
    return replace(sample, points=points)


def show_on_the_web(where: str, scene: Scene | None, gaussians: Gaussians | None, cameras) -> None:
    """Write a page, or serve it until the program is stopped."""
    if not where.isdigit():
        print("wrote", web_view.write_html(where, scene, gaussians, cameras))
        return
    web_view.serve(int(where), scene, gaussians, cameras)
    print(f"http://127.0.0.1:{where} shows it; end with Ctrl-C", flush=True)
    while True:
        time.sleep(1)


def show_gaussians(args: argparse.Namespace, dataset, model, found: Rendering) -> None:
    """The rendering beside its photograph, and what else is asked for."""
    print("wrote", *renderings.write_rendering(found, args.out or PICTURE))
    gaussians = model.gaussians.to("cpu")
    samples = [dataset[index] for index in range(len(dataset))]
    cameras = [camera for sample in samples for camera in sample.cameras.values()]
    if args.export:
        print(f"wrote {gaussians.save(args.export)} Gaussians to {args.export}")
    if args.video:
        flight = renderings.camera_path(cameras, args.frames)
        print(f"wrote {renderings.write_video(args.video, flight, model.render)} frames")
    if args.web:
        show_on_the_web(args.web, None, gaussians, cameras)


def show_scene(args: argparse.Namespace, scene: Scene, text: str) -> None:
    """A picture, a page or a window of points and boxes."""
    if args.out or not (args.web or args.window):
        out = args.out or PICTURE
        if args.view == "3d":
            open3d_view.render(scene, out)
            files = [out]
        else:
            files = report.write_report(scene, out)
        print(f"{scene.title}: {text}")
        print("wrote", *files)
    if args.web:
        show_on_the_web(args.web, scene, None, ())
    if args.window:
        open3d_view.show(scene)


def main() -> None:
    """Draw."""
    args = parse_args()
    check_arguments(args)
    dataset, sample, model, found = find(args)
    if isinstance(found, Rendering):
        show_gaussians(args, dataset, model, found)
        return
    if found is not None:
        scene = Scene.from_detections(found, args.score)
    elif isinstance(dataset, ViewDataset):
        scene = Scene.from_sample(with_sparse_points(sample, dataset))
        show_scene(args, scene, f"{len(scene.points)} sparse points of the place")
        return
    else:
        scene = Scene.from_sample(sample)
    show_scene(args, scene, f"{len(scene.truth)} true boxes, {len(scene.predictions)} found")


if __name__ == "__main__":
    with plain_errors():
        main()
