"""Points to voxels: cells, reductions, caps."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse3d.ops import backend
from sparse3d.ops.voxelize import (
    canonical_order,
    hard_voxelize,
    segment_expand,
    segment_reduce,
    unique_keys,
    voxelize,
)

IMPLEMENTATIONS = ("reference", "native")
each = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
SIZE, ORIGIN, SHAPE = (0.5, 0.25, 1.0), (-2.0, -1.0, -1.0), (8, 8, 2)


def cloud(count: int, seed: int = 0, columns: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Points a little beyond the grid above, in three samples of which one is empty."""
    random = torch.Generator().manual_seed(seed)
    points = torch.randn(count, columns, generator=random) * 1.5
    return points, torch.randint(0, 2, (count,), generator=random) * 2


def loop_voxelize(points, batch, shape):
    """The definition, point by point, with Python integers."""
    size, origin = torch.tensor(SIZE), torch.tensor(ORIGIN)
    cells = [
        (int(b), *(int(c) for c in torch.floor((p - origin) / size))) for p, b in zip(points, batch)
    ]
    kept = [
        cell if shape is None or all(0 <= c < n for c, n in zip(cell[1:], shape)) else None
        for cell in cells
    ]
    unique = sorted({cell for cell in kept if cell})
    return unique, [unique.index(cell) if cell else -1 for cell in kept]


@each
@pytest.mark.parametrize("shape", [SHAPE, None], ids=["bounded", "unbounded"])
def test_voxelize_follows_its_definition(implementation, shape):
    points, batch = cloud(300)
    with backend.forced(implementation):
        coords, index = voxelize(points, batch, SIZE, ORIGIN, shape)
    expected, rows = loop_voxelize(points, batch, shape)
    assert coords.dtype == torch.int32 and index.dtype == torch.int64
    assert [tuple(c) for c in coords.tolist()] == expected
    assert index.tolist() == rows
    assert shape is None or -1 in rows


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(0, 200),
    scale=st.sampled_from([0.1, 1.0, 1e3, 1e6]),
    shape=st.sampled_from([None, (8, 8), (1, 1000)]),
    step=st.sampled_from([0.0, 0.1, 0.25]),
)
def test_voxelize_is_the_same_on_all(seed, count, scale, shape, step):
    """In two dimensions, with points on the borders of cells (``step``), too."""
    points, batch = cloud(count, seed, 2)
    points = (points * scale / step).round() * step if step else points * scale
    results = []
    for name in IMPLEMENTATIONS:
        with backend.forced(name):
            results.append(voxelize(points, batch, (0.1, 0.25), (-0.3, 0), shape))
    for mine, other in zip(*results):
        assert torch.equal(mine, other)


@each
def test_point_order_only_permutes_the_index(implementation):
    points, batch = cloud(20_000)
    order = torch.randperm(len(points))
    with backend.forced(implementation):
        coords, index = voxelize(points, batch, SIZE, ORIGIN, None)
        coords_of_shuffled, shuffled = voxelize(points[order], batch[order], SIZE, ORIGIN, None)
    assert torch.equal(coords, coords_of_shuffled)
    assert torch.equal(index[order], shuffled)


@each
@pytest.mark.parametrize("shape", [SHAPE, None], ids=["bounded", "unbounded"])
def test_no_points(implementation, shape):
    points, batch = cloud(0)
    with backend.forced(implementation):
        coords, index = voxelize(points, batch, SIZE, ORIGIN, shape)
        voxels, _, counts = hard_voxelize(points, batch, SIZE, ORIGIN, shape, 3, 2)
    assert coords.shape == (0, 4) and coords.dtype == torch.int32 and index.shape == (0,)
    assert voxels.shape == (0, 3, 3) and counts.shape == (0,)


@each
def test_all_points_outside(implementation):
    points = torch.full((5, 3), 100.0)
    with backend.forced(implementation):
        coords, index = voxelize(points, torch.zeros(5).long(), SIZE, ORIGIN, SHAPE)
    assert coords.shape == (0, 4) and index.tolist() == [-1] * 5


