"""Attention inside sets, against attention of each set by itself."""

import itertools

import pytest
import torch
from torch.nn import functional as F

from sparse3d.ops import backend
from sparse3d.ops.set_attention import set_attention

IMPLEMENTATIONS = ("reference", "native")
each = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
LEVELS = ("avx512", "avx2", "plain")


def problem(rows: int, channels: int, most: int = 20, dtype=torch.float32, seed: int = 0):
    """qkv, position, position_index, order, offsets, with sets of 1 to ``most`` rows."""
    random = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, most + 1, (rows,), generator=random)
    offsets = F.pad(sizes.cumsum(0), (1, 0)).clamp(max=rows).unique()
    qkv = torch.randn(rows, 3 * channels, generator=random, dtype=dtype)
    position = torch.randn(9, 2 * channels, generator=random, dtype=dtype)
    index = torch.randint(0, 9, (rows,), generator=random)
    order = torch.randperm(rows, generator=random)
    return qkv.requires_grad_(), position.requires_grad_(), index, order, offsets


def attend_set_by_set(qkv, position, index, order, offsets, heads):
    channels = qkv.shape[1] // 3
    out = torch.zeros(len(qkv), channels, dtype=qkv.dtype)
    for begin, end in itertools.pairwise(offsets):
        rows = order[begin:end]
        q, k, v = qkv[rows].split(channels, 1)
        to_q, to_k = position[index[rows]].split(channels, 1)
        q, k, v = (x.unflatten(1, (heads, -1)).transpose(0, 1) for x in (q + to_q, k + to_k, v))
        weights = (q @ k.transpose(1, 2) / q.shape[2] ** 0.5).softmax(2)
        out = out.index_add(0, rows, (weights @ v).transpose(0, 1).flatten(1))
    return out


def forward_and_gradients(function, inputs, cotangent):
    for tensor in inputs[:2]:
        tensor.grad = None
    out = function()
    out.backward(cotangent)
    return out.detach(), *(tensor.grad for tensor in inputs[:2])


@each
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("channels, heads", [(32, 8), (64, 8), (16, 1), (96, 4), (21, 3), (40, 4)])
def test_agrees_with_attention_set_by_set(implementation, channels, heads, level, monkeypatch):
    if implementation == "reference" and level != LEVELS[0]:
        pytest.skip("instruction sets concern the kernel only")
    monkeypatch.setenv("SPARSE3D_ISA", level)
    inputs = problem(150, channels, most=40)
    cotangent = torch.randn(150, channels)
    with backend.forced(implementation):
        found = forward_and_gradients(lambda: set_attention(*inputs, heads), inputs, cotangent)
    expected = forward_and_gradients(lambda: attend_set_by_set(*inputs, heads), inputs, cotangent)
    for mine, other in zip(found, expected):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


@each
def test_gradient_in_double_precision(implementation):
    inputs = problem(12, 4, most=5, dtype=torch.float64)
    with backend.forced(implementation):
        assert torch.autograd.gradcheck(
            lambda qkv, position: set_attention(qkv, position, *inputs[2:], 2), inputs[:2]
        )


@each
def test_large_scores_do_not_overflow(implementation):
    qkv, position, *index = problem(60, 16)
    with backend.forced(implementation):
        out = set_attention((qkv * 200).detach(), position.detach(), *index, 2)
    assert torch.isfinite(out).all()
    values = (qkv * 200)[:, 32:].detach()
    assert (out.abs().amax(0) <= values.abs().amax(0) + 1e-3).all()  # a mean of values


def test_threads_leave_no_trace():
    inputs = problem(2000, 32)
    cotangent = torch.randn(2000, 32)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 4):
            torch.set_num_threads(count)
            results.append(
                forward_and_gradients(lambda: set_attention(*inputs, 8), inputs, cotangent)
            )
    finally:
        torch.set_num_threads(threads)
    for mine, other in zip(*results):
        assert torch.equal(mine, other)


@each
def test_no_rows(implementation):
    qkv = torch.zeros(0, 24, requires_grad=True)
    position = torch.zeros(0, 16, requires_grad=True)
    none = torch.zeros(0, dtype=torch.int64)
    with backend.forced(implementation):
        out = set_attention(qkv, position, none, none, torch.zeros(1, dtype=torch.int64), 2)
        out.sum().backward()
    assert out.shape == (0, 8) and qkv.grad.shape == (0, 24)


@each
def test_half_precision_is_computed_and_returned(implementation):
    inputs = problem(50, 32)
    exact = attend_set_by_set(*inputs, 8)
    half = (inputs[0].bfloat16(), inputs[1].bfloat16(), *inputs[2:])
    with backend.forced(implementation):
        out = set_attention(*half, 8)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), exact, rtol=0.1, atol=0.1)


def test_the_kernel_passes_the_checks_of_torch_library():
    torch.library.opcheck(torch.ops.sparse3d.set_attention.default, (*problem(20, 8), 2))


def test_wrong_sizes_are_refused():
    qkv, position, *index = problem(10, 16)
    with pytest.raises(ValueError, match="multiple of heads = 5"):
        set_attention(qkv, position, *index, 5)
    with pytest.raises(ValueError, match="position 31"):
        set_attention(qkv, position[:, :31], *index, 2)
