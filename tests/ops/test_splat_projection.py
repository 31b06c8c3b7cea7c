import math

import pytest
import torch

from sparse3d.ops import backend
from sparse3d.ops.splat_harmonics import spherical_harmonics
from sparse3d.ops.splat_projection import (
    CAMERA_MODELS,
    fully_fused_projection,
    fully_fused_projection_2dgs,
    quat_scale_to_covar_preci,
)
from tests.ops.splat_cases import (
    LEVELS,
    close,
    dtypes_of,
    each,
    fixtures_with,
    leaf,
    load,
    scene,
)

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}


@fixtures_with("covars", "precis")
def test_covariances_agree_with_the_published_ones(path, implementation):
    data = load(path)
    quats, scales = leaf(data["quats"], torch.float64), leaf(data["scales"], torch.float64)
    with backend.forced(implementation):
        covars, precis = quat_scale_to_covar_preci(quats, scales)
        triangles = quat_scale_to_covar_preci(quats, scales, triu=True)
    pairs = {"covars": covars, "precis": precis}
    pairs |= {"covars_triu": triangles[0], "precis_triu": triangles[1]}
    (covars * data["w_covars"]).sum().backward()
    pairs |= {"g_quats": quats.grad, "g_scales": scales.grad}
    for name, found in pairs.items():
        torch.testing.assert_close(found, data[name], rtol=1e-12, atol=1e-12)


def _camera_model(path, data) -> str:
    """The file's name says it; else the one that puts the means where the file has them."""
    named = [model for model in CAMERA_MODELS if model in path.stem]
    if named:
        return named[0]
    tensors = (data["means"], None, data["quats"], data["scales"], data["viewmats"], data["Ks"])
    size = (int(data["width"]), int(data["height"]))
    errors = {}
    for model in CAMERA_MODELS:
        outputs = fully_fused_projection(*tensors, *size, camera_model=model)
        off = (outputs[1] - data["means2d"])[data["valid"]]
        errors[model] = off.abs().mean().item()
    return min(errors, key=errors.get)


@fixtures_with("means2d", "conics", "Ks", "valid")
def test_projections_agree_with_the_published_ones(path, implementation):
    data, names = load(path), ("means2d", "depths", "conics", "compensations")
    model = _camera_model(path, data)
    for dtype in dtypes_of(implementation):
        given = [leaf(data[k], dtype) for k in ("means", "quats", "scales", "viewmats")]
        with backend.forced(implementation):
            radii, *outputs = fully_fused_projection(
                *(given[0], None, *given[1:], data["Ks"].to(dtype)),
                *(int(data["width"]), int(data["height"]), float(data["eps2d"])),
                *(float(data["near"]), float(data["far"])),
                calc_compensations=True,
                camera_model=model,
            )
            _compare(data, radii, outputs, names, names, given, dtype)


@fixtures_with("means2d", "ray_transforms", "Ks", "valid")
def test_projections_of_surfels_agree_with_the_published_ones(path, implementation):
    data, names = load(path), ("means2d", "depths", "ray_transforms", "normals")
    for dtype in dtypes_of(implementation):
        given = [leaf(data[k], dtype) for k in ("means", "quats", "scales", "viewmats")]
        with backend.forced(implementation):
            radii, *outputs = fully_fused_projection_2dgs(
                *(*given, data["Ks"].to(dtype), int(data["width"]), int(data["height"])),
                *(float(data["near"]), float(data["far"])),
            )
            outputs[3] = outputs[3] * given[2][:, 2:]  # the file's normals carry this factor
            weights = ("means2d", "depths", "ray", "normals")
            _compare(data, radii, outputs, names, weights, given, dtype)


def _compare(data, radii, outputs, names, weights, given, dtype) -> None:
    seen, tolerance = data["valid"], TOLERANCE[dtype]
    assert torch.equal((radii > 0).all(-1), seen)
    assert (radii - data["radii"]).abs().max() <= (dtype == torch.float32)
    sum(
        (x[seen] * data[f"w_{w}"][seen].to(dtype)).sum() for x, w in zip(outputs, weights)
    ).backward()
    for name, found in zip(names, outputs):
        assert not found[~seen].any()
        scale = tolerance * (1 if dtype == torch.float64 else data[name][seen].abs().max())
        expected = data[name][seen].to(dtype)
        torch.testing.assert_close(found[seen], expected, rtol=tolerance, atol=float(scale))
    for name, x in zip(("means", "quats", "scales", "viewmats"), given):
        close(x.grad.double(), data[f"g_{name}"], tolerance, name)


