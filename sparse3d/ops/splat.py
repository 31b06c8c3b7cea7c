"""Gaussian splatting: pictures of 3D Gaussians, with gradients to everything, cameras included.

``rasterization`` has gsplat 1.5.3's arguments, results and numeric rules, and on CUDA it is gsplat.
Its steps are in ``splat_projection``, ``splat_harmonics`` and ``splat_pixels``.
"""

import math
from types import SimpleNamespace

import torch
from torch import Tensor
from torch.nn import functional as F

from . import backend
from .arguments import as_floats, working_dtype
from .splat_harmonics import spherical_harmonics
from .splat_pixels import isect_offset_encode, isect_tiles, rasterize_to_pixels
from .splat_projection import (
    fully_fused_projection,
    fully_fused_projection_2dgs,
    quat_scale_to_covar_preci,
)
from .voxelize import segment_expand

__all__ = [
    "RENDER_MODES",
    "fully_fused_projection",
    "fully_fused_projection_2dgs",
    "isect_offset_encode",
    "isect_tiles",
    "quat_scale_to_covar_preci",
    "rasterization",
    "rasterize_to_pixels",
    "spherical_harmonics",
]
RENDER_MODES = ("RGB", "D", "ED", "RGB+D", "RGB+ED")
RASTERIZE_MODES = ("classic", "antialiased")
FLOATS = ("means", "quats", "scales", "opacities", "colors", "viewmats", "Ks", "backgrounds")
FLOATS += ("covars", "shN")
SPARSE = ("means", "quats", "scales", "covars")
"""What may have sparse gradients. These pass no conversion: the rows that are seen are converted
by the projection."""
MOST_PIXELS = 2**31
"""Of all pictures of a call: many times what a machine's memory holds with their colours."""
CUDA_ONLY = ("distributed", "with_ut", "with_eval3d", "radial_coeffs", "tangential_coeffs")
CUDA_ONLY += ("thin_prism_coeffs", "ftheta_coeffs", "rolling_shutter", "viewmats_rs")


def rasterization(
    means: Tensor,
    quats: Tensor | None,
    scales: Tensor | None,
    opacities: Tensor,
    colors: Tensor,
    viewmats: Tensor,
    Ks: Tensor,
    width: int,
    height: int,
    near_plane: float = 0.01,
    far_plane: float = 1e10,
    radius_clip: float = 0.0,
    eps2d: float = 0.3,
    sh_degree: int | None = None,
    packed: bool = True,
    tile_size: int = 16,
    backgrounds: Tensor | None = None,
    render_mode: str = "RGB",
    sparse_grad: bool = False,
    absgrad: bool = False,
    rasterize_mode: str = "classic",
    channel_chunk: int = 32,
    distributed: bool = False,
    camera_model: str = "pinhole",
    segmented: bool = False,
    covars: Tensor | None = None,
    shN: Tensor | None = None,
    **others,
) -> tuple[Tensor, Tensor, dict]:
    """Pictures of N Gaussians by C cameras; leading dimensions are independent batches.

    Everything is computed in float64 where ``means`` are that, else in float32; other floats are
    converted, and their gradients come back in their own dtype.

    Args:
        means: [..., N, 3] in the world's frame.
        quats: [..., N, 4] (w, x, y, z) of any length; None with ``covars``; likewise ``scales``.
        scales: [..., N, 3] standard deviations.
        opacities: [..., N] in 0 .. 1.
        colors: [..., N, D] or [..., C, N, D], any D of 1 or more (0 too where depths are rendered);
            with ``sh_degree`` coefficients [..., N, K, 3] or [..., C, N, K, 3].
        viewmats: [..., C, 4, 4] world to camera; x right, y down, z forward.
        Ks: [..., C, 3, 3] intrinsics, pixels; pixel centres lie at + 0.5. No gradient.
        near_plane: Gaussians that are nearer, or beyond ``far_plane``, are not seen; nor are those
            whose box is at most ``radius_clip`` pixels.
        eps2d: added to the variances in the picture, pixels^2.
        sh_degree: highest degree that is evaluated, 0 .. 4; None: ``colors`` are final.
        packed: ``meta`` lists what is seen in place of dense arrays.
        backgrounds: [..., C, D].
        render_mode: one of ``RENDER_MODES``; D accumulates depth, ED divides it by alpha.
        sparse_grad: with ``packed``: sparse gradients (COO) of means, quats, scales and covars.
        absgrad: the backward pass sets ``meta["means2d"].absgrad``.
        rasterize_mode: 'antialiased' lowers opacities by what ``eps2d`` added.
        camera_model: 'pinhole', 'ortho' or 'fisheye' (equidistant).
        covars: [..., N, 3, 3] in place of ``quats`` and ``scales``.
        shN: with ``sh_degree`` the coefficients but the constant ones, [..., N, K - 1, 3] or
            [..., C, N, K - 1, 3]; ``colors`` are then the constant ones, [..., N, 1, 3] or
            [..., C, N, 1, 3]. No copy of both is made; gsplat has no such argument.
        others: ``channel_chunk``, ``segmented`` and what ``CUDA_ONLY`` names mean something to
            gsplat on CUDA.

    Returns:
        Colours [..., C, H, W, D], depth last where there is one; alphas [..., C, H, W, 1]; and
        gsplat's ``meta``, whose means2d is in the graph. The native implementation leaves tiles out
        of its lists where no pixel reaches an alpha of 1/255.

    Raises:
        ValueError: unknown modes, shapes that do not fit, numbers that are not finite, integers
            where floats belong (colours of 0..255 among them). Degenerate covariances and Gaussians
            behind every camera are legal: they are not seen.
        MemoryError: the pictures have more than ``MOST_PIXELS``, or the tile lists would be too
            long, or a kernel did not get its memory.
    """
    call = SimpleNamespace(**{k: v for k, v in locals().items() if k != "others"}, **others)
    _convert(call)
    _check(call, others)
    return backend.choose(RASTERIZATION, means)(call)


