import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from sparse3d.ops import backend
from sparse3d.ops.kernel_map import strided_map, submanifold_map
from sparse3d.ops.pool import REDUCTIONS, global_pool, sparse_pool
from tests.threads import for_threads
from tests.voxel_cases import IMPLEMENTATIONS, at_cells, random_coords, to_dense

each = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
SHAPE = (9, 8, 7)


def pooled(found, features, reduce, implementation="native"):
    """Values and the gradient for one random cotangent."""
    with backend.forced(implementation):
        leaf = features.clone().requires_grad_()
        out = sparse_pool(leaf, found.table, found.reverse, reduce)
        cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(3)).to(out)
        return out.detach(), *torch.autograd.grad(out, leaf, cotangent)


@each
@pytest.mark.parametrize("size,stride,padding", [(2, 2, 0), (3, 2, 1), (3, 1, 1)])
def test_maxima_are_those_of_the_dense_pool_over_present_cells(
    size, stride, padding, implementation
):
    coords = random_coords(SHAPE)
    found = strided_map(coords, size, stride, padding, shape=SHAPE)
    features = torch.randn(len(coords), 5) - 2  # mostly negative: absent cells must not win
    dense = to_dense(features + 100, coords, SHAPE, 2)
    expected = at_cells(F.max_pool3d(dense, size, stride, padding), found.out_coords) - 100
    out, _ = pooled(found, features, "max", implementation)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-4)


@each
def test_sums_and_means_are_those_of_the_dense_pool(implementation):
    coords = random_coords(SHAPE)
    found = strided_map(coords, 3, 2, 1, shape=SHAPE)
    features = torch.randn(len(coords), 5)
    stacked = torch.cat([features, torch.ones(len(coords), 1)], 1)
    dense = F.avg_pool3d(to_dense(stacked, coords, SHAPE, 2), 3, 2, 1, divisor_override=1)
    at = at_cells(dense, found.out_coords)
    sums, present = at[:, :5], at[:, 5:]
    torch.testing.assert_close(pooled(found, features, "sum", implementation)[0], sums)
    torch.testing.assert_close(pooled(found, features, "mean", implementation)[0], sums / present)


@each
def test_equal_maxima_give_the_gradient_to_the_smallest_coordinate(implementation):
    coords = torch.tensor([[0, 0, 0, 1], [0, 0, 1, 0], [0, 1, 0, 0]], dtype=torch.int32)
    found = strided_map(coords, 2, 2)
    features = torch.full((3, 1), -4.0, requires_grad=True)
    with backend.forced(implementation):
        out = sparse_pool(features, found.table, found.reverse, "max")
        out.sum().backward()
    assert out.tolist() == [[-4.0]]
    assert features.grad.flatten().tolist() == [1, 0, 0]


@each
@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_gradients_are_those_of_finite_differences(reduce, implementation):
    coords = random_coords((4, 4, 3), share=0.4)
    found = strided_map(coords, 3, 2, 1, shape=(4, 4, 3))
    features = torch.randn(len(coords), 2, dtype=torch.float64, requires_grad=True)
    with backend.forced(implementation):
        assert torch.autograd.gradcheck(
            lambda x: sparse_pool(x, found.table, found.reverse, reduce), features
        )


@each
@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_nothing_present_gives_zero(reduce, implementation):
    table = torch.tensor([[-1, 0], [-1, -1]], dtype=torch.int32)
    reverse = torch.tensor([[1], [-1]], dtype=torch.int32)
    with backend.forced(implementation):
        out = sparse_pool(torch.tensor([[-3.0]]), table, reverse, reduce)
        none = sparse_pool(torch.zeros(0, 2), table[:, :0], reverse[:, :0], reduce)
    assert out.tolist() == [[0.0], [-3.0]] and none.shape == (0, 2)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 3),
    st.integers(1, 20),
    st.sampled_from(REDUCTIONS),
    st.sampled_from([2, 3]),
    st.integers(0, 100),
)
def test_native_gives_the_bits_of_the_definition(batch, channels, reduce, size, seed):
    coords = random_coords((6, 5, 4), batch=batch, share=0.4, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    features = torch.randint(-2, 3, (len(coords), channels), generator=generator).float()
    for found in (strided_map(coords, size, 2), submanifold_map(coords, 3)):
        ours = pooled(found, features, reduce)
        definition = pooled(found, features, reduce, "reference")
        assert all(torch.equal(a, b) for a, b in zip(ours, definition))


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_threads_give_equal_bits(reduce):
    coords = random_coords((30, 30, 20), batch=1, share=0.3)
    found = strided_map(coords, 3, 2, 1)
    features = torch.randn(len(coords), 9)
    results = for_threads(lambda: pooled(found, features, reduce), (1, 2))
    assert all(torch.equal(a, b) for a, b in zip(*results))


@each
@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_half_precision_comes_back_as_it_is(reduce, implementation):
    found = strided_map(random_coords(), 3, 2, 1)
    features = torch.randn(found.in_rows, 4)
    with backend.forced(implementation):
        out = sparse_pool(features.bfloat16(), found.table, found.reverse, reduce)
    assert out.dtype == torch.bfloat16
    exact = pooled(found, features.bfloat16().float(), reduce)[0]
    torch.testing.assert_close(out.float(), exact, rtol=1e-2, atol=1e-2)


@each
@pytest.mark.parametrize("reduce", ["sum", "max"])
def test_the_operators_are_registered_soundly(reduce, implementation):
    found = strided_map(random_coords(), 3, 2, 1)
    features = torch.randn(found.in_rows, 3, requires_grad=True)
    operator = getattr(torch.ops.sparse3d, f"pool_{reduce}").default
    with backend.forced(implementation):
        torch.library.opcheck(operator, (features, found.table, found.reverse))


@each
def test_global_pooling_is_per_sample_and_an_empty_sample_is_zero(implementation):
    features = torch.tensor([[-1.0], [-3.0], [5.0]])
    index = torch.tensor([0, 0, 2])
    with backend.forced(implementation):
        found = {r: global_pool(features, index, 3, r).flatten().tolist() for r in REDUCTIONS}
    assert found == {"max": [-1, 0, 5], "mean": [-2, 0, 5], "sum": [-4, 0, 5]}


def test_wrong_arguments_are_refused():
    found = strided_map(random_coords(), 3, 2, 1)
    features = torch.zeros(found.in_rows, 1)
    with pytest.raises(ValueError, match=r"'median'.*max, mean, sum"):
        sparse_pool(features, found.table, found.reverse, "median")
    with pytest.raises(ValueError, match="reverse has shape"):
        sparse_pool(features[1:], found.table, found.reverse, "max")


@pytest.mark.parametrize("reduce", ["sum", "max"])
def test_tables_of_other_voxels_are_refused_not_read_past_the_end(reduce):
    found = strided_map(random_coords(), 3, 2, 1)
    features = torch.zeros(found.in_rows, 1, requires_grad=True)
    rows = found.in_rows - 1
    with backend.forced("native"):
        with pytest.raises(ValueError, match=f"row {rows} but there are {rows} rows"):
            sparse_pool(features[:-1], found.table, found.reverse[:, :-1], reduce)
        out = sparse_pool(features, found.table, found.reverse + 1, reduce)
        with pytest.raises(ValueError, match=f"but there are {len(out)} rows"):
            out.sum().backward()
