"""Train a model: python tools/train.py CONFIG"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from sparse3d.engine import distributed
from sparse3d.engine.command_line import add_config_options, plain_errors
from sparse3d.engine.runner import build_runner


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train a model.")
    parser.add_argument("config", help="a file of configs/")
    parser.add_argument("--work-dir", help="for checkpoints and logs (work_dirs/<config>)")
    parser.add_argument(
        "--resume", action="store_true", help="go on from the newest checkpoint of the work folder"
    )
    parser.add_argument("--amp", action="store_true", help="forward pass in bfloat16")
    add_config_options(parser)
    parser.add_argument(
        "--launcher", choices=distributed.LAUNCHERS, default="none", help="pytorch: under torchrun"
    )
    return parser.parse_args()


def main() -> None:
    """Train and leave the process group."""
    args = parse_args()
    build_runner(
        args.config, args.work_dir, args.resume, args.amp, args.launcher, args.cfg_options
    ).train()
    distributed.finish()


if __name__ == "__main__":
    with plain_errors():
        main()