def _convert(call: SimpleNamespace) -> None:
    """Everything in one dtype."""
    dtype = working_dtype("means", call.means)
    for name in FLOATS:
        value = as_floats(name, getattr(call, name), dtype)
        if not (call.sparse_grad and name in SPARSE):
            setattr(call, name, value)


def _check(call: SimpleNamespace, others: dict) -> None:
    for name in others:
        if name not in CUDA_ONLY:
            raise TypeError(f"rasterization has no argument {name!r}")
    for name, allowed in (("render_mode", RENDER_MODES), ("rasterize_mode", RASTERIZE_MODES)):
        if getattr(call, name) not in allowed:
            value = getattr(call, name)
            raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")
    for name in ("width", "height", "tile_size"):
        value = getattr(call, name)
        if isinstance(value, float) or value < 1:
            raise ValueError(f"{name} is {value}; a whole number of 1 or more is needed")
    pixels = call.width * call.height * math.prod(call.viewmats.shape[:-2])
    if pixels > MOST_PIXELS:
        raise MemoryError(
            f"width {call.width} and height {call.height} with viewmats of shape "
            f"{tuple(call.viewmats.shape)} are {pixels} pixels; at most {MOST_PIXELS} are allowed: "
            "use smaller pictures or fewer cameras at a time"
        )
    if call.means.dim() < 2 or call.viewmats.dim() < 3:
        raise ValueError(
            f"means have shape {tuple(call.means.shape)} and viewmats "
            f"{tuple(call.viewmats.shape)}; [..., N, 3] and [..., C, 4, 4] are needed"
        )
    if call.sparse_grad and (not call.packed or call.means.dim() != 2):
        raise ValueError("sparse_grad needs packed=True and no leading batch dimensions")
    batch, rows = call.means.shape[:-2], call.means.shape[:-1]
    cameras = call.viewmats.shape[-3:-2]
    tail = call.colors.shape[-1:] if call.sh_degree is None else call.colors.shape[-2:]
    if call.sh_degree is not None and tail[-1] != 3:
        raise ValueError(f"colors have shape {tuple(call.colors.shape)}; SH needs [..., K, 3]")
    if call.colors.shape not in ((*rows, *tail), (*batch, *cameras, *rows[-1:], *tail)):
        raise ValueError(
            f"colors have shape {tuple(call.colors.shape)}; with means of {tuple(rows)} rows and "
            f"{tuple(cameras)} cameras it must be {(*rows, *tail)} or "
            f"{(*batch, *cameras, *rows[-1:], *tail)}"
        )
    if call.render_mode == "RGB" and not tail[-1]:
        raise ValueError(
            f"colors have shape {tuple(call.colors.shape)}: 0 channels make no picture; give 1 or "
            "more, or take render_mode 'D' or 'ED' for depths alone"
        )
    if call.shN is not None:
        wanted = (*call.colors.shape[:-2], call.shN.shape[-2], 3)
        if call.sh_degree is None or call.colors.shape[-2] != 1 or call.shN.shape != wanted:
            raise ValueError(
                f"shN have shape {tuple(call.shN.shape)}, colors {tuple(call.colors.shape)} and "
                f"sh_degree is {call.sh_degree}; a degree, [..., N, K - 1, 3] and [..., N, 1, 3] "
                "are needed"
            )
    if call.covars is not None and call.covars.shape != (*rows, 3, 3):
        raise ValueError(f"covars have shape {tuple(call.covars.shape)}; it must be {rows} + 3, 3")


