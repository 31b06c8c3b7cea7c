"""Stored outputs of scene flow and the weights behind them: what a file is, its contents say."""

import json
import zlib
from collections.abc import Callable, Iterable
from difflib import SequenceMatcher
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sparse3d.structures import Batch, SweepPair
from tests.conftest import fixture_files

CONSTANTS = {"gamma": -1.0, "epsilon": -2.0}


@lru_cache(maxsize=8)
def load(path: Path) -> dict[str, Tensor]:
    """The arrays of a fixture file as tensors; strings are left out."""
    with np.load(path) as data:
        return {k: torch.from_numpy(data[k]) for k in data.files if data[k].dtype.kind != "U"}


@lru_cache(maxsize=32)
def _names(path: Path) -> frozenset[str]:
    with np.load(path) as data:
        return frozenset(data.files)


def files_where(holds: Callable[[Iterable[str]], bool]) -> list:
    """Fixture files whose array names fit."""
    paths = fixture_files("flow/*.npz")
    return [path for path in paths if not isinstance(path, Path) or holds(_names(path))]


def pairs(data: dict[str, Tensor]) -> Batch:
    """The batch of a file of a whole network."""
    return Batch(
        [
            SweepPair(data["pc0"][s], data["pc1"][s], data["gt"][s], data["mask"][s, :, 0].bool())
            for s in range(len(data["pc0"]))
        ]
    )


def weights_for(path: Path, needed: str) -> dict[str, Tensor]:
    """The weights that belong to a file: the state dict or recipe of the most similar name.

    Args:
        path: the fixture.
        needed: a tensor that such weights have.
    """
    found = {}
    for other in [*path.parent.glob("*.pt"), *path.parent.glob("*recipe.json")]:
        state = _recipe(other) if other.suffix == ".json" else torch.load(other, weights_only=True)
        if needed in state:
            likeness = SequenceMatcher(None, other.stem, path.stem).ratio()
            found[likeness + (other.suffix == ".pt") * 0.01 + _prefix(other.stem, path.stem)] = (
                state
            )
    return {k: v for k, v in found[max(found)].items() if not k.endswith("num_batches_tracked")}


def _prefix(a: str, b: str) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


@lru_cache(maxsize=8)
def _recipe(path: Path) -> dict[str, Tensor]:
    recipe = json.loads(path.read_text())
    return {
        name: _made(recipe["seed"], name, entry["shape"], entry["rule"])
        for name, entry in recipe["tensors"].items()
    }


def _made(seed: int, name: str, shape: list[int], rule: str) -> Tensor:
    if rule == "const":
        return torch.full(shape, CONSTANTS[name])
    draw = np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(shape)
    normal = torch.from_numpy(np.asarray(draw)).float()
    if rule.startswith("n/sqrt("):
        return normal * float(rule[7:-1]) ** -0.5
    return {
        "1+0.2n": lambda: 1 + 0.2 * normal,
        "0.1n": lambda: 0.1 * normal,
        "1+0.5|n|": lambda: 1 + 0.5 * normal.abs(),
    }[rule]()


def error(found: Tensor, stored: Tensor) -> float:
    """Largest difference, as a share of the stored array's maximum."""
    stored = stored.reshape(found.shape)
    return float((found - stored).abs().max() / stored.abs().max())
