"""Wrong types and sizes: one ValueError, or the same numbers from both implementations.

A kernel that got them unseen would read past its tensors, or floats' bits as other numbers.
"""

import math

import pytest
import torch

from sparse3d.ops import backend
from sparse3d.ops.conv import sparse_conv, sparse_conv_norm
from sparse3d.ops.guided import match_on_lines, match_within
from sparse3d.ops.interpolate import inverse_distance, weighted_rows
from sparse3d.ops.kernel_map import (
    coarse_cells,
    generative_map,
    offset_table,
    reverse_table,
    strided_map,
    submanifold_map,
)
from sparse3d.ops.keys import find_rows, sort_rows
from sparse3d.ops.neighbors import knn, radius_neighbors
from sparse3d.ops.norm import batch_norm
from sparse3d.ops.pool import global_pool, sparse_pool
from sparse3d.ops.rotated import bev_overlap, iou3d, nms, paired_iou3d, points_in_boxes
from sparse3d.ops.set_attention import set_attention
from sparse3d.ops.set_conv import set_conv
from sparse3d.ops.splat import (
    fully_fused_projection,
    fully_fused_projection_2dgs,
    isect_offset_encode,
    isect_tiles,
    quat_scale_to_covar_preci,
    rasterization,
    rasterize_to_pixels,
    spherical_harmonics,
)
from sparse3d.ops.ssim import ssim
from sparse3d.ops.stereo import View, confirm_depths, plane_sweep, smooth_planes
from sparse3d.ops.transport import transport_flow
from sparse3d.ops.volume import ray_weights, render
from sparse3d.ops.voxelize import (
    canonical_order,
    hard_voxelize,
    segment_expand,
    segment_reduce,
    unique_keys,
    voxelize,
)
from sparse3d.ops.windows import pool_cells, window_sets

RANDOM = torch.Generator().manual_seed(0)
TYPES = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32)
TYPES += (torch.uint8, torch.bool)
SHAPES = (
    lambda x: x[:-1],
    lambda x: x[..., :-1],
    lambda x: torch.cat([x, x[..., :1]], -1),
    lambda x: x[None],
    lambda x: x[:0],
)


def rand(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=RANDOM)


def _cells() -> torch.Tensor:
    cells = torch.randint(0, 6, (60, 4), generator=RANDOM) * torch.tensor([0, 1, 1, 1])
    return torch.unique(cells, dim=0).int()


def _gaussians(count: int = 30) -> dict:
    means = rand(count, 3) - torch.tensor([0.5, 0.5, -3])
    return {
        **{"means": means, "quats": rand(count, 4) - 0.5, "scales": 0.2 * rand(count, 3)},
        **{"opacities": rand(count), "viewmats": torch.eye(4)[None]},
        "Ks": torch.tensor([[[30.0, 0, 16], [0, 30, 16], [0, 0, 1]]]),
    }


def _lists() -> dict:
    """What ``rasterize_to_pixels`` takes."""
    size = (32, 32)
    given = {k: v for k, v in GAUSSIANS.items() if k != "opacities"}
    radii, means2d, depths, conics, _ = fully_fused_projection(
        covars=None, **given, width=size[0], height=size[1]
    )
    _, ids, flat = isect_tiles(means2d, radii, depths, 16, 2, 2)
    return {
        **{"means2d": means2d, "conics": conics, "colors": rand(1, 30, 3)},
        **{"opacities": GAUSSIANS["opacities"][None], "backgrounds": rand(1, 3)},
        **{"isect_offsets": isect_offset_encode(ids, 1, 2, 2), "flatten_ids": flat},
        "masks": torch.tensor([[[True, False], [True, True]]]),
    }


CELLS, GAUSSIANS = _cells(), _gaussians()
N = len(CELLS)
MAP = submanifold_map(CELLS, 3)
LISTS = _lists()
BOXES = torch.cat([4 * rand(5, 3), 1 + rand(5, 3), rand(5, 1)], 1)
CUBE = {"lower": -torch.ones(2, 3), "upper": torch.ones(2, 3), "density": rand(2, 4, 4, 4)}
RAYS = {"origins": rand(2, 3, 3) - 5, "directions": 5 - rand(2, 3, 3)}
INDEX = torch.randint(0, 9, (9, 4), generator=RANDOM)
LAYERS = [(rand(16, width) - 0.5, rand(16), rand(16)) for width in (11, 16, 16)]
SWEEP = {"image": rand(20, 24), "rotation": torch.eye(3), "shift": torch.tensor([1.0, 0, 0])}


