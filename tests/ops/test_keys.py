import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparse3d.ops.keys import KeySpace, find_sorted

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
