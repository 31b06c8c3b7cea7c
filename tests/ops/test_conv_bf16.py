"""Convolution in bfloat16: AMX tiles, AVX512-BF16, or the kernels of float32."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse3d.ops import backend, native
from sparse3d.ops.conv import sparse_conv
from sparse3d.ops.kernel_map import KernelMap, strided_map, submanifold_map
from tests.threads import for_threads

from .test_conv import WIDTHS, assert_close, outcome, problem, random_coords

needs_bf16 = pytest.mark.skipif(
    not native.available() or not native.call("s3d_conv_bf16_available"),
    reason="this processor does not multiply bfloat16",
)
# the best kernels for bfloat16; AVX512-BF16 at most; those of float32
each_bf16 = pytest.mark.parametrize(
    "level", [pytest.param("", id="best"), pytest.param("avx512", marks=needs_bf16), "avx2"]
)


@pytest.mark.parametrize("channels,outputs,groups", WIDTHS)
@pytest.mark.parametrize("kind", ["submanifold", "up", "down"])
@each_bf16
def test_bfloat16_is_summed_in_float(channels, outputs, groups, kind, level, monkeypatch):
    """Against the exact convolution of the same rounded numbers, forward and gradients."""
    monkeypatch.setenv("SPARSE3D_ISA", level)
    coords = random_coords((20, 19, 18), batch=1, share=0.12)
    submanifold = kind == "submanifold"
    found = submanifold_map(coords, 3) if submanifold else strided_map(coords, 3, 2, 1)
    leaves = problem(found, channels, outputs, groups)
    if kind == "up":
        leaves[0] = torch.randn(found.table.shape[1], channels).requires_grad_()
    halves = [leaf.detach().bfloat16().requires_grad_() for leaf in leaves]
    exact = [leaf.detach().float().requires_grad_() for leaf in halves]
    ours = outcome(found, halves, groups, up=kind == "up")
    assert all(result.dtype == torch.bfloat16 for result in ours)
    theirs = outcome(found, exact, groups, "reference", up=kind == "up")
    assert_close([result.float() for result in ours], theirs, 1e-2)


@pytest.mark.parametrize("channels,outputs", [(40, 24), (33, 97), (1, 128)])
@each_bf16
def test_bfloat16_gives_equal_bits_for_any_number_of_threads(channels, outputs, level, monkeypatch):
    monkeypatch.setenv("SPARSE3D_ISA", level)
    coords = random_coords((30, 40, 20), batch=1, share=0.8)  # several ranges of the gradient's sum
    found = submanifold_map(coords, 3)
    leaves = problem(found, channels, outputs)
    leaves = [leaf.detach().bfloat16().requires_grad_() for leaf in leaves]
    results = for_threads(lambda: outcome(submanifold_map(coords, 3), leaves))
    for result in results[1:]:
        assert all(map(torch.equal, results[0], result))


@each_bf16
@given(
    rows=st.tuples(st.integers(0, 300), st.integers(0, 300)),
    channels=st.tuples(st.integers(1, 140), st.integers(1, 140)),
    offsets=st.integers(1, 70),
    share=st.floats(0, 1),
)
@settings(max_examples=40, deadline=None)
def test_bfloat16_of_any_table_and_any_channels(rows, channels, offsets, share, level):
    """Offsets that meet no row, rows without inputs, odd numbers of pairs and of channels."""
    generator = torch.Generator().manual_seed(sum(rows) + offsets)
    table = torch.full((offsets, rows[1]), -1, dtype=torch.int32)
    for row_of in table:
        inputs, outputs = (torch.randperm(n, generator=generator) for n in rows)
        met = round(share * min(rows) * float(torch.rand(1, generator=generator)))
        row_of[outputs[:met]] = inputs[:met].int()
    found = KernelMap(table, torch.zeros(rows[1], 4, dtype=torch.int32), None, rows[0])
    cotangent = torch.randn(rows[1], channels[1], generator=generator).bfloat16()
    halves = [leaf.detach().bfloat16() for leaf in problem(found, *channels)]
    exact = gradients("reference", found, [leaf.float() for leaf in halves], cotangent.float())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARSE3D_ISA", level)
        ours = gradients("native", found, halves, cotangent)
    for own, other in zip(ours, exact, strict=True):  # but for sums in float, one rounding apart
        torch.testing.assert_close(own.float(), other, rtol=4e-3, atol=1e-4)


@pytest.mark.parametrize("channels", [(1, 1), (16, 16), (31, 33), (34, 97), (64, 64)])
@pytest.mark.parametrize("rows", [1, 6, 65, 200])
@each_bf16
def test_bfloat16_begins_sums_with_an_offset_that_all_rows_meet(rows, channels, level, monkeypatch):
    """Offset 1 meets every row of some blocks, and all but one of the last; 2 meets none."""
    monkeypatch.setenv("SPARSE3D_ISA", level)
    generator = torch.Generator().manual_seed(0)
    table = torch.stack([torch.randperm(rows, generator=generator).int() for _ in range(4)])
    table[0, torch.rand(rows, generator=generator) < 0.5] = -1
    table[1, -1] = table[2] = -1
    table[3, 70:] = -1
    found = KernelMap(table, torch.zeros(rows, 4, dtype=torch.int32), None, rows)
    halves = [leaf.detach().bfloat16() for leaf in problem(found, *channels)]
    exact = [leaf.float() for leaf in halves]
    cotangent = torch.randn(rows, channels[1], generator=generator).bfloat16()
    ours = gradients("native", found, halves, cotangent)
    theirs = gradients("reference", found, exact, cotangent.float())
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own.float(), other, rtol=4e-3, atol=1e-4)


def gradients(implementation, found, leaves, cotangent):
    """The output, and the gradients of leaves for its cotangent."""
    features, weight, bias = leaves = [leaf.requires_grad_() for leaf in leaves]
    with backend.forced(implementation):
        out = sparse_conv(features, weight, found.table, found.reverse, bias)
        return out.detach(), *torch.autograd.grad(out, leaves, cotangent)


@pytest.mark.parametrize("channels", [1, 5, 33])
@each_bf16
def test_bfloat16_of_odd_channels_keeps_out_the_next_row(channels, level, monkeypatch):
    monkeypatch.setenv("SPARSE3D_ISA", level)
    found = submanifold_map(random_coords((20, 19, 18), batch=1, share=0.12), 3)
    features, weight, _ = (leaf.detach().bfloat16() for leaf in problem(found, channels, 20))
    features[7] = torch.nan
    out = sparse_conv(features, weight, found.table, None)
    met = (found.table == 7).any(0)
    assert met.any() and out[met].isnan().all()
    assert out[~met].isfinite().all()
