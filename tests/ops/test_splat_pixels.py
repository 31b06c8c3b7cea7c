import pytest
import torch

from sparse3d.ops import backend, splat_pixels
from sparse3d.ops.splat_pixels import isect_offset_encode, isect_tiles, rasterize_to_pixels
from sparse3d.ops.splat_projection import fully_fused_projection
from tests.ops.splat_cases import LEVELS, close, each, fixtures_with, load, scene

WIDTH, HEIGHT = 45, 35
NAMES = ("means2d", "conics", "colors", "opacities", "backgrounds")


@fixtures_with("isect_ids", "flatten_ids", "offsets")
def test_tile_lists_agree_with_the_published_ones(path, implementation):
    data = load(path)
    size, across, down = (int(data[k]) for k in ("tile_size", "tile_width", "tile_height"))
    images = len(data["means2d"])
    with backend.forced(implementation):
        counts, ids, rows = isect_tiles(
            *(data["means2d"], data["radii"], data["depths"], size, across, down)
        )
        offsets = isect_offset_encode(ids, images, across, down)
    pairs = {"tiles_per_gauss": counts, "isect_ids": ids, "flatten_ids": rows, "offsets": offsets}
    for name, found in pairs.items():
        assert torch.equal(found, data[name].to(found.dtype)), name


def _flat(count: int = 60, cameras: int = 2, channels: int = 3, seed: int = 0) -> dict:
    """Projected Gaussians with random features."""
    given = scene(count, cameras, seed)
    shape = (None, given["quats"], given["scales"], given["viewmats"], given["Ks"])
    radii, means2d, depths, conics, _ = fully_fused_projection(
        given["means"], *shape, WIDTH, HEIGHT, opacities=given["opacities"]
    )
    g = torch.Generator().manual_seed(seed)
    return {
        **{"radii": radii, "means2d": means2d, "depths": depths, "conics": conics},
        "colors": torch.rand(cameras, count, channels, generator=g),
        "opacities": given["opacities"].expand(cameras, -1).clone(),
        "backgrounds": torch.rand(cameras, channels, generator=g),
    }


def _double(flat: dict) -> dict:
    return {k: v.double() if v.is_floating_point() else v for k, v in flat.items()}


def _blend(flat: dict, tile_size: int = 16, masks=None, absgrad: bool = False, seed: int = 0):
    """Picture, alphas, and gradients (of means2d with absgrad) for one random cotangent each."""
    across, down = -(-WIDTH // tile_size), -(-HEIGHT // tile_size)
    leaves = {name: flat[name].clone().requires_grad_() for name in NAMES}
    _, ids, rows = isect_tiles(
        *(flat["means2d"], flat["radii"], flat["depths"], tile_size, across, down),
        conics=flat["conics"],
        opacities=flat["opacities"],
    )
    offsets = isect_offset_encode(ids, len(flat["radii"]), across, down)
    picture, alphas = rasterize_to_pixels(
        *(leaves[name] for name in NAMES[:4]),
        *(WIDTH, HEIGHT, tile_size, offsets, rows, leaves["backgrounds"], masks),
        absgrad=absgrad,
    )
    g = torch.Generator().manual_seed(seed)
    weights = [torch.randn(x.shape, generator=g) for x in (picture, alphas)]
    sum((x * w).sum() for x, w in zip((picture, alphas), weights)).backward()
    found = [picture.detach(), alphas.detach(), *(leaves[name].grad for name in NAMES)]
    return [*found, leaves["means2d"].absgrad] if absgrad else found


def _both(*arguments, **options) -> tuple[list, list]:
    both = []
    for implementation in ("native", "reference"):
        with backend.forced(implementation):
            both.append(_blend(*arguments, **options))
    return tuple(both)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 40])
@pytest.mark.parametrize("level", LEVELS)
def test_every_instruction_set_blends_as_the_definition(level, channels, monkeypatch):
    monkeypatch.setenv("SPARSE3D_ISA", level)
    for a, b in zip(*_both(_flat(channels=channels), absgrad=True)):
        close(a, b, 2e-5)


@pytest.mark.parametrize("tile_size", [4, 20, 64])
def test_the_size_of_tiles_is_not_seen(tile_size):
    flat = _flat()
    for a, b in zip(_both(flat, tile_size)[0], _both(flat)[1]):
        close(a, b, 2e-5)


@each
def test_masked_tiles_show_the_background(implementation):
    flat, masks = _flat(), torch.ones(2, 3, 3, dtype=torch.bool)
    masks[1, 0, 1] = masks[0, 2, 2] = False
    with backend.forced(implementation):
        picture, alphas, *grads = _blend(flat, masks=masks)
    hole = (slice(1, 2), slice(0, 16), slice(16, 32))
    expected = flat["backgrounds"][1].expand(1, 16, 16, 3)
    assert torch.equal(picture[hole], expected) and not alphas[hole].any()
    with backend.forced("reference"):
        for a, b in zip((picture, alphas, *grads), _blend(flat, masks=masks)):
            close(a, b, 2e-5)


@each
def test_opaque_gaussians_end_the_light_and_keep_gradients(implementation):
    flat = _flat(100, 1)
    flat["opacities"][:] = 1.0  # alpha is clamped, and pixels stop early
    with backend.forced(implementation):
        found = _blend(flat)
    assert found[1].max() > 0.999 and found[1].max() < 1
    with backend.forced("reference"):
        for a, b in zip(found, _blend(_double(flat))):
            close(a.double(), b, 1e-3)


