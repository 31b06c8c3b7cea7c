"""Scenes of random Gaussians, and the splatting fixtures by what they hold."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.conftest import fixture_files

IMPLEMENTATIONS = ("reference", "native")
each = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
LEVELS = ("plain", "avx2", "avx512")


def fixtures_with(*keys: str, without: tuple[str, ...] = ()):
    """Parametrises a test over every splatting fixture that holds ``keys``, whatever its name."""
    found = [
        path
        for path in fixture_files("splat/*.npz")
        if not isinstance(path, Path)
        or (
            set(keys) <= set(np.load(path).files) - set(without)
            and not set(without) & set(np.load(path).files)
        )
    ]

    def decorate(test):
        test = pytest.mark.parametrize("path", found, ids=lambda path: path.stem)(each(test))
        return pytest.mark.parity(test)

    return decorate


def load(path: Path) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.asarray(value)) for name, value in np.load(path).items()}


def leaf(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.detach().clone().to(dtype).requires_grad_()


def dtypes_of(implementation: str) -> tuple[torch.dtype, ...]:
    """The kernels are float32; the definition is compared in both."""
    both = (torch.float64, torch.float32)
    return both if implementation == "reference" else both[1:]


def scene(count: int = 60, cameras: int = 2, seed: int = 0, dtype=torch.float32) -> dict:
    """Arguments of ``rasterization``: Gaussians around (0, 0, 4), pictures of 45 x 35 pixels."""
    g = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=g, dtype=torch.float64)

    views = torch.eye(4, dtype=torch.float64).repeat(cameras, 1, 1)
    angle = (draw(cameras) - 0.5) * 0.6
    views[:, 0, 0] = views[:, 2, 2] = angle.cos()
    views[:, 0, 2], views[:, 2, 0] = angle.sin(), -angle.sin()
    views[:, :3, 3] = (draw(cameras, 3) - 0.5) * 0.5
    K = torch.tensor([[40.0, 0, 23.5], [0, 42, 16.25], [0, 0, 1]], dtype=torch.float64)
    tensors = {
        "means": (draw(count, 3) - 0.5) * 3 + torch.tensor([0, 0, 4.0]),
        "quats": draw(count, 4) - 0.5,
        "scales": draw(count, 3) * 0.3 + 0.01,
        "opacities": draw(count) * 0.9 + 0.05,
        "colors": draw(count, 3),
        "viewmats": views,
        "Ks": K.repeat(cameras, 1, 1),
    }
    return {name: x.to(dtype) for name, x in tensors.items()} | {"width": 45, "height": 35}


def close(found: Tensor, expected: Tensor, share: float, name: str = "") -> None:
    """Asserts that no entry is off by more than ``share`` of the largest expected one."""
    error = (found - expected).abs().max() if expected.numel() else torch.zeros(())
    largest = expected.abs().max() if expected.numel() else torch.ones(())
    assert error <= share * largest, (
        f"{name}: off by {error:.2e} where the largest is {largest:.2e}"
    )
