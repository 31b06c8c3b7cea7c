import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse3d.structures import IndexCache, SparseVoxels, VoxelGrid
from tests.voxel_cases import random_coords, sorted_coords

BOUNDED = VoxelGrid((0.5, 0.5, 1.0), (-1.0, 0.0, -2.0), (9, 8, 7))
UNBOUNDED = VoxelGrid((0.5, 0.5, 1.0), (-1.0, 0.0, -2.0))


def voxels(coords, features=None, grid=UNBOUNDED, batch=3, **options) -> SparseVoxels:
    coords = torch.as_tensor(coords, dtype=torch.int32)
    if features is None:
        features = torch.arange(1.0, 1 + len(coords))[:, None]
    return SparseVoxels.from_coords(coords, features, grid, batch, **options)[0]


def some_voxels(seed=0, channels=4, grid=BOUNDED, batch=2) -> SparseVoxels:
    coords = random_coords((9, 8, 7), batch, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(len(coords), channels, generator=generator)
    return voxels(coords, features, grid, batch)


# ---------------------------------------------------------------------- grids


def test_a_range_gives_its_shape_and_comes_back():
    grid = VoxelGrid.from_range((0, -39.68, -3, 69.12, 39.68, 1), (0.16, 0.16, 4))
    assert grid.shape == (432, 496, 1)
    assert grid.point_range == pytest.approx((0, -39.68, -3, 69.12, 39.68, 1))
    assert UNBOUNDED.point_range is None


def test_a_range_that_is_no_whole_number_of_voxels_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match=r"nearest range that is: \[0, 0, 0, 1\.2, 2\.0, 1\.0\]"):
        VoxelGrid.from_range((0, 0, 0, 1.3, 2, 1), (0.4, 0.5, 0.5))
    with pytest.raises(ValueError, match=r"point_range \[0, 0, 0, 0, 2, 1\]"):
        VoxelGrid.from_range((0, 0, 0, 0, 2, 1), (0.5, 0.5, 0.5))


@pytest.mark.parametrize("size", [(0.5, 0.0, 1.0), (0.5, -0.1, 1.0), (float("nan"), 1.0, 1.0)])
def test_an_edge_that_is_not_positive_is_refused(size):
    with pytest.raises(ValueError, match="must be positive"):
        VoxelGrid(size, (0.0, 0.0, 0.0))
    with pytest.raises(ValueError, match="voxel"):
        VoxelGrid.from_range((0, 0, 0, 1, 1, 1), size)


# ---------------------------------------------------------------------- constructors


def test_from_points_averages_per_voxel_and_drops_points_outside():
    points = torch.tensor(
        [[-0.9, 0.1, -1.5, 4.0], [-0.8, 0.2, -1.1, 6.0], [9.0, 0.0, 0.0, 1.0], [0.6, 3.9, 4.9, 2.0]]
    )
    x, rows = SparseVoxels.from_points(points, torch.tensor([0, 0, 0, 1]), BOUNDED, 2)
    assert x.coords.tolist() == [[0, 0, 0, 0], [1, 3, 7, 6]] and rows.tolist() == [0, 0, -1, 1]
    torch.testing.assert_close(x.features[0], points[:2].mean(0))
    assert x.shape == (9, 8, 7) and x.stride == (1, 1, 1) and x.batch_size == 2


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 40))
def test_the_order_of_points_and_of_rows_leaves_no_trace(seed, count):
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(count, 3, generator=generator) * 4 - 2
    batch = torch.randint(0, 3, (count,), generator=generator)
    order = torch.randperm(count, generator=generator)
    x, rows = SparseVoxels.from_points(points, batch, UNBOUNDED, 3)
    mixed, mixed_rows = SparseVoxels.from_points(points[order], batch[order], UNBOUNDED, 3)
    assert torch.equal(x.coords, mixed.coords) and torch.equal(rows[order], mixed_rows)
    assert torch.equal(x.features, mixed.features)
    shuffled = torch.randperm(len(x), generator=generator)
    again = voxels(x.coords[shuffled], x.features[shuffled])
    assert torch.equal(again.coords, x.coords) and torch.equal(again.features, x.features)