def _set_conv(features, index, offsets, weight2, norm3):
    layers = [LAYERS[0], (weight2, *LAYERS[1][1:]), (LAYERS[2][0], norm3, LAYERS[2][2])]
    return set_conv(features, index, offsets, layers)


def _match_within(flat, level, codes, lengths, points, places):
    return match_within(points, places, (flat, level), codes, lengths, 0.5, 0.1)


def _flow(first, second, points, others, batch):
    other_batch = torch.zeros(len(others), dtype=torch.int64)
    eps, gamma = torch.tensor(0.03), torch.tensor(1.0)
    both = (batch, other_batch)
    return transport_flow((first, second), (points, others), eps, gamma, 2, 1.5, batch=both)


def _sweep(reference, inverse, image, rotation, shift):
    return plane_sweep(reference, [View(image, rotation, shift)], inverse, best=1)


def _confirm(depth, inverse_K, image, rotation, shift):
    return confirm_depths(depth, inverse_K, [View(image, rotation, shift)])


def _rays(**given):
    found = ray_weights(**given)
    return found.nodes, found.transmittance, found.depth, found.used


def _render(features):
    return render(ray_weights(**RAYS, **CUBE), features)


def _window_sets(coords):
    sets = window_sets(coords, (6, 6, 6), (3, 3, 3), (1, 1, 1), 5)
    return sets.order, sets.offsets, sets.window_index, sets.coords_in_window


def _table(make):
    return lambda coords: (lambda found: (found.table, found.out_coords))(make(coords))


def _raster(**given):
    return rasterization(**given, width=32, height=32)[:2]


def _isect(**given):
    return isect_tiles(**given, tile_size=16, tile_width=2, tile_height=2)


def _pixels(**given):
    return rasterize_to_pixels(**given, image_width=32, image_height=32, tile_size=16)


def _project(**given):
    return fully_fused_projection(covars=None, **given, width=32, height=32)[:4]


def _surfels(**given):
    return fully_fused_projection_2dgs(**given, width=32, height=32)


def _voxels(points, batch_index):
    return voxelize(points, batch_index, (0.5,) * 3, (0.0,) * 3, None)


def _hard(points, batch_index):
    return hard_voxelize(points, batch_index, (0.5,) * 3, (0.0,) * 3, None, 3, 5)


def _batch(rows: int) -> torch.Tensor:
    return torch.zeros(rows, dtype=torch.int64)


