"""Grounding: answers pruned and unpruned, against MiniLM; memory of a large scan."""

import argparse
import statistics
import time
from dataclasses import replace

import torch
from torch import nn

from sparse3d.engine.checkpoints import load_weights
from sparse3d.engine.runner import load_config, model_config
from sparse3d.evaluation.grounding import accuracy, aligned_iou
from sparse3d.registry import DATASETS, MODELS
from sparse3d.structures import Batch, Sample
from tools.benchmarks.common import peak_megabytes, show
from tools.benchmarks.scenes import indoor_scan

SENTENCE = "the brown chair next to the window"
PASSES = 12
"""Forward passes of MiniLM that one answer may take."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which model, and on what."""
    parser.add_argument("--config", default="configs/grounding/tsp3d_world.py")
    parser.add_argument("--checkpoint", help="weights; without, pruning is by chance")
    parser.add_argument("--data", help="folder of rooms with a split 'val': for the accuracy")
    parser.add_argument("--split", default="val")
    parser.add_argument("--sentences", type=int, default=100, help="of the data (100)")
    parser.add_argument("--large", type=int, default=1_000_000, help="points of the large scan")


def run(args: argparse.Namespace) -> list[dict]:
    """Rows of a room, of the data set's sentences and of a large scan."""
    torch.manual_seed(0)
    config = load_config(args.config)
    model = MODELS.build(model_config(config)).eval()
    if args.checkpoint:
        load_weights(model, args.checkpoint)
    rows = answer_times(model, args)
    if args.data:
        rows += accuracies(model, config, args)
    if args.large:
        rows.append(large_scan(model, int(args.large * args.scale)))
    for row in rows:
        show(row)
    return rows


def room(points: int, rooms: int = 1) -> Sample:
    """``points`` of furnished rooms side by side, with colours by height."""
    density = 1.2 * points / rooms / 100  # a room has about a hundred square metres
    parts = [indoor_scan(seed, density) for seed in range(min(rooms, 4))]
    parts = [parts[i % len(parts)] + torch.tensor([6.0 * i, 0, 0]) for i in range(rooms)]
    xyz = torch.cat(parts)
    xyz = xyz[torch.randperm(len(xyz), generator=torch.Generator().manual_seed(0))[:points]]
    color = torch.stack([xyz[:, 2] / 3, xyz[:, 1] / 6, 1 - xyz[:, 2] / 3], 1).clamp(0, 1)
    return Sample(torch.cat([xyz, color], 1), text=SENTENCE, meta={"sample_id": "room"})


def answers(model: nn.Module) -> dict:
    """How a batch is answered, by name."""

    def unpruned(batch: Batch):
        model.head.prune = False
        try:
            return model.predict(batch)
        finally:
            model.head.prune = True

    return {"pruned": model.predict, "unpruned": unpruned}


def answer_times(model: nn.Module, args: argparse.Namespace) -> list[dict]:
    """Milliseconds of one answer, text included, and of MiniLM, in turns."""
    sample = room(int(50_000 * args.scale))
    calls = {name: lambda call=call: call(Batch([sample])) for name, call in answers(model).items()}
    minilm = minilm_pass()
    if minilm is not None:
        calls[f"{PASSES} x MiniLM"] = lambda: [minilm() for _ in range(PASSES)]
    times = in_turns(calls, args.rounds, args.seconds)
    workload = f"a room of {len(sample.points)} points"
    return [row(workload, name, times[name], peak_megabytes(calls[name])) for name in calls]


def minilm_pass():
    """One forward pass of MiniLM over the sentence; None where it is not installed."""
    try:
        encoder = MODELS.build({"type": "HuggingFaceText", "remembered": 0})
    except (ImportError, ValueError):
        return None
    return lambda: encoder([SENTENCE])


def in_turns(calls: dict, rounds: int, seconds: float) -> dict[str, float]:
    """The median seconds of each call; they take turns, round after round."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    start = time.perf_counter()
    for turn in range(rounds):
        if turn and time.perf_counter() - start > seconds:
            break
        for name, call in calls.items():
            before = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - before)
    return {name: statistics.median(found) for name, found in times.items()}


def accuracies(model: nn.Module, config, args: argparse.Namespace) -> list[dict]:
    """Accuracy and time on a data set's sentences, pruned and unpruned in turns."""
    data = {**config.val_dataloader.dataset, "data_root": args.data, "split": args.split}
    data = DATASETS.build(data)
    step = max(len(data) // args.sentences, 1)
    times, overlaps = {}, {}
    for index in range(0, len(data), step):
        sample = data[index]
        truth = sample.boxes.tensor[sample.meta["target"]].numpy()
        for name, answer in answers(model).items():
            before = time.perf_counter()
            found = answer(Batch([replace(sample)]))[0]
            times.setdefault(name, []).append(time.perf_counter() - before)
            iou = aligned_iou(found.boxes.tensor[:1].numpy(), truth) if len(found) else [0.0]
            overlaps.setdefault(name, []).append(float(iou[0]))
    return [
        row("sentences of the data set", name, statistics.median(times[name]))
        | accuracy(overlaps[name], {})
        for name in times
    ]


def large_scan(model: nn.Module, points: int) -> dict:
    """Time and memory of a scan of many rooms where nothing is pruned: the worst case."""
    sample = room(points, rooms=max(points // 50_000, 1))
    worst = answers(model)["unpruned"]
    start = time.perf_counter()
    peak = peak_megabytes(lambda: worst(Batch([sample])))
    seconds = (time.perf_counter() - start) / 2  # it ran twice
    return row(f"a scan of {len(sample.points)} points, nothing pruned", "unpruned", seconds, peak)


def row(workload: str, name: str, seconds: float, peak: float | None = None) -> dict:
    """One line of the report."""
    return {
        "workload": workload,
        "implementation": name,
        "ms": round(seconds * 1e3, 2),
        "gflops": None,
        "peak_mb": peak,
    }


def summary(rows: list[dict]) -> list[str]:
    """The ratios that matter."""
    found = {(r["workload"], r["implementation"]): r["ms"] for r in rows}
    lines = []
    for (workload, name), ms in found.items():
        if name == "pruned":
            for other in ("unpruned", f"{PASSES} x MiniLM"):
                if (workload, other) in found:
                    ratio = found[workload, other] / ms
                    lines.append(f"{workload}: {other} / pruned = {ratio:.2f}")
    return lines