def test_rows_come_sorted_by_batch_x_y_z():
    coords = [[1, 0, 0, 0], [0, 2, -1, 5], [0, 2, -1, -5], [0, -2, 9, 9]]
    x = voxels(coords)
    assert x.coords.tolist() == sorted(coords) and x.features.flatten().tolist() == [4, 3, 2, 1]
    assert x.coords.dtype == torch.int32 and x.coords.is_contiguous()


@pytest.mark.parametrize("rule,value", [("first", 1), ("mean", 2), ("sum", 4), ("max", 3)])
def test_duplicates_follow_the_named_rule(rule, value):
    rows = [[0, 1, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0]]
    x = voxels(rows, torch.tensor([[1.0], [5.0], [3.0]]), duplicates=rule)
    assert x.coords.tolist() == [[0, 0, 0, 0], [0, 1, 0, 0]]
    assert x.features.flatten().tolist() == [5, value]


def test_duplicates_are_refused_unless_a_rule_is_named():
    rows = [[0, 1, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0]]
    with pytest.raises(ValueError, match=r"\(0, 1, 0, 0\).*2 times"):
        voxels(rows)
    with pytest.raises(ValueError, match="'last'"):
        voxels(rows, duplicates="last")


def test_bad_rows_are_refused_with_the_first_of_them():
    good = [0, 0, 0, 0]
    with pytest.raises(ValueError, match=r"row 1 .*batch 3 is outside \[0, 3\)"):
        voxels([good, [3, 0, 0, 0]])
    with pytest.raises(ValueError, match=r"row 1 .*outside the grid of 9 x 8 x 7"):
        voxels([good, [0, 0, 8, 0]], grid=BOUNDED)
    with pytest.raises(ValueError, match="float32"):
        SparseVoxels.from_coords(torch.zeros(1, 4), torch.zeros(1, 1), UNBOUNDED, 1)
    with pytest.raises(ValueError, match="features have"):
        voxels([good], torch.zeros(2, 1))
    with pytest.raises(ValueError, match="int32"):
        SparseVoxels.from_coords(torch.tensor([[0, 2**31, 0, 0]]), torch.zeros(1, 1), UNBOUNDED, 1)


def test_coordinates_may_be_of_any_integer_type():
    grid = VoxelGrid((1.0,) * 3, (0.0,) * 3, (432, 496, 300))
    rows = torch.tensor([[1, 255, 3, 4], [0, 200, 0, 0]], dtype=torch.uint8)
    x = SparseVoxels.from_coords(rows, torch.zeros(2, 1), grid, 2)[0]
    assert x.coords.tolist() == [[0, 200, 0, 0], [1, 255, 3, 4]]


def test_keys_that_do_not_fit_are_refused():
    far = 2**21
    with pytest.raises(ValueError, match="64-bit key"):
        voxels([[0, 0, 0, 0], [0, far, far, far]])


@pytest.mark.parametrize("stride", [(1, 4), (4, 1)])
def test_coordinates_may_have_any_memory_layout(stride):
    rows = [[0, 1, 2, 3], [1, 4, 5, 6]]
    laid = torch.empty_strided((2, 4), (8, 1) if stride == (1, 4) else (1, 2), dtype=torch.int64)
    laid.copy_(torch.tensor(rows))
    assert voxels(laid.int()).coords.tolist() == rows


def test_dense_and_back():
    x = some_voxels()
    dense = x.dense()
    assert dense.shape == (2, 4, 7, 8, 9)
    b, cx, cy, cz = x.coords[5].tolist()
    assert torch.equal(dense[b, :, cz, cy, cx], x.features[5])
    again = SparseVoxels.from_dense(dense, BOUNDED)
    assert torch.equal(again.coords, x.coords) and torch.equal(again.features, x.features)
    assert again.shape == x.shape
    with pytest.raises(ValueError, match="unbounded"):
        some_voxels(grid=UNBOUNDED).dense()


def test_from_dense_keeps_chosen_cells():
    dense = torch.zeros(1, 2, 2, 2, 2)
    keep = torch.zeros(1, 2, 2, 2, dtype=torch.bool)
    keep[0, 1, 0, 1] = True  # z 1, y 0, x 1
    x = SparseVoxels.from_dense(dense, BOUNDED, keep)
    assert x.coords.tolist() == [[0, 1, 0, 1]] and not x.features.any()


