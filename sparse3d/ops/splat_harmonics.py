"""Colours of Gaussians by the direction they are seen from: spherical harmonics, with gradients.

Names, arguments and numeric rules are those of gsplat 1.5.3.
"""

import math

import torch
from torch import Tensor

from . import backend, native
from .arguments import as_floats, check_shape, check_type, working_dtype
from .reference import splat as reference
from .splat_projection import contiguous, cpu_level


def spherical_harmonics(
    degrees_to_use: int,
    dirs: Tensor,
    coeffs: Tensor,
    masks: Tensor | None = None,
    shN: Tensor | None = None,
) -> Tensor:
    """Evaluates spherical harmonics up to degree 4.

    Args:
        degrees_to_use: highest degree, 0 .. 4; later coefficients are not looked at.
        dirs: [..., 3] directions of any length; computed in float64 where they are that, else in
            float32.
        coeffs: [..., K, 3] float; of its leading dimensions all but the last may be 1 where those
            of ``dirs`` are not: one set for all.
        masks: [...] bool; False gives 0 and no gradient.
        shN: [..., K - 1, 3] the coefficients but the constant ones, which then are ``coeffs``
            [..., 1, 3]: as models hold them, without a copy of both in one.

    Returns:
        [..., 3]

    Raises:
        ValueError: the degree is not 0 .. 4 or more than the coefficients allow, or shapes or types
            that do not fit.
    """
    dtype = working_dtype("dirs", dirs)
    dirs, coeffs = dirs.to(dtype), as_floats("coeffs", coeffs, dtype)
    shN = as_floats("shN", shN, dtype)
    check_type("masks", masks, torch.bool)
    check_shape("masks", masks, dirs.shape[:-1])
    check_shape("dirs", dirs, (*dirs.shape[:-1], 3))
    if coeffs.dim() < 3 or (shN is not None and shN.dim() < 3):
        raise ValueError(f"coeffs have shape {tuple(coeffs.shape)}; [..., K, 3] is needed")
    parts = [coeffs] if shN is None else [coeffs, shN]
    terms = sum(part.shape[-2] for part in parts)
    if degrees_to_use not in range(5) or (degrees_to_use + 1) ** 2 > terms:
        raise ValueError(
            f"degree {degrees_to_use} of spherical harmonics needs {(degrees_to_use + 1) ** 2} "
            f"coefficients and must be 0..4; coeffs have shape {tuple(coeffs.shape)}"
            + ("" if shN is None else f" and shN {tuple(shN.shape)}")
        )
    if shN is not None and (coeffs.shape[-2] != 1 or shN.shape[:-2] != coeffs.shape[:-2]):
        raise ValueError(
            f"coeffs have shape {tuple(coeffs.shape)} and shN {tuple(shN.shape)}; beside shN, "
            "coeffs hold the constant ones alone: [..., 1, 3] and [..., K - 1, 3] are needed"
        )
    lead = dirs.shape[:-1]
    images, shared = math.prod(lead[:-1]), math.prod(coeffs.shape[:-3])
    for part in parts:
        if part.shape[-1] != 3 or part.shape[-3:-2] != lead[-1:] or shared not in (1, images):
            raise ValueError(
                f"coeffs have shape {tuple(part.shape)} and dirs {tuple(dirs.shape)}; "
                f"{(*lead, '(degree + 1)^2 or more', 3)} is needed, or 1 for leading dimensions"
            )
    rows = dirs.reshape(images, *lead[-1:], 3)
    sets = [part.reshape(shared, *part.shape[-3:]) for part in parts]
    seen = None if masks is None else masks.reshape(rows.shape[:2])
    return _harmonics(
        rows, sets[0], sets[1] if shN is not None else None, seen, int(degrees_to_use)
    ).reshape(dirs.shape)


# ---------------------------------------------------------------------- operators


@torch.library.custom_op("sparse3d::splat_harmonics", mutates_args=())
def _harmonics(
    dirs: Tensor, coeffs: Tensor, rest: Tensor | None, masks: Tensor | None, degree: int
) -> Tensor:
    return backend.choose(HARMONICS, dirs)(*contiguous(dirs, coeffs, rest, masks), degree)


