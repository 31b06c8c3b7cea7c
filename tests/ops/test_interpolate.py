import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse3d.ops import backend
from sparse3d.ops.interpolate import inverse_distance, weighted_rows

IMPLEMENTATIONS = ("reference", "native")
each = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    rows=st.integers(0, 30),
    queries=st.integers(0, 40),
    k=st.integers(1, 5),
)
def test_native_is_the_definition(seed, rows, queries, k):
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(-1, rows, (queries, k), generator=generator)
    weights = torch.rand(queries, k, generator=generator)
    values = torch.randn(rows, 6, generator=generator)
    cotangent = torch.randn(queries, 6, generator=generator)
    results = []
    for name in IMPLEMENTATIONS:
        leaves = [values.clone().requires_grad_(), weights.clone().requires_grad_()]
        with backend.forced(name):
            out = weighted_rows(leaves[0], index, leaves[1])
            results.append((out, *torch.autograd.grad(out, leaves, cotangent)))
    for reference, found in zip(*results):
        torch.testing.assert_close(found, reference, rtol=1e-5, atol=1e-5)


@each
def test_gradients_are_true(implementation):
    values = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(5, 4, dtype=torch.float64, requires_grad=True)
    index = torch.randint(-1, 7, (5, 4), generator=torch.Generator().manual_seed(0))
    with backend.forced(implementation):
        assert torch.autograd.gradcheck(lambda v, w: weighted_rows(v, index, w), (values, weights))


@each
def test_a_point_takes_the_value_of_the_one_it_lies_on_and_else_a_mean(implementation):
    points = torch.tensor([[0.0, 0, 0], [1, 0, 0], [9, 9, 9]])
    query = torch.tensor([[1.0, 0, 0], [0.25, 0, 0]])
    values = torch.tensor([[0.0], [100.0], [7.0]])
    with backend.forced(implementation):
        found = weighted_rows(values, *inverse_distance(query, points, 2))
    torch.testing.assert_close(found, torch.tensor([[100.0], [25.0]]), rtol=1e-4, atol=1e-4)


@each
def test_few_or_no_points_of_a_sample_are_legal(implementation):
    points = torch.rand(3, 3)
    query, sample = torch.rand(4, 3), torch.tensor([0, 0, 1, 2])
    with backend.forced(implementation):
        index, weights = inverse_distance(query, points, 8, sample, torch.tensor([0, 0, 2]))
        found = weighted_rows(torch.ones(3, 1), index, weights)
    torch.testing.assert_close(found[:, 0], torch.tensor([1.0, 1, 0, 1]))


def test_an_index_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"must be in \[-1, 3\)"):
        weighted_rows(torch.ones(3, 1), torch.tensor([[3]]), torch.ones(1, 1))
    with pytest.raises(ValueError, match=r"\[Q, K\]"):
        weighted_rows(torch.ones(3, 1), torch.tensor([[0]]), torch.ones(1, 2))
