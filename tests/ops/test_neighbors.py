import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree

from sparse3d.ops import backend, neighbors

IMPLEMENTATIONS = ("reference", "native")
each = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)


def _cloud(count: int, seed: int, step: float = 0.0, dtype=torch.float32) -> torch.Tensor:
    """Points in a box; with a ``step``, rounded to a lattice so that many distances are equal."""
    points = torch.rand(count, 3, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 10
    return (points / step).round() * step if step else points


@each
def test_knn_agrees_with_scipy(implementation):
    query, points = _cloud(50, 0, dtype=torch.float64), _cloud(400, 1, dtype=torch.float64)
    distance, index = cKDTree(points.numpy()).query(query.numpy(), k=7)
    with backend.forced(implementation):
        found, squared = neighbors.knn(query, points, 7)
    assert found.tolist() == index.tolist()
    torch.testing.assert_close(squared.sqrt(), torch.from_numpy(distance))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    sizes=st.tuples(st.integers(0, 40), st.integers(0, 200)),
    k=st.integers(1, 40),
    step=st.sampled_from([0.0, 0.5, 2.5]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    radius=st.sampled_from([0.0, 1.0, 2.5, 100.0]),
)
def test_implementations_agree_bit_by_bit(seed, sizes, k, step, dtype, radius):
    query, points = (_cloud(n, seed + i, step, dtype) for i, n in enumerate(sizes))
    generator = torch.Generator().manual_seed(seed)
    batches = [torch.randint(0, 3, (n,), generator=generator) for n in sizes]
    for arguments in ((), batches):
        results = []
        for name in IMPLEMENTATIONS:
            with backend.forced(name):
                results.append(
                    neighbors.knn(query, points, k, *arguments)
                    + neighbors.radius_neighbors(query, points, radius, k, *arguments)
                )
        for reference, native in zip(*results):
            assert torch.equal(reference, native)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), implementation=st.sampled_from(IMPLEMENTATIONS))
def test_batch_of_two_is_two_batches_of_one(seed, implementation):
    clouds, queries = (
        [_cloud(60, seed), _cloud(30, seed + 1)],
        [_cloud(9, seed + 2), _cloud(5, seed)],
    )
    query_batch = torch.tensor([0] * 9 + [1] * 5)
    points_batch = torch.tensor([0] * 60 + [1] * 30)
    with backend.forced(implementation):
        index, squared = neighbors.knn(
            torch.cat(queries), torch.cat(clouds), 4, query_batch, points_batch
        )
        alone = [neighbors.knn(q, p, 4) for q, p in zip(queries, clouds)]
    assert torch.equal(index, torch.cat([alone[0][0], alone[1][0] + 60]))
    assert torch.equal(squared, torch.cat([alone[0][1], alone[1][1]]))


@each
def test_ties_go_to_the_smaller_index(implementation):
    points = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, -1], [0, 1, 0], [3, 0, 0]]).repeat(20, 1)
    with backend.forced(implementation):
        index, squared = neighbors.knn(torch.zeros(1, 3), points, 6)
    assert index.tolist() == [[0, 1, 2, 3, 5, 6]]
    assert squared.tolist() == [[1.0] * 6]


@each
def test_radius_is_inclusive_and_missing_neighbours_are_marked(implementation):
    points = torch.tensor([[0.0, 0, 0], [2, 0, 0], [2.001, 0, 0]])
    with backend.forced(implementation):
        index, squared = neighbors.radius_neighbors(torch.zeros(1, 3), points, 2.0, 3)
        nearest, _ = neighbors.radius_neighbors(torch.zeros(1, 3), points, 2.0, 1)
    assert index.tolist() == [[0, 1, -1]]
    assert squared.tolist() == [[0.0, 4.0, math.inf]]
    assert nearest.tolist() == [[0]]


@each
def test_nothing_is_legal(implementation):
    none, some = torch.zeros(0, 3), _cloud(4, 0)
    with backend.forced(implementation):
        assert neighbors.knn(none, some, 2)[0].shape == (0, 2)
        assert neighbors.knn(some, none, 2)[0].tolist() == [[-1, -1]] * 4
        index, _ = neighbors.knn(
            some, some, 2, torch.tensor([0, 0, 2, 2]), torch.tensor([1, 1, 2, 2])
        )
    assert index[:2].tolist() == [[-1, -1]] * 2
    assert index[2:].tolist() == [[2, 3], [3, 2]]


@each
def test_digits_survive_far_from_the_origin(implementation):
    points = _cloud(200, 0, step=0.25) + torch.tensor([500_000.0, 4_000_000.0, 0])
    with backend.forced(implementation):
        index, squared = neighbors.knn(points, points, 1)
    assert (squared == 0).all()
    assert (points[index[:, 0]] == points).all()


def test_number_of_threads_changes_nothing():
    query, points = _cloud(2000, 0, step=0.5), _cloud(3000, 1, step=0.5)
    threads = torch.get_num_threads()
    results = []
    for number in (1, 2):
        torch.set_num_threads(number)
        results.append(neighbors.knn(query, points, 9))
    torch.set_num_threads(threads)
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_refusals_name_the_value_and_the_remedy():
    points = _cloud(3, 0)
    bad = points.clone()
    bad[2, 1] = math.inf
    batch = torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ValueError, match="first is row 2"):
        neighbors.knn(points, bad, 1)
    with pytest.raises(ValueError, match="at least 1"):
        neighbors.knn(points, points, 0)
    with pytest.raises(ValueError, match=r"\(3, 2\)"):
        neighbors.knn(points[:, :2], points, 1)
    with pytest.raises(ValueError, match="radius is -1"):
        neighbors.radius_neighbors(points, points, -1, 1)
    with pytest.raises(ValueError, match="both, or neither"):
        neighbors.knn(points, points, 1, batch)
    with pytest.raises(ValueError, match="points_batch"):
        neighbors.knn(points, points, 1, batch, batch - 1)
