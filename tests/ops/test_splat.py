import importlib.util
import sys
import types

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse3d.ops import backend
from sparse3d.ops.splat import RENDER_MODES, quat_scale_to_covar_preci, rasterization
from tests.gpu import needs_gpu
from tests.ops import gsplat_peer
from tests.ops.splat_cases import close, dtypes_of, each, fixtures_with, leaf, load, scene

GAUSSIANS = ("means", "quats", "scales", "opacities", "colors")
LEAVES = (*GAUSSIANS, "viewmats", "backgrounds")


@fixtures_with("image", "alpha", "w_image")
def test_pictures_and_gradients_agree_with_published_rules(path, implementation):
    data = load(path)
    for dtype in dtypes_of(implementation):
        given = {name: leaf(data[name], dtype) for name in (*GAUSSIANS, "background", "viewmat")}
        with backend.forced(implementation):
            image, alpha, meta = rasterization(
                *(given[name] for name in GAUSSIANS),
                *(given["viewmat"][None], data["K"][None].to(dtype)),
                *(int(data["width"]), int(data["height"])),
                tile_size=int(data["tile_size"]),
                packed=False,
                backgrounds=given["background"][None],
                rasterize_mode="antialiased" if data["antialiased"] else "classic",
            )
            for name in ("means2d", "conics"):
                meta[name].retain_grad()
            loss = (image[0] * data["w_image"].to(dtype)).sum()
            (loss + (alpha[0, ..., 0] * data["w_alpha"].to(dtype)).sum()).backward()
        seen = (meta["radii"][0] > 0).all(-1)  # without what is fainter than 1/255 everywhere
        assert not (seen & ~data["visible"]).any()
        error = (image[0] - data["image"]).abs().amax(-1)
        assert (error > 1e-4).double().mean() <= 1e-3 and error.max() <= 5e-3
        assert ((alpha[0, ..., 0] - data["alpha"]).abs() > 1e-4).double().mean() <= 1e-3
        grads = {name: x.grad for name, x in given.items()}
        grads |= {name: meta[name].grad[0] for name in ("means2d", "conics")}
        for name, grad in grads.items():
            tiny = name == "background" and data["alpha"].min() > 0.99  # what light is left
            close(grad.double(), data[f"g_{name}"], 5e-3 if tiny else 1e-3, name)


def _render(arguments: dict, implementation: str = "native", names=LEAVES, seed: int = 0):
    """Pictures, alphas and gradients for one random cotangent each, and meta."""
    leaves = {k: v for k, v in arguments.items() if k not in names}
    inputs = {k: arguments[k].clone().requires_grad_() for k in names if k in arguments}
    with backend.forced(implementation):
        picture, alphas, meta = rasterization(**leaves, **inputs)
        g = torch.Generator().manual_seed(seed)
        weights = [torch.randn(x.shape, generator=g).to(x) for x in (picture, alphas)]
        loss = (picture * weights[0]).sum() + (alphas * weights[1]).sum()
        meta["means2d"].retain_grad()
        loss.backward()
    grads = {k: torch.zeros_like(x) if x.grad is None else x.grad for k, x in inputs.items()}
    return picture.detach(), alphas.detach(), grads, meta


def _agree(found: tuple, expected: tuple, share: float = 1e-4) -> None:
    close(found[0], expected[0].to(found[0]), share, "picture")
    close(found[1], expected[1].to(found[1]), share, "alphas")
    for name, grad in expected[2].items():
        close(found[2][name].to_dense(), grad.to(found[0]), 5 * share, name)


def _harmonics(arguments: dict, degree: int, seed: int = 3) -> dict:
    g = torch.Generator().manual_seed(seed)
    count = len(arguments["means"])
    colors = torch.randn(count, (degree + 1) ** 2, 3, generator=g) * 0.5
    return {**arguments, "colors": colors.to(arguments["means"]), "sh_degree": degree}