@fixtures_with("dirs", "coeffs", "colors")
def test_harmonics_agree_with_the_published_ones(path, implementation):
    data = load(path)
    used = int((data["g_coeffs"] != 0).any(0).any(-1).sum())
    for dtype in dtypes_of(implementation):
        dirs, coeffs = leaf(data["dirs"], dtype), leaf(data["coeffs"], dtype)
        with backend.forced(implementation):
            colors = spherical_harmonics(math.isqrt(used) - 1, dirs, coeffs)
            (colors * data["w"].to(dtype)).sum().backward()
        tolerance = 1e-12 if dtype == torch.float64 else 1e-4
        pairs = {"colors": colors, "g_coeffs": coeffs.grad}
        if "g_dirs" in data:  # no direction matters at degree 0
            pairs["g_dirs"] = dirs.grad
        for name, found in pairs.items():
            expected = data[name].to(dtype)
            torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def _project(implementation: str, model: str, given: dict, covars: bool, seed: int = 0):
    """Outputs of a projection and the gradients for one random cotangent per output."""
    leaves = {
        k: v.clone().requires_grad_() for k, v in given.items() if isinstance(v, torch.Tensor)
    }
    shape = (None, leaves["quats"], leaves["scales"])
    names = ["means", "quats", "scales", "viewmats"]
    if covars:
        triangles = quat_scale_to_covar_preci(given["quats"], given["scales"], triu=True)[0]
        shape = (triangles.detach().requires_grad_(), None, None)
        names = ["means", "viewmats"]
    with backend.forced(implementation):
        radii, *outputs = fully_fused_projection(
            *(leaves["means"], *shape, leaves["viewmats"], given["Ks"], 45, 35),
            calc_compensations=True,
            camera_model=model,
            opacities=given["opacities"],
        )
    g = torch.Generator().manual_seed(seed)
    cotangents = [torch.randn(x.shape, generator=g).to(x) for x in outputs]
    wanted = [leaves[k] for k in names] + ([shape[0]] if covars else [])
    return radii, outputs, torch.autograd.grad(outputs, wanted, cotangents)


@pytest.mark.parametrize("covars", [False, True], ids=["quats", "covars"])
@pytest.mark.parametrize("model", CAMERA_MODELS)
@pytest.mark.parametrize("level", LEVELS)
def test_every_instruction_set_projects_as_the_definition(level, model, covars, monkeypatch):
    monkeypatch.setenv("SPARSE3D_ISA", level)
    given = scene(77, 3)
    given["means"][:5, 2] = -1  # behind the cameras
    found = _project("native", model, given, covars)
    expected = _project("reference", model, given, covars)
    assert (found[0] - expected[0]).abs().max() <= 1
    assert (found[0] > 0).any() and (found[0] == 0).any()
    for a, b in zip((*found[1], *found[2]), (*expected[1], *expected[2])):
        close(a, b, 2e-5)


@pytest.mark.parametrize("model", CAMERA_MODELS)
def test_gradients_are_those_of_finite_differences(model):
    given = scene(4, 2, dtype=torch.float64)
    given["means"][0, :2] = torch.tensor([0.0, 30.0])  # far off the picture: the clamp is at work
    names = ("means", "quats", "scales", "viewmats")

    def project(means, quats, scales, viewmats):
        outputs = fully_fused_projection(
            *(means, None, quats, scales, viewmats, given["Ks"], 45, 35),
            calc_compensations=True,
            camera_model=model,
        )
        return outputs[1:]

    leaves = [leaf(given[k], torch.float64) for k in names]
    assert torch.autograd.gradcheck(project, leaves, atol=1e-4, rtol=1e-4)


@each
@pytest.mark.parametrize("degree", range(5))
def test_one_set_of_coefficients_serves_all_pictures(degree, implementation):
    g = torch.Generator().manual_seed(degree)
    dirs = torch.randn(3, 21, 3, generator=g)
    coeffs = torch.randn(1, 21, 25, 3, generator=g)
    masks, w = torch.rand(3, 21, generator=g) < 0.8, torch.randn(3, 21, 3, generator=g)

    def run(shared: bool):
        leaves = [x.clone().requires_grad_() for x in (dirs, coeffs)]
        own = leaves[1] if shared else leaves[1].expand(3, -1, -1, -1)
        colors = spherical_harmonics(degree, leaves[0], own, masks)
        return colors.detach(), *torch.autograd.grad(colors, leaves, w)

    with backend.forced(implementation):
        shared = run(True)
    with backend.forced("reference"):
        apart = run(False)
    for a, b in zip(shared, apart):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert not shared[0][~masks].any()


