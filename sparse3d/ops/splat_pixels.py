"""Projected Gaussians on pixels: tile lists and front-to-back compositing, with gradients.

Names, arguments and numeric rules are those of gsplat 1.5.3. Features may have any width.
"""

import math

import torch
from torch import Tensor

from . import backend, native
from .arguments import as_floats, check_shape, check_type, working_dtype
from .reference import splat_pixels as reference
from .splat_projection import cpu_level

# Entries of all tile lists together; more is taken for a mistake (2^28 entries hold 3 GB).
MOST_ENTRIES = 2**28
MOST_TILES = 2**31
"""Of all pictures, as keys number them: int32."""


def isect_tiles(
    means2d: Tensor,
    radii: Tensor,
    depths: Tensor,
    tile_size: int,
    tile_width: int,
    tile_height: int,
    packed: bool = False,
    n_images: int | None = None,
    image_ids: Tensor | None = None,
    conics: Tensor | None = None,
    opacities: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Lists the Gaussians of every tile from front to back; of equal depths the lower row first.

    Args:
        means2d: [..., N, 2] float, pixels, or [nnz, 2] when packed.
        radii: [..., N, 2] int32 half sizes of the boxes in pixels; 0: not listed.
        depths: [..., N] float.
        tile_size: edge of a tile in pixels.
        tile_width: tiles in a row; likewise ``tile_height``.
        packed: rows of all images are in one list; needs ``n_images`` and ``image_ids`` [nnz]
            integer.
        conics: [..., N, 3] float, with ``opacities`` [..., N]: lets an implementation leave out
            tiles in which no pixel reaches an alpha of 1/255.

    Returns:
        tiles_per_gauss [..., N] int32; isect_ids [L] int64, ascending: image, tile and depth bits;
        flatten_ids [L] int32: the row, in all images together, that each entry belongs to.

    Raises:
        MemoryError: the lists would hold more than ``MOST_ENTRIES``, or there are about as many
            tiles as ``MOST_TILES`` or more.
        ValueError: shapes or types that do not fit each other, or an image that does not exist.
    """
    dtype, shape = working_dtype("means2d", means2d), depths.shape
    means2d, depths = means2d.to(dtype), as_floats("depths", depths, dtype)
    conics, opacities = as_floats("conics", conics, dtype), as_floats("opacities", opacities, dtype)
    check_type("radii", radii, torch.int32)
    for name, tensor, tail in (
        *(("means2d", means2d, (2,)), ("radii", radii, (2,))),
        *(("conics", conics, (3,)), ("opacities", opacities, ())),
    ):
        check_shape(name, tensor, (*shape, *tail))
    if min(tile_size, tile_width, tile_height) < 1:
        raise ValueError(
            f"tile_size is {tile_size} and there are {tile_width} x {tile_height} tiles; 1 or more "
            "are needed"
        )
    if packed and (n_images is None or image_ids is None or len(shape) != 1):
        raise ValueError("packed rows [nnz] need n_images and image_ids")
    if packed and (image_ids.shape != shape or image_ids.is_floating_point()):
        raise ValueError(
            f"image_ids are {image_ids.dtype} of shape {tuple(image_ids.shape)}; integers of shape "
            f"{tuple(shape)} are needed"
        )
    images = n_images if packed else math.prod(shape[:-1])
    if images << (tile_width * tile_height).bit_length() > MOST_TILES:
        raise MemoryError(
            f"{images} pictures of {tile_width} x {tile_height} tiles are too many to be numbered: "
            "use larger tiles, smaller pictures or fewer cameras at a time"
        )
    if not packed:
        image_ids = torch.arange(images, device=depths.device).repeat_interleave(shape[-1])
    exact = conics is not None and opacities is not None
    rows = [means2d.reshape(-1, 2).detach(), radii.reshape(-1, 2), depths.reshape(-1).detach()]
    shapes = [None, None]
    if exact:
        shapes = [conics.reshape(-1, 3).detach(), opacities.reshape(-1).detach()]
    counts, ids, flat = _list_tiles(
        *rows, image_ids, *shapes, tile_size, [tile_width, tile_height], images
    )
    return counts.reshape(shape), ids, flat


def isect_offset_encode(
    isect_ids: Tensor, n_images: int, tile_width: int, tile_height: int
) -> Tensor:
    """[I, tile_height, tile_width] int32: where each tile's list begins in ``isect_ids`` int64."""
    check_type("isect_ids", isect_ids, torch.int64)
    check_shape("isect_ids", isect_ids, (isect_ids.numel(),))
    return reference.tile_starts(isect_ids, n_images, (tile_width, tile_height))


def rasterize_to_pixels(
    means2d: Tensor,
    conics: Tensor,
    colors: Tensor,
    opacities: Tensor,
    image_width: int,
    image_height: int,
    tile_size: int,
    isect_offsets: Tensor,
    flatten_ids: Tensor,
    backgrounds: Tensor | None = None,
    masks: Tensor | None = None,
    packed: bool = False,
    absgrad: bool = False,
) -> tuple[Tensor, Tensor]:
    """Blends the listed Gaussians, front to back.

    Computed in float64 where ``means2d`` are that, else in float32; other floats are converted, and
    their gradients come back in their own dtype.

    Args:
        means2d: [..., N, 2] pixels, or [nnz, 2] when packed; pixel centres lie at + 0.5.
        conics: [..., N, 3] inverse covariances (xx, xy, yy).
        colors: [..., N, D], any D of 1 or more.
        opacities: [..., N].
        image_width: in pixels; likewise ``image_height``.
        tile_size: edge of a tile in pixels.
        isect_offsets: [..., tile_height, tile_width] int32.
        flatten_ids: [L] int32.
        backgrounds: [..., D], added behind what is left of the light.
        masks: [..., tile_height, tile_width] bool; a False tile shows the background.
        packed: as in ``isect_tiles``; leading dimensions are then those of ``isect_offsets``.
        absgrad: the backward pass sets ``means2d.absgrad``, the sum over pixels of the absolute
            gradient of ``means2d``.

    Returns:
        colors [..., H, W, D] and alphas [..., H, W, 1].

    Raises:
        ValueError: shapes or types that do not fit each other, or lists that name no row.
    """
    dtype = working_dtype("means2d", means2d)
    means2d, conics = means2d.to(dtype), as_floats("conics", conics, dtype)
    colors, opacities = as_floats("colors", colors, dtype), as_floats("opacities", opacities, dtype)
    backgrounds = as_floats("backgrounds", backgrounds, dtype)
    check_type("masks", masks, torch.bool)
    check_type("isect_offsets", isect_offsets, torch.int32)
    check_type("flatten_ids", flatten_ids, torch.int32)
    check_shape("flatten_ids", flatten_ids, (flatten_ids.numel(),))
    dims = isect_offsets.shape[:-2] if packed else means2d.shape[:-2]
    _check(means2d, conics, colors, opacities, backgrounds, masks, isect_offsets, dims)
    tiles = isect_offsets.shape[-2:]
    if tiles[0] * tile_size < image_height or tiles[1] * tile_size < image_width:
        raise ValueError(
            f"{tiles[1]} x {tiles[0]} tiles of {tile_size} pixels do not cover a picture of "
            f"{image_width} x {image_height}"
        )
    image, transmittance, _ = _composite(
        means2d,
        conics,
        colors,
        opacities,
        backgrounds,
        masks,
        isect_offsets.reshape(-1, *tiles),
        flatten_ids,
        [image_width, image_height],
        tile_size,
        absgrad,
    )
    image = image.reshape(*dims, image_height, image_width, colors.shape[-1])
    return image, (1 - transmittance).reshape(*dims, image_height, image_width, 1)


def _check(means2d, conics, colors, opacities, backgrounds, masks, offsets, dims) -> None:
    if not colors.shape[-1]:
        raise ValueError(
            f"colors have shape {tuple(colors.shape)}: 0 channels make no picture; give 1 or more"
        )
    rows = means2d.shape[:-1]
    wanted = {
        "means2d": (means2d, (*rows, 2)),
        "conics": (conics, (*rows, 3)),
        "colors": (colors, (*rows, colors.shape[-1])),
        "opacities": (opacities, rows),
        "backgrounds": (backgrounds, (*dims, colors.shape[-1])),
        "masks": (masks, offsets.shape),
        "isect_offsets": (offsets, (*dims, *offsets.shape[-2:])),
    }
    for name, (tensor, shape) in wanted.items():
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; it must be {tuple(shape)}")


# ---------------------------------------------------------------------- operators


@torch.library.custom_op("sparse3d::splat_list_tiles", mutates_args=())
def _list_tiles(
    means2d: Tensor,
    radii: Tensor,
    depths: Tensor,
    image_ids: Tensor,
    conics: Tensor | None,
    opacities: Tensor | None,
    tile_size: int,
    tiles: list[int],
    images: int,
) -> tuple[Tensor, Tensor, Tensor]:
    rows = [_contiguous(x) for x in (means2d, radii)]
    shapes = [_contiguous(x) for x in (conics, opacities)]
    counts = backend.choose(COUNT_TILES, means2d)(*rows, tile_size, tiles)
    total = int(counts.sum(dtype=torch.int64))
    if total > MOST_ENTRIES:
        raise MemoryError(
            f"{len(counts)} Gaussians reach {total} tiles of {tile_size} pixels together; at most "
            f"{MOST_ENTRIES} are allowed: use fewer or smaller Gaussians, smaller pictures or "
            "fewer cameras at a time"
        )
    order = [_contiguous(x) for x in (depths, image_ids.long())]
    kernel = backend.choose(LIST_TILES, means2d)
    return kernel(*rows, *order, *shapes, counts, tile_size, tiles, images)


@torch.library.custom_op("sparse3d::splat_composite", mutates_args=())
def _composite(
    means2d: Tensor,
    conics: Tensor,
    colors: Tensor,
    opacities: Tensor,
    backgrounds: Tensor | None,
    masks: Tensor | None,
    offsets: Tensor,
    ids: Tensor,
    size: list[int],
    tile_size: int,
    absgrad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    rows = _as_rows(means2d, conics, colors, opacities)
    others = (_behind(backgrounds), _contiguous(masks), offsets.contiguous(), ids.contiguous())
    return backend.choose(COMPOSITE, means2d)(*rows, *others, size, tile_size)


@_composite.register_fake
def _(means2d, conics, colors, opacities, backgrounds, masks, offsets, ids, size, *options):
    shape = (len(offsets), size[1], size[0])
    image = colors.new_empty(*shape, colors.shape[-1])
    return image, colors.new_empty(shape), ids.new_empty(shape)


@torch.library.custom_op("sparse3d::splat_composite_gradient", mutates_args=())
def _composite_gradient(
    grad_image: Tensor,
    grad_transmittance: Tensor | None,
    means2d: Tensor,
    conics: Tensor,
    colors: Tensor,
    opacities: Tensor,
    backgrounds: Tensor | None,
    masks: Tensor | None,
    offsets: Tensor,
    ids: Tensor,
    transmittance: Tensor,
    looked_at: Tensor,
    size: list[int],
    tile_size: int,
    absolute: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    rows = _as_rows(means2d, conics, colors, opacities)
    others = (_behind(backgrounds), _contiguous(masks), offsets.contiguous(), ids.contiguous())
    grads = (grad_image.contiguous(), _contiguous(grad_transmittance))
    kernel = backend.choose(COMPOSITE_GRADIENT, means2d)
    state = (transmittance, looked_at, size, tile_size, absolute)
    found = kernel(*grads, *rows, *others, *state)
    shapes = (means2d, means2d, conics, colors, opacities)
    return tuple(x.reshape(like.shape) for x, like in zip(found, shapes))


@_composite_gradient.register_fake
def _(grad_image, grad_transmittance, means2d, conics, colors, opacities, *others):
    return tuple(torch.empty_like(x) for x in (means2d, means2d, conics, colors, opacities))


@torch.library.custom_op("sparse3d::splat_background_gradient", mutates_args=())
def _background_gradient(grad_image: Tensor, transmittance: Tensor) -> Tensor:
    kernel = backend.choose(BACKGROUND_GRADIENT, grad_image)
    return kernel(grad_image.contiguous(), transmittance.contiguous())


@_background_gradient.register_fake
def _(grad_image, transmittance):
    return grad_image.new_empty(grad_image.shape[0], grad_image.shape[-1])


def _setup(ctx, inputs, output):
    *tensors, size, tile_size, ctx.absgrad = inputs
    ctx.options = (size, tile_size)
    ctx.set_materialize_grads(False)  # zeros of a picture's size take time
    ctx.mark_non_differentiable(output[2])
    ctx.save_for_backward(*tensors, output[1], output[2])


def _backward(ctx, grad_image, grad_transmittance, _):
    means2d, *others, transmittance, looked_at = ctx.saved_tensors
    if grad_image is None:
        colors = others[1]
        grad_image = colors.new_zeros(*transmittance.shape, colors.shape[-1])
    state = (transmittance, looked_at, *ctx.options, ctx.absgrad)
    found = _composite_gradient(grad_image, grad_transmittance, means2d, *others, *state)
    d_means, absolute, *d_others = found
    if ctx.absgrad:
        means2d.absgrad = absolute
    d_background = None
    if ctx.needs_input_grad[4]:
        d_background = _background_gradient(grad_image, transmittance).reshape(others[3].shape)
    return d_means, *d_others, d_background, *[None] * 6


_composite.register_autograd(_backward, setup_context=_setup)


def _as_rows(means2d: Tensor, conics: Tensor, colors: Tensor, opacities: Tensor) -> list[Tensor]:
    flat = means2d.reshape(-1, 2), conics.reshape(-1, 3), colors.reshape(-1, colors.shape[-1])
    return [x.contiguous() for x in (*flat, opacities.reshape(-1))]


def _behind(backgrounds: Tensor | None) -> Tensor | None:
    return None if backgrounds is None else backgrounds.reshape(-1, backgrounds.shape[-1])


def _contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


# ---------------------------------------------------------------------- implementations


def _native_count_tiles(means2d: Tensor, radii: Tensor, tile_size: int, tiles: list[int]) -> Tensor:
    if means2d.dtype != torch.float32:
        return reference.count_tiles(means2d, radii, tile_size, tiles)
    counts = radii.new_empty(len(radii))
    sizes = (len(radii), tile_size, *tiles)
    native.call("s3d_splat_box_tiles", means2d, radii, *sizes, counts, native.threads())
    return counts


def _native_list_tiles(
    means2d: Tensor,
    radii: Tensor,
    depths: Tensor,
    image_ids: Tensor,
    conics: Tensor | None,
    opacities: Tensor | None,
    counts: Tensor,
    tile_size: int,
    tiles: list[int],
    images: int,
) -> tuple[Tensor, Tensor, Tensor]:
    tensors = (means2d, radii, depths, image_ids, conics, opacities)
    if means2d.dtype != torch.float32:
        return reference.list_tiles(*tensors, counts, tile_size, tiles, images)
    room = int(counts.sum(dtype=torch.int64))
    keys, ids = image_ids.new_empty(room), counts.new_empty(room)
    sizes = (len(radii), images, tile_size, *tiles)
    total = native.call(
        "s3d_splat_list_tiles", *tensors, *sizes, counts, keys, ids, native.threads()
    )
    if total < 0:
        raise ValueError(f"image_ids must be in [0, {images})")
    return counts, keys[:total], ids[:total]


def _native_composite(*arguments) -> tuple[Tensor, Tensor, Tensor]:
    *tensors, size, tile_size = arguments
    means2d, _, colors, *_, offsets, ids = tensors
    if means2d.dtype != torch.float32 or offsets.shape[1:].numel() == 0:
        return reference.composite(*arguments)
    width, height = size
    image = colors.new_empty(len(offsets), height, width, colors.shape[1])
    transmittance = colors.new_empty(image.shape[:3])
    looked_at = ids.new_empty(image.shape[:3])
    wrong = native.call(
        "s3d_splat_composite",
        *tensors,
        *_sizes(colors, offsets, ids, size, tile_size),
        *(image, transmittance, looked_at, cpu_level(), native.threads()),
    )
    _refuse(wrong, ids, len(means2d))
    return image, transmittance, looked_at


def _native_composite_gradient(*arguments) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    *tensors, size, tile_size, absolute = arguments
    _, _, means2d, conics, colors, opacities, *_, offsets, ids, _, _ = tensors
    if means2d.dtype != torch.float32 or offsets.shape[1:].numel() == 0:
        return reference.composite_gradient(*arguments)
    found = [torch.empty_like(x) for x in (means2d, means2d, conics, colors, opacities)]
    wrong = native.call(
        "s3d_splat_composite_gradient",
        *tensors,
        *_sizes(colors, offsets, ids, size, tile_size),
        *(absolute, *found, cpu_level(), native.threads()),
    )
    _refuse(wrong, ids, len(means2d))
    return tuple(found)


def _reference_background_gradient(grad_image: Tensor, transmittance: Tensor) -> Tensor:
    return torch.einsum("ihw,ihwd->id", transmittance, grad_image)


def _native_background_gradient(grad_image: Tensor, transmittance: Tensor) -> Tensor:
    if grad_image.dtype != torch.float32:
        return _reference_background_gradient(grad_image, transmittance)
    found = grad_image.new_empty(len(grad_image), grad_image.shape[-1])
    sizes = (len(grad_image), transmittance[:1].numel(), grad_image.shape[-1])
    native.call(
        "s3d_splat_background_gradient",
        *(grad_image, transmittance, *sizes, found, native.threads()),
    )
    return found


def _sizes(colors: Tensor, offsets: Tensor, ids: Tensor, size: list[int], tile_size: int) -> tuple:
    images, down, across = offsets.shape
    return (*colors.shape, len(ids), images, *size, tile_size, across, down)


def _reference_list_tiles(*arguments) -> tuple[Tensor, Tensor, Tensor]:
    image_ids, images = arguments[3], arguments[-1]
    if len(image_ids) and not 0 <= int(image_ids.amin()) <= int(image_ids.amax()) < images:
        raise ValueError(f"image_ids must be in [0, {images})")
    return reference.list_tiles(*arguments)


def _reference_composite(*arguments) -> tuple[Tensor, Tensor, Tensor]:
    means2d, *_, offsets, ids, _, _ = arguments
    bounds = torch.cat([offsets.new_zeros(1), offsets.flatten(), offsets.new_tensor([len(ids)])])
    wrong = bool((bounds.diff() < 0).any())
    if len(ids):
        wrong = wrong or not 0 <= int(ids.amin()) <= int(ids.amax()) < len(means2d)
    _refuse(wrong, ids, len(means2d))
    return reference.composite(*arguments)


def _refuse(wrong: int, ids: Tensor, rows: int) -> None:
    if wrong:
        raise ValueError(
            f"flatten_ids or isect_offsets do not fit: rows must be in [0, {rows}) and offsets "
            f"rise within [0, {len(ids)}]"
        )


COUNT_TILES = {
    "reference": reference.count_tiles,
    "native": _native_count_tiles,
    "cuda": reference.count_tiles,
}
LIST_TILES = {
    "reference": _reference_list_tiles,
    "native": _native_list_tiles,
    "cuda": reference.list_tiles,
}
COMPOSITE = {
    "reference": _reference_composite,
    "native": _native_composite,
    "cuda": reference.composite,
}
COMPOSITE_GRADIENT = {
    "reference": reference.composite_gradient,
    "native": _native_composite_gradient,
    "cuda": reference.composite_gradient,
}
BACKGROUND_GRADIENT = {
    "reference": _reference_background_gradient,
    "native": _native_background_gradient,
    "cuda": _reference_background_gradient,
}
