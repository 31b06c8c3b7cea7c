"""Look at a sample and what a model finds: python tools/visualize.py CONFIG [CHECKPOINT]"""

import argparse
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from sparse3d.engine.checkpoints import load_weights
from sparse3d.engine.command_line import add_config_options, plain_errors
from sparse3d.engine.runner import load_config, model_config
from sparse3d.registry import DATASETS, MODELS
from sparse3d.structures import Gaussians, Rendering, collate
from sparse3d.visualization import open3d_view, renderings, report, web_view
from sparse3d.visualization.scene import Scene

SPLITS = ("val", "test", "train")


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Draw a sample with its boxes.")
    parser.add_argument("config", help="a file of configs/")
    parser.add_argument("checkpoint", nargs="?", help="weights; without: only the true boxes")
    parser.add_argument("--index", type=int, default=0, help="of the sample in its split (0)")
    parser.add_argument(
        "--split", choices=SPLITS, help="of the config's data (the first of these that it has)"
    )
    parser.add_argument("--out", default="scene.png", help="file to write (scene.png)")
    parser.add_argument(
        "--view", choices=("bev", "3d"), default="bev", help="from above, or in 3-D by Open3D"
    )
    parser.add_argument("--window", action="store_true", help="open a 3-D window instead")
    parser.add_argument("--score", type=float, default=0.3, help="least score of a box (0.3)")
    parser.add_argument("--web", help="a page to write (NAME.html), or a port to serve it on")
    splats = parser.add_argument_group("of a scene of Gaussians")
    splats.add_argument("--video", help="a flight through all views of the split: .mp4 or .avi")
    splats.add_argument("--frames", type=int, default=120, help="of the video (120)")
    splats.add_argument("--export", help="NAME.ply, NAME.compressed.ply or NAME.splat")
    add_config_options(parser)
    return parser.parse_args()


def find(args: argparse.Namespace) -> tuple:
    """The data set, the sample asked for, the model and what it finds; None without weights.

    Raises:
        ValueError: the config has no such split, or the split no such sample.
    """
    cfg = load_config(args.config, args.cfg_options)
    there = [split for split in SPLITS if cfg.get(f"{split}_dataloader")]
    split = args.split or (there or SPLITS)[0]
    if split not in there:
        raise ValueError(
            f"{args.config} has no {split}_dataloader; it has those of {there or 'no split'}"
        )
    dataset = DATASETS.build(cfg[f"{split}_dataloader"].dataset)
    if not -len(dataset) <= args.index < len(dataset):
        raise ValueError(f"--index is {args.index}; the split has {len(dataset)} samples")
    sample = dataset[args.index]
    if isinstance(sample, list):  # sentences about one room: the first
        sample = sample[0]
    if args.checkpoint is None:
        return dataset, sample, None, None
    model = MODELS.build(model_config(cfg)).eval()
    load_weights(model, args.checkpoint)
    with torch.no_grad():
        return dataset, sample, model, model.test_step(collate([sample]))[0]


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
    print("wrote", *renderings.write_rendering(found, args.out))
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


def main() -> None:
    """Draw."""
    args = parse_args()
    dataset, sample, model, found = find(args)
    if isinstance(found, Rendering):
        show_gaussians(args, dataset, model, found)
        return
    plain = found is None
    scene = Scene.from_sample(sample) if plain else Scene.from_detections(found, args.score)
    if args.web:
        show_on_the_web(args.web, scene, None, ())
        return
    if args.window:
        open3d_view.show(scene)
        return
    if args.view == "3d":
        open3d_view.render(scene, args.out)
        files = [args.out]
    else:
        files = report.write_report(scene, args.out)
    print(f"{scene.title}: {len(scene.truth)} true boxes, {len(scene.predictions)} found")
    print("wrote", *files)


if __name__ == "__main__":
    with plain_errors():
        main()
