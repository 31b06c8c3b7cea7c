import importlib.util
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from sparse3d.ops import backend, conv, native
from sparse3d.ops.conv import sparse_conv, sparse_conv_norm
from sparse3d.ops.kernel_map import generative_map, strided_map, submanifold_map
from sparse3d.ops.pairs import LEVELS
from sparse3d.ops.spconv_adapter import offset_masks, pair_rows
from tests.gpu import needs_gpu
from tests.voxel_cases import IMPLEMENTATIONS, at_cells, dense_weight, random_coords, to_dense

each = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
SHAPE = (9, 8, 7)
HAS_SPCONV = importlib.util.find_spec("spconv") is not None
ALSO_SPCONV = [
    *IMPLEMENTATIONS,
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not HAS_SPCONV, reason="spconv is not installed")
    ),
]
# input channels, output channels, groups: whole vectors, tails, one channel, grouped, depthwise
WIDTHS = [
    (1, 1, 1),
    (3, 1, 1),
    (4, 16, 1),
    (5, 17, 1),
    (16, 16, 1),
    (20, 80, 1),
    (64, 48, 1),
    (32, 112, 1),
    (12, 6, 3),
    (20, 20, 10),
    (24, 24, 6),
    (40, 40, 5),
    (32, 64, 2),
    (7, 7, 7),
    (40, 40, 40),
]


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # spconv's, about torch.cuda.amp
        yield


