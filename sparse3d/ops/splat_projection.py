"""Gaussians seen by cameras: covariances and projection, with gradients.

Names, arguments and numeric rules are those of gsplat 1.5.3.
"""

import math

import torch
from torch import Tensor

from . import backend, native
from .arguments import as_floats, working_dtype
from .reference import splat as reference

CAMERA_MODELS = tuple(reference.CAMERA_MODELS)


def quat_scale_to_covar_preci(
    quats: Tensor,
    scales: Tensor,
    compute_covar: bool = True,
    compute_preci: bool = True,
    triu: bool = False,
) -> tuple[Tensor | None, Tensor | None]:
    """Covariance and precision matrices of oriented Gaussians.

    Args:
        quats: [..., 4] quaternions (w, x, y, z) of any length; computed in float64 where they are
            that, else in float32.
        scales: [..., 3] float, standard deviations.
        triu: give upper triangles [..., 6] in place of [..., 3, 3].

    Raises:
        ValueError: other numbers of columns, or integers.
    """
    dtype = working_dtype("quats", quats)
    quats, scales = quats.to(dtype), as_floats("scales", scales, dtype)
    if quats.shape[-1:] != (4,) or scales.shape != (*quats.shape[:-1], 3):
        raise ValueError(
            f"quats have shape {tuple(quats.shape)} and scales {tuple(scales.shape)}; [..., 4] and "
            "[..., 3] are needed"
        )
    corner = torch.triu_indices(3, 3).tolist()
    both = []
    for wanted, axes in ((compute_covar, scales), (compute_preci, 1 / scales)):
        matrix = reference.covariance(quats, axes) if wanted else None
        both.append(matrix[..., corner[0], corner[1]] if wanted and triu else matrix)
    return tuple(both)