# ---------------------------------------------------------------------- implementations


def _render(call: SimpleNamespace) -> tuple[Tensor, Tensor, dict]:
    """Projection, colours, tile lists and blending, each by its own implementation."""
    for name in CUDA_ONLY:
        if getattr(call, name, None):
            raise ValueError(f"{name} is available for CUDA tensors only, where gsplat runs")
    _refuse_not_finite(call)
    batch, cameras = call.means.shape[:-2], call.viewmats.shape[-3]
    images = math.prod(batch) * cameras
    meta = _project(call)
    colors = _colors(call, meta)
    backgrounds = call.backgrounds
    if call.render_mode != "RGB":
        depth = meta["depths"][..., None]
        keeps_colors = call.render_mode.startswith("RGB")
        colors = torch.cat([colors, depth], -1) if keeps_colors else depth
        if backgrounds is not None:
            zero = backgrounds.new_zeros(*batch, cameras, 1)
            backgrounds = torch.cat([backgrounds, zero], -1) if keeps_colors else zero
    _list_tiles(call, meta, images)
    picture, alphas = rasterize_to_pixels(
        *(meta["means2d"], meta["conics"], colors, meta["opacities"]),
        *(call.width, call.height, call.tile_size, meta["isect_offsets"], meta["flatten_ids"]),
        backgrounds=backgrounds,
        packed=call.packed,
        absgrad=call.absgrad,
    )
    if call.render_mode.endswith("ED"):
        expected = picture[..., -1:] / alphas.clamp(min=1e-10)
        picture = torch.cat([picture[..., :-1], expected], -1)
    return picture, alphas, meta


def _refuse_not_finite(call: SimpleNamespace) -> None:
    names = ("means", "opacities", "colors", "shN", "viewmats", "Ks", "backgrounds")
    names += ("quats", "scales") if call.covars is None else ("covars",)
    for name in names:
        value = getattr(call, name)
        if value is None or value.detach().sum().isfinite():
            continue
        wrong = (~value.detach().isfinite()).nonzero()
        if len(wrong):
            raise ValueError(
                f"{name} of shape {tuple(value.shape)} hold {len(wrong)} numbers that are not "
                f"finite, the first at {tuple(wrong[0].tolist())}; remove such rows first"
            )


def _project(call: SimpleNamespace) -> dict:
    """The first part of ``meta``."""
    names = ("means", "quats", "scales") if call.covars is None else ("means", "covars")
    shape = {name: getattr(call, name) for name in names}
    if call.covars is not None:
        shape["covars"] = call.covars[..., [0, 0, 0, 1, 1, 2], [0, 1, 2, 1, 2, 2]]
    antialiased = call.rasterize_mode == "antialiased"
    options = {name: getattr(call, name) for name in ("eps2d", "near_plane", "far_plane")}

    def project(packed: bool, means: Tensor, quats=None, scales=None, covars=None):
        return fully_fused_projection(
            *(means, covars, quats, scales, call.viewmats, call.Ks, call.width, call.height),
            radius_clip=call.radius_clip,
            packed=packed,
            calc_compensations=antialiased,
            camera_model=call.camera_model,
            opacities=call.opacities.detach(),
            **options,
        )

    if call.sparse_grad:
        with torch.no_grad():
            seen = (project(False, **shape)[0] > 0).all(-1).any(0).nonzero().squeeze(1)
        shape = {name: _with_sparse_gradient(value, seen) for name, value in shape.items()}
    *indices, radii, means2d, depths, conics, compensations = project(call.packed, **shape)
    batch_ids, camera_ids, gaussian_ids = indices or (None, None, None)
    if call.packed:
        rows, once = (batch_ids, gaussian_ids), call.viewmats.shape[-3] == 1
        opacities = _take(_flat(call, call.opacities), rows, once)
    else:
        opacities = call.opacities[..., None, :].expand(depths.shape)
    if antialiased:
        opacities = opacities * compensations
    return {
        **{"batch_ids": batch_ids, "camera_ids": camera_ids, "gaussian_ids": gaussian_ids},
        **{"radii": radii, "means2d": means2d, "depths": depths, "conics": conics},
        "opacities": opacities,
    }


def _flat(call: SimpleNamespace, x: Tensor) -> Tensor:
    """``x`` with all batch dimensions in one."""
    batch = call.means.shape[:-2]
    return x.reshape(math.prod(batch), *x.shape[len(batch) :])