@pytest.mark.parametrize("mode", RENDER_MODES)
@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
def test_native_pictures_are_those_of_the_definition(packed, mode):
    arguments = scene(50) | {"packed": packed, "render_mode": mode, "rasterize_mode": "antialiased"}
    arguments["backgrounds"] = torch.rand(2, 1 if mode in ("D", "ED") else 3)
    _agree(_render(arguments), _render(arguments, "reference"))


@pytest.mark.parametrize("model", ["pinhole", "ortho", "fisheye"])
@pytest.mark.parametrize("degree", range(5))
def test_harmonics_and_camera_models_agree_with_the_definition(degree, model):
    arguments = _harmonics(scene(50), degree) | {"camera_model": model}
    _agree(_render(arguments), _render(arguments, "reference"))


@each
@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
def test_coefficients_in_two_tensors_are_those_in_one(packed, implementation):
    joined = _harmonics(scene(50), 2) | {"packed": packed}
    first, others = joined["colors"].split([1, 8], 1)
    names = (*LEAVES, "shN")
    expected, found = (
        _render(arguments, implementation, names)
        for arguments in (joined, joined | {"colors": first, "shN": others})
    )
    expected[2]["shN"] = expected[2]["colors"][:, 1:]
    expected[2]["colors"] = expected[2]["colors"][:, :1]
    _agree(found, expected, 1e-6)
    with pytest.raises(ValueError, match=r"shN have shape \(50, 8, 3\), colors \(50, 9, 3\)"):
        _render(joined | {"shN": others}, implementation, names)


@each
def test_packed_dense_and_sparse_gradients_are_the_same(implementation):
    dense = _harmonics(scene(50), 2) | {"packed": False, "absgrad": True}
    dense["means"][:9, 2] = -3
    expected = _render(dense, implementation)
    for options in ({"packed": True}, {"packed": True, "sparse_grad": True}):
        found = _render(dense | options, implementation)
        _agree(found, expected, 1e-5)
        rows = [found[3][k] for k in ("batch_ids", "camera_ids", "gaussian_ids")]
        for name in ("radii", "means2d", "depths", "conics", "opacities"):
            close(found[3][name], expected[3][name][rows[1], rows[2]], 1e-6, name)
        wanted = expected[3]["means2d"]
        close(found[3]["means2d"].grad, wanted.grad[rows[1], rows[2]], 1e-5)
        close(found[3]["means2d"].absgrad, wanted.absgrad[rows[1], rows[2]], 1e-5)
        assert found[2]["quats"].is_sparse == ("sparse_grad" in options)
    assert (expected[3]["means2d"].absgrad >= expected[3]["means2d"].grad.abs() - 1e-5).all()


@each
def test_covariances_draw_what_their_quaternions_draw(implementation):
    arguments = scene(50)
    expected = _render(arguments, implementation, ("means", "viewmats"))
    covars = quat_scale_to_covar_preci(arguments["quats"], arguments["scales"])[0]
    arguments |= {"covars": covars, "quats": None, "scales": None}
    _agree(_render(arguments, implementation, ("means", "viewmats")), expected, 1e-4)


@each
@pytest.mark.parametrize("shape", [(2, 30, 6), (30, 4, 3), (2, 30, 4, 3)])
def test_a_batch_is_its_scenes_and_colors_may_differ_by_camera(shape, implementation):
    degree = None if shape[-1] == 6 else 1
    parts = [scene(30, 2, seed) | {"sh_degree": degree} for seed in range(2)]
    for i, part in enumerate(parts):
        part["colors"] = torch.rand(shape, generator=torch.Generator().manual_seed(i))
    stacked = {k: torch.stack([p[k] for p in parts]) for k in parts[0] if k in LEAVES or k == "Ks"}
    for packed in (False, True):
        with backend.forced(implementation):
            options = {"width": 45, "height": 35, "packed": packed, "sh_degree": degree}
            pictures, alphas, meta = rasterization(**stacked, **options)
            for i, part in enumerate(parts):
                alone = rasterization(**part, packed=packed)
                torch.testing.assert_close(pictures[i], alone[0], rtol=0, atol=1e-6)
                torch.testing.assert_close(alphas[i], alone[1], rtol=0, atol=1e-6)
        assert meta["n_batches"] == 2 and meta["n_cameras"] == 2


