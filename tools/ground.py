"""Find what a sentence means: python tools/ground.py SCENE "the red chair next to the door" """

import argparse
import sys
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import sparse3d  # noqa: F401  before torch: says how its threads wait

# isort: split
import numpy as np
import torch

from sparse3d.datasets.grounding import Room, thinned, to_sample, words
from sparse3d.datasets.scan_files import read_scan
from sparse3d.engine.checkpoints import load_weights
from sparse3d.engine.command_line import add_config_options, plain_errors
from sparse3d.engine.runner import load_config, model_config
from sparse3d.models.text import HashedWords
from sparse3d.registry import MODELS
from sparse3d.structures import Boxes, Sample
from sparse3d.visualization.grounding import draw_answer
from sparse3d.visualization.report import write_image

CONFIG = "configs/grounding/tsp3d_world.py"
LONGEST = 60  # words that are drawn


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Find what a sentence means in a scan.")
    parser.add_argument("scene", help=".ply, .npy, .npz, or a scene's folder of ScanNet")
    parser.add_argument("sentence", help='such as "the brown chair next to the window"')
    parser.add_argument("--config", default=CONFIG, help=f"a file of configs/ ({CONFIG})")
    parser.add_argument(
        "--checkpoint",
        help="weights (the newest of work_dirs/<config>, or those of data/weights)",
    )
    parser.add_argument("--out", default="answer.png", help="picture to write (answer.png)")
    parser.add_argument("--truth", type=int, help="number of the object that is meant, to compare")
    parser.add_argument(
        "--points", type=int, default=50_000, help="most points that are looked at (50000)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the weights where there are none")
    add_config_options(parser)
    return parser.parse_args(arguments)


def newest_weights(config: str) -> Path | None:
    """The newest checkpoint of a config's work folder, else the delivered one, if there is one."""
    name = Path(config).stem
    files = sorted(Path("work_dirs", name).glob("*.pth"), key=lambda path: path.stat().st_mtime)
    delivered = Path(__file__).resolve().parent.parent / "data" / "weights" / f"{name}.pth"
    return files[-1] if files else delivered if delivered.is_file() else None


def open_model(args: argparse.Namespace) -> torch.nn.Module:
    """The model with its weights; untrained, with a warning, where there are none."""
    torch.manual_seed(args.seed)
    model = MODELS.build(model_config(load_config(args.config, args.cfg_options))).eval()
    weights = args.checkpoint or newest_weights(args.config)
    if weights is None:
        warnings.warn(
            f"no weights in work_dirs/{Path(args.config).stem} or data/weights: the answer means "
            f"nothing. Train them (tools/train.py {args.config}) or give --checkpoint",
            stacklevel=2,
        )
    else:
        warn_of_unknown(args.sentence, load_weights(model, weights), model)
    return model


def warn_of_unknown(sentence: str, meta: dict, model: torch.nn.Module) -> None:
    """Warns of words that no sentence of the training had: to a network that learnt its words from
    these alone they mean nothing. Old checkpoints do not say which words they had.
    """
    known = set(meta.get("words") or ())
    if not known or not isinstance(model.text, HashedWords):
        return
    unknown = [word for word in dict.fromkeys(words(sentence)) if word not in known]
    if unknown:
        warnings.warn(
            f"the network has never seen {', '.join(map(repr, unknown))} in its training: what "
            "it makes of the sentence is chance as far as these words matter; take other words, "
            "in English",
            stacklevel=3,
        )


def open_scene(args: argparse.Namespace) -> tuple[Room, Sample]:
    """The scan, and the sample of it with the sentence.

    Raises:
        ValueError: an empty sentence, no points, or an unknown object.
    """
    if not args.sentence.strip():
        raise ValueError("the sentence is empty; say what to look for, as in 'the red chair'")
    if args.points <= 0:
        raise ValueError(f"--points is {args.points}; it must be positive")
    room = read_scan(args.scene)
    good = np.isfinite(room.points).all(1)
    if not good.all():
        warnings.warn(f"{args.scene}: {int((~good).sum())} points are not finite", stacklevel=2)
        room.points, room.instance = room.points[good], room.instance[good]
    if not len(room.points):
        raise ValueError(f"{args.scene} holds no points: there is nothing to look for")
    if args.truth is not None and args.truth not in room.ids:
        raise ValueError(f"--truth is {args.truth}; the scene's objects are {room.ids or 'none'}")
    sample = to_sample(thinned(room, args.points, args.scene), {"sample_id": args.scene})
    sample.text = args.sentence
    return room, sample


def truth_of(room: Room, number: int | None) -> np.ndarray | None:
    """[8, 3] corners of object ``number``."""
    if number is None:
        return None
    box = torch.from_numpy(room.boxes[[room.ids.index(number)]]).float()
    return Boxes(torch.cat([box, torch.zeros(1, 1)], 1)).corners()[0].numpy()


def words_of(text: str, spans, shares: torch.Tensor) -> list[tuple[str, float]]:
    """Words with their shares, the whole sentence's first; at most ``LONGEST``."""
    pairs = [
        (text[begin:end] if end > begin else "[sentence]", float(share))
        for (begin, end), share in zip(spans, shares.tolist())
    ]
    return pairs[:LONGEST]


def main(arguments: list[str] | None = None) -> int:
    """Answer, print and draw."""
    args = parse_args(arguments)
    room, sample = open_scene(args)
    model = open_model(args)
    start = time.perf_counter()
    with torch.no_grad():
        answer = model.explain(sample)
    seconds = time.perf_counter() - start
    found = answer.detections
    box = found.boxes.corners()[0].numpy() if len(found) else np.zeros((0, 3))
    score = float(found.scores[0]) if len(found) else None
    words = words_of(sample.text.strip(), answer.spans, answer.words)
    shown = np.concatenate([room.points[:, :3], room.points[:, 3:6]], 1)
    kept = [part.cpu().numpy() for part in answer.kept]
    write_image(args.out, draw_answer(shown, box, score, kept, words, truth_of(room, args.truth)))
    if len(found):
        x, y, z, dx, dy, dz = found.boxes.tensor[0, :6].tolist()
        print(f"box: centre {x:.3f} {y:.3f} {z:.3f}, size {dx:.3f} {dy:.3f} {dz:.3f} (metres)")
        print(f"score: {score:.3f}, in {seconds:.2f} s")
    else:
        print("nothing found")
    print(f"wrote {args.out}")
    return 0


if __name__ == "__main__":
    with plain_errors():
        sys.exit(main())