def fully_fused_projection(
    means: Tensor,
    covars: Tensor | None,
    quats: Tensor | None,
    scales: Tensor | None,
    viewmats: Tensor,
    Ks: Tensor,
    width: int,
    height: int,
    eps2d: float = 0.3,
    near_plane: float = 0.01,
    far_plane: float = 1e10,
    radius_clip: float = 0.0,
    packed: bool = False,
    calc_compensations: bool = False,
    camera_model: str = "pinhole",
    opacities: Tensor | None = None,
):
    """Projects Gaussians into every camera.

    Computed in float64 where ``means`` are that, else in float32; other floats are converted, and
    their gradients come back in their own dtype.

    Args:
        means: [..., N, 3] in the world's frame.
        covars: [..., N, 6] upper triangles, or None where ``quats`` and ``scales`` are given.
        quats: [..., N, 4] quaternions (w, x, y, z) of any length, or None.
        scales: [..., N, 3] standard deviations, or None.
        viewmats: [..., C, 4, 4] world to camera.
        Ks: [..., C, 3, 3] intrinsics, pixels; pixel centres lie at + 0.5. No gradient.
        width: of the pictures, in pixels; likewise ``height``.
        eps2d: added to the variances in the picture, pixels^2.
        near_plane: nearer Gaussians are not seen; likewise beyond ``far_plane``.
        radius_clip: Gaussians whose box is no larger than this, in pixels, are not seen.
        packed: list what is seen in place of a dense array.
        calc_compensations: give the factor by which ``eps2d`` makes a Gaussian too heavy.
        camera_model: 'pinhole', 'ortho' or 'fisheye' (equidistant).
        opacities: [..., N]; tightens the boxes and drops what is fainter than 1/255. No gradient.

    Returns:
        radii [..., C, N, 2] int32 half sizes of the boxes in pixels, 0 where not seen; means2d
        [..., C, N, 2]; depths [..., C, N]; conics [..., C, N, 3], the inverse covariances (xx, xy,
        yy); compensations [..., C, N] or None. All 0 where not seen. With ``packed`` the five are
        [nnz, ...], after batch_ids, camera_ids and gaussian_ids [nnz] int64.

    Raises:
        ValueError: shapes that do not fit each other, integers where floats belong, or an unknown
            camera model.
    """
    means, covars, quats, scales, viewmats, Ks, opacities = _as_means(
        *(means, covars, quats, scales, viewmats, Ks, opacities)
    )
    check_projection(means, covars, quats, scales, viewmats, Ks, opacities, camera_model)
    batch = means.shape[:-2]

    def flat(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.reshape(math.prod(batch), *x.shape[len(batch) :])

    outputs = _project(
        *map(flat, (means, covars, quats, scales, viewmats, Ks, opacities)),
        [width, height],
        eps2d,
        [near_plane, far_plane],
        radius_clip,
        calc_compensations,
        camera_model,
    )
    if packed:
        seen = (outputs[0] > 0).all(-1).nonzero(as_tuple=True)
        outputs = [*seen, *(x[seen] for x in outputs)]
    else:
        outputs = [x.reshape(*batch, *x.shape[1:]) for x in outputs]
    if not calc_compensations:
        outputs[-1] = None
    return tuple(outputs)


def fully_fused_projection_2dgs(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    viewmats: Tensor,
    Ks: Tensor,
    width: int,
    height: int,
    near_plane: float = 0.01,
    far_plane: float = 1e10,
    radius_clip: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Projects 2D Gaussians (surfels: the third scale is not looked at) into every camera.

    Arguments as in ``fully_fused_projection``; one torch program on every device.

    Returns:
        radii [..., C, N, 2] int32, means2d [..., C, N, 2], depths [..., C, N], ray_transforms
        [..., C, N, 3, 3] from (u, v, 1) on the surfel to homogeneous pixels, normals [..., C, N, 3]
        of length 1 in the camera's frame. All 0 where not seen.
    """
    means, _, quats, scales, viewmats, Ks, _ = _as_means(
        *(means, None, quats, scales, viewmats, Ks, None)
    )
    check_projection(means, None, quats, scales, viewmats, Ks, None, "pinhole")
    batch = means.shape[:-2]
    given = (means, quats, scales, viewmats, Ks)
    flat = (x.reshape(math.prod(batch), *x.shape[len(batch) :]) for x in given)
    limits = ((width, height), (near_plane, far_plane), radius_clip)
    outputs = reference.project_surfels(*flat, *limits)
    return tuple(x.reshape(*batch, *x.shape[1:]) for x in outputs)


def _as_means(means: Tensor, *others: Tensor | None) -> list[Tensor | None]:
    """``means``, covars, quats, scales, viewmats, Ks and opacities in one dtype."""
    dtype = working_dtype("means", means)
    names = ("covars", "quats", "scales", "viewmats", "Ks", "opacities")
    return [means.to(dtype), *(as_floats(n, x, dtype) for n, x in zip(names, others))]


def check_projection(means, covars, quats, scales, viewmats, Ks, opacities, camera_model) -> None:
    """Raises ValueError where shapes do not fit or the camera model is unknown."""
    if camera_model not in CAMERA_MODELS:
        raise ValueError(
            f"camera_model is {camera_model!r}; it must be one of {', '.join(CAMERA_MODELS)}"
        )
    if covars is None and (quats is None or scales is None):
        raise ValueError("neither covars nor both quats and scales are given")
    if means.dim() < 2:
        raise ValueError(f"means have shape {tuple(means.shape)}; [..., N, 3] is needed")
    batch, count = means.shape[:-2], means.shape[-2]
    cameras = viewmats.shape[-3] if viewmats.dim() > 2 else 1
    wanted = {
        "means": (means, (*batch, count, 3)),
        "covars": (covars, (*batch, count, 6)),
        "quats": (None if covars is not None else quats, (*batch, count, 4)),
        "scales": (None if covars is not None else scales, (*batch, count, 3)),
        "viewmats": (viewmats, (*batch, cameras, 4, 4)),
        "Ks": (Ks, (*batch, cameras, 3, 3)),
        "opacities": (opacities, (*batch, count)),
    }
    for name, (tensor, shape) in wanted.items():
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; it must be {shape}")


# ---------------------------------------------------------------------- operators


@torch.library.custom_op("sparse3d::splat_project", mutates_args=())
def _project(
    means: Tensor,
    covars: Tensor | None,
    quats: Tensor | None,
    scales: Tensor | None,
    viewmats: Tensor,
    Ks: Tensor,
    opacities: Tensor | None,
    size: list[int],
    eps2d: float,
    depth_range: list[float],
    radius_clip: float,
    compensate: bool,
    camera_model: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    tensors = contiguous(means, covars, quats, scales, viewmats, Ks, opacities)
    options = (size, eps2d, depth_range, radius_clip, compensate, camera_model)
    return backend.choose(PROJECT, means)(*tensors, *options)


@_project.register_fake
def _(means, covars, quats, scales, viewmats, Ks, opacities, *options):
    shape = (*viewmats.shape[:2], means.shape[1])
    radii = means.new_empty(*shape, 2, dtype=torch.int32)
    return radii, *(means.new_empty(*shape, *tail) for tail in ((2,), (), (3,), ()))


@torch.library.custom_op("sparse3d::splat_project_gradient", mutates_args=())
def _project_gradient(
    grad_means2d: Tensor | None,
    grad_depths: Tensor | None,
    grad_conics: Tensor | None,
    grad_compensations: Tensor | None,
    radii: Tensor,
    means: Tensor,
    covars: Tensor | None,
    quats: Tensor | None,
    scales: Tensor | None,
    viewmats: Tensor,
    Ks: Tensor,
    size: list[int],
    eps2d: float,
    camera_model: str,
) -> list[Tensor]:
    kernel = backend.choose(PROJECT_GRADIENT, means)
    grads = contiguous(grad_means2d, grad_depths, grad_conics, grad_compensations)
    tensors = contiguous(radii, means, covars, quats, scales, viewmats, Ks)
    return kernel(grads, *tensors, size, eps2d, camera_model)


@_project_gradient.register_fake
def _(*arguments):
    given = arguments[5:10]  # means, covars, quats, scales, viewmats
    return [torch.empty_like(x) for x in given if x is not None]


def _setup(ctx, inputs, output):
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[0])
    *tensors, _, size, eps2d, _, _, _, camera_model = inputs
    ctx.options = (size, eps2d, camera_model)
    ctx.save_for_backward(output[0], *tensors)


def _backward(ctx, _, *grads):
    radii, *tensors = ctx.saved_tensors
    found = iter(_project_gradient(*grads, radii, *tensors, *ctx.options))
    *tensors, _ = tensors
    return *(None if x is None else next(found) for x in tensors), *[None] * 8


_project.register_autograd(_backward, setup_context=_setup)


def contiguous(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if x is None else x.contiguous() for x in tensors]


# ---------------------------------------------------------------------- implementations


def _reference_gradient(
    grads: list[Tensor | None],
    radii: Tensor,
    means: Tensor,
    covars: Tensor | None,
    quats: Tensor | None,
    scales: Tensor | None,
    viewmats: Tensor,
    Ks: Tensor,
    size: list[int],
    eps2d: float,
    camera_model: str,
) -> list[Tensor]:
    given = (means, covars, quats, scales, viewmats)
    present = [i for i, x in enumerate(given) if x is not None]

    def project(*leaves: Tensor) -> tuple[Tensor, ...]:
        filled = [leaves[present.index(i)] if i in present else None for i in range(len(given))]
        return reference.project_seen(*filled, Ks, radii, size, eps2d, camera_model)

    outputs, pull_back = torch.func.vjp(project, *(given[i] for i in present))
    filled = [torch.zeros_like(x) if g is None else g for x, g in zip(outputs, grads)]
    return list(pull_back(tuple(filled)))


def _native_project(*arguments) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    *tensors, size, eps2d, depth_range, radius_clip, compensate, camera_model = arguments
    means, *_, viewmats, _, _ = tensors
    if means.dtype != torch.float32:
        return reference.project(*arguments)
    shape = (*viewmats.shape[:2], means.shape[1])
    radii = means.new_empty(*shape, 2, dtype=torch.int32)
    outputs = [radii, *(means.new_empty(*shape, *tail) for tail in ((2,), (), (3,), ()))]
    limits = map(float, (eps2d, *depth_range, radius_clip))
    native.call(
        "s3d_splat_project",
        *tensors,
        *(len(means), means.shape[1], viewmats.shape[1], *size, *limits),
        *(compensate, CAMERA_MODELS.index(camera_model), *outputs, cpu_level(), native.threads()),
    )
    return tuple(outputs)


def _native_project_gradient(*arguments) -> list[Tensor]:
    grads, radii, means, covars, quats, scales, viewmats, Ks, size, eps2d, model = arguments
    if means.dtype != torch.float32:
        return _reference_gradient(*arguments)
    given = (means, covars, quats, scales, viewmats)
    found = [None if x is None else torch.empty_like(x) for x in given]
    native.call(
        "s3d_splat_project_gradient",
        *(*grads, radii, means, covars, quats, scales, viewmats, Ks),
        *(len(means), means.shape[1], viewmats.shape[1], *size, float(eps2d)),
        *(CAMERA_MODELS.index(model), *found, cpu_level(), native.threads()),
    )
    return [x for x in found if x is not None]


def cpu_level() -> int:
    """The instruction set that $SPARSE3D_ISA asks for, as the kernels number it; 0: the best."""
    name = native.cpu_level()
    if name not in LEVELS:
        raise ValueError(f"SPARSE3D_ISA is {name!r}; it must be one of {', '.join(LEVELS[1:])}")
    return LEVELS.index(name)


LEVELS = ("", "plain", "avx2", "avx512")
PROJECT = {
    "reference": reference.project,
    "native": _native_project,
    "cuda": reference.project,
}
PROJECT_GRADIENT = {
    "reference": _reference_gradient,
    "native": _native_project_gradient,
    "cuda": _reference_gradient,
}
