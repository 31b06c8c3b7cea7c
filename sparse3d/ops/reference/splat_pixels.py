"""Tile lists and compositing in torch. The definition of ``ops.splat_pixels``."""

from functools import partial

import torch
from torch import Tensor

from .splat import ALPHA_MIN

ALPHA_MAX = 0.999
TRANSMITTANCE_MIN = 1e-4


def tile_boxes(means2d: Tensor, radii: Tensor, tile_size: int, tiles: tuple[int, int]) -> Tensor:
    """[M, 4] int64: first tile (x, y) and the one past the last that each box reaches."""
    centre, half = means2d / tile_size, radii / tile_size
    limit = centre.new_tensor(tiles)
    low = torch.minimum((centre - half).floor().clamp(min=0), limit)
    high = torch.minimum((centre + half).ceil().clamp(min=0), limit)
    boxes = torch.cat([low, high], 1).nan_to_num().long()
    return torch.where((radii > 0).all(1, keepdim=True), boxes, 0)


def count_tiles(means2d: Tensor, radii: Tensor, tile_size: int, tiles: tuple[int, int]) -> Tensor:
    """[M] int32: how many tiles the box of each Gaussian reaches."""
    boxes = tile_boxes(means2d, radii, tile_size, tiles)
    return (boxes[:, 2:] - boxes[:, :2]).prod(1).int()


