"""Structural similarity of pictures (SSIM) and its gradient, in one pass.

Wang et al., Image Quality Assessment: From Error Visibility to Structural Similarity, 2004, with
the window and the borders of 3DGS: 11x11 Gaussian of deviation 1.5, zero padding.
"""

import torch
from torch import Tensor

from . import backend, native
from .arguments import as_floats, working_dtype
from .reference import ssim as reference

C1, C2 = 0.01**2, 0.03**2
"""Stabilising constants for pictures in 0..1."""


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Mean similarity of two pictures; differentiable once, by ``a`` only.

    Args:
        a: [H, W, channels] float, 0..1.
        b: as ``a``.

    Returns:
        A scalar; 1 for equal pictures. float64 where ``a`` is that, else float32.

    Raises:
        ValueError: shapes differ or are not [H, W, channels], or the pictures are integers.
    """
    if a.dim() != 3 or a.shape != b.shape or not a.numel():
        raise ValueError(
            f"pictures of shapes {tuple(a.shape)} and {tuple(b.shape)} cannot be compared; both "
            "must be [H, W, channels] with at least one pixel"
        )
    dtype = working_dtype("a", a)
    return _ssim(a.to(dtype), as_floats("b", b.detach(), dtype))[0]


def _window() -> Tensor:
    x = torch.arange(11, dtype=torch.float64) - 5
    weights = torch.exp(-(x**2) / (2 * 1.5**2))
    return weights / weights.sum()


@torch.library.custom_op("sparse3d::ssim", mutates_args=())
def _ssim(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    return backend.choose(SSIM, a)(a, b)


@_ssim.register_fake
def _(a, b):
    return a.new_empty(()), torch.empty_like(a)


def _setup(ctx, inputs, output):
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1])


def _gradient(ctx, grad, _):
    return grad * ctx.saved_tensors[0], None


_ssim.register_autograd(_gradient, setup_context=_setup)


def _reference(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    return reference.ssim_and_gradient(a, b, _window(), C1, C2)


def _native(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    if a.dtype != torch.float32:
        return _reference(a, b)
    a, b = a.contiguous(), b.contiguous()
    height, width, channels = a.shape
    sums = torch.empty(height, dtype=torch.float64)
    gradient = torch.empty_like(a)
    native.call(
        "s3d_ssim",
        *(a, b, height, width, channels, _window().float(), C1, C2, 1 / a.numel()),
        *(sums, gradient, native.threads()),
    )
    return (sums.sum() / a.numel()).float(), gradient


SSIM = {"reference": _reference, "native": _native, "cuda": _reference}
