import contextlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from sparse3d.ops import backend
from sparse3d.ops.kernel_map import (
    generative_map,
    offset_table,
    reverse_table,
    strided_map,
    submanifold_map,
)
from tests.voxel_cases import IMPLEMENTATIONS, at_cells, mask_of, random_coords, sorted_coords

each = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)

# kernel size, stride, padding, dilation per axis
GEOMETRIES = [
    (1, 1, 0, 1),
    (2, 2, 0, 1),
    (3, 1, 1, 1),
    (3, 2, 1, 1),
    (3, 2, 0, 1),
    (4, 2, 1, 1),
    (5, 3, 2, 1),
    (3, 1, 2, 2),
    (3, 2, 2, 2),
    (1, 2, 0, 1),
    ((3, 1, 1), (2, 1, 1), 0, 1),
    ((1, 3, 2), (1, 2, 3), (0, 1, 0), (1, 2, 1)),
]


def triples(kernel_map) -> set:
    """(input row, offset, output row) of a map."""
    offset, output = (kernel_map.table >= 0).nonzero(as_tuple=True)
    inputs = kernel_map.table[offset, output]
    return set(zip(inputs.tolist(), offset.tolist(), output.tolist()))


def per_axis(value, dims=3):
    return (value,) * dims if isinstance(value, int) else value


@each
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_spconv_cells_are_those_a_dense_convolution_reaches(geometry, implementation):
    shape, coords = (9, 8, 7), random_coords((9, 8, 7), share=0.05)
    size, stride, padding, dilation = (per_axis(value) for value in geometry)
    with backend.forced(implementation):
        found = strided_map(coords, size, stride, padding, dilation, shape)
    reached = F.conv3d(
        mask_of(coords, shape, 2),
        torch.ones(1, 1, *size[::-1]),
        stride=stride[::-1],
        padding=padding[::-1],
        dilation=dilation[::-1],
    )
    assert found.out_shape == tuple(reached.shape[:1:-1])
    expected = (reached[:, 0].permute(0, 3, 2, 1) > 0.5).nonzero().int()
    assert torch.equal(found.out_coords, expected)
    neighbours = (found.table >= 0).sum(0).float()
    assert torch.equal(neighbours, at_cells(reached, found.out_coords)[:, 0].round())