def list_tiles(
    means2d: Tensor,
    radii: Tensor,
    depths: Tensor,
    image_ids: Tensor,
    conics: Tensor | None,
    opacities: Tensor | None,
    counts: Tensor,
    tile_size: int,
    tiles: tuple[int, int],
    images: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Lists every tile that a Gaussian's box reaches, front to back.

    Args:
        means2d: [M, 2]; radii [M, 2] int32; depths [M]; image_ids [M].
        conics: [M, 3] and opacities [M], or None: a finer choice of tiles is allowed, not made.
        counts: [M] int32, of ``count_tiles``.

    Returns:
        counts [M] int32, tiles of each Gaussian; isect_ids [L] int64, ascending; flatten_ids [L]
        int32, the row that each belongs to.
    """
    boxes = tile_boxes(means2d, radii, tile_size, tiles)
    rows = torch.repeat_interleave(counts.long())
    first = (counts.cumsum(0) - counts)[rows]
    place = torch.arange(len(rows), device=rows.device) - first
    across = (boxes[:, 2] - boxes[:, 0])[rows]
    x = boxes[rows, 0] + place % across
    y = boxes[rows, 1] + place // across
    bits = (tiles[0] * tiles[1]).bit_length()
    tile = (image_ids.long()[rows] << bits) | (y * tiles[0] + x)
    depth = depths.float().view(torch.int32).long()[rows] & 0xFFFFFFFF
    ids, order = ((tile << 32) | depth).sort(stable=True)
    return counts, ids, rows[order].int()


def tile_starts(ids: Tensor, images: int, tiles: tuple[int, int]) -> Tensor:
    """[images, tile_height, tile_width] int32: where each tile's part of sorted ``ids`` begins."""
    bits = (tiles[0] * tiles[1]).bit_length()
    keys = torch.arange(tiles[0] * tiles[1], device=ids.device)
    keys = (torch.arange(images, device=ids.device)[:, None] << bits) | keys
    starts = torch.searchsorted(ids, keys.flatten() << 32)
    return starts.int().reshape(images, tiles[1], tiles[0])


def composite(
    means2d: Tensor,
    conics: Tensor,
    colors: Tensor,
    opacities: Tensor,
    backgrounds: Tensor | None,
    masks: Tensor | None,
    offsets: Tensor,
    ids: Tensor,
    size: tuple[int, int],
    tile_size: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Blends the Gaussians of every tile's list, front to back.

    Args:
        means2d: [M, 2] pixels; conics [M, 3]; colors [M, D]; opacities [M].
        backgrounds: [I, D] or None; masks [I, th, tw] bool or None.
        offsets: [I, th, tw], where each tile's list begins in ``ids`` [L], rows in 0 .. M - 1.
        size: (width, height).

    Returns:
        colors [I, H, W, D], transmittance [I, H, W] behind the last Gaussian, and how many list
        entries each pixel looked at [I, H, W] int32, up to the last that counted.
    """
    width, height = size
    images = len(offsets)
    image = means2d.new_zeros(images, height, width, colors.shape[1])
    transmittance = means2d.new_ones(images, height, width)
    looked_at = ids.new_zeros(images, height, width, dtype=torch.int32)
    for i, rows, columns, entries, shown in tiles_of(offsets, ids, masks, size, tile_size):
        if shown and len(entries):
            tile = ids[entries.start : entries.stop].long()
            parts = (means2d[tile][None], conics[tile], colors[tile], opacities[tile])
            blend, left, last = blend_tile(*parts, pixel_centres(rows, columns, means2d))
            shape = (rows.stop - rows.start, columns.stop - columns.start)
            image[i, rows, columns] = blend.reshape(*shape, -1)
            transmittance[i, rows, columns] = left.reshape(shape)
            looked_at[i, rows, columns] = last.reshape(shape)
    if backgrounds is not None:
        image = image + transmittance[..., None] * backgrounds[:, None, None]
    return image, transmittance, looked_at


def composite_gradient(
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
    size: tuple[int, int],
    tile_size: int,
    absolute: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of means2d, of its sum of absolute values per pixel, of conics, colors, opacities.

    Each tile is blended again under autograd.
    """
    if grad_transmittance is None:
        grad_transmittance = torch.zeros_like(transmittance)
    if backgrounds is not None:
        grad_transmittance = grad_transmittance + (grad_image * backgrounds[:, None, None]).sum(-1)
    sums = [torch.zeros_like(x) for x in (means2d, means2d, conics, colors, opacities)]
    for i, rows, columns, entries, shown in tiles_of(offsets, ids, masks, size, tile_size):
        if not shown or not len(entries):
            continue
        tile = ids[entries.start : entries.stop].long()
        pixels = pixel_centres(rows, columns, means2d)
        # one copy of the mean per pixel: the absolute values are summed over pixels
        leaves = (means2d[tile].expand(len(pixels), -1, -1), conics[tile], colors[tile])
        blend = partial(_blend, pixels=pixels)
        (color, left), pull_back = torch.func.vjp(blend, *leaves, opacities[tile])
        cotangents = (grad_image[i, rows, columns].reshape(color.shape),)
        cotangents += (grad_transmittance[i, rows, columns].reshape(left.shape),)
        per_pixel, *others = pull_back(cotangents)
        parts = (per_pixel.sum(0), per_pixel.abs().sum(0), *others)
        for total, part in zip(sums, parts):
            total.index_add_(0, tile, part)
    return tuple(sums)


def blend_tile(
    means2d: Tensor, conics: Tensor, colors: Tensor, opacities: Tensor, pixels: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Blends n Gaussians, in this order, at P pixels.

    Args:
        means2d: [P or 1, n, 2]; conics [n, 3]; colors [n, D]; opacities [n].
        pixels: [P, 2] centres.

    Returns:
        colors [P, D], transmittance [P], and the number [P] of entries up to the last that counts.
    """
    dx, dy = (means2d - pixels[:, None]).unbind(-1)
    a, b, c = conics.unbind(-1)
    sigma = 0.5 * (a * dx * dx + c * dy * dy) + b * dx * dy
    alpha = (opacities * (-sigma).exp()).clamp(max=ALPHA_MAX)
    alpha = torch.where((sigma >= 0) & (alpha >= ALPHA_MIN), alpha, 0)
    behind = (1 - alpha).cumprod(1)
    # the Gaussian that would take the light below the limit is left out, with all behind it
    alpha = torch.where(behind > TRANSMITTANCE_MIN, alpha, 0)
    behind = (1 - alpha).cumprod(1)
    before = torch.cat([torch.ones_like(behind[:, :1]), behind[:, :-1]], 1)
    number = torch.arange(1, alpha.shape[1] + 1, dtype=torch.int32, device=alpha.device)
    last = torch.where(alpha > 0, number, 0).amax(1)
    return (alpha * before) @ colors, behind[:, -1], last


def _blend(*gaussians: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
    return blend_tile(*gaussians, pixels)[:2]


def tiles_of(
    offsets: Tensor, ids: Tensor, masks: Tensor | None, size: tuple[int, int], tile_size: int
):
    """(image, rows, columns, list entries, shown) of every tile that holds pixels."""
    width, height = size
    bounds = [*offsets.flatten().tolist(), len(ids)]
    _, down, across = offsets.shape
    shown = [True] * (len(bounds) - 1) if masks is None else masks.flatten().tolist()
    for number in range(len(bounds) - 1):
        i, y, x = number // (down * across), number // across % down, number % across
        rows = slice(y * tile_size, min((y + 1) * tile_size, height))
        columns = slice(x * tile_size, min((x + 1) * tile_size, width))
        if rows.start < rows.stop and columns.start < columns.stop:
            entries = range(bounds[number], bounds[number + 1])
            yield i, rows, columns, entries, shown[number]


def pixel_centres(rows: slice, columns: slice, like: Tensor) -> Tensor:
    """[P, 2] centres (x, y), row by row."""
    y = torch.arange(rows.start, rows.stop, device=like.device).to(like) + 0.5
    x = torch.arange(columns.start, columns.stop, device=like.device).to(like) + 0.5
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).reshape(-1, 2)
