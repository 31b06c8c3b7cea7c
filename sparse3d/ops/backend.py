"""Which implementation of an op runs: 'reference' (torch), 'native' (our CPU kernels) or 'cuda'."""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from . import native

NAMES = ("reference", "native", "cuda")
_forced: list[str] = []


def backend(tensor: Tensor) -> str:
    """The implementation that serves ``tensor``.

    ``forced(...)`` wins, then the environment variable SPARSE3D_BACKEND, then the tensor's device.

    Raises:
        ValueError: the forced name is unknown.
    """
    return _wanted() or ("cuda" if tensor.is_cuda else _on_cpu())


@torch.compiler.assume_constant_result  # compiled programs keep what was chosen when they were made
def _wanted() -> str:
    name = _forced[-1] if _forced else os.environ.get("SPARSE3D_BACKEND", "")
    if name and name not in NAMES:
        raise ValueError(f"SPARSE3D_BACKEND is {name!r}; it must be one of {', '.join(NAMES)}")
    return name


@torch.compiler.assume_constant_result
def _on_cpu() -> str:
    return "native" if native.available() else "reference"


def choose(table: Mapping[str, Callable], tensor: Tensor) -> Callable:
    """The entry of an op's table for ``tensor``."""
    return table[backend(tensor)]


@contextlib.contextmanager
def forced(name: str) -> Iterator[None]:
    """Within the block, implementation ``name`` runs wherever it can."""
    _forced.append(name)
    try:
        yield
    finally:
        _forced.pop()