_projected = {k: v for k, v in GAUSSIANS.items() if k != "opacities"}
_radii, _means2d, _depths, _ = _project(**_projected)
OPS = {
    "batch_norm": (
        lambda rows, weight, bias: batch_norm(rows, weight, bias, 1e-5),
        {"rows": rand(9, 3), "weight": rand(3), "bias": rand(3)},
    ),
    "sparse_conv": (
        sparse_conv,
        {
            **{"features": rand(N, 8), "weight": rand(27, 8, 4), "table": MAP.table},
            **{"reverse": MAP.reverse, "bias": rand(4)},
        },
    ),
    "sparse_conv_norm": (
        sparse_conv_norm,
        {
            **{"features": rand(N, 8), "weight": rand(27, 8, 4), "table": MAP.table},
            **{"scale": rand(4), "shift": rand(4), "residual": rand(N, 4)},
        },
    ),
    "sparse_pool": (
        lambda **given: sparse_pool(**given, reduce="max"),
        {"features": rand(N, 8), "table": MAP.table, "reverse": MAP.reverse},
    ),
    "global_pool": (
        lambda features, batch_index: global_pool(features, batch_index, 1, "mean"),
        {"features": rand(N, 8), "batch_index": _batch(N)},
    ),
    "set_attention": (
        lambda **given: set_attention(**given, heads=2),
        {
            **{"qkv": rand(6, 24), "position": rand(2, 16), "order": torch.arange(6)},
            **{"position_index": torch.arange(6) % 2, "offsets": torch.tensor([0, 3, 6])},
        },
    ),
    "set_conv": (
        _set_conv,
        {
            **{"features": rand(9, 8), "index": INDEX, "offsets": rand(36, 3)},
            **{"weight2": LAYERS[1][0], "norm3": LAYERS[2][1]},
        },
    ),
    "transport_flow": (
        _flow,
        {
            **{"first": rand(7, 8) / 3, "second": rand(5, 8) / 3, "points": rand(7, 3)},
            **{"others": rand(5, 3), "batch": _batch(7)},
        },
    ),
    "knn": (
        lambda **given: knn(**given, k=2),
        {
            **{"query": rand(6, 3), "points": rand(20, 3)},
            **{"query_batch": _batch(6), "points_batch": _batch(20)},
        },
    ),
    "radius_neighbors": (
        lambda query, points: radius_neighbors(query, points, 0.5, 3),
        {"query": rand(6, 3), "points": rand(20, 3)},
    ),
    "inverse_distance": (
        lambda query, points: inverse_distance(query, points, 2),
        {"query": rand(6, 3), "points": rand(20, 3)},
    ),
    "weighted_rows": (
        weighted_rows,
        {"values": rand(9, 3), "index": INDEX, "weights": rand(9, 4)},
    ),
    "match_on_lines": (
        lambda **given: match_on_lines(**given, pixels=0.5),
        {
            **{"one": rand(5, 8), "two": rand(4, 8), "first": rand(5, 2), "second": rand(4, 2)},
            "F": rand(3, 3).double(),
        },
    ),
    "match_within": (
        _match_within,
        {
            **{"flat": rand(5, 4), "level": rand(5), "codes": rand(6, 4), "lengths": rand(6) + 1},
            **{"points": rand(5, 2), "places": rand(6, 2)},
        },
    ),
    "bev_overlap": (bev_overlap, {"a": BOXES, "b": BOXES[1:]}),
    "iou3d": (iou3d, {"a": BOXES, "b": BOXES[1:]}),
    "paired_iou3d": (paired_iou3d, {"a": BOXES, "b": BOXES.flip(0)}),
    "nms": (
        lambda boxes, scores: nms(boxes, scores, 0.1),
        {"boxes": BOXES, "scores": torch.arange(5.0)},
    ),
    "points_in_boxes": (points_in_boxes, {"points": 4 * rand(9, 3), "boxes": BOXES}),
    "ssim": (ssim, {"a": rand(9, 8, 3), "b": rand(9, 8, 3)}),
    "plane_sweep": (_sweep, {"reference": rand(20, 24), "inverse": rand(6), **SWEEP}),
    "smooth_planes": (
        smooth_planes,
        {"cost": (255 * rand(20, 24, 6)).byte(), "guide": rand(20, 24)},
    ),
    "confirm_depths": (_confirm, {"depth": rand(20, 24), "inverse_K": torch.eye(3), **SWEEP}),
    "ray_weights": (_rays, {**RAYS, **CUBE, "voxel_size": torch.full((2,), 0.5)}),
    "render": (_render, {"features": rand(2, 64, 4)}),
    "window_sets": (_window_sets, {"coords": CELLS}),
    "pool_cells": (lambda coords: pool_cells(coords, (6, 6, 6), (2, 2, 2)), {"coords": CELLS}),
    "voxelize": (_voxels, {"points": 3 * rand(20, 3), "batch_index": _batch(20)}),
    "hard_voxelize": (_hard, {"points": 3 * rand(20, 4), "batch_index": _batch(20)}),
    "segment_reduce": (
        lambda values, index: segment_reduce(values, index, 9, "max"),
        {"values": rand(9, 4), "index": INDEX[:, 0]},
    ),
    "segment_expand": (segment_expand, {"values": rand(9, 4), "index": INDEX[:, 0]}),
    "canonical_order": (
        lambda values, index: canonical_order(values, index, 9),
        {"values": rand(9, 4), "index": INDEX[:, 0]},
    ),
    "unique_keys": (unique_keys, {"keys": INDEX[:, 0]}),
    "sort_rows": (sort_rows, {"coords": CELLS.flip(0)}),
    "find_rows": (find_rows, {"coords": CELLS, "wanted": CELLS.flip(0)[:9]}),
    "submanifold_map": (_table(lambda coords: submanifold_map(coords, 3)), {"coords": CELLS}),
    "strided_map": (_table(lambda coords: strided_map(coords, 3, 2, 1)), {"coords": CELLS}),
    "generative_map": (_table(lambda coords: generative_map(coords, 2, 2)), {"coords": CELLS}),
    "coarse_cells": (lambda coords: coarse_cells(coords, 2), {"coords": CELLS}),
    "offset_table": (
        lambda fine, coarse: offset_table(fine, coarse, 3, 1, 1, 1),
        {"fine": CELLS, "coarse": CELLS[1:]},
    ),
    "reverse_table": (lambda table: reverse_table(table, N), {"table": MAP.table}),
    "quat_scale_to_covar_preci": (
        quat_scale_to_covar_preci,
        {"quats": GAUSSIANS["quats"], "scales": GAUSSIANS["scales"]},
    ),
    "fully_fused_projection": (_project, GAUSSIANS),
    "fully_fused_projection_2dgs": (_surfels, _projected),
    "spherical_harmonics": (
        lambda dirs, coeffs, masks: spherical_harmonics(1, dirs, coeffs, masks),
        {"dirs": rand(5, 3) - 0.5, "coeffs": rand(5, 4, 3), "masks": rand(5) > 0.3},
    ),
    "isect_tiles": (
        _isect,
        {
            # without shapes of Gaussians: with them only the native lists leave tiles out
            **{"means2d": _means2d, "radii": _radii, "depths": _depths},
        },
    ),
    "isect_offset_encode": (
        lambda isect_ids: isect_offset_encode(isect_ids, 1, 2, 2),
        {"isect_ids": _isect(means2d=_means2d, radii=_radii, depths=_depths)[1]},
    ),
    "rasterize_to_pixels": (_pixels, LISTS),
    "rasterization": (_raster, {**GAUSSIANS, "colors": rand(30, 3), "backgrounds": rand(1, 3)}),
}
ARGUMENTS = [(op, name) for op, (_, given) in OPS.items() for name in given]