def test_two_dimensional_maps():
    grid = VoxelGrid((1.0, 1.0), (0.0, 0.0), (4, 3))
    dense = torch.zeros(1, 2, 3, 4)
    dense[0, :, 2, 1] = torch.tensor([5.0, 6.0])
    x = SparseVoxels.from_dense(dense, grid)
    assert x.dims == 2 and x.coords.tolist() == [[0, 1, 2]] and torch.equal(x.dense(), dense)
    assert x.centers().tolist() == [[1.5, 2.5]]
    assert x.sample_at(torch.tensor([[1.5, 2.0]]), torch.tensor([0])).tolist() == [[2.5, 3.0]]


def test_empty_is_legal_everywhere():
    x = SparseVoxels.empty(4, BOUNDED, 2)
    assert len(x) == 0 and x.channels == 4 and x.dense().shape == (2, 4, 7, 8, 9)
    assert len(x.prune(torch.zeros(0, dtype=torch.bool))) == 0 and len(x.split()) == 2
    assert x.lookup(torch.zeros(3, 4, dtype=torch.int32)).tolist() == [-1, -1, -1]
    assert not x.sample_at(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64)).any()
    other = some_voxels()
    assert torch.equal(x.union(other).features, other.features)
    assert len(voxels(torch.zeros(0, 4, dtype=torch.int32), torch.zeros(0, 1))) == 0
    points = SparseVoxels.from_points(torch.zeros(0, 3), torch.zeros(0).long(), BOUNDED, 2)[0]
    assert len(points) == 0 and points.centers().shape == (0, 3)


# ---------------------------------------------------------------------- same and other topology


def test_replace_shares_the_cache_and_pruning_does_not():
    x = some_voxels()
    y = x.replace(x.features[:, :2])
    assert y.cache is x.cache and y.same_cells(x) and y.channels == 2
    pruned = x.prune(x.features[:, 0] > 0)
    assert pruned.cache is not x.cache and not pruned.same_cells(x)
    assert (pruned.features[:, 0] > 0).all() and pruned.stride == x.stride
    assert len(x.prune(torch.zeros(len(x), dtype=torch.bool))) == 0


def test_the_gradient_of_pruning_is_zero_in_what_was_pruned():
    x = some_voxels()
    features = x.features.clone().requires_grad_()
    mask = torch.arange(len(x)) % 2 == 0
    x.replace(features).prune(mask).features.sum().backward()
    assert torch.equal(features.grad, mask[:, None].float().expand_as(features))


def test_a_cache_entry_is_written_once():
    cache = IndexCache()
    assert "a" not in cache and cache.get("a", lambda: 1) == 1
    assert cache.get("a", lambda: 2) == 1 and "a" in cache


def test_union_adds_on_shared_cells():
    a = voxels([[0, 0, 0, 0], [0, 1, 0, 0]], torch.tensor([[1.0], [2.0]]))
    b = voxels([[0, 1, 0, 0], [1, -1, 0, 0]], torch.tensor([[10.0], [20.0]]))
    both = a.union(b)
    assert both.coords.tolist() == [[0, 0, 0, 0], [0, 1, 0, 0], [1, -1, 0, 0]]
    assert both.features.flatten().tolist() == [1, 12, 20]
    assert a.union(a.replace(a.features * 3)).features.flatten().tolist() == [4, 8]
    with pytest.raises(ValueError, match=r"channels 1 and 2"):
        a.union(a.replace(torch.zeros(2, 2)))
    coarse = voxels([[0, 0, 0, 0]], stride=(2, 2, 2))
    with pytest.raises(ValueError, match=r"stride \(1, 1, 1\) and \(2, 2, 2\)"):
        a.union(coarse)


def test_concat_demands_the_same_cells_whoever_made_them():
    x = some_voxels()
    twin = SparseVoxels.from_coords(x.coords, x.features * 2, BOUNDED, 2)[0]
    assert torch.equal(x.concat(twin).features, torch.cat([x.features, x.features * 2], 1))
    with pytest.raises(ValueError, match="different cells"):
        x.concat(some_voxels(seed=1))


def test_split_gives_one_sample_each_also_the_empty_one():
    x = voxels([[0, 1, 1, 1], [2, 0, 0, 0], [2, 5, 0, 0]])
    parts = x.split()
    assert [len(p) for p in parts] == [1, 0, 2]
    assert parts[2].coords.tolist() == [[0, 0, 0, 0], [0, 5, 0, 0]]
    assert all(p.batch_size == 1 for p in parts)


