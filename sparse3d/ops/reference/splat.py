"""Gaussians seen by cameras, in torch. The definition of ``ops.splat_projection`` and
``ops.splat_harmonics``.

Formulas: Zwicker et al., EWA splatting; Kerbl et al., 3D Gaussian splatting; numeric rules of
gsplat 1.5.3. Every function is differentiable by autograd.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

EXTENT = 3.33  # standard deviations: exp(-EXTENT^2 / 2) is just below ALPHA_MIN
ALPHA_MIN = 1 / 255
LARGEST_RADIUS = 2.0**30


def rotation_matrix(quats: Tensor) -> Tensor:
    """[..., 3, 3] of quaternions [..., 4] (w, x, y, z) of any length; zero is no rotation."""
    w, x, y, z = F.normalize(quats, dim=-1).unbind(-1)
    rows = [
        *(1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        *(2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        *(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    ]
    return torch.stack(rows, -1).unflatten(-1, (3, 3))


def covariance(quats: Tensor, scales: Tensor) -> Tensor:
    """[..., 3, 3]: (R S) (R S)^T of quaternions [..., 4] and standard deviations [..., 3]."""
    half = rotation_matrix(quats) * scales[..., None, :]
    return half @ half.mT


def from_triangle(six: Tensor) -> Tensor:
    """Symmetric [..., 3, 3] of upper triangles [..., 6]."""
    return six[..., [0, 1, 2, 1, 3, 4, 2, 4, 5]].unflatten(-1, (3, 3))


def _pinhole(mean: Tensor, K: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    fx, fy, cx, cy = K[..., 0, 0], K[..., 1, 1], K[..., 0, 2], K[..., 1, 2]
    x, y, z = mean.unbind(-1)
    width, height = size
    margin_x, margin_y = 0.15 * width / fx, 0.15 * height / fy
    # only the Jacobian sees the clamp: it keeps Gaussians far off the picture from exploding
    u = (x / z).clamp(-(cx / fx + margin_x), (width - cx) / fx + margin_x)
    v = (y / z).clamp(-(cy / fy + margin_y), (height - cy) / fy + margin_y)
    zero = torch.zeros_like(z)
    # u * z / z^2, so that a clamped u hands its gradient to z alone
    rows = [fx / z, zero, -fx * u / z, zero, fy / z, -fy * v / z]
    return torch.stack([fx * x / z + cx, fy * y / z + cy], -1), _jacobian(rows)


def _ortho(mean: Tensor, K: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    fx, fy, cx, cy = K[..., 0, 0], K[..., 1, 1], K[..., 0, 2], K[..., 1, 2]
    x, y, z = mean.unbind(-1)
    zero = torch.zeros_like(z)
    rows = [fx + zero, zero, zero, zero, fy + zero, zero]
    return torch.stack([fx * x + cx, fy * y + cy], -1), _jacobian(rows)


def _fisheye(mean: Tensor, K: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    fx, fy, cx, cy = K[..., 0, 0], K[..., 1, 1], K[..., 0, 2], K[..., 1, 2]
    x, y, z = mean.unbind(-1)
    tiny = 1e-7
    on_axis = (x == 0) & (y == 0)  # where the root has no gradient
    r = torch.where(on_axis, tiny, x).hypot(torch.where(on_axis, 0, y))
    r = torch.where(on_axis, 0, r) + tiny
    stretch = torch.atan2(r, z + tiny) / r
    xx, yy, xy = x * x + tiny, y * y, x * y
    q = xx + yy
    d = 1 / (q + z * z)
    a, b = z * d / q, torch.atan2(r, z) / r / q
    rows = [
        *(fx * (xx * a + yy * b), fx * xy * (a - b), -fx * x * d),
        *(fy * xy * (a - b), fy * (yy * a + xx * b), -fy * y * d),
    ]
    return torch.stack([fx * x * stretch + cx, fy * y * stretch + cy], -1), _jacobian(rows)


def _jacobian(rows: list[Tensor]) -> Tensor:
    return torch.stack(rows, -1).unflatten(-1, (2, 3))


CAMERA_MODELS = {"pinhole": _pinhole, "ortho": _ortho, "fisheye": _fisheye}


def project(
    means: Tensor,
    covars: Tensor | None,
    quats: Tensor | None,
    scales: Tensor | None,
    viewmats: Tensor,
    Ks: Tensor,
    opacities: Tensor | None,
    size: tuple[int, int],
    eps2d: float,
    depth_range: tuple[float, float],
    radius_clip: float,
    compensate: bool,
    camera_model: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Projects Gaussians; arguments as in ``splat_projection.fully_fused_projection``.

    Args:
        means: [B, N, 3]; quats [B, N, 4] and scales [B, N, 3], or covars [B, N, 6].
        viewmats: [B, C, 4, 4]; Ks [B, C, 3, 3].
        opacities: [B, N] or None.

    Returns:
        radii [B, C, N, 2] int32, means2d [B, C, N, 2], depths [B, C, N], conics [B, C, N, 3],
        compensations [B, C, N]. All 0 for a Gaussian that is not seen.
    """
    mean, cov = _to_camera(means, covars, quats, scales, viewmats)
    flat = _flatten(mean, cov, Ks[:, :, None], size, camera_model, eps2d)
    opacity = None if opacities is None else opacities[:, None]
    radii = _radii(mean, *flat, opacity, size, depth_range, radius_clip, compensate)
    given = (means, covars, quats, scales, viewmats, Ks)
    return radii, *project_seen(*given, radii, size, eps2d, camera_model)