def problem(found, channels, outputs, groups=1, dtype=torch.float32, seed=0):
    """Leaves (features, weight, bias) for a map."""
    generator = torch.Generator().manual_seed(seed)
    offsets = len(found.table)
    shapes = [(found.in_rows, channels), (offsets, channels // groups, outputs), (outputs,)]
    leaves = [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]
    leaves[1] /= (offsets * channels / groups) ** 0.5
    return [leaf.requires_grad_() for leaf in leaves]


def outcome(found, leaves, groups=1, implementation="native", up=False):
    """Output and the gradients of features, weight and bias for one random cotangent."""
    tables = (found.reverse, found.table) if up else (found.table, found.reverse)
    with backend.forced(implementation):
        out = sparse_conv(leaves[0], leaves[1], *tables, leaves[2], groups)
        cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(7)).to(out)
        return [out.detach(), *torch.autograd.grad(out, leaves, cotangent)]


def assert_close(ours, theirs, tolerance=1e-5):
    for a, b in zip(ours, theirs):
        scale = max(float(b.abs().max()), 1e-3) if b.numel() else 1.0
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("implementation", ALSO_SPCONV)
@pytest.mark.parametrize(
    "size,stride,padding,dilation",
    [
        (3, 1, 1, 1),
        (3, 2, 1, 1),
        (2, 2, 0, 1),
        (5, 2, 2, 1),
        ((3, 1, 1), (2, 1, 1), 0, 1),
        (3, 1, 2, 2),
    ],
)
def test_strided_is_the_dense_convolution_at_its_cells(
    size, stride, padding, dilation, implementation
):
    coords = random_coords(SHAPE)
    found = strided_map(coords, size, stride, padding, dilation, SHAPE)
    leaves = problem(found, 6, 5, dtype=torch.float32)
    size = size if isinstance(size, tuple) else (size,) * 3
    stride = stride if isinstance(stride, tuple) else (stride,) * 3
    dense = F.conv3d(
        to_dense(leaves[0], coords, SHAPE, 2),
        dense_weight(leaves[1], size),
        leaves[2],
        stride[::-1],
        padding,
        dilation,
    )
    expected = at_cells(dense, found.out_coords)
    ours = outcome(found, leaves, implementation=implementation)
    cotangent = torch.randn(expected.shape, generator=torch.Generator().manual_seed(7))
    assert_close(ours, [expected.detach(), *torch.autograd.grad(expected, leaves, cotangent)])


@pytest.mark.parametrize("implementation", ALSO_SPCONV)
def test_submanifold_is_the_dense_convolution_at_its_cells(implementation):
    coords = random_coords(SHAPE, share=0.4)
    found = submanifold_map(coords, 3)
    leaves = problem(found, 6, 5)
    dense = F.conv3d(
        to_dense(leaves[0], coords, SHAPE, 2), dense_weight(leaves[1], (3, 3, 3)), leaves[2], 1, 1
    )
    ours = outcome(found, leaves, implementation=implementation)
    torch.testing.assert_close(ours[0], at_cells(dense, coords), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("implementation", ALSO_SPCONV)
def test_generative_is_the_dense_transposed_convolution(implementation):
    coords = random_coords((4, 5, 3), share=0.3)
    found = generative_map(coords, 3, 2, 1, shape=(4, 5, 3))
    leaves = problem(found, 6, 5)
    weight = dense_weight(leaves[1], (3, 3, 3)).transpose(0, 1)
    dense = F.conv_transpose3d(to_dense(leaves[0], coords, (4, 5, 3), 2), weight, leaves[2], 2, 1)
    expected = at_cells(dense, found.out_coords)
    ours = outcome(found, leaves, implementation=implementation)
    cotangent = torch.randn(expected.shape, generator=torch.Generator().manual_seed(7))
    assert_close(ours, [expected.detach(), *torch.autograd.grad(expected, leaves, cotangent)])


@each
def test_maps_of_two_dimensions_are_the_dense_convolution(implementation):
    coords = random_coords((9, 8))
    found = strided_map(coords, (3, 5), (2, 1), (1, 2), shape=(9, 8))
    leaves = problem(found, 6, 5)
    dense = F.conv2d(
        to_dense(leaves[0], coords, (9, 8), 2),
        dense_weight(leaves[1], (3, 5)),
        leaves[2],
        (1, 2),
        (2, 1),
    )
    ours = outcome(found, leaves, implementation=implementation)
    expected = at_cells(dense, found.out_coords).detach()
    torch.testing.assert_close(ours[0], expected, rtol=1e-5, atol=1e-5)


@each
def test_impulse_shows_the_kernel_unflipped(implementation):
    """A one at cell 1 of a line, and W[k] = 10^k: output cell o is W[1 - o + 1]."""
    coords = torch.tensor([[0, x, 0, 0] for x in range(3)], dtype=torch.int32)
    features = torch.tensor([[0.0], [1.0], [0.0]])
    weight = torch.tensor([1.0, 10.0, 100.0]).reshape(3, 1, 1)
    found = submanifold_map(coords, (3, 1, 1))
    with backend.forced(implementation):
        out = sparse_conv(features, weight, found.table, None)
    assert out.flatten().tolist() == [100.0, 10.0, 1.0]


@each
def test_worked_example(implementation):
    """Two cells on one axis under the published meanings, worked by hand."""
    coords = torch.tensor([[0, 0, 0], [0, 3, 0]], dtype=torch.int32)
    weight = torch.tensor([1.0, 10.0, 100.0]).reshape(3, 1, 1)
    features = torch.tensor([[1.0], [2.0]])
    size, stride = (3, 1), (2, 1)
    ours = strided_map(coords, size, stride, (1, 0), shape=(6, 1))
    theirs = strided_map(coords, size, stride, meaning="minkowski")
    up = generative_map(ours.out_coords, size, stride, (1, 0), shape=(3, 1))
    free = generative_map(theirs.out_coords, size, stride, meaning="minkowski")

    def run(values, table):
        return sparse_conv(values, weight, table, None)

    with backend.forced(implementation):
        down = run(features, ours.table)
        halved = run(features, theirs.table)
        assert down.flatten().tolist() == [10, 200, 2]
        assert halved.flatten().tolist() == [10, 200]
        assert run(down, ours.reverse).flatten().tolist() == [100, 20002]
        assert run(down, up.table).flatten().tolist() == [100, 1200, 2000, 20002, 20]
        assert run(halved, theirs.reverse).flatten().tolist() == [100, 20000]
        assert run(halved, free.table).flatten().tolist() == [10, 100, 1200, 2000, 20000]


@pytest.mark.parametrize("channels,outputs,groups", WIDTHS)
@pytest.mark.parametrize("level", LEVELS[1:])
@pytest.mark.parametrize("up", [False, True])
def test_native_agrees_with_the_definition(channels, outputs, groups, level, up, monkeypatch):
    coords = random_coords((20, 19, 18), batch=1, share=0.12)
    found = strided_map(coords, 3, 2, 1, shape=(20, 19, 18))
    leaves = problem(found, channels, outputs, groups)
    if up:
        rows = found.table.shape[1]
        leaves[0] = torch.randn(rows, channels, generator=torch.Generator().manual_seed(1))
        leaves[0].requires_grad_()
    definition = outcome(found, leaves, groups, "reference", up)
    monkeypatch.setenv("SPARSE3D_ISA", level)
    assert_close(outcome(found, leaves, groups, "native", up), definition)


@pytest.mark.parametrize("channels,outputs,groups", WIDTHS)
def test_threads_and_instruction_sets_give_equal_bits(channels, outputs, groups, monkeypatch):
    coords = random_coords((30, 40, 20), batch=1, share=0.6)  # several ranges of the gradient's sum
    found = submanifold_map(coords, 3)
    leaves = problem(found, channels, outputs, groups)
    before, results = torch.get_num_threads(), {}
    try:
        for level in ("avx512", "avx2"):
            for threads in (1, 2, 3):
                monkeypatch.setenv("SPARSE3D_ISA", level)
                torch.set_num_threads(threads)
                results[level, threads] = outcome(found, leaves, groups)
    finally:
        torch.set_num_threads(before)
    first = results["avx512", 1]
    for key, result in results.items():
        assert all(torch.equal(a, b) for a, b in zip(first, result)), key


@each
def test_autocast_rounds_to_bfloat16_and_keeps_gradients_in_float(implementation):
    found = submanifold_map(random_coords(), 3)
    features, weight, bias = problem(found, 6, 5)
    exact = sparse_conv(features, weight, found.table, found.reverse, bias)
    with backend.forced(implementation), torch.autocast("cpu", torch.bfloat16):
        ours = sparse_conv(features, weight, found.table, found.reverse, bias)
        gradients = torch.autograd.grad(ours.float().sum(), (features, weight, bias))
    assert ours.dtype == torch.bfloat16
    assert all(gradient.dtype == torch.float32 for gradient in gradients)
    assert_close([ours.float()], [exact], 2e-2)
    assert_close(gradients, torch.autograd.grad(exact.sum(), (features, weight, bias)), 2e-2)


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("with_residual,relu", [(False, True), (True, False), (True, True)])
def test_norm_residual_and_relu_in_one_pass(dtype, groups, with_residual, relu, implementation):
    found = strided_map(random_coords(), 3, 2, 1, shape=SHAPE)
    features, weight, _ = (leaf.detach().to(dtype) for leaf in problem(found, 6, 34, groups))
    scale, shift = torch.linspace(-1, 2, 34), torch.linspace(0, 1, 34)
    residual = torch.randn(found.table.shape[1], 34).to(dtype) if with_residual else None
    with backend.forced(implementation):
        ending = (scale, shift, residual, relu)
        ours = sparse_conv_norm(features, weight, found.table, *ending, groups)
    exact = (features.double(), weight.double(), found.table, None, None, groups)
    expected = sparse_conv(*exact) * scale + shift
    expected = expected if residual is None else expected + residual
    assert ours.dtype == dtype
    expected = expected.relu() if relu else expected
    assert_close([ours.double()], [expected], 1e-2 if dtype == torch.bfloat16 else 1e-5)


@each
def test_a_table_that_was_changed_in_place_is_listed_again(implementation):
    table = submanifold_map(random_coords(), 3).table.clone()
    features, weight = torch.randn(table.shape[1], 4), torch.randn(27, 4, 6)
    for dtype in (torch.float32, torch.bfloat16):
        given = (features.to(dtype), weight.to(dtype), table, None)
        with backend.forced(implementation):
            assert sparse_conv(*given).abs().sum() > 0
            kept = table.clone()
            table.fill_(-1)
            assert not sparse_conv(*given).any()
        table.copy_(kept)


def test_an_unknown_instruction_set_is_refused(monkeypatch):
    found = submanifold_map(random_coords(), 3)
    monkeypatch.setenv("SPARSE3D_ISA", "sse9")
    with backend.forced("native"), pytest.raises(ValueError, match=r"sse9.*avx512"):
        sparse_conv(*problem(found, 2, 2)[:2], found.table, None)


@each
@pytest.mark.parametrize("groups", [1, 2])
def test_gradients_are_those_of_finite_differences(groups, implementation):
    coords = random_coords((3, 3, 2), batch=1, share=0.4)
    found = strided_map(coords, (3, 2, 1), 2, (1, 0, 0), shape=(3, 3, 2))
    leaves = problem(found, 2, 2, groups, torch.float64)

    def function(features, weight, bias):
        return sparse_conv(features, weight, found.table, found.reverse, bias, groups)

    with backend.forced(implementation):
        assert torch.autograd.gradcheck(function, leaves)
        assert torch.autograd.gradgradcheck(function, leaves)


@each
def test_up_is_the_adjoint_of_down(implementation):
    """<y, A x> = <A^T y, x> with transposed weights."""
    found = strided_map(random_coords(), 3, 2, 1, shape=SHAPE)
    features, weight, _ = (leaf.detach() for leaf in problem(found, 6, 5))
    other = torch.randn(found.table.shape[1], 5)
    with backend.forced(implementation):
        down = sparse_conv(features, weight, found.table, found.reverse)
        up = sparse_conv(other, weight.transpose(1, 2), found.reverse, found.table)
    torch.testing.assert_close((other * down).sum(), (up * features).sum(), rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not HAS_SPCONV, reason="spconv is not installed")
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("up", [False, True])
def test_the_spconv_entry_agrees_with_the_definition_and_runs_spconv(groups, up, monkeypatch):
    from spconv.pytorch import functional

    found = strided_map(random_coords(), 3, 2, 1, shape=SHAPE)
    leaves = problem(found, 6, 8, groups)
    if up:
        leaves[0] = torch.randn(found.table.shape[1], 6).requires_grad_()
    definition = outcome(found, leaves, groups, "reference", up)
    calls, original = [], functional.indice_conv
    monkeypatch.setattr(
        functional, "indice_conv", lambda *args: calls.append(len(args)) or original(*args)
    )
    assert_close(outcome(found, leaves, groups, "cuda", up), definition)
    assert len(calls) == 2 * groups, "forward and the gradient by the features"


@needs_gpu
@pytest.mark.parametrize("up", [False, True])
@pytest.mark.parametrize("channels, outputs, groups", WIDTHS)
def test_a_gpu_gives_what_the_cpu_gives(channels, outputs, groups, up):
    found = strided_map(random_coords(), 3, 2, 1, shape=SHAPE)
    leaves = problem(found, channels, outputs, groups)
    if up:
        leaves[0] = torch.randn(found.table.shape[1], channels).requires_grad_()
    expected = outcome(found, leaves, groups, "reference", up)
    theirs = strided_map(random_coords().cuda(), 3, 2, 1, shape=SHAPE)
    assert torch.equal(theirs.table.cpu(), found.table)
    assert torch.equal(theirs.out_coords.cpu(), found.out_coords)
    leaves = [leaf.detach().cuda().requires_grad_() for leaf in leaves]
    ours = outcome(theirs, leaves, groups, "cuda", up)
    assert_close([x.cpu() for x in ours], expected)


@needs_gpu
@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("coords", [[[0, 1, 2, 3]], [[0, 0, 0, 0], [0, 50, 50, 50]], []])
def test_a_gpu_convolves_few_voxels_and_none(coords, kernel):
    coords = torch.tensor(coords, dtype=torch.int32).view(-1, 4)
    found = submanifold_map(coords, kernel)
    expected = outcome(found, problem(found, 4, 8), 1, "reference")
    theirs = submanifold_map(coords.cuda(), kernel)
    leaves = [leaf.detach().cuda().requires_grad_() for leaf in problem(found, 4, 8)]
    assert_close([x.cpu() for x in outcome(theirs, leaves, 1, "cuda")], expected)


def test_masks_for_spconv_name_the_offsets_of_each_row():
    table = strided_map(random_coords(), (4, 4, 2), 2, 1, shape=SHAPE).table  # all 32 bits
    masks, order = offset_masks(table)
    assert masks.dtype == order.dtype == torch.int32
    bits = (masks >> torch.arange(32)) & 1
    assert torch.equal(bits.T.bool(), table[:, order.long()] >= 0)
    assert (masks[1:] >= masks[:-1]).all() and len(order.unique()) == table.shape[1]


@pytest.mark.skipif(not HAS_SPCONV, reason="spconv is not installed")
def test_the_spconv_entry_takes_bfloat16_which_spconv_refuses():
    found = strided_map(random_coords(), 3, 2, 1, shape=SHAPE)
    features, weight = (leaf.detach().bfloat16() for leaf in problem(found, 6, 8)[:2])
    with backend.forced("cuda"):
        ours = sparse_conv(features, weight, found.table, found.reverse)
    expected = sparse_conv(features.float(), weight.float(), found.table, found.reverse)
    assert ours.dtype == torch.bfloat16
    assert_close([ours.float()], [expected], 1e-2)


@pytest.mark.skipif(not HAS_SPCONV, reason="spconv is not installed")
def test_pairs_for_spconv_are_the_triples_of_the_table():
    table = strided_map(random_coords(), 3, 2, 1, shape=SHAPE).table
    pairs, counts = pair_rows(table)
    assert pairs.dtype == counts.dtype == torch.int32 and pairs.is_contiguous()
    rebuilt = torch.full_like(table, -1)
    for k, count in enumerate(counts.tolist()):
        rebuilt[k, pairs[1, k, :count].long()] = pairs[0, k, :count]
        assert (pairs[:, k, count:] == -1).all()
    assert torch.equal(rebuilt, table)


@pytest.mark.skipif(not HAS_SPCONV, reason="spconv is not installed")
@pytest.mark.parametrize("kind", ["submanifold", "strided"])
def test_layers_of_spconv_give_the_same_cells_and_values(kind):
    import spconv.pytorch as peer
    from spconv.core import ConvAlgo

    coords = random_coords(SHAPE)
    options = dict(bias=False, algo=ConvAlgo.Native)
    if kind == "submanifold":
        layer, found = peer.SubMConv3d(5, 6, 3, **options), submanifold_map(coords, 3)
    else:
        layer = peer.SparseConv3d(5, 6, 3, 2, 1, **options)
        found = strided_map(coords, 3, 2, 1, shape=SHAPE)
    features = torch.randn(len(coords), 5)
    zyx = coords[:, [0, 3, 2, 1]].contiguous()
    theirs = layer(peer.SparseConvTensor(features, zyx, list(SHAPE[::-1]), 2))
    weight = layer.weight.detach().permute(1, 2, 3, 4, 0).reshape(-1, 5, 6)
    ours = sparse_conv(features, weight, found.table, None)
    dense = to_dense(ours, found.out_coords, found.out_shape or SHAPE, 2)
    torch.testing.assert_close(dense, theirs.dense(), rtol=1e-5, atol=1e-5)


@each
@pytest.mark.parametrize("rows", [0, 1])
def test_nothing_and_one_voxel(rows, implementation):
    coords = torch.tensor([[0, 1, 2, 3]], dtype=torch.int32)[:rows]
    found = strided_map(coords, 3, 2, 1, shape=SHAPE)
    leaves = problem(found, 3, 4)
    out, d_features, d_weight, d_bias = outcome(found, leaves, implementation=implementation)
    assert out.shape == (found.table.shape[1], 4) and d_features.shape == (rows, 3)
    assert d_weight.shape == (27, 3, 4) and torch.isfinite(d_weight).all()
    if not rows:
        assert not d_weight.any() and not d_bias.any()


@each
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_come_back_as_they_are(dtype, implementation):
    found = submanifold_map(random_coords(), 3)
    features, weight, bias = problem(found, 6, 5)
    exact = sparse_conv(features, weight, found.table, None, bias)
    with backend.forced(implementation):
        other = sparse_conv(features.to(dtype), weight, found.table, None, bias)
    assert other.dtype == dtype
    torch.testing.assert_close(other.float(), exact, rtol=2e-2, atol=2e-2)


def test_a_gradient_without_the_reverse_table_is_refused():
    found = submanifold_map(random_coords(), 3)
    features, weight, _ = problem(found, 2, 2)
    with pytest.raises(ValueError, match="reverse"):
        sparse_conv(features, weight, found.table, None).sum().backward()


def test_shapes_that_do_not_fit_are_refused():
    found = submanifold_map(random_coords(), 3)
    features, weight, _ = problem(found, 4, 6)
    with pytest.raises(ValueError, match="same K"):
        sparse_conv(features, weight[:9], found.table, None)
    with pytest.raises(ValueError, match="groups=3, Cin must be 12"):
        sparse_conv(features, weight, found.table, None, groups=3)
    with pytest.raises(ValueError, match="int64"):
        sparse_conv(features, weight, found.table.long(), None)
    with pytest.raises(ValueError, match="reverse has shape"):
        sparse_conv(features, weight, found.table, found.table[:, :-1])


@pytest.mark.parametrize("level", LEVELS[1:])
def test_a_table_of_other_voxels_is_refused_not_read_past_the_end(level, monkeypatch):
    found = submanifold_map(random_coords(), 3)
    features, weight, _ = (leaf.detach() for leaf in problem(found, 4, 6))
    last = len(features) - 1
    monkeypatch.setenv("SPARSE3D_ISA", level)
    with backend.forced("native"):
        with pytest.raises(ValueError, match=f"row {last} but there are {last} rows"):
            sparse_conv(features[:-1], weight, found.table, None)
        with pytest.raises(ValueError, match=f"row {last} but there are {last} rows"):
            conv.WEIGHT_GRAD["native"](features[:-1], features, found.table, 1)


@each
def test_the_operator_is_registered_soundly(implementation):
    found = strided_map(random_coords(), 3, 2, 1, shape=SHAPE)
    features, weight, bias = problem(found, 4, 6, 2)
    with backend.forced(implementation):
        torch.library.opcheck(
            torch.ops.sparse3d.sparse_conv.default,
            (features, weight, bias, found.table, found.reverse, 2),
        )


@each
def test_the_fused_operator_is_registered_soundly(implementation):
    found = strided_map(random_coords(), 3, 2, 1, shape=SHAPE)
    features, weight, _ = (leaf.detach() for leaf in problem(found, 4, 6, 2))
    scale, residual = torch.randn(6), torch.randn(found.table.shape[1], 6)
    with backend.forced(implementation):
        torch.library.opcheck(
            torch.ops.sparse3d.sparse_conv_norm.default,
            (features, weight, found.table, scale, scale, residual, True, 2),
        )


def test_compiles_without_a_break():
    found = submanifold_map(random_coords(), 3)
    leaves = problem(found, 4, 6)

    def block(features, weight, bias):
        return torch.relu(sparse_conv(features, weight, found.table, found.reverse, bias))

    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    ours = torch.autograd.grad(compiled(*leaves).square().sum(), leaves)
    theirs = torch.autograd.grad(block(*leaves).square().sum(), leaves)
    assert_close(ours, theirs)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 3),
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from([1, 2, 3]),
    st.integers(0, 1000),
)
def test_any_channels_any_kernel(batch, channels, outputs, size, seed):
    coords = random_coords((6, 5, 4), batch=batch, share=0.3, seed=seed)
    found = strided_map(coords, size, 2, size // 2, shape=(6, 5, 4))
    leaves = problem(found, channels, outputs, seed=seed)
    assert_close(outcome(found, leaves), outcome(found, leaves, implementation="reference"))


def test_a_batch_of_two_equals_two_batches_of_one():
    both = random_coords((12, 11, 10), batch=2, share=0.3)
    features = torch.randn(len(both), 8)
    weight = torch.randn(27, 8, 16)
    parts = []
    for sample in (0, 1):
        rows = both[:, 0] == sample
        own = both[rows].clone()
        own[:, 0] = 0
        parts.append(sparse_conv(features[rows], weight, submanifold_map(own, 3).table, None))
    together = sparse_conv(features, weight, submanifold_map(both, 3).table, None)
    assert torch.equal(together, torch.cat(parts))


def test_strided_features_are_taken():
    found = submanifold_map(random_coords(), 3)
    features, weight, bias = problem(found, 6, 5)
    turned = features.detach().t().contiguous().t()
    assert not turned.is_contiguous() and native.available()
    ours = sparse_conv(turned, weight, found.table, None, bias)
    assert torch.equal(ours, sparse_conv(features, weight, found.table, None, bias))
