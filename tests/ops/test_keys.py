import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse3d.ops import backend
from sparse3d.ops.keys import KeySpace, find_rows, find_sorted, sort_rows
from tests.voxel_cases import IMPLEMENTATIONS

batches, cells = st.integers(0, 3), st.integers(-(2**18), 2**18)
rows = st.lists(st.tuples(batches, cells, cells, cells), min_size=1, max_size=30)


@given(rows)
def test_keys_keep_the_order_and_come_back(cells):
    coords = torch.tensor(cells, dtype=torch.int32)
    space = KeySpace.around(coords)
    keys = space.keys(coords)
    assert [tuple(c) for c in coords[keys.argsort(stable=True)].tolist()] == sorted(cells)
    assert torch.equal(space.coords(keys), coords)


def test_a_neighbour_is_a_constant_difference_and_lines_do_not_meet():
    coords = torch.tensor([[0, 0, 0, 0], [0, 1, 2, 3]], dtype=torch.int32)
    space = KeySpace.around(coords, border=1)
    for axis in range(1, 4):
        step = torch.zeros(4, dtype=torch.int32)
        step[axis] = 1
        assert (space.keys(coords + step) - space.keys(coords)).unique().item() == space.strides[
            axis
        ]
    after_end = space.keys(coords[1:] + torch.tensor([0, 0, 0, 1]))
    next_line = space.keys(torch.tensor([[0, 1, 3, 0]]))
    assert after_end.item() != next_line.item()


def test_too_wide_a_box_is_refused_and_names_the_voxel():
    far = torch.tensor([[0, 0, 0, 0], [0, 2**31 - 1, 2**31 - 1, 2**31 - 1]], dtype=torch.int32)
    with pytest.raises(ValueError, match="2147483647"):
        KeySpace.around(far)


def test_contains_and_find():
    coords = torch.tensor([[0, 0, 0, 0], [0, 5, 0, 0]], dtype=torch.int32)
    space = KeySpace.around(coords)
    wanted = torch.tensor([[0, 5, 0, 0], [0, 3, 0, 0]])
    assert space.contains(torch.tensor([[0, 5, 0, 0], [0, 6, 0, 0]])).tolist() == [True, False]
    assert find_sorted(space.keys(coords), space.keys(wanted)).tolist() == [1, -1]
    assert find_sorted(torch.zeros(0, dtype=torch.int64), torch.tensor([3])).tolist() == [-1]


def test_no_rows():
    none = torch.zeros(0, 4, dtype=torch.int32)
    assert KeySpace.around(none).keys(none).shape == (0,)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(batches, *[st.integers(-2, 2)] * 3), max_size=40), st.integers(2, 4))
def test_sorted_rows_are_distinct_and_lead_back(implementation, cells, columns):
    coords = torch.tensor([cell[:columns] for cell in cells], dtype=torch.int32).view(-1, columns)
    with backend.forced(implementation):
        unique, first, inverse = sort_rows(coords)
    assert [tuple(row) for row in unique.tolist()] == sorted({cell[:columns] for cell in cells})
    assert torch.equal(unique[inverse], coords) and torch.equal(coords[first], unique)
    assert all(int((inverse == place).nonzero()[0]) == row for place, row in enumerate(first))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(batches, *[st.integers(-3, 3)] * 3), max_size=60),
    st.lists(st.tuples(batches, *[st.integers(-4, 4)] * 3), max_size=60),
    st.integers(2, 4),
)
def test_rows_are_found_in_any_order(implementation, cells, wanted, columns):
    known = sorted({cell[:columns] for cell in cells})
    asked = [cell[:columns] for cell in wanted]
    tables = [torch.tensor(part, dtype=torch.int32).view(-1, columns) for part in (known, asked)]
    with backend.forced(implementation):
        rows = find_rows(*tables)
    assert rows.tolist() == [known.index(cell) if cell in known else -1 for cell in asked]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_rows_at_the_ends_of_the_numbers_are_found(implementation):
    ends = (-(2**31), -1, 0, 2**31 - 1)
    coords = torch.tensor([[0, value, value, 0] for value in ends[1:3]], dtype=torch.int32)
    wanted = torch.tensor([[0, a, b, 0] for a in ends for b in ends], dtype=torch.int32)
    with backend.forced(implementation):
        rows = find_rows(coords, wanted)
    assert [i for i, row in enumerate(rows.tolist()) if row >= 0] == [5, 10]
    assert rows[[5, 10]].tolist() == [0, 1]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("spread", [20, 2**19])  # keys that leave room for the row, or do not
@pytest.mark.parametrize("count", [60_000, 150_000])  # digits are wider where rows are many
def test_many_rows_are_sorted_alike_by_any_number_of_threads(count, spread, threads):
    generator = torch.Generator().manual_seed(0)
    coords = torch.randint(-spread, spread, (count, 4), generator=generator, dtype=torch.int32)
    coords[:, 0] = torch.randint(0, 2, (count,), generator=generator)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with backend.forced("native"):
            ours = sort_rows(coords)
    finally:
        torch.set_num_threads(before)
    with backend.forced("reference"):
        assert all(torch.equal(a, b) for a, b in zip(ours, sort_rows(coords)))


def test_fewer_threads_than_asked_for_sort_all_rows():
    program = (
        "import torch; from sparse3d.ops.keys import sort_rows; torch.set_num_threads(2); "
        "rows = torch.arange(60000).flip(0).int(); zero = torch.zeros_like(rows); "
        "print(len(sort_rows(torch.stack([zero, rows, zero, zero], 1))[0]))"
    )
    limited = {**os.environ, "OMP_THREAD_LIMIT": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=limited, capture_output=True)
    assert done.stdout.split() == [b"60000"], done.stderr


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_rows_too_far_apart_are_refused(implementation):
    far = torch.tensor(
        [[0, 2**31 - 1, 2**31 - 1, 0], [0, -(2**31), 0, -(2**31)]], dtype=torch.int32
    )
    with backend.forced(implementation), pytest.raises(ValueError, match="64-bit key"):
        sort_rows(far)