@settings(max_examples=15, deadline=None)
@given(order=st.permutations(range(25)), implementation=st.sampled_from(("reference", "native")))
def test_the_order_of_rows_is_not_seen(order, implementation):
    arguments = scene(25, 1)
    shuffled = {k: v[list(order)] if k in GAUSSIANS else v for k, v in arguments.items()}
    with backend.forced(implementation):
        expected, found = rasterization(**arguments)[0], rasterization(**shuffled)[0]
    assert torch.equal(found, expected)


VARIANTS = ("colors", "colors of each camera", "harmonics", "harmonics of each camera", "batch")
VARIANTS += ("harmonics batch", "harmonics of each camera, batch", "antialiased depth")
VARIANTS += ("covariances",)


def _crowd(cameras: int, variant: str) -> dict:
    """A scene that is large enough for several threads to share each step."""
    arguments = scene(8000, cameras, seed=5) | {"width": 200, "height": 150}
    arguments["scales"] *= 0.2
    arguments["Ks"] = torch.tensor([[150.0, 0, 100], [0, 150, 75], [0, 0, 1]]).repeat(cameras, 1, 1)
    g = torch.Generator().manual_seed(1)
    arguments["backgrounds"] = torch.rand(cameras, 3, generator=g)
    if variant.startswith("harmonics"):
        arguments = _harmonics(arguments, 3)
    if variant.startswith("harmonics of each camera"):
        arguments["colors"] = arguments["colors"].expand(cameras, -1, -1, -1)
    if variant == "colors of each camera":
        arguments["colors"] = torch.rand(cameras, 8000, 3, generator=g)
    if variant == "antialiased depth":
        arguments |= {"rasterize_mode": "antialiased", "render_mode": "RGB+ED"}
    if variant == "covariances":
        covars = quat_scale_to_covar_preci(arguments.pop("quats"), arguments.pop("scales"))[0]
        arguments |= {"covars": covars, "quats": None, "scales": None}
    if variant.endswith("batch"):
        shared = ("sh_degree", "width", "height", "render_mode", "rasterize_mode")
        rest = {k: v for k, v in arguments.items() if k in shared}
        arguments = {k: torch.stack([v, v.flip(0)]) for k, v in arguments.items() if k not in rest}
        arguments |= rest
    return arguments


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("cameras", [1, 3])
@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
def test_bits_of_pictures_and_gradients_do_not_depend_on_threads(packed, cameras, variant):
    arguments, before = _crowd(cameras, variant) | {"packed": packed}, torch.get_num_threads()
    names = [k for k in (*LEAVES, "covars") if arguments.get(k) is not None]
    results = []
    try:
        for threads in (1, 2, 2, 3):
            torch.set_num_threads(threads)
            results.append(_render(arguments, names=names))
    finally:
        torch.set_num_threads(before)
    assert {"backgrounds", "viewmats", "means", "colors", "opacities"} <= set(results[0][2])
    for others in results[1:]:
        assert torch.equal(others[0], results[0][0]) and torch.equal(others[1], results[0][1])
        for name, grad in results[0][2].items():
            assert grad.any() and torch.equal(others[2][name], grad), name


# ---------------------------------------------------------------------- gsplat


needs_gsplat = pytest.mark.skipif(
    importlib.util.find_spec("gsplat") is None, reason="gsplat is not installed"
)