@_harmonics.register_fake
def _(dirs, coeffs, rest, masks, degree):
    return torch.empty_like(dirs)


@torch.library.custom_op("sparse3d::splat_harmonics_gradient", mutates_args=())
def _harmonics_gradient(
    grad: Tensor,
    dirs: Tensor,
    coeffs: Tensor,
    rest: Tensor | None,
    masks: Tensor | None,
    degree: int,
) -> list[Tensor]:
    kernel = backend.choose(HARMONICS_GRADIENT, dirs)
    return kernel(*contiguous(grad, dirs, coeffs, rest, masks), degree)


@_harmonics_gradient.register_fake
def _(grad, dirs, coeffs, rest, masks, degree):
    return [torch.empty_like(x) for x in (dirs, coeffs, rest) if x is not None]


def _setup_harmonics(ctx, inputs, output):
    *tensors, ctx.degree = inputs
    ctx.save_for_backward(*tensors)


def _backward_harmonics(ctx, grad):
    found = _harmonics_gradient(grad, *ctx.saved_tensors, ctx.degree)
    return *found, *[None] * (5 - len(found))


_harmonics.register_autograd(_backward_harmonics, setup_context=_setup_harmonics)


# ---------------------------------------------------------------------- implementations


def _reference_harmonics(
    dirs: Tensor, coeffs: Tensor, rest: Tensor | None, masks: Tensor | None, degree: int
) -> Tensor:
    both = coeffs if rest is None else torch.cat([coeffs, rest], -2)
    colors = reference.harmonics(degree, dirs, both)
    return colors if masks is None else torch.where(masks[..., None], colors, 0)


def _reference_harmonics_gradient(
    grad: Tensor,
    dirs: Tensor,
    coeffs: Tensor,
    rest: Tensor | None,
    masks: Tensor | None,
    degree: int,
) -> list[Tensor]:
    def evaluate(*given: Tensor) -> Tensor:
        return _reference_harmonics(*[*given, None][:3], masks, degree)

    given = [x for x in (dirs, coeffs, rest) if x is not None]
    # Clones: the parts of a cut tensor are views of it, which an operator may not give.
    return [x.clone() for x in torch.func.vjp(evaluate, *given)[1](grad)]


def _native_harmonics(
    dirs: Tensor, coeffs: Tensor, rest: Tensor | None, masks: Tensor | None, degree: int
) -> Tensor:
    if dirs.dtype != torch.float32:
        return _reference_harmonics(dirs, coeffs, rest, masks, degree)
    colors = torch.empty_like(dirs)
    native.call(
        "s3d_splat_harmonics",
        *(dirs, coeffs, rest, masks, *_harmonics_sizes(dirs, coeffs, rest, degree)),
        *(colors, cpu_level(), native.threads()),
    )
    return colors


def _native_harmonics_gradient(
    grad: Tensor,
    dirs: Tensor,
    coeffs: Tensor,
    rest: Tensor | None,
    masks: Tensor | None,
    degree: int,
) -> list[Tensor]:
    if dirs.dtype != torch.float32:
        return _reference_harmonics_gradient(grad, dirs, coeffs, rest, masks, degree)
    found = [None if x is None else torch.empty_like(x) for x in (dirs, coeffs, rest)]
    native.call(
        "s3d_splat_harmonics_gradient",
        *(grad, dirs, coeffs, rest, masks, *_harmonics_sizes(dirs, coeffs, rest, degree)),
        *(*found, cpu_level(), native.threads()),
    )
    return [x for x in found if x is not None]


def _harmonics_sizes(dirs: Tensor, coeffs: Tensor, rest: Tensor | None, degree: int) -> tuple:
    others = 0 if rest is None else rest.shape[2]
    return (*dirs.shape[:2], coeffs.shape[2], others, degree, len(coeffs) < len(dirs))


HARMONICS = {
    "reference": _reference_harmonics,
    "native": _native_harmonics,
    "cuda": _reference_harmonics,
}
HARMONICS_GRADIENT = {
    "reference": _reference_harmonics_gradient,
    "native": _native_harmonics_gradient,
    "cuda": _reference_harmonics_gradient,
}
