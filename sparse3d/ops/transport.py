"""Optimal transport between two clouds of points by their features: Sinkhorn within a radius.

The plan T = diag(a) K diag(b) is never held. What is wanted of it are products, and a product with
the kernel K is made block by block; blocks whose bounds are farther apart than the radius are left
out. Memory is linear in the points, and so is time where the radius is small against the scene.

Source: FLOT, https://arxiv.org/abs/2007.11142.
"""

import torch
from torch import Tensor

from . import backend, native
from .arguments import as_floats, working_dtype
from .reference import transport as reference
from .voxelize import canonical_order, voxelize

GUARD = 1e-8
RADIUS = 10.0
"""Metres; points farther apart never correspond (FLOT)."""


def transport(
    features: tuple[Tensor, Tensor],
    points: tuple[Tensor, Tensor],
    values: Tensor,
    eps: Tensor,
    gamma: Tensor,
    iterations: int,
    radius: float = RADIUS,
    batch: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Carries ``values`` of the second cloud to the first by the transport plan between them.

    Differentiable in features, values, eps and gamma, through all iterations. Everything is
    computed in float64 where the first features are that, else in float32.

    Args:
        features: [N, C] and [M, C] float, of norm one.
        points: [N, 3] and [M, 3] float, metres; no gradient flows to them.
        values: [M, D] float.
        eps: scalar > 0, the weight of the entropy.
        gamma: scalar > 0, how much the marginals count; the power is gamma / (gamma + eps).
        iterations: of Sinkhorn; 0: the kernel itself is the plan.
        radius: metres; pairs at least as far apart are not in the plan.
        batch: [N] and [M] integer samples, 0 or more; None: all are one sample.

    Returns:
        T V [N, D] and the plan's row sums [N].

    Raises:
        ValueError: shapes that do not fit each other, integers where floats belong, a point that
            is not finite, or a negative number of iterations.
    """
    _check(features, points, values, iterations)
    dtype = working_dtype("features", features[0])
    features = tuple(as_floats("features", f, dtype) for f in features)
    points = tuple(as_floats("points", p, dtype) for p in points)
    values = as_floats("values", values, dtype)
    if batch is None:
        batch = tuple(torch.zeros(len(p), dtype=torch.int64, device=p.device) for p in points)
    for rows, index in zip(points, batch):
        if index.shape != rows.shape[:1] or index.is_floating_point():
            raise ValueError(
                f"batch holds {index.dtype} of shape {tuple(index.shape)} for {len(rows)} points; "
                "one integer per point is needed"
            )
    batch = tuple(index.long() for index in batch)
    # neighbours side by side, and one order of the rows whatever theirs was
    orders = [_near_order(p, index, radius) for p, index in zip(points, batch)]
    features, points, batch = (
        tuple(rows[order] for rows, order in zip(both, orders))
        for both in (features, points, batch)
    )
    values = torch.cat([values, values.new_ones(len(values), 1)], 1)[orders[1]]
    forth = (*features, *(p.detach() for p in points), *batch)
    carried = _carry(forth, values, eps, gamma, iterations, radius)
    carried = carried[orders[0].argsort()]
    return carried[:, :-1], carried[:, -1]


def _carry(forth, values, eps, gamma, iterations, radius) -> Tensor:
    """T V for rows in near order; the last column of the values is ones."""
    if iterations == 0:
        return _product(*forth, eps, values, radius)
    batch, back = forth[4:], _swap(forth)
    power = gamma / (gamma + eps)
    share0, share1 = (
        _shares(index, other).to(values.dtype) for index, other in zip(batch, batch[::-1])
    )
    a = share0
    # Without gradients K b comes along with what b carries: the last column of the values is ones.
    # With gradients the two apart lose less to rounding.
    together = not torch.is_grad_enabled()
    for _ in range(iterations):
        b = (share1 / (_product(*back, eps, a, radius) + GUARD)) ** power
        carried = _product(*forth, eps, b * values if together else b, radius)
        a = (share0 / (carried[:, -1:] + GUARD)) ** power
    return a * (carried if together else _product(*forth, eps, b * values, radius))


def transport_flow(
    features: tuple[Tensor, Tensor],
    points: tuple[Tensor, Tensor],
    eps: Tensor,
    gamma: Tensor,
    iterations: int,
    radius: float = RADIUS,
    batch: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Flow [N, 3] to where the plan sends each point, and the plan's row sums [N].

    Arguments as ``transport``. A point that nothing within the radius corresponds to is sent to
    the origin, as published: its row sum is 0.
    """
    dtype = working_dtype("features", features[0])
    points = tuple(as_floats("points", p, dtype) for p in points)
    target, mass = transport(features, points, points[1], eps, gamma, iterations, radius, batch)
    return target / (mass[:, None] + GUARD) - points[0], mass


def _shares(index: Tensor, other: Tensor) -> Tensor:
    """[N, 1] one over the number of points in each point's own sample."""
    samples = 1 + max((int(i.max()) for i in (index, other) if len(i)), default=0)
    counts = torch.bincount(index, minlength=samples)
    return (1.0 / counts.clamp(min=1).double())[index][:, None]


def _swap(sides: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (sides[1], sides[0], sides[3], sides[2], sides[5], sides[4])


def _check(features, points, values, iterations) -> None:
    if iterations < 0:
        raise ValueError(f"iterations is {iterations}; it must be 0 or more")
    shapes = [tuple(t.shape) for t in (*features, *points, values)]
    fit = all(len(shape) == 2 for shape in shapes)
    fit = fit and features[0].shape[1] == features[1].shape[1]
    fit = fit and all(len(f) == len(p) and p.shape[1] == 3 for f, p in zip(features, points))
    if not fit or len(values) != len(points[1]):
        raise ValueError(
            f"features have shapes {shapes[0]} and {shapes[1]}, points {shapes[2]} and {shapes[3]} "
            f"and values {shapes[4]}; they must be [N, C], [M, C], [N, 3], [M, 3] and [M, D]"
        )


# ---------------------------------------------------------------------- the product


@torch.library.custom_op("sparse3d::transport_product", mutates_args=())
def _product(
    features0: Tensor,
    features1: Tensor,
    points0: Tensor,
    points1: Tensor,
    batch0: Tensor,
    batch1: Tensor,
    eps: Tensor,
    values: Tensor,
    radius: float,
) -> Tensor:
    """K X [N, D]; batch indices must ascend."""
    sides = (features0, features1, points0, points1, batch0, batch1)
    return backend.choose(TRANSPORT_PRODUCT, values)(sides, eps, radius, values)


@_product.register_fake
def _(features0, features1, points0, points1, batch0, batch1, eps, values, radius):
    return values.new_empty(len(features0), values.shape[1])


@torch.library.custom_op("sparse3d::transport_weighted", mutates_args=())
def _weighted(
    features0: Tensor,
    features1: Tensor,
    points0: Tensor,
    points1: Tensor,
    batch0: Tensor,
    batch1: Tensor,
    eps: Tensor,
    values: Tensor,
    left: Tensor,
    right: Tensor,
    radius: float,
) -> Tensor:
    """(K o P Q^T) X [N, D]: what gradients of ``_product`` are made of."""
    sides = (features0, features1, points0, points1, batch0, batch1)
    return backend.choose(TRANSPORT_PRODUCT, values)(sides, eps, radius, values, left, right)


@_weighted.register_fake
def _(f0, f1, p0, p1, b0, b1, eps, values, left, right, radius):
    return values.new_empty(len(f0), values.shape[1])


def _setup(ctx, inputs, output):
    *tensors, ctx.radius = inputs
    ctx.save_for_backward(*tensors, output)


def _backward(ctx, grad):
    *sides, eps, values, output = ctx.saved_tensors
    radius, back = ctx.radius, _swap(tuple(sides))
    d0 = d1 = d_eps = d_values = None
    needs0, needs1, *_, needs_eps, needs_values, _ = ctx.needs_input_grad
    if needs_values:
        d_values = _product(*back, eps, grad, radius)
    if needs0 or needs_eps:
        weighted = _weighted(*sides, eps, sides[1], grad, values, radius)
        d0 = weighted / eps
        # the sum of the kernel's gradient times cost / eps^2, the cost being 1 - f0 . f1
        d_eps = ((grad * output).sum() - (sides[0] * weighted).sum()) / eps**2
    if needs1:
        d1 = _weighted(*back, eps, sides[0], values, grad, radius) / eps
    return d0, d1, None, None, None, None, d_eps, d_values, None


_product.register_autograd(_backward, setup_context=_setup)


def _native_product(sides, eps, radius, values, left=None, right=None):
    if values.dtype != torch.float32:
        return reference.product(sides, eps, radius, values, left, right)
    features0, features1, points0, points1, batch0, batch1 = (t.contiguous() for t in sides)
    samples = 1 + max((int(i.max()) for i in (batch0, batch1) if len(i)), default=0)
    starts0, starts1 = (_starts(index, samples) for index in (batch0, batch1))
    rank = 0 if left is None else left.shape[1]
    out = values.new_empty(len(points0), values.shape[1])
    native.call(
        "s3d_transport_product",
        *(features0, points0, starts0),
        *(features1, points1, starts1),
        *(samples, features0.shape[1], float(eps), float(radius)),
        None if left is None else left.contiguous(),
        None if right is None else right.contiguous(),
        *(rank, values.contiguous(), values.shape[1], out, native.threads()),
    )
    return out


def _near_order(points: Tensor, batch: Tensor, radius: float) -> Tensor:
    """Rows by sample and inside it by place, so that runs of rows are compact."""
    cell = radius / 4 if radius < 1e6 else 1e6
    coords, index = voxelize(points, batch, (cell,) * 3, (0.0,) * 3, None)
    return canonical_order(points, index, len(coords))


def _starts(batch: Tensor, samples: int) -> Tensor:
    """[B + 1] first row of each sample; ``batch`` [N] ascends."""
    return torch.searchsorted(batch, torch.arange(samples + 1))


TRANSPORT_PRODUCT = {
    "reference": reference.product,
    "native": _native_product,
    "cuda": reference.product,
}