@each
@pytest.mark.parametrize("shape", [SHAPE, None], ids=["bounded", "unbounded"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_bad_points_are_counted_and_named(implementation, shape, value):
    points, batch = cloud(50)
    points[[7, 30], 1] = value
    with (
        backend.forced(implementation),
        pytest.raises(ValueError, match=r"2 of 50 points.*first row 7"),
    ):
        voxelize(points, batch, SIZE, ORIGIN, shape)


@each
def test_overflow_names_the_point(implementation):
    points, batch = cloud(50)
    points[12] = 3e9
    with backend.forced(implementation), pytest.raises(ValueError, match=r"point 12 at.*32 bits"):
        voxelize(points, batch, SIZE, ORIGIN, None)
    points[12] = 4e8  # each cell number fits 32 bits, a key of all three does not fit 63
    with backend.forced(implementation), pytest.raises(ValueError, match=r"64-bit key"):
        voxelize(points, batch, SIZE, ORIGIN, None)


@each
def test_wrong_arguments_are_refused(implementation):
    points, batch = cloud(10, columns=4)
    with backend.forced(implementation):
        with pytest.raises(ValueError, match=r"shape \(10, 4\).*coordinate columns"):
            voxelize(points, batch, SIZE, ORIGIN, None)
        with pytest.raises(ValueError, match=r"batch_index has shape"):
            voxelize(points[:, :3], batch[:4], SIZE, ORIGIN, None)
        with pytest.raises(ValueError, match=r"batch_index\[3\] is -1"):
            batch[3] = -1
            voxelize(points[:, :3], batch, SIZE, ORIGIN, None)
        with pytest.raises(ValueError, match="max_points is 0"):
            hard_voxelize(points, batch.abs(), SIZE, ORIGIN, None, 0, None)
        with pytest.raises(ValueError, match="reduce is 'median'"):
            segment_reduce(points, batch, 3, "median")
        for wrong in (-2, 5):
            with pytest.raises(ValueError, match=rf"index holds .*{wrong}"):
                segment_reduce(points, torch.full((10,), wrong), 5, "sum")


@each
def test_unique_keys(implementation):
    keys = torch.tensor([5, 2**62, 0, 5, 7, 0])
    with backend.forced(implementation):
        unique, place = unique_keys(keys)
    assert unique.tolist() == [0, 5, 7, 2**62]
    assert place.tolist() == [1, 3, 0, 1, 2, 0]


# ---------------------------------------------------------------------- reductions


@each
@pytest.mark.parametrize("reduce", ["mean", "max", "sum"])
def test_segment_reduce_follows_its_definition(implementation, reduce):
    values = torch.randn(40, 3)
    index = torch.randint(-1, 6, (40,))
    index[index == 4] = 2  # segment 4 stays empty
    with backend.forced(implementation):
        found = segment_reduce(values, index, 6, reduce)
    define = {"mean": lambda v: v.mean(0), "max": lambda v: v.amax(0), "sum": lambda v: v.sum(0)}
    for segment in range(6):
        rows = values[index == segment]
        expected = define[reduce](rows) if len(rows) else torch.zeros(3)
        torch.testing.assert_close(found[segment], expected)


@each
@pytest.mark.parametrize("reduce", ["mean", "max", "sum"])
def test_segment_reduce_gradient(implementation, reduce):
    values = torch.randn(30, 2, dtype=torch.float64, requires_grad=True)
    index = torch.randint(-1, 5, (30,))
    with backend.forced(implementation):
        assert torch.autograd.gradcheck(lambda v: segment_reduce(v, index, 6, reduce), values)
        assert torch.autograd.gradcheck(
            lambda v: segment_expand(segment_reduce(v, index, 6, reduce), index), values
        )


@pytest.mark.parametrize("reduce", ["mean", "max", "sum"])
@pytest.mark.parametrize("rows, segments", [(0, 0), (0, 4), (5000, 700), (3000, 1)])
def test_reductions_agree(reduce, rows, segments):
    index = torch.randint(-1, max(segments, 1), (rows,))
    start, cotangent = (torch.randn(n, 5) for n in (rows, segments))
    start[::3] = start[1::3][: len(start[::3])].mean() if rows else 0  # ties for the maximum
    results = []
    for name in IMPLEMENTATIONS:
        values = start.clone().requires_grad_()
        with backend.forced(name):
            out = segment_reduce(values, index, segments, reduce)
            out.backward(cotangent)
            spread = segment_expand(cotangent, index)
        results.append((out.detach(), values.grad, spread))
    for mine, other in zip(*results):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=0)


@each
def test_tied_maxima_send_the_gradient_to_the_smallest_row(implementation):
    values = torch.tensor([[1.0], [3.0], [3.0], [3.0]], requires_grad=True)
    with backend.forced(implementation):
        segment_reduce(values, torch.tensor([0, 0, 1, 0]), 2, "max").sum().backward()
    assert values.grad.flatten().tolist() == [0, 1, 1, 0]


@each
@pytest.mark.parametrize("reduce", ["mean", "max", "sum"])
def test_nan_is_not_hidden(implementation, reduce):
    values = torch.tensor([[1.0], [float("nan")], [3.0], [4.0]])
    with backend.forced(implementation):
        out = segment_reduce(values, torch.tensor([0, 0, 0, 1]), 2, reduce)
    assert out[0].isnan() and out[1] == 4


@each
@pytest.mark.parametrize("reduce", ["mean", "max", "sum"])
def test_row_order_and_threads_leave_no_trace(implementation, reduce):
    values, index = torch.randn(50_000, 4), torch.randint(-1, 200, (50_000,))
    order = torch.randperm(len(values))
    threads = torch.get_num_threads()
    with backend.forced(implementation):
        expected = segment_reduce(values, index, 200, reduce)
        torch.set_num_threads(3)
        try:
            assert torch.equal(expected, segment_reduce(values, index, 200, reduce))
        finally:
            torch.set_num_threads(threads)
        assert torch.equal(expected, segment_reduce(values[order], index[order], 200, reduce))


def test_ops_pass_the_checks_of_torch_library():
    values = torch.randn(12, 3, requires_grad=True)
    index = torch.randint(-1, 4, (12,))
    for reduce in ("mean", "max"):
        arguments = (values, index, 4, reduce)
        torch.library.opcheck(torch.ops.sparse3d.segment_reduce.default, arguments)
    torch.library.opcheck(
        torch.ops.sparse3d.segment_expand.default, (values[:4].detach().requires_grad_(), index)
    )


@each
def test_canonical_order_is_the_same_for_any_order_of_rows(implementation):
    values = torch.randint(-3, 4, (2000, 3)).float()
    index = torch.randint(-1, 40, (2000,))
    order = torch.randperm(2000)
    with backend.forced(implementation):
        first = canonical_order(values, index, 40)
        second = canonical_order(values[order], index[order], 40)
    assert torch.equal(index[first], index[order][second])
    assert torch.equal(values[first], values[order][second])
    rows = [(int(i), *v) for i, v in zip(index[first], values[first].tolist())]
    assert rows == sorted(rows) and len(rows) == int((index >= 0).sum())


def test_canonical_orders_agree():
    values, index = torch.randn(500, 2).round(), torch.randint(-1, 9, (500,))
    values[::9] = -0.0  # a number of its own, before 0
    orders = []
    for name in IMPLEMENTATIONS:
        with backend.forced(name):
            orders.append(canonical_order(values, index, 9))
    assert torch.equal(*orders)


# ---------------------------------------------------------------------- caps


def loop_hard_voxelize(points, batch, shape, max_points, max_voxels):
    """Point by point: voxels open while the sample has room, points stay while the voxel has."""
    unique, index = loop_voxelize(points[:, :3], batch, shape)
    kept, opened = {}, {}
    for point, row in zip(points, index):
        if row < 0:
            continue
        if row not in kept:
            sample = unique[row][0]
            if opened.get(sample, 0) == max_voxels:
                continue
            opened[sample] = opened.get(sample, 0) + 1
            kept[row] = []
        if len(kept[row]) < max_points:
            kept[row].append(point)
    return [(unique[row], torch.stack(kept[row])) for row in sorted(kept)]


@each
@pytest.mark.parametrize("max_points, max_voxels", [(1, 5), (3, 20), (100, None)])
def test_hard_voxelize_follows_its_definition(implementation, max_points, max_voxels):
    points, batch = cloud(400, columns=5)
    with backend.forced(implementation):
        voxels, coords, counts = hard_voxelize(
            points, batch, SIZE, ORIGIN, SHAPE, max_points, max_voxels
        )
    expected = loop_hard_voxelize(points, batch, SHAPE, max_points, max_voxels)
    assert voxels.shape == (len(expected), max_points, 5)
    assert [tuple(c) for c in coords.tolist()] == [cell for cell, _ in expected]
    for voxel, count, (_, rows) in zip(voxels, counts.tolist(), expected):
        assert torch.equal(voxel[:count], rows)
        assert not voxel[count:].any()
