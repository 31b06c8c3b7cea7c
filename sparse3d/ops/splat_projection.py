"""Gaussians seen by cameras: covariances, projection and spherical harmonics, with gradients.

Names, arguments and numeric rules are those of gsplat 1.5.3.
"""

import math

import torch
from torch import Tensor

from . import backend, native
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
        quats: [..., 4] quaternions (w, x, y, z) of any length.
        scales: [..., 3] standard deviations.
        triu: give upper triangles [..., 6] in place of [..., 3, 3].
    """
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
        ValueError: shapes that do not fit each other, or an unknown camera model.
    """
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
    check_projection(means, None, quats, scales, viewmats, Ks, None, "pinhole")
    batch = means.shape[:-2]
    given = (means, quats, scales, viewmats, Ks)
    flat = (x.reshape(math.prod(batch), *x.shape[len(batch) :]) for x in given)
    limits = ((width, height), (near_plane, far_plane), radius_clip)
    outputs = reference.project_surfels(*flat, *limits)
    return tuple(x.reshape(*batch, *x.shape[1:]) for x in outputs)


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
        dirs: [..., 3] directions of any length.
        coeffs: [..., K, 3]; of its leading dimensions all but the last may be 1 where those of
            ``dirs`` are not: one set for all.
        masks: [...] bool; False gives 0 and no gradient.
        shN: [..., K - 1, 3] the coefficients but the constant ones, which then are ``coeffs``
            [..., 1, 3]: as models hold them, without a copy of both in one.

    Returns:
        [..., 3]

    Raises:
        ValueError: the degree is not 0 .. 4 or more than the coefficients allow.
    """
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
        rows, sets[0], sets[1] if shN is not None else None, seen, degrees_to_use
    ).reshape(dirs.shape)


def check_projection(means, covars, quats, scales, viewmats, Ks, opacities, camera_model) -> None:
    """Raises ValueError where shapes do not fit or the camera model is unknown."""
    if camera_model not in CAMERA_MODELS:
        raise ValueError(
            f"camera_model is {camera_model!r}; it must be one of {', '.join(CAMERA_MODELS)}"
        )
    if covars is None and (quats is None or scales is None):
        raise ValueError("neither covars nor both quats and scales are given")
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
    tensors = _contiguous(means, covars, quats, scales, viewmats, Ks, opacities)
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
    grads = _contiguous(grad_means2d, grad_depths, grad_conics, grad_compensations)
    tensors = _contiguous(radii, means, covars, quats, scales, viewmats, Ks)
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


@torch.library.custom_op("sparse3d::splat_harmonics", mutates_args=())
def _harmonics(
    dirs: Tensor, coeffs: Tensor, rest: Tensor | None, masks: Tensor | None, degree: int
) -> Tensor:
    return backend.choose(HARMONICS, dirs)(*_contiguous(dirs, coeffs, rest, masks), degree)


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
    return kernel(*_contiguous(grad, dirs, coeffs, rest, masks), degree)


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


def _contiguous(*tensors: Tensor | None) -> list[Tensor | None]:
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