def _take(x: Tensor, ids: tuple[Tensor, ...], once: bool) -> Tensor:
    """``x[ids]``, of which the gradient adds up in an order that does not depend on threads.

    once: no entry is taken twice, and nothing has to be added.
    """
    lead, tail = x.shape[: len(ids)], x.shape[len(ids) :]
    place = ids[0]
    for size, index in zip(lead[1:], ids[1:]):
        place = index if math.prod(lead[:-1]) == 1 else place * size + index
    x = x.reshape(math.prod(lead), math.prod(tail))
    rows = x.index_select(0, place) if once else segment_expand(x, place)
    return rows.reshape(len(place), *tail)


def _with_sparse_gradient(values: Tensor, rows: Tensor) -> Tensor:
    """``values``, of which only ``rows`` get a gradient, a sparse one."""
    kept = F.embedding(rows, values, sparse=True)
    return values.detach().index_copy(0, rows, kept)


def _colors(call: SimpleNamespace, meta: dict) -> Tensor:
    """[..., C, N, D], or [nnz, D] when packed."""
    batch, cameras = call.means.shape[:-2], call.viewmats.shape[-3]
    count = call.means.shape[-2]
    own = call.colors.dim() - len(batch) == (3 if call.sh_degree is None else 4)  # per camera
    rows = (meta["batch_ids"], meta["camera_ids"], meta["gaussian_ids"])

    def per_image(x: Tensor | None) -> Tensor | None:
        if x is None:
            return None
        if call.packed:
            return _take(_flat(call, x), rows if own else rows[::2], own or cameras == 1)
        if own or math.prod(batch) == 1:
            return x if own else x.unsqueeze(len(batch))
        return x.unsqueeze(len(batch)).expand(*batch, cameras, *x.shape[len(batch) :])

    colors, shN = per_image(call.colors), per_image(call.shN)
    tail = call.colors.shape[len(batch) + 1 + own :]
    if call.sh_degree is None:
        return colors if call.packed else colors.expand(*batch, cameras, count, *tail)
    centres = torch.linalg.inv(call.viewmats)[..., :3, 3]
    if call.packed:
        dirs = _take(_flat(call, call.means), rows[::2], cameras == 1)
        dirs = dirs - _take(_flat(call, centres), rows[:2], False)
    else:
        dirs = call.means[..., None, :, :] - centres[..., None, :]
    masks = (meta["radii"] > 0).all(-1)
    return (spherical_harmonics(call.sh_degree, dirs, colors, masks, shN) + 0.5).clamp(min=0)


def _list_tiles(call: SimpleNamespace, meta: dict, images: int) -> None:
    """Adds the rest of ``meta``."""
    batch, cameras = call.means.shape[:-2], call.viewmats.shape[-3]
    across, down = -(-call.width // call.tile_size), -(-call.height // call.tile_size)
    image_ids = meta["batch_ids"] * cameras + meta["camera_ids"] if call.packed else None
    counts, ids, flat = isect_tiles(
        *(meta["means2d"], meta["radii"], meta["depths"], call.tile_size, across, down),
        **{"packed": call.packed, "n_images": images, "image_ids": image_ids},
        conics=meta["conics"],
        opacities=meta["opacities"],
    )
    offsets = isect_offset_encode(ids, images, across, down)
    meta.update(
        **{"tile_width": across, "tile_height": down, "tiles_per_gauss": counts},
        **{"isect_ids": ids, "flatten_ids": flat},
        isect_offsets=offsets.reshape(*batch, cameras, down, across),
        **{"width": call.width, "height": call.height, "tile_size": call.tile_size},
        **{"n_batches": math.prod(batch), "n_cameras": cameras},
    )


def _gsplat(call: SimpleNamespace) -> tuple[Tensor, Tensor, dict]:
    import gsplat

    arguments = {name: value for name, value in vars(call).items() if name != "shN"}
    if call.shN is not None:
        arguments["colors"] = torch.cat([call.colors, call.shN], -2)
    if call.backgrounds is None or not call.packed:
        return gsplat.rasterization(**arguments)
    # gsplat 1.5.3 refuses backgrounds of packed Gaussians, which change the colours only
    arguments["backgrounds"] = None
    picture, alphas, meta = gsplat.rasterization(**arguments)
    behind = call.backgrounds[..., None, None, :]
    if call.render_mode.startswith("RGB+"):
        behind = F.pad(behind, (0, 1))
    elif call.render_mode != "RGB":
        behind = torch.zeros_like(behind)
    return picture + (1 - alphas) * behind, alphas, meta


RASTERIZATION = {"reference": _render, "native": _render, "cuda": _gsplat}
