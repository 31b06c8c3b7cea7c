"""Every config's network learns, and gives on a GPU what it gives on the CPU."""

import math
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from sparse3d.models.delta_flow import DeltaFlow
from sparse3d.models.detector import VoxelDetector
from sparse3d.models.scene_flow import FLOT, SCTN
from sparse3d.ops import backend
from sparse3d.registry import MODELS
from sparse3d.structures import Batch, Boxes, Sample, SweepPair
from tests.gpu import needs_gpu
from tests.models import test_delta_flow, test_grounder

FOLDER = Path(__file__).resolve().parent.parent.parent / "configs"
CONFIGS = sorted(path for path in FOLDER.glob("*/*.py") if path.parent.name[0] not in "_s")
GRADIENT = 5e-3
"""Largest error of a gradient as a share of its largest entry: near ties fall either way."""
DRAWS = ("rand", "randn", "randint", "randperm", "rand_like", "randn_like")

SMALL = [path for path in CONFIGS if path.parent.name != "detection" or "world" in path.stem]


@pytest.fixture(autouse=True)
def one_stream(monkeypatch):
    """Random numbers are those of the CPU on every device."""
    for name in DRAWS:
        monkeypatch.setattr(torch, name, _drawn_on_cpu(getattr(torch, name)))


def _drawn_on_cpu(draw):
    def drawn(*arguments, device=None, **options):
        like = [x for x in arguments if isinstance(x, torch.Tensor)]
        device = device or (like[0].device if like else "cpu")
        arguments = [x.cpu() if isinstance(x, torch.Tensor) else x for x in arguments]
        return draw(*arguments, **options).to(device)

    return drawn


def named(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def street(model: VoxelDetector, seed: int) -> Sample:
    """Boxes full of points on a plane, and some points in the air, within the model's range."""
    draw = torch.Generator().manual_seed(seed)
    low, high = torch.tensor(model.encoder.grid.point_range).view(2, 3)
    span, classes, number = high - low, len(model.class_names), 6
    place = low + span * (0.2 + 0.6 * torch.rand(number, 3, generator=draw))
    place[:, 2] = low[2] + 0.5 * span[2]
    size = 1 + 2 * torch.rand(number, 3, generator=draw)
    yaw = 6 * torch.rand(number, 1, generator=draw)
    speed = [torch.zeros(number, 2)] if getattr(model.head, "velocity", False) else []
    parts = [low + span * torch.rand(2000, 3, generator=draw)]
    parts += [p + s * (torch.rand(300, 3, generator=draw) - 0.5) for p, s in zip(place, size)]
    xyz = torch.cat(parts)
    more = torch.rand(len(xyz), model.point_channels - 3, generator=draw)
    labels = torch.randint(classes, (number,), generator=draw)
    boxes = Boxes(torch.cat([place, size, yaw, *speed], 1))
    return Sample(torch.cat([xyz, more], 1), boxes, labels)


def sweeps(seed: int, points: int | None) -> SweepPair:
    """Two sweeps of a street, all points or some near the middle."""
    pair = test_delta_flow.scene(seed)
    if points is None:
        return pair
    rows = [cloud[:, :3].norm(dim=1).argsort()[:points] for cloud in (pair.source, pair.target)]
    return pair.select(*rows)


def batch_for(model) -> Batch:
    """Two small scenes of the kind that ``model`` takes."""
    if isinstance(model, VoxelDetector):
        return Batch([street(model, seed) for seed in (1, 2)])
    if isinstance(model, (SCTN, FLOT)):
        return Batch([sweeps(seed, 512) for seed in (1, 2)])
    if isinstance(model, DeltaFlow):
        return Batch([sweeps(seed, None) for seed in (1, 2)])
    return Batch([test_grounder.scene(), test_grounder.scene("a blue box", 1)])


def learnt(model, batch):
    """Losses and gradients by name."""
    model.zero_grad()
    torch.manual_seed(0)
    losses = model(batch, mode="loss")
    sum(value for name, value in losses.items() if "loss" in name).backward()
    # copies: a model that moves takes its gradients along
    grads = {n: p.grad.cpu().clone() for n, p in model.named_parameters() if p.grad is not None}
    return {name: float(value.detach()) for name, value in losses.items()}, grads


def answers(model, batch) -> list[torch.Tensor]:
    """What ``model`` finds, best first."""
    torch.manual_seed(0)
    found = model(batch, mode="predict")
    if hasattr(found[0], "flow"):
        return [one.flow.cpu() for one in found]
    return [one.scores.cpu() for one in found]


def build(path: Path):
    """The config's model and a batch; words are hashed, for encoders may have to be fetched."""
    torch.manual_seed(0)
    config = Config.fromfile(path).model
    if config.get("text"):
        config.text = {"type": "HashedWords", "channels": 16, "buckets": 64}
    model = MODELS.build(config).eval()
    return model, batch_for(model)


@pytest.mark.parametrize("path", SMALL, ids=named)
def test_a_step_moves_every_parameter(path):
    model, batch = build(path)
    losses, grads = learnt(model.train(), batch)
    assert all(math.isfinite(value) for value in losses.values())
    assert all(grad.isfinite().all() for grad in grads.values())
    idle = {name for name, _ in model.named_parameters()} - grads.keys()
    assert not idle, f"no loss reaches {sorted(idle)}"
    assert len(answers(model.eval(), batch)) == len(batch)


@needs_gpu
@pytest.mark.parametrize("path", CONFIGS, ids=named)
def test_a_gpu_gives_what_the_cpu_gives(path, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # 10 bits instead of 23
    model, batch = build(path)
    with backend.forced("reference"):  # where native sums differ, a tie may fall the other way
        losses, grads = learnt(model, batch)
        found = answers(model, batch)
    model, batch = model.cuda(), batch.to("cuda")
    theirs, their_grads = learnt(model, batch)
    for name, value in losses.items():
        assert theirs[name] == pytest.approx(value, rel=1e-3, abs=1e-4), name
    assert their_grads.keys() == grads.keys()
    worst = {
        name: float((grad - their_grads[name]).abs().max() / grad.abs().max().clamp(min=1e-4))
        for name, grad in grads.items()
    }
    assert max(worst.values()) <= GRADIENT, max(worst, key=worst.get)
    for one, other in zip(found, answers(model, batch), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
