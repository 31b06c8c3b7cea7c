"""Rendering through small voxel grids, against published outputs, autograd and plain sums."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse3d.ops import backend
from sparse3d.ops.volume import (
    RaySettings,
    RayWeights,
    ray_box,
    ray_weights,
    render,
    total_variation_gradient,
)
from tests.conftest import fixture_files

IMPLEMENTATIONS = ("reference", "native")
each = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
TOLERANCE = dict(rtol=0, atol=1e-6)


def tensors(path) -> dict:
    with np.load(path) as file:
        return {name: torch.from_numpy(np.array(file[name])) for name in file.files}


def render_file(data: dict, density, features):
    """Weights and unclamped descriptors of a file's rays, and its settings."""
    numbers = ("near", "far", "interval", "alpha_init")
    chosen = RaySettings(
        step=float(data["stepsize"]),
        threshold=float(data["fast_color_thres"]),
        stop=float(data["stop_T"]),
        **{name: float(data[name]) for name in numbers},
    )
    lower, upper = data["xyz_min"][None], data["xyz_max"][None]
    voxel_size = ((upper - lower).prod(-1) / data["num_voxels"]) ** (1 / 3)
    rays = (data["rays_o"][None], data["rays_d"][None], lower, upper)
    weights = ray_weights(*rays, density, data["mask"][None], voxel_size, chosen)
    return weights, render(weights, features.movedim(0, -1)[None], clamp=False)[0], chosen


@pytest.mark.parity
@each
@pytest.mark.parametrize("path", fixture_files("reloc/*.npz"), ids=lambda p: p.stem)
def test_published_rendering(path, implementation):
    data = tensors(path)
    with backend.forced(implementation):
        if "out_desc" in data:
            check_rendering(data)
        elif "out_grad_density" in data:
            check_gradients(data)
        elif "grad_in" in data:
            change = total_variation_gradient(data["grid"]) * data["weight"] / 6
            torch.testing.assert_close(data["grad_in"] + change, data["out_grad"], **TOLERANCE)


def check_rendering(data):
    weights, found, chosen = render_file(data, data["density"], data["k0"])
    torch.testing.assert_close(found, data["out_desc_unclamped"], **TOLERANCE)
    torch.testing.assert_close(found.clamp(-1, 1), data["out_desc"], **TOLERANCE)
    torch.testing.assert_close(weights.transmittance[0], data["out_alphainv_last"], **TOLERANCE)
    torch.testing.assert_close(weights.depth[0], data["out_depth_steps"], **TOLERANCE)
    assert torch.equal(weights.used[0], data["out_n_used"])
    rays = (data["rays_o"][None], data["rays_d"][None])
    enter, leave = ray_box(*rays, data["xyz_min"][None], data["xyz_max"][None], chosen)
    torch.testing.assert_close(enter[0], data["out_t_min"], **TOLERANCE)
    torch.testing.assert_close(leave[0], data["out_t_max"], **TOLERANCE)


def check_gradients(data):
    density = data["density"].clone().requires_grad_()
    features = data["k0"].clone().requires_grad_()
    weights, found, _ = render_file(data, density, features)
    loss = (data["grad_desc"] * found).sum()
    loss = loss + (data["grad_alphainv"] * weights.transmittance[0]).sum()
    loss.backward()
    torch.testing.assert_close(loss.detach(), data["out_loss"], **TOLERANCE)
    torch.testing.assert_close(density.grad, data["out_grad_density"], **TOLERANCE)
    torch.testing.assert_close(features.grad, data["out_grad_k0"], **TOLERANCE)


def problem(boxes=7, rays=5, shape=(3, 3, 3), dtype=torch.float64, seed=0, spread=2.0):
    """Rays that mostly meet their boxes, densities around zero, some nodes masked."""
    random = torch.Generator().manual_seed(seed)

    def normal(*size):
        return torch.randn(*size, generator=random, dtype=dtype)

    lower = normal(boxes, 3) * 3
    upper = lower + 0.02 + 0.1 * torch.rand(boxes, 3, generator=random, dtype=dtype)
    target = lower[:, None] + (upper - lower)[:, None] * torch.rand(
        boxes, rays, 3, generator=random, dtype=dtype
    )
    directions = normal(boxes, rays, 3)
    origins = target - directions * (1 + torch.rand(boxes, rays, 1, generator=random, dtype=dtype))
    density = 4 + spread * normal(boxes, *shape)
    mask = torch.rand(boxes, *shape, generator=random) > 0.1
    return origins, directions, lower, upper, density, mask


def outputs_and_gradient(inputs, cotangents):
    density = inputs[4].clone().requires_grad_()
    found = ray_weights(*inputs[:4], density, inputs[5])
    ((found.nodes * cotangents[0]).sum() + (found.transmittance * cotangents[1]).sum()).backward()
    return found.nodes.detach(), found.transmittance.detach(), found.depth, density.grad


@pytest.mark.parametrize("shape", [(3, 3, 3), (2, 4, 5), (6, 2, 3)])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_kernel_agrees_with_the_definition(shape, dtype, tolerance):
    inputs = problem(shape=shape)
    exact = [x.to(dtype) if x.is_floating_point() else x for x in inputs]
    nodes = shape[0] * shape[1] * shape[2]
    cotangents = torch.randn(7, 5, nodes, dtype=dtype), torch.randn(7, 5, dtype=dtype)
    results = []
    for implementation in IMPLEMENTATIONS:
        with backend.forced(implementation):
            results.append(outputs_and_gradient(exact, cotangents))
    for mine, other in zip(*results):
        torch.testing.assert_close(mine, other, rtol=tolerance, atol=tolerance * 10)


