"""Published weights as ours: python tools/convert_checkpoint.py INPUT OUTPUT --config CONFIG"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor

from sparse3d.engine.checkpoints import read_checkpoint, save_atomic, strip_prefix
from sparse3d.engine.command_line import plain_errors
from sparse3d.engine.published import LAYOUTS, Conversion, convert_detector
from sparse3d.engine.runner import load_config, model_config
from sparse3d.registry import MODELS

STATES = ("model_state", "state_dict", "model")
"""Where OpenPCDet and DSVT, mmengine, and others keep the tensors."""
SHOWN = 10


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Convert a checkpoint of OpenPCDet or DSVT to one of this toolkit."
    )
    parser.add_argument("input", help="a checkpoint with 'model_state', or a plain state dict")
    parser.add_argument("output", help="the file to write")
    parser.add_argument("--config", required=True, help="our config of the same model")
    parser.add_argument(
        "--layout",
        choices=("auto", *LAYOUTS),
        default="auto",
        help="of sparse convolution kernels (auto: by their shapes)",
    )
    parser.add_argument(
        "--partial",
        action="store_true",
        help="write what fits; the rest keeps the model's initial values",
    )
    return parser.parse_args(arguments)


def tensors_of(checkpoint: object, path: str) -> dict[str, Tensor]:
    """The named tensors of a checkpoint, without a wrapper's prefix.

    Raises:
        ValueError: it holds none.
    """
    state = checkpoint
    for key in STATES:
        if isinstance(checkpoint, Mapping) and isinstance(checkpoint.get(key), Mapping):
            state = checkpoint[key]
            break
    if not isinstance(state, Mapping) or not any(isinstance(t, Tensor) for t in state.values()):
        raise ValueError(f"{path} holds no tensors by name, nor under any of {', '.join(STATES)}")
    return strip_prefix({name: t for name, t in state.items() if isinstance(t, Tensor)})


def report(conversion: Conversion) -> str:
    """Counts, and the first names of what did not fit."""
    lines = [f"{len(conversion.state)} tensors converted"]
    for title, names in (
        ("missing in the checkpoint", conversion.missing),
        ("without a place in the model", conversion.leftover),
        ("unused (no part of such a model)", conversion.foreign),
    ):
        more = ", ..." if len(names) > SHOWN else ""
        listed = f": {', '.join(names[:SHOWN])}{more}" if names else ""
        lines.append(f"{len(names)} {title}{listed}")
    return "\n".join(lines)


def convert(args: argparse.Namespace) -> None:
    """Convert, report and write.

    Raises:
        FileNotFoundError: there is no such checkpoint or config.
        ValueError: the checkpoint cannot be read or does not fit the config's model.
    """
    checkpoint = read_checkpoint(args.input)
    torch.manual_seed(0)  # what --partial leaves at initial values is the same each time
    model = MODELS.build(model_config(load_config(args.config)))
    conversion = convert_detector(tensors_of(checkpoint, args.input), model, args.layout)
    print(report(conversion))
    if not conversion.state or ((conversion.missing or conversion.leftover) and not args.partial):
        raise ValueError(
            f"{args.input} is not of the model that {args.config} describes; nothing was written. "
            "Use the config of the same model, or --partial to take what fits."
        )
    known = checkpoint if isinstance(checkpoint, Mapping) else {}
    meta = {
        "config": str(args.config),
        "converted_from": Path(args.input).name,
        "initial": conversion.missing,
        **{key: known[key] for key in ("epoch", "it", "version") if key in known},
    }
    state = {**model.state_dict(), **conversion.state}
    save_atomic({"state_dict": state, "meta": meta}, args.output)
    print(f"written to {args.output}")


def main() -> None:
    """Convert; what is wrong with the files is said in one message."""
    with plain_errors():
        convert(parse_args())


if __name__ == "__main__":
    main()