def project_seen(
    means: Tensor,
    covars: Tensor | None,
    quats: Tensor | None,
    scales: Tensor | None,
    viewmats: Tensor,
    Ks: Tensor,
    radii: Tensor,
    size: tuple[int, int],
    eps2d: float,
    camera_model: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What ``project`` returns after the radii, differentiable; 0 where those are 0."""
    seen = (radii > 0).all(-1)
    mean, cov = _to_camera(means, covars, quats, scales, viewmats)
    # what is not seen is replaced before the divisions: its gradient is 0, never 0 * inf
    mean = torch.where(seen[..., None], mean, mean.new_tensor([0, 0, 1]))
    cov = torch.where(seen[..., None, None], cov, torch.eye(3).to(cov))
    means2d, cov2d, det, det0 = _flatten(mean, cov, Ks[:, :, None], size, camera_model, eps2d)
    ratio = (det0 / det).clamp(min=0)
    compensation = torch.where(ratio > 0, ratio, 1).sqrt() * (ratio > 0)
    conics = torch.stack([cov2d[..., 1, 1], -cov2d[..., 0, 1], cov2d[..., 0, 0]], -1)
    return (
        torch.where(seen[..., None], means2d, 0),
        torch.where(seen, mean[..., 2], 0),
        torch.where(seen[..., None], conics / det[..., None], 0),
        torch.where(seen, compensation, 0),
    )


def _to_camera(
    means: Tensor,
    covars: Tensor | None,
    quats: Tensor | None,
    scales: Tensor | None,
    viewmats: Tensor,
) -> tuple[Tensor, Tensor]:
    """Means [B, C, N, 3] and covariances [B, C, N, 3, 3] in the cameras' frames."""
    world = covariance(quats, scales) if covars is None else from_triangle(covars)
    rotation = viewmats[:, :, None, :3, :3]
    mean = (rotation @ means[:, None, :, :, None]).squeeze(-1) + viewmats[:, :, None, :3, 3]
    return mean, rotation @ world[:, None] @ rotation.mT


def _flatten(
    mean: Tensor, cov: Tensor, K: Tensor, size: tuple[int, int], model: str, eps2d: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The picture's mean, covariance with eps2d, its determinant, and the one without eps2d."""
    mean2d, J = CAMERA_MODELS[model](mean, K, size)
    cov2d = J @ cov @ J.mT
    cov2d = (cov2d + cov2d.mT) / 2
    blurred = cov2d + eps2d * torch.eye(2).to(cov2d)
    return mean2d, blurred, _determinant(blurred), _determinant(cov2d)


def _determinant(m: Tensor) -> Tensor:
    return m[..., 0, 0] * m[..., 1, 1] - m[..., 0, 1] * m[..., 1, 0]


def _radii(
    mean: Tensor,
    mean2d: Tensor,
    cov2d: Tensor,
    det: Tensor,
    det0: Tensor,
    opacity: Tensor | None,
    size: tuple[int, int],
    depth_range: tuple[float, float],
    radius_clip: float,
    compensate: bool,
) -> Tensor:
    """[..., 2] int32 half sizes of the boxes that hold every pixel reached; 0 where not seen."""
    extent = torch.full_like(det, EXTENT)
    seen = (det > 0) & (mean[..., 2] > depth_range[0]) & (mean[..., 2] < depth_range[1])
    if opacity is not None:
        if compensate:
            opacity = opacity * (det0 / det).clamp(min=0).sqrt()
        seen = seen & (opacity >= ALPHA_MIN)
        extent = (2 * (opacity / ALPHA_MIN).log()).clamp(min=0).sqrt().clamp(max=EXTENT)
    deviation = cov2d.diagonal(dim1=-2, dim2=-1).sqrt()
    radius = (extent[..., None] * deviation).ceil()
    seen = seen & (radius > radius_clip).any(-1)
    border = mean2d.new_tensor(size)
    seen = seen & ((mean2d + radius > 0) & (mean2d - radius < border)).all(-1)
    return torch.where(seen[..., None], radius.clamp(max=LARGEST_RADIUS), 0).int()


def project_surfels(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    viewmats: Tensor,
    Ks: Tensor,
    size: tuple[int, int],
    depth_range: tuple[float, float],
    radius_clip: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Projects 2D Gaussians (Huang et al., 2D Gaussian splatting); shapes as in ``project``.

    Returns:
        radii [B, C, N, 2] int32, means2d [B, C, N, 2], depths [B, C, N], ray transforms
        [B, C, N, 3, 3], unit normals [B, C, N, 3] in the camera's frame, towards the camera.
        All 0 for a surfel that is not seen.
    """
    rotation = viewmats[:, :, None, :3, :3]
    mean = (rotation @ means[:, None, :, :, None]).squeeze(-1) + viewmats[:, :, None, :3, 3]
    axes = rotation @ rotation_matrix(quats)[:, None]
    spans = axes[..., :2] * scales[:, None, :, None, :2]
    rays = Ks[:, :, None] @ torch.cat([spans, mean[..., None]], -1)
    with torch.no_grad():
        radii = _surfel_radii(rays, mean[..., 2], size, depth_range, radius_clip)
        seen = (radii > 0).all(-1)[..., None]
    safe = torch.where(seen[..., None], rays, torch.eye(3).to(rays))
    means2d, _ = _surfel_box(safe)
    normal = axes[..., 2]
    normal = torch.where((normal * mean).sum(-1, keepdim=True) < 0, normal, -normal)
    return (
        radii,
        torch.where(seen, means2d, 0),
        torch.where(seen[..., 0], mean[..., 2], 0),
        torch.where(seen[..., None], rays, 0),
        torch.where(seen, normal, 0),
    )


def _surfel_box(rays: Tensor) -> tuple[Tensor, Tensor]:
    """Centres [..., 2] of the boxes around the unit ellipses, and squared half sizes [..., 2]."""
    last = rays[..., 2, :]
    signs = rays.new_tensor([1.0, 1.0, -1.0])
    factor = (signs / (signs * last * last).sum(-1, keepdim=True))[..., None, :]
    centre = (factor * rays[..., :2, :] * last[..., None, :]).sum(-1)
    return centre, centre * centre - (factor * rays[..., :2, :] ** 2).sum(-1)


def _surfel_radii(
    rays: Tensor,
    depth: Tensor,
    size: tuple[int, int],
    depth_range: tuple[float, float],
    radius_clip: float,
) -> Tensor:
    centre, square = _surfel_box(rays)
    radius = (EXTENT * square.clamp(min=1e-4).sqrt()).ceil()
    seen = centre.isfinite().all(-1) & (depth > depth_range[0]) & (depth < depth_range[1])
    seen = seen & (radius > radius_clip).any(-1)
    border = centre.new_tensor(size)
    seen = seen & ((centre + radius > 0) & (centre - radius < border)).all(-1)
    return torch.where(seen[..., None], radius.clamp(max=LARGEST_RADIUS), 0).int()


# ---------------------------------------------------------------------- spherical harmonics


def harmonics(degree: int, dirs: Tensor, coeffs: Tensor) -> Tensor:
    """[..., D]: sum of the first (degree + 1)^2 coefficients [..., K, D] times their bases."""
    bases = harmonic_bases(degree, dirs)
    return (bases[..., None] * coeffs[..., : bases.shape[-1], :]).sum(-2)


def harmonic_bases(degree: int, dirs: Tensor) -> Tensor:
    """Real spherical harmonics [..., (degree + 1)^2] of directions [..., 3] of any length.

    Polynomials in the form of Sloan, Efficient spherical harmonic evaluation (2013).
    """
    x, y, z = F.normalize(dirs, dim=-1).unbind(-1)
    bases = [torch.full_like(x, 0.2820947917738781)]
    if degree > 0:
        bases += [-0.48860251190292 * y, 0.48860251190292 * z, -0.48860251190292 * x]
    if degree > 1:
        c1, s1, zz = x * x - y * y, 2 * x * y, z * z
        f = -1.092548430592079 * z
        b6 = 0.9461746957575601 * zz - 0.3153915652525201
        bases += [0.5462742152960395 * s1, f * y, b6, f * x, 0.5462742152960395 * c1]
    if degree > 2:
        c2, s2 = x * c1 - y * s1, x * s1 + y * c1
        f, g = 1.445305721320277 * z, -2.285228997322329 * zz + 0.4570457994644658
        b12 = z * (1.865881662950577 * zz - 1.119528997770346)
        bases += [-0.5900435899266435 * s2, f * s1, g * y]
        bases += [b12, g * x, f * c1, -0.5900435899266435 * c2]
    if degree > 3:
        c3, s3 = x * c2 - y * s2, x * s2 + y * c2
        f, g = -1.770130769779931 * z, 3.31161143515146 * zz - 0.47308734787878
        h = z * (-4.683325804901025 * zz + 2.007139630671868)
        bases += [0.6258357354491763 * s3, f * s2, g * s1, h * y]
        bases += [1.984313483298443 * z * b12 - 1.006230589874905 * b6]
        bases += [h * x, g * c1, f * c2, 0.6258357354491763 * c3]
    return torch.stack(bases, -1)