def _agree_with_gsplat(arguments: dict, implementation: str) -> None:
    """A pixel at the edge of an alpha of 1/255 may fall either way."""
    arguments = {k: v for k, v in arguments.items() if v is not None}
    names = [k for k in LEAVES if k in arguments]
    found = _render(arguments, implementation)
    with gsplat_peer.on_cpu(arguments.get("camera_model", "pinhole")) as render:
        leaves = {k: leaf(arguments[k], torch.float32) for k in names}
        others = (*names, "packed", "camera_model")
        rest = {k: v for k, v in arguments.items() if k not in others}
        picture, alphas, _ = render(**leaves, **rest)
        g = torch.Generator().manual_seed(0)
        weights = [torch.randn(x.shape, generator=g) for x in (picture, alphas)]
        sum((x * w).sum() for x, w in zip((picture, alphas), weights)).backward()
    assert found[0].shape == picture.shape and (alphas > 0.1).float().mean() > 0.3
    assert ((found[0] - picture).abs() > 1e-4).float().mean() < 1e-3
    assert ((found[1] - alphas).abs() > 1e-4).float().mean() < 1e-3
    for name, x in leaves.items():
        close(found[2][name], torch.zeros_like(x) if x.grad is None else x.grad, 1e-3, name)


@needs_gsplat
@each
@pytest.mark.parametrize("degree", [None, 0, 1, 2, 3, 4])
@pytest.mark.parametrize("mode", ["classic", "antialiased"])
def test_random_scenes_agree_with_gsplats_own_reference(mode, degree, implementation):
    arguments = scene(80, 2, seed=7) | {"packed": False, "rasterize_mode": mode}
    arguments |= {"render_mode": "RGB+ED", "backgrounds": torch.rand(2, 3)}
    if degree is not None:
        arguments = _harmonics(arguments, degree)
    _agree_with_gsplat(arguments, implementation)


@needs_gsplat
@each
@pytest.mark.parametrize("cameras", [1, 3])
@pytest.mark.parametrize("mode", RENDER_MODES)
@pytest.mark.parametrize("model", ["pinhole", "ortho", "fisheye"])
def test_cameras_and_modes_agree_with_gsplats_own_reference(model, mode, cameras, implementation):
    arguments = scene(60, cameras, seed=11) | {"camera_model": model, "render_mode": mode}
    arguments |= {"packed": cameras > 1, "rasterize_mode": "antialiased"}
    if model == "ortho":  # pixels per metre
        arguments["Ks"][:, :2, :2] *= 0.3
    if mode.startswith("RGB"):
        arguments["backgrounds"] = torch.rand(cameras, 3)
        arguments = _harmonics(arguments, 1)
    _agree_with_gsplat(arguments, implementation)


@needs_gsplat
@each
@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
def test_colors_of_each_camera_and_batches_agree_with_gsplats_own_reference(packed, implementation):
    parts = [scene(40, 2, seed) for seed in (3, 4)]
    arguments = {
        k: torch.stack([part[k] for part in parts]) for k in (*GAUSSIANS, "viewmats", "Ks")
    }
    g = torch.Generator().manual_seed(0)
    arguments |= {"colors": torch.rand(2, 2, 40, 40, generator=g), "packed": packed}
    arguments |= {"width": 45, "height": 35, "backgrounds": torch.rand(2, 2, 40, generator=g)}
    _agree_with_gsplat(arguments, implementation)


@needs_gpu
@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
@pytest.mark.parametrize("mode", RENDER_MODES)
@pytest.mark.parametrize("degree", [None, 0, 3])
def test_a_gpu_draws_what_the_cpu_draws(degree, mode, packed):
    arguments = scene(80, 2, seed=7) | {"packed": packed, "render_mode": mode}
    if degree is not None:
        arguments = _harmonics(arguments, degree)
    if mode not in ("D", "ED"):
        arguments["backgrounds"] = torch.rand(2, 3)
    _agree_on_gpu(arguments)


@needs_gpu
@pytest.mark.parametrize("model", ["pinhole", "ortho", "fisheye"])
@pytest.mark.parametrize("mode", ["classic", "antialiased"])
def test_a_gpu_has_the_cpus_cameras(mode, model):
    arguments = scene(80, 2, seed=7) | {"rasterize_mode": mode, "camera_model": model}
    _agree_on_gpu(arguments | {"packed": False, "absgrad": True})