def run(op: str, implementation: str, **changed) -> list[torch.Tensor] | str:
    """What an operator gives, or the message of its ValueError."""
    function, given = OPS[op]
    try:
        with backend.forced(implementation):
            found = function(**{**given, **changed})
    except ValueError as error:
        return str(error)
    return list(found) if isinstance(found, tuple) else [found]


def same(op: str, **changed) -> None:
    native, reference = (run(op, name, **changed) for name in ("native", "reference"))
    if isinstance(native, str) or isinstance(reference, str):
        assert native == reference
        return
    narrow = any(x.dtype.itemsize < 4 for x in changed.values() if x.is_floating_point())
    for one, other in zip(native, reference, strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        if one.is_floating_point():
            tolerance = 2e-2 if narrow else 1e-4
            torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance, equal_nan=True)
        else:
            differ = (one != other).double().mean() if one.numel() else 0.0
            assert differ <= (0.02 if op == "plane_sweep" else 0)


@pytest.mark.parametrize(("op", "argument"), ARGUMENTS)
def test_another_type_is_refused_or_means_the_same(op, argument):
    for kind in TYPES:
        same(op, **{argument: OPS[op][1][argument].to(kind)})


@pytest.mark.parametrize(("op", "argument"), ARGUMENTS)
def test_another_size_is_refused_or_means_the_same(op, argument):
    for change in SHAPES:
        same(op, **{argument: change(OPS[op][1][argument])})


CONVERTING = [
    *(("rasterization", name) for name in ("quats", "scales", "opacities", "viewmats", "Ks")),
    *(("rasterization", name) for name in ("colors", "backgrounds")),
    *(("rasterize_to_pixels", name) for name in ("conics", "colors", "opacities", "backgrounds")),
    *(("fully_fused_projection", name) for name in ("quats", "scales", "viewmats", "Ks")),
    *(("isect_tiles", "depths"), ("spherical_harmonics", "coeffs")),
    *(("batch_norm", "weight"), ("batch_norm", "bias"), ("set_attention", "position")),
    *(("set_conv", name) for name in ("offsets", "weight2", "norm3")),
    *(("transport_flow", name) for name in ("second", "points", "others")),
    *(("weighted_rows", "weights"), ("render", "features"), ("plane_sweep", "rotation")),
    *(("ray_weights", name) for name in ("origins", "directions", "lower", "voxel_size")),
    *(("confirm_depths", "inverse_K"), ("ssim", "b"), ("sparse_conv_norm", "scale")),
    *(("fully_fused_projection_2dgs", "viewmats"), ("quat_scale_to_covar_preci", "scales")),
]
implementations = pytest.mark.parametrize("implementation", ["native", "reference"])