@each
@pytest.mark.parametrize("degree", range(5))
@pytest.mark.parametrize("sets", [1, 2])
def test_constant_coefficients_may_be_apart_from_the_others(degree, sets, implementation):
    g = torch.Generator().manual_seed(degree)
    dirs = torch.randn(2, 37, 3, generator=g)
    coeffs = torch.randn(sets, 37, 25, 3, generator=g)
    masks, w = torch.rand(2, 37, generator=g) < 0.8, torch.randn(2, 37, 3, generator=g)
    leaves = [x.clone().requires_grad_() for x in (dirs, coeffs)]
    apart = [x.clone().requires_grad_() for x in (dirs, coeffs[:, :, :1], coeffs[:, :, 1:])]
    with backend.forced("reference"):
        expected = spherical_harmonics(degree, *leaves, masks)
        wanted = torch.autograd.grad(expected, leaves, w)
    with backend.forced(implementation):
        found = spherical_harmonics(degree, *apart[:2], masks, apart[2])
        grads = torch.autograd.grad(found, apart, w)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    for a, b in zip((grads[0], torch.cat(grads[1:], 2)), wanted):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_the_kernel_does_not_look_at_what_is_masked():
    dirs, coeffs = torch.randn(1, 20, 3), torch.randn(1, 20, 9, 3)
    dirs[0, 3], coeffs[0, 7] = torch.nan, torch.inf
    masks = torch.ones(1, 20, dtype=torch.bool)
    masks[0, [3, 7]] = False
    leaves = [x.requires_grad_() for x in (dirs, coeffs)]
    colors = spherical_harmonics(2, *leaves, masks)
    for x in (colors, *torch.autograd.grad(colors.sum(), leaves)):
        assert x.isfinite().all() and not x[~masks].any()


@each
def test_degenerate_gaussians_are_not_seen(implementation):
    given = scene(6, 1)
    given["scales"][0] = 1e25  # overflows in the picture
    given["quats"][1] = 0  # read as no rotation
    given["scales"][2] = 0  # a point: eps2d gives it a size
    given["means"][3] = torch.tensor([0.0, 0, 0])  # in the camera
    given["opacities"][4] = 0.5 / 255
    leaves = {k: v.requires_grad_() for k, v in given.items() if isinstance(v, torch.Tensor)}
    shape = (None, leaves["quats"], leaves["scales"])
    given["viewmats"] = torch.eye(4)[None]
    with backend.forced(implementation):
        radii, *outputs, _ = fully_fused_projection(
            *(leaves["means"], *shape, given["viewmats"], given["Ks"], 45, 35),
            opacities=leaves["opacities"].detach(),
        )
        sum(x.sum() for x in outputs).backward()
    seen = (radii > 0).all(-1)[0].tolist()
    assert seen == [False, True, True, False, False, True]
    for x in (*outputs, leaves["means"].grad, leaves["quats"].grad, leaves["scales"].grad):
        assert x.isfinite().all()


@each
def test_shapes_and_names_that_do_not_fit_are_refused(implementation):
    given = scene(3, 1)
    tensors = [given[k] for k in ("means", "quats", "scales", "viewmats", "Ks")]
    with backend.forced(implementation):
        with pytest.raises(ValueError, match=r"'lens'.*pinhole"):
            fully_fused_projection(*(tensors[0], None, *tensors[1:], 45, 35), camera_model="lens")
        with pytest.raises(ValueError, match=r"quats has shape \(3, 3\)"):
            fully_fused_projection(*(tensors[0], None, tensors[2], *tensors[2:], 45, 35))
        with pytest.raises(ValueError, match="neither covars nor"):
            fully_fused_projection(tensors[0], None, None, *tensors[2:], 45, 35)
        with pytest.raises(ValueError, match=r"degree 2 .* needs 9"):
            spherical_harmonics(2, tensors[0], torch.zeros(3, 4, 3))
        with pytest.raises(ValueError, match=r"shN \(2, 3, 3\); beside shN"):
            spherical_harmonics(1, tensors[0], torch.zeros(3, 1, 3), shN=torch.zeros(2, 3, 3))
