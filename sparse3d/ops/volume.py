"""Volume rendering of descriptors through many small voxel grids at once.

A rendered descriptor is linear in what the nodes hold: ``ray_weights`` says how much each node
weighs in a ray, and ``render`` multiplies. Formulas of DVGO's renderer as FaVoR uses it.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from . import backend, native
from .arguments import as_floats, working_dtype
from .reference import volume as reference

_MOST_STEPS = 100_000  # in one box


@dataclass(frozen=True)
class RaySettings:
    """How rays are sampled.

    Attributes:
        step: distance of two samples, in voxels.
        interval: exponent of the transparency of one sample.
        alpha_init: opacity of a sample of interval one where the density is zero.
        threshold: samples of less opacity or weight are skipped; 0 skips none.
        stop: transparency below which a ray ends.
        near: least distance, in lengths of the ray's direction.
        far: greatest distance, likewise.
    """

    step: float = 0.1
    interval: float = 0.1
    alpha_init: float = 1e-2
    threshold: float = 1e-7
    stop: float = 1e-3
    near: float = 0.2
    far: float = 1e9

    @property
    def shift(self) -> float:
        """What is added to a density before softplus."""
        return math.log(1 / (1 - self.alpha_init) - 1)


@dataclass(frozen=True, eq=False)
class RayWeights:
    """Weights of M boxes' N nodes in R rays each.

    Attributes:
        nodes: [M, R, N], nodes in the order of x, y, z with z fastest; differentiable.
        transmittance: [M, R], what of the background is seen; differentiable.
        depth: [M, R] sum of weight times number of the sample.
        used: [M, R] int64 number of samples that count.
    """

    nodes: Tensor
    transmittance: Tensor
    depth: Tensor
    used: Tensor


def ray_weights(
    origins: Tensor,
    directions: Tensor,
    lower: Tensor,
    upper: Tensor,
    density: Tensor,
    mask: Tensor | None = None,
    voxel_size: Tensor | None = None,
    settings: RaySettings = RaySettings(),
) -> RayWeights:
    """Alpha compositing of R rays through each of M boxes; differentiable by ``density``.

    Computed in float64 where ``density`` is that, else in float32; the weights come in its dtype.

    Args:
        origins: [M, R, 3] float, world.
        directions: [M, R, 3] float, of any length but zero.
        lower: [M, 3] float, corner of the box where its first node sits.
        upper: [M, 3] float, opposite corner, the last node.
        density: [M, X, Y, Z] float, before softplus.
        mask: [M, X, Y, Z] bool, nodes whose surroundings count; all if None.
        voxel_size: [M] float, metres, of which ``settings.step`` is a share; cube root of the
            box's volume per node if None.
        settings: how rays are sampled.

    Raises:
        ValueError: shapes or types do not fit, a box is empty, a direction is zero, or a number is
            not finite: a density of NaN, which a diverged training leaves, is no transparency.
    """
    given, dtype = density, working_dtype("density", density)
    density, origins = density.to(dtype), as_floats("origins", origins, dtype)
    directions = as_floats("directions", directions, dtype)
    lower, upper = as_floats("lower", lower, dtype), as_floats("upper", upper, dtype)
    voxel_size = as_floats("voxel_size", voxel_size, dtype)
    _check(origins, directions, lower, upper, density)
    edges = upper - lower
    if not bool((edges > 0).all()):
        worst = int((edges.amin(-1) <= 0).nonzero()[0])
        raise ValueError(
            f"box {worst} reaches from {lower[worst].tolist()} to {upper[worst].tolist()}; the "
            "upper corner must lie above the lower one on every axis"
        )
    if voxel_size is None:
        voxel_size = (edges.prod(-1) / math.prod(density.shape[1:])) ** (1 / 3)
    mask = torch.ones_like(density, dtype=torch.bool) if mask is None else mask
    if mask.shape != density.shape or mask.dtype != torch.bool:
        raise ValueError(f"mask is {mask.dtype} {tuple(mask.shape)}; bool like density is needed")
    most = edges.norm(dim=-1) / settings.step / _MOST_STEPS
    if voxel_size.shape != most.shape or not bool((voxel_size > most).all()):
        raise ValueError(
            f"voxel_size must be [M] metres, large enough for less than {_MOST_STEPS} steps of "
            f"{settings.step} voxels in a box; it is {voxel_size}"
        )
    numbers = (settings.near, settings.far, settings.interval, settings.shift)
    numbers = (*numbers, settings.threshold, settings.stop)
    run = backend.choose(RAY_WEIGHTS, density)
    step = voxel_size * settings.step
    *found, used = run(origins, directions, lower, upper, density, mask, step, numbers)
    return RayWeights(*(value.to(given.dtype) for value in found), used)


def _check(origins, directions, lower, upper, density) -> None:
    """Refuses what would lead a kernel astray."""
    boxes = len(density)
    if density.dim() != 4 or min(density.shape[1:]) < 2:
        raise ValueError(
            f"density is {tuple(density.shape)}; [M, X, Y, Z] with two or more nodes per axis is "
            "needed"
        )
    rays = origins.shape[1] if origins.dim() == 3 else -1
    for name, value, shape in (
        ("origins", origins, (boxes, rays, 3)),
        ("directions", directions, (boxes, rays, 3)),
        ("lower", lower, (boxes, 3)),
        ("upper", upper, (boxes, 3)),
    ):
        if tuple(value.shape) != shape:
            raise ValueError(
                f"{name} is {tuple(value.shape)}; with density {tuple(density.shape)} and origins "
                f"{tuple(origins.shape)}, {shape} is needed"
            )
    for name, value in (
        *(("origins", origins), ("directions", directions), ("lower", lower), ("upper", upper)),
        ("density", density),
    ):
        if not bool(value.isfinite().all()):
            raise ValueError(f"{name} holds NaN or infinity; leave such rays and boxes out")
    if not bool((directions != 0).any(-1).all()):
        raise ValueError("directions holds a zero; such a ray leads nowhere: leave it out")


def render(weights: RayWeights, features: Tensor, clamp: bool = True) -> Tensor:
    """[M, R, C] descriptors: what the nodes hold, over a background of one in every channel.

    Args:
        weights: of M boxes.
        features: [M, N, C] float, or [M, X, Y, Z, C]; taken in the dtype of the weights.
        clamp: cut to [-1, 1], as FaVoR does; the gradient is zero where it cuts.

    Raises:
        ValueError: features that do not fit the weights, or are integers.
    """
    if features.dim() > 3:
        features = features.flatten(1, -2)
    if features.dim() != 3 or features.shape[:2] != weights.nodes.shape[::2]:
        raise ValueError(
            f"features have shape {tuple(features.shape)}; for weights of shape "
            f"{tuple(weights.nodes.shape)}, M boxes, R rays and N nodes, [M, N, C] is needed"
        )
    features = as_floats("features", features, weights.nodes.dtype)
    blend = backend.choose(BLEND, features)
    return blend(weights.nodes, features, weights.transmittance, 1.0 if clamp else math.inf)


def total_variation_gradient(grid: Tensor) -> Tensor:
    """Sum over the six neighbours of clamp(g - neighbour, -1, 1), like ``grid`` [..., X, Y, Z]."""
    return reference.total_variation_gradient(grid)


def ray_box(
    origins: Tensor,
    directions: Tensor,
    lower: Tensor,
    upper: Tensor,
    settings: RaySettings = RaySettings(),
) -> tuple[Tensor, Tensor]:
    """Entry and exit [M, R] of rays in boxes, in lengths of the direction; shapes as above.

    A ray that misses its box leaves before it enters, or both are at the near or far end.
    """
    return reference.ray_box(origins, directions, lower, upper, settings.near, settings.far)


# ---------------------------------------------------------------------- implementations


def _native(origins, directions, lower, upper, density, mask, step, settings):
    return _weights(origins, directions, lower, upper, density, mask, step, list(settings))


@torch.library.custom_op("sparse3d::ray_weights", mutates_args=())
def _weights(
    origins: Tensor,
    directions: Tensor,
    lower: Tensor,
    upper: Tensor,
    density: Tensor,
    mask: Tensor,
    step: Tensor,
    settings: list[float],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    boxes, rays = origins.shape[:2]
    nodes = density.new_empty(boxes, rays, math.prod(density.shape[1:]))
    left, depth = (density.new_empty(boxes, rays) for _ in range(2))
    used = torch.empty(boxes, rays, dtype=torch.int64)
    given = (origins, directions, lower, upper, density, mask, step)
    native.call(
        f"s3d_ray_weights_{_suffix(density)}",
        *(value.contiguous() for value in given),
        *(boxes, rays, *density.shape[1:], *map(float, settings)),
        *(nodes, left, depth, used, native.threads()),
    )
    return nodes, left, depth, used


@_weights.register_fake
def _(origins, directions, lower, upper, density, mask, step, settings):
    boxes, rays = origins.shape[:2]
    x, y, z = density.shape[1:]
    flat = [density.new_empty(boxes, rays) for _ in range(2)]
    used = density.new_empty(boxes, rays, dtype=torch.int64)
    return density.new_empty(boxes, rays, x * y * z), *flat, used


@torch.library.custom_op("sparse3d::ray_weights_backward", mutates_args=())
def _weights_backward(
    grad_nodes: Tensor,
    grad_left: Tensor,
    origins: Tensor,
    directions: Tensor,
    lower: Tensor,
    upper: Tensor,
    density: Tensor,
    mask: Tensor,
    step: Tensor,
    settings: list[float],
) -> Tensor:
    grad = torch.empty_like(density, memory_format=torch.contiguous_format)
    given = (grad_nodes, grad_left, origins, directions, lower, upper, density, mask, step)
    native.call(
        f"s3d_ray_weights_backward_{_suffix(density)}",
        *(value.contiguous() for value in given),
        *(*origins.shape[:2], *density.shape[1:], *map(float, settings)),
        *(grad, native.threads()),
    )
    return grad


@_weights_backward.register_fake
def _(grad_nodes, grad_left, origins, directions, lower, upper, density, mask, step, settings):
    return torch.empty_like(density, memory_format=torch.contiguous_format)


def _suffix(tensor: Tensor) -> str:
    return "f64" if tensor.dtype == torch.float64 else "f32"


def _setup(ctx, inputs, output):
    ctx.mark_non_differentiable(*output[2:])
    ctx.save_for_backward(*inputs[:-1])
    ctx.settings = inputs[-1]


def _gradient(ctx, grad_nodes, grad_left, *_):
    grad = _weights_backward(grad_nodes, grad_left, *ctx.saved_tensors, ctx.settings)
    return None, None, None, None, grad, None, None, None


_weights.register_autograd(_gradient, setup_context=_setup)


def _blend(nodes: Tensor, features: Tensor, left: Tensor, cut: float) -> Tensor:
    """``nodes @ features + left``, cut to [-cut, cut]."""
    out = nodes @ features + left[..., None]
    return out if cut == math.inf else out.clamp(-cut, cut)


def _blend_native(nodes: Tensor, features: Tensor, left: Tensor, cut: float) -> Tensor:
    """The same; without gradients rows of weight 0 are not read."""
    given = (nodes, features, left)
    wanted = torch.is_grad_enabled() and any(value.requires_grad for value in given)
    plain = len({value.dtype for value in given}) == 1 and nodes.dtype in NATIVE_TYPES
    if wanted or not plain or torch.compiler.is_compiling():
        return _blend(*given, cut)
    out = nodes.new_empty(*nodes.shape[:2], features.shape[2])
    sizes = (*nodes.shape, features.shape[2], cut)
    given = (value.contiguous() for value in given)
    native.call(f"s3d_blend_{_suffix(nodes)}", *given, *sizes, out, native.threads())
    return out


NATIVE_TYPES = (torch.float32, torch.float64)
BLEND = {"reference": _blend, "native": _blend_native, "cuda": _blend}
RAY_WEIGHTS = {
    "reference": reference.ray_weights,
    "native": _native,
    "cuda": reference.ray_weights,
}