@each
def test_gradients_are_those_of_finite_differences(implementation):
    flat = _double(_flat(5, 1))
    with backend.forced(implementation):
        _, ids, rows = isect_tiles(flat["means2d"], flat["radii"], flat["depths"], 16, 3, 3)
        offsets = isect_offset_encode(ids, 1, 3, 3)

        g = torch.Generator().manual_seed(0)
        weights = torch.randn(3, HEIGHT, WIDTH, 4, generator=g, dtype=torch.float64)

        def blend(means2d, conics, colors, opacities, backgrounds):
            outputs = rasterize_to_pixels(
                *(means2d, conics, colors, opacities, WIDTH, HEIGHT, 16, offsets, rows),
                backgrounds,
            )
            return (torch.cat(outputs, -1) * weights).sum((1, 2, 3))

        leaves = [flat[name].requires_grad_() for name in NAMES]
        # a step over alpha = 1/255 is no slope: steps are small
        assert torch.autograd.gradcheck(blend, leaves, eps=1e-8, atol=1e-3, rtol=1e-3)


def test_left_out_tiles_hold_no_pixel_that_counts():
    flat = _flat(400, 3, seed=4)
    flat["conics"][:, ::3, 1] *= 0.9
    tensors = (flat["means2d"], flat["radii"], flat["depths"], 16, 3, 3)
    shapes = {"conics": flat["conics"], "opacities": flat["opacities"]}
    with backend.forced("native"):
        boxes, exact = isect_tiles(*tensors), isect_tiles(*tensors, **shapes)
    assert len(exact[1]) < 0.9 * len(boxes[1])
    keep = torch.isin((boxes[1] >> 32) * 10000 + boxes[2], (exact[1] >> 32) * 10000 + exact[2])
    assert torch.equal(boxes[1][keep], exact[1]) and torch.equal(boxes[2][keep], exact[2])
    assert torch.equal(exact[0].flatten(), torch.bincount(exact[2], minlength=1200).int())
    tile, row = (boxes[1][~keep] >> 32), boxes[2][~keep].long()
    x, y = (tile & 15) % 3, (tile & 15) // 3
    grid = torch.arange(16) + 0.5
    dx = (flat["means2d"].reshape(-1, 2)[row, 0] - 16 * x)[:, None, None] - grid
    dy = (flat["means2d"].reshape(-1, 2)[row, 1] - 16 * y)[:, None, None] - grid[:, None]
    a, b, c = flat["conics"].reshape(-1, 3)[row].T[..., None, None]
    sigma = 0.5 * (a * dx * dx + c * dy * dy) + b * dx * dy
    alpha = flat["opacities"].reshape(-1)[row, None, None] * (-sigma).exp()
    assert alpha.amax() < 1 / 255


@pytest.mark.parametrize("channels", [3, 7])
def test_bits_do_not_depend_on_threads(channels):
    flat, before = _flat(3000, channels=channels, seed=1), torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            with backend.forced("native"):
                results.append(_blend(flat, tile_size=8, absgrad=True))
    finally:
        torch.set_num_threads(before)
    for others in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], others))


@each
def test_equal_depths_keep_the_order_of_rows(implementation):
    flat = _flat(40, 1)
    flat["depths"][:] = 3.0
    with backend.forced(implementation):
        _, ids, rows = isect_tiles(flat["means2d"], flat["radii"], flat["depths"], 16, 3, 3)
    same = ids[1:] == ids[:-1]
    assert same.any() and (rows[1:] > rows[:-1])[same].all()


@each
def test_nothing_to_draw_shows_the_background(implementation):
    flat = {name: x[:, :0] if name != "backgrounds" else x for name, x in _flat().items()}
    with backend.forced(implementation):
        picture, alphas, *grads = _blend(flat)
    assert torch.equal(picture, flat["backgrounds"][:, None, None].expand_as(picture))
    assert not alphas.any() and grads[0].shape == (2, 0, 2)


@each
def test_lists_that_would_fill_memory_are_refused(implementation, monkeypatch):
    monkeypatch.setattr(splat_pixels, "MOST_ENTRIES", 10)
    flat = _flat()
    with backend.forced(implementation), pytest.raises(MemoryError, match=r"120 Gaussians .* 10 "):
        _blend(flat)


@each
def test_tiles_that_no_key_can_number_are_refused(implementation):
    rows = [_flat(5, 2)[name] for name in ("means2d", "radii", "depths")]
    with backend.forced(implementation), pytest.raises(MemoryError, match="2 pictures of 40000 x"):
        isect_tiles(*rows, 16, 40000, 40000)


def test_lists_that_name_no_row_are_refused():
    flat, offsets = _flat(5, 1), torch.zeros(1, 3, 3, dtype=torch.int32)
    tensors = [flat[name] for name in NAMES[:4]]
    with backend.forced("native"):
        for rows in ([0, 5], [-1, 0]):
            ids = torch.tensor(rows, dtype=torch.int32)
            with pytest.raises(ValueError, match=r"\[0, 5\)"):
                rasterize_to_pixels(*tensors, WIDTH, HEIGHT, 16, offsets, ids)
        nothing = [*tensors[:2], tensors[2][..., :0], tensors[3]]
        with pytest.raises(ValueError, match=r"\(1, 5, 0\): 0 channels"):
            rasterize_to_pixels(*nothing, WIDTH, HEIGHT, 16, offsets, ids)
        with pytest.raises(ValueError, match="do not cover"):
            rasterize_to_pixels(*tensors, WIDTH, HEIGHT, 8, offsets, ids)
        with pytest.raises(ValueError, match=r"conics has shape \(1, 4, 3\)"):
            wrong = (tensors[0], tensors[1][:, 1:], *tensors[2:])
            rasterize_to_pixels(*wrong, WIDTH, HEIGHT, 16, offsets, ids)