@each
def test_gradient_by_differences(implementation):
    inputs = problem(boxes=2, rays=2, shape=(2, 3, 2))
    chosen = RaySettings(threshold=0, stop=0)

    def run(density):
        found = ray_weights(*inputs[:4], density, None, None, chosen)
        return found.nodes, found.transmittance

    with backend.forced(implementation):
        assert torch.autograd.gradcheck(run, inputs[4].clone().requires_grad_())


@each
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000), spread=st.floats(0, 20))
def test_weights_and_transmittance_sum_to_one(implementation, seed, spread):
    with backend.forced(implementation):
        found = ray_weights(*problem(seed=seed, spread=spread))
    total = found.nodes.sum(-1) + found.transmittance
    assert (found.nodes >= 0).all() and (found.transmittance >= 0).all()
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-4)


@each
def test_a_box_alone_gives_the_same_bits_as_among_others(implementation):
    inputs = problem(dtype=torch.float32)
    with backend.forced(implementation):
        together = ray_weights(*inputs).nodes
        alone = torch.cat([ray_weights(*(x[i : i + 1] for x in inputs)).nodes for i in range(7)])
    if implementation == "native":
        assert torch.equal(together, alone)
    torch.testing.assert_close(together, alone)


def test_threads_leave_no_trace():
    inputs = problem(boxes=300, dtype=torch.float32)
    cotangents = torch.randn(300, 5, 27), torch.randn(300, 5)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 4):
            torch.set_num_threads(count)
            results.append(outputs_and_gradient(inputs, cotangents))
    finally:
        torch.set_num_threads(threads)
    for mine, other in zip(*results):
        assert torch.equal(mine, other)


@each
@pytest.mark.parametrize("boxes, rays", [(0, 3), (4, 0)])
def test_nothing_to_render(implementation, boxes, rays):
    inputs = list(problem(boxes, rays))
    inputs[4].requires_grad_()
    with backend.forced(implementation):
        found = ray_weights(*inputs)
        out = render(found, torch.randn(boxes, 27, 6, dtype=torch.float64))
        out.sum().backward()
    assert out.shape == (boxes, rays, 6)
    assert inputs[4].grad.abs().sum() == 0


@each
def test_a_ray_that_misses_sees_the_background(implementation):
    origins, directions, *rest = problem(3, 2)
    with backend.forced(implementation):
        found = ray_weights(origins, -directions, *rest)
        out = render(found, torch.zeros(3, 27, 4, dtype=torch.float64))
    assert (found.used == 0).all()
    assert torch.equal(out, torch.ones_like(out))


@pytest.mark.parametrize("rays", [1, 2])
@pytest.mark.parametrize("grad", [False, True])
def test_products_agree_with_the_definition(rays, grad):
    random = torch.Generator().manual_seed(rays)
    nodes = torch.rand(5, rays, 27, generator=random, requires_grad=grad)
    left = torch.rand(5, rays, generator=random)
    features = torch.randn(5, 27, 6, generator=random, requires_grad=grad)
    weights = RayWeights(nodes, left, left, left.long())
    found, grads = [], []
    for name in ("reference", "native"):
        with backend.forced(name):
            found.append(render(weights, features))
        if grad:
            grads.append(torch.autograd.grad(found[-1].square().sum(), (nodes, features)))
    torch.testing.assert_close(found[1], found[0])
    for mine, other in zip(*grads or ((), ())):
        torch.testing.assert_close(mine, other)


def test_nan_is_refused():
    origins, directions, *rest = problem(3, 2)
    with pytest.raises(ValueError, match="origins holds NaN"):
        ray_weights(origins * torch.nan, directions, *rest)


def test_a_camera_very_far_away_ends():
    origins, directions, *rest = problem(1, 1, dtype=torch.float32)
    with backend.forced("native"):
        found = ray_weights(origins - 1e30 * directions, directions, *rest)
    assert found.nodes.isfinite().all()


def test_the_kernel_passes_the_checks_of_torch_library():
    inputs = problem(2, 2)
    step = torch.full((2,), 0.003, dtype=torch.float64)
    numbers = [0.2, 1e9, 0.1, RaySettings().shift, 1e-7, 1e-3]
    density = inputs[4].requires_grad_()
    torch.library.opcheck(
        torch.ops.sparse3d.ray_weights.default, (*inputs[:4], density, inputs[5], step, numbers)
    )


def test_wrong_shapes_are_refused():
    origins, directions, lower, upper, density, mask = problem()
    with pytest.raises(ValueError, match="directions is"):
        ray_weights(origins, directions[:, :2], lower, upper, density, mask)
    with pytest.raises(ValueError, match="two or more nodes"):
        ray_weights(origins, directions, lower, upper, density[:, :1], mask)
    with pytest.raises(ValueError, match="box 0 reaches"):
        ray_weights(origins, directions, upper, lower, density, mask)
    with pytest.raises(ValueError, match="mask is"):
        ray_weights(origins, directions, lower, upper, density, mask[:, :2])
    with pytest.raises(ValueError, match="voxel_size"):
        ray_weights(origins, directions, lower, upper, density, mask, torch.zeros(7))
