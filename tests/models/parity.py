"""Comparisons with stored outputs of the reference implementations, at the fixtures' tolerances."""

import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparse3d.engine.published import translate_state
from sparse3d.structures import Boxes, Detections
from tests.conftest import fixture_files

FEATURES = {"rtol": 1e-4, "atol": 1e-4}
LOSS = {"rtol": 1e-4, "atol": 1e-4}
GRADIENT, NORM, NORM_BIAS = 2e-3, 2e-3, 1e-2
LAST_BITS = {"rtol": 4 * torch.finfo(torch.float32).eps, "atol": torch.finfo(torch.float32).eps}
"""Logarithms and sines of the same numbers: processors differ in the last bits of float32."""
ZERO = 1e-3
"""Gradients that are truly zero are stored as rounding noise up to 1e-4."""


@lru_cache(maxsize=4)
def load(path: Path) -> dict[str, Any]:
    """The contents of a fixture file; not to be changed."""
    return torch.load(path, weights_only=True)


def files_where(holds: Callable[[dict[str, Any]], bool]) -> list:
    """Fixture files whose contents fit; what a file is, its contents say and not its name."""
    paths = fixture_files("detect/*.pt")
    return [path for path in paths if not isinstance(path, Path) or holds(load(path))]


def name(path: Path) -> str:
    """Test id."""
    return path.stem if isinstance(path, Path) else "absent"


def truth(rows: Tensor, columns: int) -> tuple[list[Boxes], list[Tensor]]:
    """Boxes and 0-based labels per sample from padded [B, N, columns + 1] rows."""
    kept = [sample[sample.abs().sum(1) > 0] for sample in rows]
    return (
        [Boxes(sample[:, :columns].contiguous()) for sample in kept],
        [sample[:, -1].long() - 1 for sample in kept],
    )


def gradient_errors(role: str, module: nn.Module, train: Mapping) -> dict[str, float]:
    """Errors of the gradients of ``module``, and of their norms, over what is allowed (1)."""
    ours = {name: p.grad for name, p in module.named_parameters()}
    errors = {}
    for name, grad in _translated(role, train["param_grads"], module).items():
        largest = float(grad.abs().max())
        limit = ZERO if largest < ZERO else GRADIENT * largest
        errors[name] = float((ours[name] - grad).abs().max()) / limit
    biases = _norm_biases(module)
    for name, norm in _translated_norms(role, module, train).items():
        share = NORM_BIAS if name in biases else NORM
        limit = ZERO if norm < ZERO else share * norm
        errors[f"norm of {name}"] = abs(float(ours[name].norm()) - norm) / limit
    return errors


def _translated(role: str, values: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    own = {k.removeprefix(f"{role}."): v for k, v in values.items() if k.startswith(f"{role}.")}
    return translate_state(role, own, module, "spconv2")


def _translated_norms(role: str, module: nn.Module, train: Mapping) -> dict[str, float]:
    norms = {name: torch.tensor(norm) for name, norm in train["param_grad_norms"].items()}
    return {name: float(norm) for name, norm in _translated(role, norms, module).items()}


def _norm_biases(module: nn.Module) -> set[str]:
    return {
        f"{name}.bias"
        for name, part in module.named_modules()
        if "BatchNorm" in type(part).__name__
    }


def unmatched_detections(found: Detections, stored: Mapping[str, Tensor]) -> int:
    """Boxes of either side without a partner of the same label, box and score on the other."""
    ours = torch.cat([found.boxes.tensor, found.scores[:, None], found.labels[:, None]], 1)
    labels = stored["pred_labels"][:, None].to(ours) - 1
    theirs = torch.cat([stored["pred_boxes"], stored["pred_scores"][:, None], labels], 1)
    free = torch.ones(len(theirs), dtype=torch.bool)
    lonely = 0
    for row in ours:
        error = (theirs - row).abs()
        turn = error[:, 6]
        error[:, 6] = torch.minimum(turn, (turn - 2 * torch.pi).abs())
        match = (error <= 1e-4 + 1e-4 * theirs.abs()).all(1) & free
        if match.any():
            free[match.nonzero()[0]] = False
        else:
            lonely += 1
    return max(lonely, int(free.sum()))


def assert_detections(found: list[Detections], stored: list[Mapping[str, Tensor]]) -> None:
    """Compare as sets; one change per hundred boxes (or part of it) is allowed."""
    assert len(found) == len(stored)
    for one, reference in zip(found, stored):
        boxes = len(reference["pred_scores"])
        changed = unmatched_detections(one, reference)
        assert changed <= math.ceil(boxes / 100), f"{changed} of {boxes} boxes differ"
        assert (one.scores.diff() <= 0).all()