@each
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_every_triple_obeys_the_relation_and_none_is_missing(geometry, implementation):
    coords = random_coords((6, 5, 4), share=0.3, seed=1)
    coords[:, 1:] -= 3  # cells below zero too
    size, stride, padding, dilation = (per_axis(value) for value in geometry)
    with backend.forced(implementation):
        found = strided_map(coords, size, stride, padding, dilation)
    expected = set()
    rows = {tuple(cell): row for row, cell in enumerate(coords.tolist())}
    for output, (batch, *cell) in enumerate(found.out_coords.tolist()):
        for k in range(size[0] * size[1] * size[2]):
            offset = (k % size[0], k // size[0] % size[1], k // (size[0] * size[1]))
            wanted = (
                s * o - p + d * q for o, s, p, d, q in zip(cell, stride, padding, dilation, offset)
            )
            row = rows.get((batch, *wanted))
            if row is not None:
                expected.add((row, k, output))
    assert triples(found) == expected
    assert {row for row, _, _ in expected} == set(range(len(coords))) or stride != (1, 1, 1)


@each
def test_worked_example(implementation):
    """Cells 0 and 3 on one axis: the numbers of the published meanings, worked by hand."""
    coords = torch.tensor([[0, 0, 0], [0, 3, 0]], dtype=torch.int32)
    size, stride = (3, 1), (2, 1)
    with backend.forced(implementation):
        ours = strided_map(coords, size, stride, (1, 0), shape=(6, 1))
        theirs = strided_map(coords, size, stride, meaning="minkowski")
        up = generative_map(ours.out_coords, size, stride, (1, 0), shape=ours.out_shape)
        free = generative_map(theirs.out_coords, size, stride, meaning="minkowski")
    assert ours.out_coords[:, 1].tolist() == [0, 1, 2] and ours.out_shape == (3, 1)
    assert ours.table.tolist() == [[-1, -1, 1], [0, -1, -1], [-1, 1, -1]]
    assert theirs.out_coords[:, 1].tolist() == [0, 1] and theirs.out_shape is None
    assert up.out_coords[:, 1].tolist() == [0, 1, 2, 3, 4] and up.out_shape == (5, 1)
    assert free.out_coords[:, 1].tolist() == [-1, 0, 1, 2, 3] and free.out_shape is None


@each
@pytest.mark.parametrize("size,stride", [(1, 2), (2, 2), (3, 2), (3, 3), (5, 2), (2, 4), (3, 1)])
def test_minkowski_cells_are_the_floors_below_zero_too(size, stride, implementation):
    coords = random_coords((9, 9, 9), share=0.05)
    coords[:, 1:] -= 4
    with backend.forced(implementation):
        found = strided_map(coords, size, stride, meaning="minkowski")
    floors = coords.clone()
    floors[:, 1:] = torch.div(coords[:, 1:], stride, rounding_mode="floor")
    assert torch.equal(found.out_coords, torch.unique(floors, dim=0))
    with backend.forced(implementation):
        bounded = strided_map(
            coords[-1:] + 4, size, stride, shape=(13, 14, 15), meaning="minkowski"
        )
    assert bounded.out_shape == tuple(-(-g // stride) for g in (13, 14, 15))


@each
@pytest.mark.parametrize("size", [1, 3, 5, (3, 1, 1), (1, 3, 5)])
@pytest.mark.parametrize("dilation", [1, 2])
def test_submanifold_is_the_centred_relation_on_its_own_cells(size, dilation, implementation):
    coords = random_coords(share=0.3)
    with backend.forced(implementation):
        found = submanifold_map(coords, size, dilation, shape=(9, 8, 7))
        centre = tuple(dilation * (k // 2) for k in per_axis(size))
        assert torch.equal(found.table, offset_table(coords, coords, size, 1, centre, dilation))
        assert torch.equal(found.reverse, reverse_table(found.table, len(coords)))
    assert found.out_coords is coords and found.out_shape == (9, 8, 7)
    middle = found.table[len(found.table) // 2]
    assert torch.equal(middle, torch.arange(len(coords), dtype=torch.int32))


def test_even_submanifold_kernels_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 3, 3\).*take \(3, 3, 3\)"):
        submanifold_map(random_coords(), (2, 3, 3))


@each
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_reverse_holds_the_same_triples_read_from_the_input(geometry, implementation):
    with backend.forced(implementation):
        found = strided_map(random_coords(), *geometry, shape=(9, 8, 7))
        reverse = found.reverse
    backwards = {(row, k, int(reverse[k, row])) for k, row in (reverse >= 0).nonzero().tolist()}
    assert backwards == triples(found)
    assert found.reverse is reverse, "computed once"


@each
@pytest.mark.parametrize("geometry", [(2, 2, 0, 1), (3, 2, 1, 1), (3, 1, 0, 2), (4, 2, 1, 1)])
def test_spread_cells_are_those_a_dense_transposed_convolution_reaches(geometry, implementation):
    shape, coords = (5, 4, 6), random_coords((5, 4, 6), share=0.1)
    size, stride, padding, dilation = geometry
    with backend.forced(implementation):
        found = generative_map(coords, *geometry, shape)
    reached = F.conv_transpose3d(
        mask_of(coords, shape, 2),
        torch.ones(1, 1, size, size, size),
        stride=stride,
        padding=padding,
        dilation=dilation,
    )
    assert found.out_shape == tuple(reached.shape[:1:-1])
    assert torch.equal(found.out_coords, (reached[:, 0].permute(0, 3, 2, 1) > 0.5).nonzero().int())


@each
def test_up_and_down_between_the_same_cells_are_the_same_triples(implementation):
    coarse = random_coords((4, 4, 4), share=0.2)
    with backend.forced(implementation):
        up = generative_map(coarse, 3, 2, meaning="minkowski")
        down = offset_table(up.out_coords, coarse, 3, 2, 1, 1)
    assert torch.equal(up.reverse, down)


@each
@pytest.mark.parametrize("count", [0, 1])
def test_nothing_and_one_voxel(count, implementation):
    coords = torch.tensor([[1, -2, 5, 7]], dtype=torch.int32)[:count]
    with backend.forced(implementation):
        same = submanifold_map(coords, 3)
        down = strided_map(coords, 3, 2, 1)
        floors = strided_map(coords, 3, 2, meaning="minkowski")
        up = generative_map(coords, 2, 2)
    assert same.table.shape == (27, count) and int((same.table >= 0).sum()) == count
    assert down.out_coords.tolist() == [[1, -1, y, z] for y in (2, 3) for z in (3, 4)] * count
    assert floors.out_coords.tolist() == [[1, -1, 2, 3]] * count
    assert len(up.out_coords) == 8 * count and up.out_coords.dtype == torch.int32
    assert down.reverse.shape == (27, count)


@each
def test_an_empty_sample_in_the_middle_and_every_face_of_the_grid(implementation):
    corners = [(b, x, y, z) for b in (0, 2) for x in (0, 4) for y in (0, 4) for z in (0, 4)]
    coords = sorted_coords(corners)
    with backend.forced(implementation):
        found = submanifold_map(coords, 3)
        wide = submanifold_map(coords, 5, dilation=2)
    assert int((found.table >= 0).sum()) == len(coords), "ends of lines do not meet"
    assert int((wide.table >= 0).sum()) == 8 * len(coords), "4 cells apart, samples apart"


@each
def test_keys_near_the_limit_are_right_and_past_it_are_refused(implementation):
    far = 2**21 - 3  # with the kernel's border 2^21 cells along each axis: 2^63 in all is too many
    coords = sorted_coords([[0, 0, 0, 0], [0, far, far, far]])
    with backend.forced(implementation):
        with pytest.raises(ValueError, match="64-bit key"):
            submanifold_map(coords, 3)
        coords[1, 3] -= 1
        found = submanifold_map(coords, 3)
        assert int((found.table >= 0).sum()) == 2
        with pytest.raises(ValueError, match="64-bit key"):
            strided_map(coords, 5, 2, 2)


@each
def test_cells_at_the_ends_of_int32(implementation):
    low, high = -(2**31), 2**31 - 1
    coords = sorted_coords([[0, low, 0, 0], [0, low + 1, 0, 0], [0, high, 0, 0]])
    with backend.forced(implementation):
        found = submanifold_map(coords, (3, 1, 1))
        assert found.table.tolist() == [[-1, 0, -1], [0, 1, 2], [1, -1, -1]]
        half = strided_map(coords, 2, 2, meaning="minkowski")
        assert half.out_coords[:, 1].tolist() == [low // 2, high // 2]
        with pytest.raises(ValueError, match="32-bit"):
            generative_map(coords, 2, 2)


@each
@pytest.mark.parametrize("rows", [[[0, 1, 0], [0, 0, 5]], [[0, 1, 1], [0, 1, 1]]])
def test_unsorted_and_repeated_rows_are_refused(rows, implementation):
    coords = torch.tensor(rows, dtype=torch.int32)
    fine = sorted_coords([[0, 0, 0], [0, 9, 9]])
    with backend.forced(implementation):
        with pytest.raises(ValueError, match="row 1 of the fine"):
            submanifold_map(coords, 3)
        with pytest.raises(ValueError, match="row 1 of the coarse"):
            offset_table(fine, coords, 3, 2, 1, 1)


def test_wrong_sizes_and_meanings_are_refused():
    coords = random_coords()
    with pytest.raises(ValueError, match="stride is 0"):
        strided_map(coords, 3, 0)
    with pytest.raises(ValueError, match=r"kernel_size is \(3, 3\)"):
        strided_map(coords, (3, 3))
    with pytest.raises(ValueError, match="'dense'"):
        strided_map(coords, 3, 2, meaning="dense")
    with pytest.raises(ValueError, match=r"it is \(1, 1, 1\): leave it out"):
        strided_map(coords, 3, 2, 0, meaning="minkowski")
    with pytest.raises(ValueError, match="does not fit a grid"):
        strided_map(coords, 5, shape=(9, 8, 4))
    with pytest.raises(ValueError, match="int64"):
        submanifold_map(coords.long(), 3)
    with pytest.raises(ValueError, match="int64"):
        reverse_table(submanifold_map(coords, 3).table.long(), len(coords))


def test_reversing_a_table_of_other_voxels_is_refused():
    coords = random_coords()
    table, rows = submanifold_map(coords, 3).table, len(coords) - 1
    with backend.forced("native"), pytest.raises(ValueError, match=f"row {rows} but there are"):
        reverse_table(table, rows)


SIZES = st.tuples(*[st.integers(1, 4)] * 3)
ROWS = st.lists(
    st.tuples(st.integers(0, 2), *[st.integers(-6, 6)] * 3), min_size=0, max_size=25, unique=True
)


@settings(max_examples=60, deadline=None)
@given(ROWS, SIZES, SIZES, st.tuples(*[st.integers(0, 2)] * 3), st.integers(1, 2))
def test_native_tables_are_the_definitions(rows, size, stride, padding, dilation):
    coords = sorted_coords(rows) if rows else torch.zeros(0, 4, dtype=torch.int32)
    found = {}
    for name in IMPLEMENTATIONS:
        with backend.forced(name):
            maps = [
                submanifold_map(coords, tuple(k | 1 for k in size), dilation),
                strided_map(coords, size, stride, padding, dilation),
                strided_map(coords, size, stride, None, dilation, None, "minkowski"),
                generative_map(coords, size, stride, padding, dilation),
            ]
            found[name] = [t for m in maps for t in (m.table, m.reverse, m.out_coords)]
    for ours, definition in zip(found["native"], found["reference"]):
        assert ours.dtype == definition.dtype and torch.equal(ours, definition)


@settings(max_examples=30, deadline=None)
@given(ROWS, SIZES, st.tuples(*[st.integers(1, 3)] * 3), st.tuples(*[st.integers(-4, 4)] * 3))
def test_translation_by_the_stride_moves_the_outputs_alone(rows, size, stride, shift):
    coords = sorted_coords(rows) if rows else torch.zeros(0, 4, dtype=torch.int32)
    moved = coords + torch.tensor([0, *(a * s for a, s in zip(shift, stride))], dtype=torch.int32)
    for meaning, padding in (("spconv", 1), ("minkowski", None)):
        here = strided_map(coords, size, stride, padding, meaning=meaning)
        there = strided_map(moved, size, stride, padding, meaning=meaning)
        assert torch.equal(here.table, there.table)
        assert torch.equal(here.out_coords + torch.tensor([0, *shift]), there.out_coords)


@pytest.mark.parametrize("threads", [1, 2])
def test_native_tables_over_many_chunks(threads):
    coords = random_coords((60, 50, 40), batch=1, share=0.15)
    with backend.forced("native"), _threads(threads):
        ours = submanifold_map(coords, 3).table
    with backend.forced("reference"):
        assert torch.equal(ours, submanifold_map(coords, 3).table)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("depth", [30, 300])
@pytest.mark.parametrize(
    "size,stride,padding,dilation",
    [(3, 2, 1, 1), (3, 2, (0, 1, 1), 1), ((3, 1, 1), (2, 1, 1), 0, 1), (5, 3, 2, 2), (2, 4, 0, 3)],
)
def test_native_maps_of_columns_with_few_cells(size, stride, padding, dilation, depth, threads):
    """As a scan leaves them: there threads share lines of cells, and columns may be many words."""
    coords = _scattered((150, 500, depth), 30_000, depth)
    found = {}
    for name in IMPLEMENTATIONS:
        with backend.forced(name), _threads(threads):
            same = submanifold_map(coords, tuple(k | 1 for k in per_axis(size)), dilation)
            down = strided_map(coords, size, stride, padding, dilation)
            floors = strided_map(coords, size, stride, None, dilation, None, "minkowski")
            found[name] = [t for m in (same, down, floors) for t in (m.table, m.out_coords)]
    assert all(map(torch.equal, found["native"], found["reference"]))


@pytest.mark.parametrize("size,dilation", [(3, 1), ((1, 3, 5), 1), ((3, 3, 3), (2, 1, 3))])
@pytest.mark.parametrize("depth", [3, 40])
def test_plain_and_wide_instructions_write_the_same_tables(size, dilation, depth, monkeypatch):
    """Wide ones, where the processor has them, join eight columns at once, the last ones fewer."""
    for rows in (3, 9, 3_000, 30_000):
        coords = _scattered((60, 90, depth), rows, rows)
        table = submanifold_map(coords, size, dilation).table
        monkeypatch.setenv("SPARSE3D_ISA", "plain")
        plain = submanifold_map(coords, size, dilation).table
        monkeypatch.delenv("SPARSE3D_ISA")
        with backend.forced("reference"):
            definition = submanifold_map(coords, size, dilation).table
        assert torch.equal(table, definition) and torch.equal(plain, definition)


@pytest.mark.parametrize("threads", [2, 3])
def test_one_cell_that_reaches_more_cells_than_a_thread_takes(threads):
    cell, around = torch.tensor([[0, 5, 5, 5]], dtype=torch.int32), torch.arange(30)
    many = torch.cartesian_prod(torch.zeros(1, dtype=torch.int64), around, around, around).int()
    found = []
    for name in ("reference", "native"):
        with backend.forced(name), _threads(threads):
            strided = strided_map(cell, 27, 1, padding=0)
            found.append((strided.table, strided.out_coords, offset_table(cell, many, 3, 1, 1, 1)))
    assert all(torch.equal(*pair) for pair in zip(*found))


@pytest.mark.parametrize("threads", [1, 3])
def test_native_strided_map_inside_a_small_grid(threads):
    """The last cells reach outside; whole columns and lines of outputs fall away."""
    coords = _scattered((200, 200, 40), 20_000, 1)
    coords[:, 1:] -= coords[:, 1:].amin(0)
    for shape in [(200, 200, 40), (200, 200, 3), (3, 200, 40), (200, 3, 3)]:
        found = {}
        for name in IMPLEMENTATIONS:
            with backend.forced(name), _threads(threads):
                down = strided_map(coords, 3, 2, 0, shape=shape)
                found[name] = down.table, down.out_coords
        assert all(map(torch.equal, found["native"], found["reference"]))


@pytest.mark.parametrize("threads", [1, 3])
def test_unsorted_rows_are_found_by_every_thread(threads):
    coords = _scattered((100, 300, 20), 30_000, 2)
    coords[[20_000, 20_001]] = coords[[20_001, 20_000]]
    with backend.forced("native"), _threads(threads):
        for build in (lambda: submanifold_map(coords, 3), lambda: strided_map(coords, 3, 2, 1)):
            with pytest.raises(ValueError, match="row 20001 of the fine"):
                build()


def _scattered(extent: tuple[int, ...], count: int, seed: int) -> torch.Tensor:
    """[N, 4] int32, ascending: cells of samples 0 and 2 anywhere in a box, some below zero."""
    generator = torch.Generator().manual_seed(seed)
    columns = [torch.randint(0, 2, (count,), generator=generator) * 2]
    columns += [torch.randint(-5, size - 5, (count,), generator=generator) for size in extent]
    return torch.unique(torch.stack(columns, 1).int(), dim=0)


@contextlib.contextmanager
def _threads(number: int):
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
