"""The motion of every point between two clouds: python tools/flow.py A.ply B.ply"""

import argparse
import sys
import warnings
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from sparse3d.datasets.clouds import ENDINGS, PAIR_KEYS, holds_pair, read_cloud, read_matrices
from sparse3d.engine.checkpoints import load_weights
from sparse3d.engine.command_line import add_config_options, plain_errors
from sparse3d.engine.flow import predict_flow
from sparse3d.engine.runner import load_config, model_config
from sparse3d.models.detector import VoxelDetector
from sparse3d.models.grounder import TextGrounder
from sparse3d.models.splatting import SplattingModel
from sparse3d.registry import MODELS
from sparse3d.structures import Flow
from sparse3d.visualization.flow import write_flow


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Find the motion of every point of cloud A until cloud B. Neither poses nor a "
        "ground mask nor weights are needed. The flow is in B's frame, with and without ego motion."
    )
    kinds = ", ".join(ENDINGS)
    parser.add_argument("source", help=f"cloud A, metres, z up: {kinds}")
    parser.add_argument(
        "target", help="cloud B, taken later; an .npz with pc0 and pc1, given as both, is A and B"
    )
    parser.add_argument(
        "--poses", help="two poses (sensor to world) of A and B, or one of A to B: .txt or .npy"
    )
    parser.add_argument("--seconds", type=float, default=0.1, help="from A to B (0.1)")
    parser.add_argument("--scale", type=float, default=1.0, help="of both clouds, to metres (1)")
    parser.add_argument("--columns", type=int, help="float32 per point of a .bin file (4)")
    parser.add_argument("--config", help="of a model; without: rigid groups, which need no weights")
    parser.add_argument("--checkpoint", help="the model's weights")
    parser.add_argument("--out", default="flow", help="folder for npy, ply and pictures (flow)")
    add_config_options(parser)
    return parser.parse_args(arguments)


def build_model(args: argparse.Namespace):
    """The model of the command line; None for the one that needs no weights.

    Raises:
        ValueError: weights without a config, or one of another task.
    """
    if args.config is None:
        if args.checkpoint:
            raise ValueError("--checkpoint needs the --config that the weights were trained with")
        return None
    model = MODELS.build(model_config(load_config(args.config, args.cfg_options)))
    if isinstance(model, (VoxelDetector, SplattingModel, TextGrounder)):
        raise ValueError(
            f"{args.config} is of a {type(model).__name__}, which finds no flow: give a config of "
            "configs/flow"
        )
    if args.checkpoint:
        load_weights(model, args.checkpoint)
    elif any(True for _ in model.parameters()):
        raise ValueError(f"{args.config} is of a model that learns: give its weights, --checkpoint")
    return model


def read_clouds(args: argparse.Namespace) -> list[np.ndarray]:
    """A and B, in metres; warns where both are the same."""
    paths, keys = (args.source, args.target), (None, None)
    if Path(args.source).resolve() == Path(args.target).resolve() and holds_pair(args.source):
        keys = PAIR_KEYS
    clouds = [read_cloud(p, args.columns, key) * args.scale for p, key in zip(paths, keys)]
    if len(clouds[0]) and np.array_equal(*clouds, equal_nan=True):
        warnings.warn(
            f"A ({args.source}) and B ({args.target}) hold the same points: nothing moves between "
            "a cloud and itself",
            stacklevel=2,
        )
    return clouds


def read_poses(path: str | None) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Poses of A and B."""
    if path is None:
        return None, None
    poses = read_matrices(path)
    return (poses[0], np.eye(4)) if len(poses) == 1 else (poses[0], poses[1])


def statistics(flow: Flow) -> str:
    """What was found, in lines for a person."""
    pair = flow.pair
    dropped = pair.meta["dropped"]
    speed = flow.residual.norm(dim=1).numpy() / pair.interval
    moving = speed[flow.dynamic().numpy()]
    lines = [
        f"{len(pair.source)} points of A, {len(pair.target)} of B"
        + (f"; {dropped[0]} and {dropped[1]} that are no numbers were dropped" * any(dropped))
    ]
    if flow.ego_motion is None:
        lines.append("ego motion: part of the flow, not told apart")
    else:
        how = "given" if pair.ego_motion is not None else "found by registration"
        matrix = flow.ego_motion.numpy()
        turn = np.degrees(np.arctan2(matrix[1, 0], matrix[0, 0]))
        shift = np.linalg.norm(matrix[:3, 3])
        lines.append(f"ego motion {how}: {shift:.3f} m, {turn:.2f} degrees about the vertical")
    lines.append("frame of the flow: B's; columns 1-3 with ego motion, 4-6 without")
    if len(moving):
        lines.append(
            f"{len(moving)} points move by themselves (0.5 m/s or more): "
            f"median {np.median(moving):.1f} m/s, fastest {moving.max():.1f} m/s"
        )
    else:
        lines.append("no point moves by itself (0.5 m/s or more)")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Read, find, write, tell."""
    args = parse_args(arguments)
    with plain_errors():
        model = build_model(args)
        clouds = read_clouds(args)
        flow = predict_flow(*clouds, *read_poses(args.poses), model, args.seconds)
        print(statistics(flow))
        for path in write_flow(flow, args.out, len(clouds[0])):
            print(f"written: {path}")


if __name__ == "__main__":
    main()