def test_moving_to_the_same_device_keeps_the_cache():
    x = some_voxels()
    assert x.to("cpu").cache is x.cache


# ---------------------------------------------------------------------- reading


def test_centers_are_in_the_world():
    x = voxels([[0, 0, 0, 0], [0, -1, 2, 3]], stride=(2, 2, 1))
    # x: origin -1 + (cell + .5) * 2 * .5
    assert x.coords[0].tolist() == [0, -1, 2, 3]
    assert x.centers().tolist() == [[-1.5, 2.5, 1.5], [-0.5, 0.5, -1.5]]


def test_points_lie_in_the_cell_of_their_centre():
    x = some_voxels()
    again, rows = SparseVoxels.from_points(x.centers(), x.batch_index, BOUNDED, 2)
    assert torch.equal(again.coords, x.coords) and torch.equal(rows, torch.arange(len(x)))


def test_lookup_finds_rows_and_answers_absent_and_far_cells_with_minus_one():
    x = some_voxels(grid=UNBOUNDED)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    assert torch.equal(x.lookup(x.coords[order]), order)
    far = torch.tensor([[0, 2**31 - 1, 0, 0], [7, 0, 0, 0], [0, -1, 0, 0]], dtype=torch.int32)
    assert x.lookup(far).tolist() == [-1, -1, -1]


def test_trilinear_samples_are_the_published_ones():
    """Values 1, 10, 100 at (0,0,0), (1,0,0), (0,1,0); absent corners count nothing."""
    grid = VoxelGrid((1.0,) * 3, (0.0,) * 3)
    coords = [[0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]
    x = voxels(coords, torch.tensor([[1.0], [10.0], [100.0]]), grid, 1)
    queries = [[0.25, 0, 0], [0.25, 0.5, 0], [0.5, 0, 0.75], [-0.25, 0, 0], [5, 5, 5]]
    found = x.sample_at(torch.tensor(queries), torch.zeros(5, dtype=torch.int64))
    assert found.flatten().tolist() == [3.25, 39.125, 1.375, 0.75, 0]
    wide = voxels(coords, torch.tensor([[1.0], [10.0], [100.0]]), grid, 1, stride=(2, 2, 2))
    found = wide.sample_at(2 * torch.tensor(queries), torch.zeros(5, dtype=torch.int64))
    assert found.flatten().tolist() == [3.25, 39.125, 1.375, 0.75, 0]


def test_samples_are_differentiable_by_features_and_points():
    x = some_voxels(channels=2)
    features = x.features.double().requires_grad_()
    points = (torch.rand(6, 3, dtype=torch.float64) * 3).requires_grad_()
    batch = torch.tensor([0, 1, 0, 1, 1, 0])
    assert torch.autograd.gradcheck(
        lambda f, p: x.replace(f).sample_at(p, batch), (features, points)
    )


def test_a_frozen_structure():
    with pytest.raises(AttributeError):
        some_voxels().features = torch.zeros(0)
    assert sorted_coords([[0, 1], [0, 0]]).tolist() == [[0, 0], [0, 1]]


# ---------------------------------------------------------------------- selection and completion


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 30))
def test_best_keeps_the_highest_of_each_sample_and_ties_fall_to_the_smaller_cell(seed, limit):
    x = some_voxels(seed % 7, channels=1)
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 4, (len(x),), generator=generator).float()
    mask = x.best(scores, limit)
    for sample in range(x.batch_size):
        rows = (x.batch_index == sample).nonzero().squeeze(1).tolist()
        wanted = sorted(rows, key=lambda row: (-scores[row], row))[:limit]
        assert sorted(wanted) == [row for row in rows if mask[row]]


def test_best_of_nothing_is_nothing():
    x = SparseVoxels.empty(2, UNBOUNDED, 2)
    assert x.best(torch.zeros(0), 3).shape == (0,)


def test_complete_appends_only_what_is_missing_and_keeps_gradients():
    one = voxels([[0, 0, 0, 0], [1, 2, 2, 2]], torch.tensor([[1.0], [2.0]]))
    values = torch.tensor([[5.0], [6.0], [7.0]], requires_grad=True)
    other = voxels([[0, 0, 0, 0], [0, -3, 0, 0], [2, 0, 0, 0]])
    other = other.replace(values)
    both = one.complete(other)
    assert both.coords.tolist() == [[0, -3, 0, 0], [0, 0, 0, 0], [1, 2, 2, 2], [2, 0, 0, 0]]
    assert both.features[:, 0].tolist() == [5.0, 1.0, 2.0, 7.0]
    both.features.sum().backward()
    assert values.grad[:, 0].tolist() == [1.0, 0.0, 1.0]
    assert one.complete(one.prune(torch.zeros(2, dtype=torch.bool))).same_cells(one)


