"""gsplat's own torch program on CPU: what it takes from CUDA is replaced for the time of a test."""

import contextlib
import functools
import sys
import types
from collections.abc import Callable, Iterator
from unittest import mock

import torch
from torch import Tensor


@contextlib.contextmanager
def on_cpu(camera_model: str = "pinhole") -> Iterator[Callable]:
    """gsplat's ``_rasterization``, which runs, with autograd, within the block.

    Its projection knows more camera models than it asks for.
    """
    from gsplat import rendering
    from gsplat.cuda import _torch_impl, _wrapper

    nerfacc = types.ModuleType("nerfacc")
    nerfacc.render_weight_from_alpha = _weights
    nerfacc.accumulate_along_rays = _sums

    def tiles(means2d, radii, depths, tile_size, width, height, **_):
        return _torch_impl._isect_tiles(means2d, radii, depths, tile_size, width, height)

    def harmonics(degree, dirs, coeffs, masks=None):
        return _torch_impl._spherical_harmonics(degree, dirs, coeffs)

    project = functools.partial(_torch_impl._fully_fused_projection, camera_model=camera_model)

    with (
        mock.patch.object(_torch_impl, "_fully_fused_projection", project),
        mock.patch.dict(sys.modules, {"nerfacc": nerfacc}),
        mock.patch.object(_wrapper, "rasterize_to_indices_in_range", _accepted),
        mock.patch.object(rendering, "isect_tiles", tiles),
        mock.patch.object(rendering, "isect_offset_encode", _torch_impl._isect_offset_encode),
        mock.patch.object(rendering, "spherical_harmonics", harmonics),
    ):
        yield rendering._rasterization


def _weights(alphas: Tensor, ray_indices: Tensor, n_rays: int) -> tuple[Tensor, Tensor]:
    """alpha times the light before it, and that light; entries lie ray by ray, front to back."""
    first = torch.searchsorted(ray_indices, ray_indices)
    place = torch.arange(len(alphas)) - first
    longest = int(place.max()) + 1 if len(place) else 0
    table = alphas.new_zeros(n_rays, longest).index_put((ray_indices, place), alphas)
    after = (1 - table).cumprod(1)
    before = torch.cat([torch.ones_like(after[:, :1]), after[:, :-1]], 1)
    light = before[ray_indices, place]
    return alphas * light, light


def _sums(weights: Tensor, values: Tensor | None, ray_indices: Tensor, n_rays: int) -> Tensor:
    terms = weights[:, None] if values is None else weights[:, None] * values
    return terms.new_zeros(n_rays, terms.shape[1]).index_add(0, ray_indices, terms)


@torch.no_grad()
def _accepted(start, end, light, means2d, conics, opacities, width, height, size, offsets, ids):
    """(Gaussian, pixel, image) of every pair that counts in batches [start, end) of each tile."""
    down, across = offsets.shape[-2:]
    bounds = [*offsets.flatten().tolist(), len(ids)]
    images = offsets.numel() // (down * across)
    light, means2d = light.reshape(images, -1), means2d.reshape(images, -1, 2)
    conics, opacities = conics.reshape(images, -1, 3), opacities.reshape(images, -1)
    count, found = means2d.shape[-2], []
    for i in range(images):
        pixels = torch.arange(width * height)
        x, y = pixels % width, pixels // width
        for tile in range(down * across):
            inside = pixels[(x // size == tile % across) & (y // size == tile // across)]
            number = i * down * across + tile
            first = min(bounds[number] + start * size * size, bounds[number + 1])
            last = min(bounds[number] + end * size * size, bounds[number + 1])
            if first == last or not len(inside):
                continue
            rows = ids[first:last].long() - i * count
            centre = torch.stack([x[inside], y[inside]], 1) + 0.5
            d = means2d[i, rows] - centre[:, None]
            a, b, c = conics[i, rows].unbind(-1)
            sigma = 0.5 * (a * d[..., 0] ** 2 + c * d[..., 1] ** 2) + b * d[..., 0] * d[..., 1]
            alpha = (opacities[i, rows] * (-sigma).exp()).clamp(max=0.999)
            alpha = torch.where((sigma >= 0) & (alpha >= 1 / 255), alpha, 0)
            left = light[i, inside, None] * (1 - alpha).cumprod(1)
            at, entry = ((alpha > 0) & (left > 1e-4)).nonzero(as_tuple=True)
            found.append(torch.stack([rows[entry], inside[at], torch.full_like(at, i)], 1))
    pairs = torch.cat(found) if found else torch.zeros(0, 3, dtype=torch.long)
    key = pairs[:, 2] * width * height + pairs[:, 1]
    return tuple(pairs[key.argsort(stable=True)].unbind(1))
