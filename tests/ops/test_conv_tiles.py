"""Float32 convolution on AMX tiles, which wide layers run on where the processor has them."""

import pytest
import torch

from sparse3d.ops import conv, native
from sparse3d.ops.conv import sparse_conv, sparse_conv_norm
from sparse3d.ops.kernel_map import strided_map, submanifold_map
from tests.threads import for_threads

from .test_conv import outcome, problem, random_coords

WIDTHS = [
    (32, 64),
    (64, 64),
    (64, 96),
    (72, 80),
    (96, 65),
    (130, 100),
    (128, 128),
]  # tails of all kinds
NAMES = ("output", "features", "weight", "bias")

needs_tiles = pytest.mark.skipif(
    not native.available() or conv._bf16_level() < conv.AMX, reason="this processor has no AMX"
)


def cells(kind):
    coords = random_coords((20, 19, 18), batch=1, share=0.12)
    return submanifold_map(coords, 3) if kind == "submanifold" else strided_map(coords, 3, 2, 1)


def errors(ours, exact):
    """Mean square error of each result, of the exact one's mean square."""
    pairs = zip(ours, exact, strict=True)
    return [float((a.double() - b).square().mean() / b.square().mean()) ** 0.5 for a, b in pairs]


@pytest.mark.parametrize("channels,outputs", WIDTHS)
@pytest.mark.parametrize("kind", ["submanifold", "down", "up"])
@needs_tiles
def test_tiles_are_as_exact_as_fused_multiply_adds(channels, outputs, kind, monkeypatch):
    found, up = cells(kind), kind == "up"
    leaves = problem(found, channels, outputs)
    if up:
        leaves[0] = torch.randn(found.table.shape[1], channels).requires_grad_()
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    exact = outcome(found, exact, 1, "reference", up)
    ours = errors(outcome(found, leaves, up=up), exact)
    monkeypatch.setenv("SPARSE3D_ISA", "avx512")
    theirs = errors(outcome(found, leaves, up=up), exact)
    assert ours[0] != theirs[0]  # it did run on tiles
    for name, own, other in zip(NAMES, ours, theirs, strict=True):
        assert own <= max(other, torch.finfo(torch.float32).eps), name


@pytest.mark.parametrize("channels,outputs", [(96, 128), (100, 97)])
def test_threads_give_equal_bits(channels, outputs):
    coords = random_coords((30, 40, 20), batch=1, share=0.6)  # several ranges of the gradient's sum
    found = submanifold_map(coords, 3)
    leaves = problem(found, channels, outputs)
    results = for_threads(lambda: outcome(found, leaves))
    for result in results[1:]:
        assert all(map(torch.equal, results[0], result))


@pytest.mark.parametrize("size", [1e-30, 1e-10, 1e10, 1e35])
def test_numbers_of_any_size_keep_their_digits(size):
    found = cells("submanifold")
    features, weight, _ = (leaf.detach() for leaf in problem(found, 64, 64))
    ours = sparse_conv(features * size, weight, found.table, None).double() / size
    exact = sparse_conv((features * size).double(), weight.double(), found.table, None) / size
    torch.testing.assert_close(ours, exact, rtol=0, atol=1e-5 * float(exact.abs().max()))


def test_the_largest_numbers_do_not_overflow():
    largest = torch.finfo(torch.float32).max
    table = torch.zeros(1, 1, dtype=torch.int32)
    features = torch.zeros(1, 64)
    features[0, 5] = largest
    out = sparse_conv(features, torch.eye(64)[None], table, None)
    assert torch.equal(out, features)


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_reaches_its_neighbours_and_no_other_row(wrong):
    found = cells("submanifold")
    features, weight, _ = (leaf.detach() for leaf in problem(found, 64, 64))
    features[7, 20] = wrong
    out = sparse_conv(features, weight, found.table, None)
    met = (found.table == 7).any(0)
    assert met.any() and not out[met].isfinite().any()
    assert out[~met].isfinite().all()


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("relu", [False, True])
def test_what_follows_in_inference_is_done_in_the_same_pass(residual, relu):
    found = cells("submanifold")
    features, weight, shift = (leaf.detach() for leaf in problem(found, 72, 80))
    scale = torch.rand(80) + 0.5
    added = torch.randn(found.table.shape[1], 80) if residual else None
    ours = sparse_conv_norm(features, weight, found.table, scale, shift, added, relu)
    expected = sparse_conv(features, weight, found.table, None) * scale + shift
    expected = expected + added if residual else expected
    torch.testing.assert_close(ours, expected.relu() if relu else expected, rtol=1e-6, atol=1e-6)
