"""Write a detector as a program: python tools/export.py CONFIG [CHECKPOINT] --out model.pt2

The program (torch.export) goes from points [P, C] of one sample, metres, any P, to the head's raw
output. It holds our operators by name: whoever runs it imports sparse3d, but needs no config and
none of the model's Python:

    import sparse3d.ops.operators, torch
    outputs = torch.export.load("model.pt2").module()(points)

Values are not checked inside it (NaN, infinite coordinates). --onnx writes the dense part alone,
the bird's-eye network and the head, for a map of the size that the model makes. Both are run and
compared with the model before they are kept.
"""

import argparse
import importlib.util
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import sparse3d  # noqa: F401  before torch: says how its threads wait

# isort: split
import torch
from mmengine.config import Config
from torch import Tensor, nn

from sparse3d.engine.checkpoints import load_weights
from sparse3d.engine.command_line import add_config_options, check_output, plain_errors
from sparse3d.engine.runner import load_config, model_config
from sparse3d.models.backbones.bev import to_bev
from sparse3d.models.detector import VoxelDetector
from sparse3d.registry import MODELS

ONNX = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-4  # of the largest output: a compiled graph may add in another order


class FromPoints(nn.Module):
    """Points [P, C] of one sample to the head's raw output, as plain lists, dicts and tensors."""

    def __init__(self, detector: nn.Module):
        super().__init__()
        self.detector = detector

    def forward(self, points: Tensor):
        sample = torch.zeros_like(points[:, 0], dtype=torch.int64)
        voxels = self.detector.encoder(points, sample, 1)
        return plain(self.detector._output(voxels))


class FromMap(nn.Module):
    """A bird's-eye map [1, C, Y, X] to the head's raw output, as a list of tensors."""

    def __init__(self, detector: nn.Module):
        super().__init__()
        self.bev_backbone, self.head = detector.bev_backbone, detector.head

    def forward(self, features: Tensor) -> list[Tensor]:
        return torch.utils._pytree.tree_leaves(plain(self.head(self.bev_backbone(features))))


def plain(output):
    """``output`` with sparse maps as {'coords', 'features'}: a program returns no classes."""
    if hasattr(output, "voxels"):
        return {"coords": output.voxels.coords, "groups": output.groups}
    return output


def export_program(detector: nn.Module, points: Tensor) -> torch.export.ExportedProgram:
    """The program of ``detector``; ``points`` [P, C] are an example.

    Raises:
        ValueError: it answers otherwise than the detector.
    """
    model = FromPoints(detector).eval()
    shapes = ({0: torch.export.Dim("points", min=2)},)
    with torch.no_grad():
        program = torch.export.export(model, (points,), dynamic_shapes=shapes, strict=False)
        for part in (points, points[::3].contiguous()):  # another number of points, too
            compare("program", program.module()(part), model(part))
    return program


def export_onnx(detector: nn.Module, points: Tensor, path: Path) -> None:
    """Writes the dense part of ``detector`` to ``path`` and compares onnxruntime with it.

    Raises:
        ValueError: there is no dense part, or it answers otherwise than the detector.
        ImportError: onnxruntime is not installed.
    """
    if detector.bev_backbone is None:
        raise ValueError("this detector has no dense part: its head takes sparse voxels")
    import onnxruntime

    with torch.no_grad():
        sample = torch.zeros(len(points), dtype=torch.int64)
        features = to_bev(detector.backbone(detector.encoder(points, sample, 1))[-1])
        model = FromMap(detector).eval()
        torch.onnx.export(model, (features,), path, dynamo=True, external_data=False)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        found = session.run(None, {session.get_inputs()[0].name: features.numpy()})
        compare("onnx", [torch.from_numpy(array) for array in found], model(features))


def compare(name: str, found, wanted) -> None:
    """Raises ValueError where two nested outputs are not the same."""
    ours, theirs = (torch.utils._pytree.tree_leaves(tree) for tree in (found, wanted))
    if len(ours) != len(theirs):
        raise ValueError(f"the {name} has {len(ours)} outputs, the model {len(theirs)}")
    for number, (a, b) in enumerate(zip(ours, theirs)):
        if a.shape != b.shape:
            raise ValueError(f"output {number} of the {name} has shape {a.shape}, not {b.shape}")
        if not b.numel():
            continue
        error, most = (a - b).abs().max().item(), b.abs().max().item()
        if not error <= TOLERANCE * max(most, 1.0):
            raise ValueError(f"output {number} of the {name} is off by {error:g} of {most:g}")


def example_points(config: Config, count: int = 4000) -> Tensor:
    """[count, C] points spread over a sixteenth of the range of ``config.model``."""
    low, high = torch.tensor(config.model.point_range, dtype=torch.float32).view(2, 3)
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(count, config.model.get("point_channels", 4), generator=generator)
    share = torch.tensor([0.25, 0.25, 1.0])
    points[:, :3] = (low + high) / 2 + (points[:, :3] - 0.5) * (high - low) * share
    return points


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Write a detector as a program.")
    parser.add_argument("config", help="a file of configs/detection")
    parser.add_argument("checkpoint", nargs="?", help="weights; as initialised without")
    parser.add_argument("--out", type=Path, required=True, help="the program, a .pt2 file")
    parser.add_argument("--onnx", type=Path, help="the dense part, an .onnx file")
    add_config_options(parser)
    return parser.parse_args(argv)


def check_onnx() -> None:
    """Sees before the work whether --onnx can be done.

    Raises:
        ImportError: a package is missing.
    """
    missing = [name for name in ONNX if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"--onnx needs {', '.join(missing)}: pip install {' '.join(ONNX)}")


def main(argv: list[str] | None = None) -> None:
    """Export, compare, write."""
    args = parse_args(argv)
    check_output("--out", args.out)
    check_output("--onnx", args.onnx)
    if args.onnx:
        check_onnx()
    config = load_config(args.config, args.cfg_options)
    torch.manual_seed(0)
    detector = MODELS.build(model_config(config)).eval()
    if not isinstance(detector, VoxelDetector):
        raise ValueError(
            f"{args.config} is of a {type(detector).__name__}; a program is made of a detector: "
            "give a config of configs/detection"
        )
    if args.checkpoint:
        load_weights(detector, args.checkpoint)
    points = example_points(config)
    program = export_program(detector, points)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    beside = args.out.with_name(f".{os.getpid()}.{args.out.name}")
    torch.export.save(program, beside)
    os.replace(beside, args.out)
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.1f} MB, equals the model")
    if args.onnx:
        beside = args.onnx.with_name(f".{os.getpid()}.{args.onnx.name}")
        export_onnx(detector, points, beside)
        os.replace(beside, args.onnx)
        print(
            f"{args.onnx}: {args.onnx.stat().st_size / 1e6:.1f} MB, equals the model's dense part"
        )


if __name__ == "__main__":
    with plain_errors():
        main()