def _agree_on_gpu(arguments: dict) -> None:
    """gsplat's sums come in another order, and a pixel at the edge of 1/255 may fall either way."""
    expected = _render(arguments)
    there = {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
    found = _render(there, "cuda")
    for ours, theirs in zip(expected[:2], found[:2]):
        assert ((ours - theirs.cpu()).abs() > 1e-4 * ours.abs().max()).float().mean() < 1e-3
    for name, grad in expected[2].items():
        close(found[2][name].cpu(), grad, 1e-3, name)
    close(found[3]["means2d"].grad.cpu(), expected[3]["means2d"].grad, 1e-3)


def test_cuda_tensors_are_drawn_by_gsplat(monkeypatch):
    seen = {}
    stub = types.ModuleType("gsplat")
    stub.rasterization = lambda **arguments: seen.update(arguments) or "drawn"
    monkeypatch.setitem(sys.modules, "gsplat", stub)
    with backend.forced("cuda"):
        assert rasterization(**scene(3), with_ut=True, packed=False) == "drawn"
    assert seen["with_ut"] is True and seen["packed"] is False and seen["tile_size"] == 16
    assert seen["covars"] is None and seen["means"].shape == (3, 3)


# ---------------------------------------------------------------------- bad input


@each
@pytest.mark.parametrize("name", ["means", "quats", "scales", "opacities", "colors", "viewmats"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_named(value, name, implementation):
    arguments = scene(5)
    arguments[name].view(-1)[7 % arguments[name].numel()] = value
    with backend.forced(implementation), pytest.raises(ValueError, match=f"{name} .* 1 numbers"):
        rasterization(**arguments)


@each
@pytest.mark.parametrize("packed", [False, True])
def test_gaussians_behind_every_camera_leave_the_background(packed, implementation):
    arguments = scene(20) | {"packed": packed, "backgrounds": torch.rand(2, 3)}
    arguments["means"][:, 2] = -5
    picture, alphas, grads, meta = _render(arguments, implementation)
    assert torch.equal(picture, arguments["backgrounds"][:, None, None].expand_as(picture))
    assert not alphas.any() and len(meta["flatten_ids"]) == 0
    assert all(x.isfinite().all() for x in grads.values()) and not grads["means"].any()


@each
@pytest.mark.parametrize("packed", [False, True])
def test_no_gaussians_are_a_picture(packed, implementation):
    arguments = {k: v[:0] if k in GAUSSIANS else v for k, v in scene(3).items()}
    picture, alphas, grads, _ = _render(arguments | {"packed": packed}, implementation)
    assert picture.shape == (2, 35, 45, 3) and not picture.any() and not alphas.any()
    assert grads["means"].shape == (0, 3) and not grads["viewmats"].any()


@each
@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"render_mode": "XYZ"}, ValueError, "'XYZ'"),
        ({"rasterize_mode": "soft"}, ValueError, "'soft'"),
        ({"camera_model": "lens"}, ValueError, "'lens'"),
        ({"width": 0}, ValueError, "width is 0"),
        ({"width": 10**6, "height": 10**6}, MemoryError, "2000000000000 pixels; .* use smaller"),
        ({"sparse_grad": True, "packed": False}, ValueError, "packed"),
        ({"with_ut": True}, ValueError, "with_ut is available for CUDA"),
        ({"shininess": 1}, TypeError, "shininess"),
        ({"sh_degree": 5}, ValueError, "colors have shape"),
        ({"colors": torch.rand(4, 3)}, ValueError, r"colors have shape \(4, 3\)"),
        ({"colors": torch.rand(5, 0)}, ValueError, r"\(5, 0\): 0 channels .* give 1 or more"),
        ({"colors": torch.rand(2, 5, 0)}, ValueError, r"\(2, 5, 0\): 0 channels"),
        ({"covars": torch.rand(5, 6)}, ValueError, r"covars have shape \(5, 6\)"),
    ],
)
def test_arguments_that_cannot_work_are_refused(options, error, message, implementation):
    with backend.forced(implementation), pytest.raises(error, match=message):
        rasterization(**(scene(5) | options))