@implementations
@pytest.mark.parametrize(("op", "argument"), CONVERTING)
def test_float64_beside_float32_changes_nothing(op, argument, implementation):
    value = OPS[op][1][argument]
    one = run(op, implementation)
    other = run(op, implementation, **{argument: value.double()})
    assert not isinstance(one, str)
    for x, y in zip(one, other, strict=True):
        assert x.dtype == y.dtype and torch.equal(x, y)


GRADIENTS = {
    "rasterization": ("means", "quats", "scales", "opacities", "colors", "viewmats", "backgrounds"),
    "rasterize_to_pixels": ("means2d", "conics", "colors", "opacities", "backgrounds"),
    "spherical_harmonics": ("dirs", "coeffs"),
    "batch_norm": ("rows", "weight", "bias"),
    "set_conv": ("features", "offsets", "weight2", "norm3"),
    "set_attention": ("qkv", "position"),
    "render": ("features",),
    "weighted_rows": ("values", "weights"),
    "transport_flow": ("first", "second"),
}


@implementations
@pytest.mark.parametrize("op", GRADIENTS)
def test_gradients_come_back_in_the_dtype_that_was_given(op, implementation):
    first, *others = GRADIENTS[op]  # the first decides what is computed in

    def gradients(dtype):
        given = {name: OPS[op][1][name].clone() for name in GRADIENTS[op]}
        given = {n: x if n == first else x.to(dtype) for n, x in given.items()}
        leaves = {name: x.requires_grad_() for name, x in given.items()}
        sum(x.sum() for x in run(op, implementation, **leaves) if x.is_floating_point()).backward()
        return {name: x.grad for name, x in leaves.items()}

    narrow, wide = gradients(torch.float32), gradients(torch.float64)
    for name in GRADIENTS[op]:
        assert wide[name].dtype == (torch.float64 if name in others else torch.float32)
        torch.testing.assert_close(wide[name].float(), narrow[name])


def test_sparse_gradients_pass_the_conversion():
    leaves = {k: GAUSSIANS[k].double().requires_grad_() for k in ("quats", "scales")}
    leaves["means"] = GAUSSIANS["means"].clone().requires_grad_()
    picture, *_ = _raster(**{**GAUSSIANS, **leaves}, colors=rand(30, 3), sparse_grad=True)
    picture.sum().backward()
    assert all(x.grad.is_sparse and x.grad.dtype == x.dtype for x in leaves.values())


@implementations
def test_half_means_are_drawn_in_float32(implementation):
    half = {name: x.half() for name, x in OPS["rasterization"][1].items()}
    picture, alphas = run("rasterization", implementation, **half)
    whole = run("rasterization", implementation, **{k: x.float() for k, x in half.items()})
    assert picture.dtype == torch.float32
    assert torch.equal(picture, whole[0]) and torch.equal(alphas, whole[1])


