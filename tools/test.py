"""Evaluate weights on a config's test data: python tools/test.py CONFIG CHECKPOINT"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import sparse3d  # noqa: F401  before torch: says how its threads wait

# isort: split
from mmengine.dist import is_main_process

from sparse3d.engine import distributed
from sparse3d.engine.command_line import (
    add_config_options,
    check_folder,
    check_output,
    check_score,
    plain_errors,
)
from sparse3d.engine.hooks import PictureHook
from sparse3d.engine.runner import build_runner


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Evaluate weights.")
    parser.add_argument("config", help="a file of configs/")
    parser.add_argument("checkpoint", help="weights, from tools/train.py or published")
    parser.add_argument("--work-dir", help="for logs (work_dirs/<config>)")
    parser.add_argument("--amp", action="store_true", help="forward pass in bfloat16")
    parser.add_argument("--out", help="a json file for the metrics")
    parser.add_argument("--show-dir", help="a folder for a picture of every sample")
    parser.add_argument(
        "--show-score", type=float, default=0.3, help="least score of a box in a picture (0.3)"
    )
    add_config_options(parser)
    parser.add_argument(
        "--launcher", choices=distributed.LAUNCHERS, default="none", help="pytorch: under torchrun"
    )
    return parser.parse_args()


def test(args: argparse.Namespace) -> None:
    """Test and write the metrics."""
    check_output("--out", args.out)
    check_folder("--show-dir", args.show_dir)
    check_score("--show-score", args.show_score)
    runner = build_runner(
        args.config,
        args.work_dir,
        amp=args.amp,
        launcher=args.launcher,
        cfg_options=args.cfg_options,
        checkpoint=args.checkpoint,
    )
    if args.show_dir:
        runner.register_hook(PictureHook(args.show_dir, args.show_score))
    metrics = runner.test()
    if args.out and is_main_process():
        Path(args.out).write_text(json.dumps(metrics, indent=2, default=float) + "\n")


def main() -> None:
    """Test and leave the process group."""
    test(parse_args())
    distributed.finish()


if __name__ == "__main__":
    with plain_errors():
        main()