def test_samples_may_be_reordered_and_repeated():
    x = voxels([[0, 5, 0, 0], [2, 1, 1, 1], [2, 3, 0, 0]])
    y = x.samples_at([2, 1, 0, 2])
    assert y.batch_size == 4 and y.features[:, 0].tolist() == [2, 3, 1, 2, 3]
    assert y.coords[:, :2].tolist() == [[0, 1], [0, 3], [2, 5], [3, 1], [3, 3]]
    assert x.samples_at([]).coords.shape == (0, 4)


def test_features_at_reads_known_cells_and_zero_elsewhere():
    x = voxels([[0, 1, 0, 0], [1, 2, 0, 0]], torch.tensor([[3.0, 4.0], [5.0, 6.0]]))
    asked = torch.tensor([[1, 2, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0]]).int()
    assert x.features_at(asked).tolist() == [[5, 6], [0, 0], [3, 4], [3, 4]]
    assert SparseVoxels.empty(2, UNBOUNDED, 2).features_at(asked).tolist() == [[0, 0]] * 4


def test_cells_of_a_finer_stride_are_sampled_as_their_world_positions_are():
    grid = VoxelGrid((1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
    coarse = voxels(random_coords(seed=3), grid=grid, batch=2, stride=(4, 4, 4))
    fine = random_coords((18, 16, 14), seed=4)
    expected = coarse.sample_at(fine[:, 1:] * 2.0, fine[:, 0])
    torch.testing.assert_close(coarse.sample_cells(fine, (2, 2, 2)), expected)


def test_means_in_coarser_cells_are_those_of_what_lies_in_them():
    fine = voxels([[0, 0, 0, -1], [0, 1, 1, -2], [0, 2, 0, 0], [1, 0, 0, -1]], batch=2)
    cells = voxels([[0, 0, 0, -1], [0, 5, 5, 5], [1, 0, 0, -1]], batch=2, stride=(2, 2, 2))
    mean = fine.averaged(cells)
    assert mean.same_cells(cells)
    assert mean.features[:, 0].tolist() == [1.5, 0.0, 4.0]
    assert fine.counts == [3, 1]
    with pytest.raises(ValueError, match="no multiple"):
        cells.averaged(voxels([[0, 0, 0, 0]], stride=(3, 2, 2)))


# ---------------------------------------------------------------------- mistakes of the caller


@pytest.mark.parametrize(
    "mask", [torch.tensor([2]), torch.ones(3, dtype=torch.bool), torch.ones(500, dtype=torch.bool)]
)
def test_pruning_wants_one_truth_per_row(mask):
    with pytest.raises(ValueError, match=r"mask (is torch|has shape)"):
        some_voxels().prune(mask)


def test_best_refuses_other_numbers_of_scores_and_nan():
    one = some_voxels()
    with pytest.raises(ValueError, match=r"scores has shape \(2,\)"):
        one.best(torch.ones(2), 1)
    scores = torch.ones(len(one))
    scores[4] = float("nan")
    with pytest.raises(ValueError, match=r"scores\[4\] is NaN"):
        one.best(scores, 1)


def test_voxels_of_two_grids_are_not_united():
    far = VoxelGrid((9.0, 9.0, 9.0), (5.0, 0.0, 0.0))
    with pytest.raises(ValueError, match="cannot unite voxels of grid"):
        voxels([[0, 1, 2, 3]]).union(voxels([[0, 1, 2, 3]], grid=far))


@pytest.mark.parametrize("options", [{"stride": (2, 2)}, {"shape": (10, 10)}])
def test_strides_and_shapes_have_a_number_for_each_axis(options):
    with pytest.raises(ValueError, match="coords have 3 axes beside the batch"):
        voxels([[0, 1, 2, 3]], **options)


def test_lookup_wants_the_batch_before_the_cell():
    with pytest.raises(ValueError, match=r"of shape \(1, 3\); integers of 4 columns"):
        some_voxels().lookup(torch.tensor([[1, 2, 3]]))