@implementations
@pytest.mark.parametrize(
    ("op", "changed", "message"),
    [
        ("rasterization", {"colors": torch.zeros(30, 3).byte()}, r"colors is torch.uint8.* / 255"),
        ("rasterization", {"Ks": torch.eye(3)}, r"Ks has shape \(3, 3\)"),
        ("rasterization", {"viewmats": torch.eye(4)}, r"viewmats \(4, 4\); .*\[..., C, 4, 4\]"),
        ("isect_tiles", {"radii": _radii.float()}, r"radii is torch.float32 .* torch.int32"),
        ("isect_tiles", {"radii": _radii.long()}, r"radii is torch.int64 .* torch.int32"),
        ("rasterize_to_pixels", {"flatten_ids": LISTS["flatten_ids"].long()}, "flatten_ids is"),
        ("rasterize_to_pixels", {"flatten_ids": LISTS["flatten_ids"] + 99}, r"in \[0, 30\)"),
        ("smooth_planes", {"cost": torch.zeros(20, 24, 0).byte()}, "one plane at least"),
        ("plane_sweep", {"image": rand(20, 24, 3)}, r"views\[0\].image has .*\[h, w\]"),
        ("plane_sweep", {"rotation": torch.eye(4)}, r"views\[0\].rotation has shape \(4, 4\)"),
        ("sparse_conv_norm", {"scale": rand(2)}, r"scale has shape \(2,\); it must be \(4,\)"),
        ("sparse_conv_norm", {"residual": rand(2, 4)}, r"residual has shape \(2, 4\)"),
        ("set_attention", {"order": torch.tensor([0, 1, 2, 3, 4, 4])}, "row 5 is not in it"),
        ("set_attention", {"offsets": torch.tensor([1, 3, 6])}, "ascend from 0 to 6"),
        ("set_attention", {"offsets": torch.tensor([0, 3, 5])}, "ascend from 0 to 6"),
        ("set_attention", {"order": torch.arange(6).int()}, "order is torch.int32"),
        ("render", {"features": rand(2, 10, 4)}, r"features have shape \(2, 10, 4\)"),
        ("ray_weights", {"density": CUBE["density"] * math.nan}, "density holds NaN"),
        ("ray_weights", {"directions": 0 * RAYS["directions"]}, "directions holds a zero"),
        ("window_sets", {"coords": 2 * CELLS}, r"row \d+ of coords .*\(6, 6, 6\)"),
        ("window_sets", {"coords": CELLS.long() + 2**32}, "drop rows outside the grid"),
        ("pool_cells", {"coords": 2 * CELLS}, r"row \d+ of coords .*\(6, 6, 6\)"),
        ("pool_cells", {"coords": CELLS - 1}, "drop rows outside the grid"),
        ("segment_reduce", {"values": torch.ones(9, 4).long()}, "values is torch.int64"),
        ("segment_expand", {"index": INDEX[:, 0] + 9}, r"it must be in \[-1, 9\)"),
        ("sort_rows", {"coords": torch.zeros(3, 5).int()}, r"\(3, 5\)"),
    ],
)
def test_one_error_names_the_argument_and_the_remedy(op, changed, message, implementation):
    function, given = OPS[op]
    with backend.forced(implementation), pytest.raises(ValueError, match=message):
        function(**{**given, **changed})


@implementations
@pytest.mark.parametrize("kind", [torch.int32, torch.int16, torch.uint8])
def test_batch_indices_may_be_of_any_integer_type(kind, implementation):
    for op, name in (("voxelize", "batch_index"), ("knn", "query_batch"), ("knn", "points_batch")):
        plain = run(op, implementation)
        found = run(op, implementation, **{name: OPS[op][1][name].to(kind)})
        assert all(torch.equal(x, y) for x, y in zip(plain, found, strict=True))
    narrow = {**OPS["voxelize"][1], "points": OPS["voxelize"][1]["points"].double()}
    narrow["batch_index"] = narrow["batch_index"].to(kind)
    assert not isinstance(run("voxelize", implementation, **narrow), str)


@pytest.mark.parametrize(
    ("size", "origin", "message"),
    [
        ((math.nan,) * 3, (0.0,) * 3, "finite"),
        ((-0.5, 0.5, 0.5), (0.0,) * 3, "must be positive"),
        ((0.0, 0.5, 0.5), (0.0,) * 3, "must be positive"),
        ((0.5,) * 3, (0.0, math.nan, 0.0), "finite"),
        ((0.5,) * 3, (0.0, 0.0), "one finite number per axis"),
    ],
)
def test_cells_without_size_or_place_are_refused(size, origin, message):
    with pytest.raises(ValueError, match=message):
        voxelize(rand(5, 3), _batch(5), size, origin, None)


def test_integers_are_copied_exactly():
    values = torch.tensor([[2**40 + 1], [2**53 + 1]])
    index = torch.tensor([1, 0, -1])
    for implementation in ("native", "reference"):
        with backend.forced(implementation):
            found = segment_expand(values, index)
        assert found.flatten().tolist() == [2**53 + 1, 2**40 + 1, 0]


def test_conversions_break_no_graph():
    given = OPS["rasterize_to_pixels"][1]

    def blend(colors, conics):
        return _pixels(**{**given, "colors": colors, "conics": conics})[0]

    compiled = torch.compile(blend, fullgraph=True, backend="aot_eager")
    changed = (given["colors"].double(), given["conics"].double())
    assert torch.equal(compiled(*changed), blend(*changed))
