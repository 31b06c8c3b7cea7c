"""Augmentation: what stays inside a box stays inside, and the numbers come from the generator."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse3d.datasets.sampling import GroundTruthSampling, ObjectDatabase
from sparse3d.datasets.transforms import (
    BoxRangeFilter,
    PointRangeFilter,
    PointShuffle,
    PointThinning,
    RandomFlip,
    RandomRotation,
    RandomScaling,
    RandomTranslation,
)
from sparse3d.ops.rotated import bev_overlap
from sparse3d.registry import TRANSFORMS
from sparse3d.structures import Boxes, Camera, Sample

CLASS_NAMES = ["car", "pedestrian"]
COLUMNS = ["x", "y", "z", "intensity"]
GEOMETRIC = [
    RandomFlip(probability=1.0),
    RandomFlip(axes="x", probability=1.0),
    RandomFlip(axes="y", probability=1.0),
    RandomRotation(),
    RandomScaling((0.5, 1.5)),
    RandomTranslation(),
]
EACH = pytest.mark.parametrize("transform", GEOMETRIC, ids=lambda t: type(t).__name__)


def scene(seed=0, count=4, points=400):
    """Boxes with velocity, points around them, a flow and a camera."""
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.rand(count, 9, generator=generator) * 6 - 3
    boxes[:, 3:6] = boxes[:, 3:6].abs() + 0.5
    cloud = torch.rand(points, 4, generator=generator) * 8 - 4
    cloud[:count, :3] = boxes[:, :3]  # no box without a point
    camera = Camera(
        torch.tensor([[500.0, 0, 300], [0, 500, 200], [0, 0, 1]]).double(),
        torch.tensor([[0.0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 20], [0, 0, 0, 1]]).double(),
        (600, 400),
    )
    return Sample(
        cloud,
        boxes=Boxes(boxes),
        labels=torch.zeros(count, dtype=torch.int64),
        names=["car"] * count,
        cameras={"front": camera},
        flow=cloud[:, :3] * 0.1,
        meta={"class_names": CLASS_NAMES, "columns": COLUMNS},
    )


def generator(seed=0):
    return np.random.default_rng(seed)


# ---------------------------------------------------------------------- geometry


@EACH
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000))
def test_points_stay_in_their_boxes(transform, seed):
    before = scene(seed)
    after = transform(before, generator(seed))
    inside = before.boxes.contains(before.points)
    changed = inside != after.boxes.contains(after.points)
    assert inside.any(1).all() and changed.sum() <= 1  # one may lie on a face within rounding


@EACH
def test_the_future_of_points_and_boxes_agrees(transform):
    """Flow and velocity of a thing turn alike: both ends of the motion are transformed together."""
    before = scene(3)
    after = transform(before, generator(3))
    ends = scene(3)
    ends.points = torch.cat([before.points[:, :3] + before.flow, before.points[:, 3:]], 1)
    moved = transform(ends, generator(3)).points[:, :3]
    assert torch.allclose(after.points[:, :3] + after.flow, moved, atol=1e-5)
    ends = scene(3)
    ends.boxes.tensor[:, :2] += before.boxes.velocity
    moved = transform(ends, generator(3)).boxes.centers[:, :2]
    assert torch.allclose(after.boxes.centers[:, :2] + after.boxes.velocity, moved, atol=1e-5)


@EACH
def test_cameras_turn_along(transform):
    before = scene(1)
    after = transform(before, generator(1))
    expected, _ = before.cameras["front"].project(before.points[:, :3].double())
    found, _ = after.cameras["front"].project(after.points[:, :3].double())
    assert torch.allclose(found, expected, atol=1e-2)


@EACH
def test_nothing_changes_in_place_and_other_columns_stay(transform):
    before, twin = scene(2), scene(2)
    after = transform(before, generator(2))
    assert torch.equal(before.points, twin.points)
    assert torch.equal(before.boxes.tensor, twin.boxes.tensor)
    assert torch.equal(after.points[:, 3:], twin.points[:, 3:])
    assert not torch.equal(after.points, twin.points)


@EACH
def test_empty_samples_are_legal(transform):
    bare = transform(Sample(torch.zeros(0, 4)), generator())
    assert bare.points.shape == (0, 4) and bare.boxes is None
    empty = transform(Sample(torch.zeros(0, 4), boxes=Boxes.empty(9)), generator())
    assert empty.boxes.tensor.shape == (0, 9)


def test_flips_are_as_published():
    """Flip x: y, yaw and vy change sign; flip y: x and vx do, and yaw becomes -(yaw + pi)."""
    before = scene(0)
    x, y, *_, yaw, vx, vy = before.boxes.tensor.unbind(1)
    found = RandomFlip("x", 1.0)(before, generator()).boxes.tensor
    assert torch.equal(found[:, 1], -y) and torch.equal(found[:, 6], -yaw)
    assert torch.equal(found[:, 7], vx) and torch.equal(found[:, 8], -vy)
    found = RandomFlip("y", 1.0)(before, generator()).boxes.tensor
    assert torch.equal(found[:, 0], -x) and torch.equal(found[:, 7], -vx)
    turn = found[:, 6] + (yaw + torch.pi)
    assert torch.allclose(turn.cos(), torch.ones(4)) and torch.equal(found[:, 1], y)


def test_flips_are_drawn_each_by_itself():
    seen = set()
    for seed in range(40):
        after = RandomFlip()(scene(), generator(seed))
        seen.add(tuple((after.points[0, :2] == scene().points[0, :2]).tolist()))
    assert len(seen) == 4


@pytest.mark.parametrize(
    "make, low, high",
    [
        (lambda: RandomRotation((-0.2, 0.5)), -0.2, 0.5),
        (lambda: RandomScaling((0.9, 1.1)), 0.9, 1.1),
    ],
)
def test_draws_fill_their_interval(make, low, high):
    boxes = torch.tensor([[1.0, 0, 0, 1, 1, 1, 0]])
    values = []
    for seed in range(200):
        after = make()(Sample(torch.zeros(1, 4), boxes=Boxes(boxes)), generator(seed)).boxes
        values.append(float(after.yaw if low < 0 else after.sizes[0, 0]))
    assert low <= min(values) < low + 0.05 * (high - low)
    assert high - 0.05 * (high - low) < max(values) <= high


def test_translation_has_its_spread():
    draw = RandomTranslation((0.5, 0.0, 2.0))
    shifts = [draw(Sample(torch.zeros(1, 4)), generator(s)).points[0, :3] for s in range(400)]
    spread = torch.stack(shifts).std(0)
    assert spread.tolist() == pytest.approx([0.5, 0.0, 2.0], rel=0.15)


@pytest.mark.parametrize(
    "config, message",
    [
        ({"type": "RandomFlip", "axes": ["z"]}, "'x' and 'y' are possible"),
        ({"type": "RandomRotation", "angle": [1, -1]}, "low <= high"),
        ({"type": "RandomScaling", "factor": [0, 1]}, "must be positive"),
        ({"type": "RandomTranslation", "std": [0.5]}, "three values"),
        ({"type": "PointRangeFilter", "point_range": [0, 0, 0, 1, 1, 0]}, "below its"),
        ({"type": "BoxRangeFilter", "point_range": [0, 0, 1, 1]}, "x0, y0, z0"),
    ],
)
def test_arguments_are_checked(config, message):
    with pytest.raises(ValueError, match=message):
        TRANSFORMS.build(config)


# ---------------------------------------------------------------------- filters and order


def test_point_range_filter_takes_the_flow_along():
    before = scene()
    after = PointRangeFilter((-1, -2, -3, 1, 2, 3))(before, generator())
    expected = (before.points[:, :3].abs() <= torch.tensor([1.0, 2, 3])).all(1)
    assert torch.equal(after.points, before.points[expected])
    assert torch.equal(after.flow, before.flow[expected])


def test_box_range_filter_goes_by_the_centre_from_above():
    sample = scene(count=3)
    sample.boxes.tensor[:, :3] = torch.tensor([[0.9, 0.0, 9.0], [1.1, 0, 0], [0, -1, 0]])
    after = BoxRangeFilter((-1, -1, -1, 1, 1, 1))(sample, generator())
    assert after.boxes.centers[:, 0].tolist() == pytest.approx([0.9, 0])
    assert len(after.labels) == len(after.names) == 2


def test_shuffle_keeps_points_and_follows_the_generator():
    before = scene()
    first, again, other = (PointShuffle()(before, generator(s)) for s in (0, 0, 1))
    assert torch.equal(first.points, again.points) and torch.equal(first.flow, again.flow)
    assert not torch.equal(first.points, other.points)
    assert torch.equal(first.points.sort(0).values, before.points.sort(0).values)
    assert torch.allclose(first.points[:, :3] * 0.1, first.flow)


def test_thinning_keeps_one_point_of_each_cell_in_any_order():
    torch.manual_seed(0)
    points = torch.rand(500, 4) * 3 - 1.5
    cells = {tuple(cell) for cell in (points[:, :3] / 0.5).floor().int().tolist()}
    thin = PointThinning(0.5)(Sample(points), generator(0)).points
    kept = [tuple(cell) for cell in (thin[:, :3] / 0.5).floor().int().tolist()]
    assert len(kept) == len(cells) and set(kept) == cells
    shuffled = PointThinning(0.5)(Sample(points[torch.randperm(500)]), generator(0)).points
    assert torch.equal(shuffled, thin)
    assert len(PointThinning(0.5)(Sample(points[:0]), generator(0)).points) == 0
    with pytest.raises(ValueError, match="-1"):
        PointThinning(-1)


# ---------------------------------------------------------------------- ground-truth sampling


@pytest.fixture
def database(tmp_path):
    """30 cars and 20 pedestrians on a grid; object i has i + 1 points of intensity i."""
    for name, count, size in (("car", 30, (4.0, 2, 1.5)), ("pedestrian", 20, (0.8, 0.6, 1.7))):
        boxes, points = [], []
        draw = generator(count)
        for i in range(count):
            center = [(i % 6) * 8.0 - 20, (i // 6) * 5.0 - 10, -1]
            boxes.append([*center, *size, 0.2 * i])
            offset = draw.uniform(-0.2, 0.2, (i + 1, 3))
            points.append(np.c_[center + offset, np.full(i + 1, i)])
        offsets = np.cumsum([0, *map(len, points)])
        ObjectDatabase(
            np.concatenate(points).astype(np.float32),
            offsets,
            np.array(boxes, np.float32),
            COLUMNS,
            [f"frame{i}" for i in range(count)],
        ).save(tmp_path / f"{name}.npz")
    return tmp_path


def street(count=1):
    """A car at a place of the database, and a carpet of points."""
    x, y = torch.meshgrid(torch.arange(-24, 24, 0.5), torch.arange(-14, 14, 0.5), indexing="ij")
    carpet = torch.stack([x, y, -torch.ones_like(x), torch.full_like(x, -1)], -1).reshape(-1, 4)
    boxes = torch.tensor([[-20.0, -10, -1, 4, 2, 1.5, 0.1]])[:count]
    return Sample(
        carpet,
        boxes=Boxes(boxes),
        labels=torch.zeros(count, dtype=torch.int64),
        names=["car"] * count,
        meta={"class_names": CLASS_NAMES, "columns": COLUMNS},
    )


@pytest.mark.parametrize("count", [0, 1])
def test_sampling_fills_up_to_the_target_without_overlap(database, count):
    sampling = GroundTruthSampling(database, {"car": 8, "pedestrian": 5}, min_points=5)
    for seed in range(5):
        after = sampling(street(count), generator(seed))
        number = torch.bincount(after.labels, minlength=2)
        assert count < number[0] <= 8 and 0 < number[1] <= 5
        assert after.names == [CLASS_NAMES[i] for i in after.labels]
        overlap = bev_overlap(after.boxes.tensor, after.boxes.tensor)
        assert (overlap - overlap.diag().diag()).max() == 0
        assert torch.equal(after.boxes.tensor[:count], street(count).boxes.tensor)


def test_pasted_objects_bring_their_points_and_the_scene_makes_room(database):
    after = GroundTruthSampling(database, {"car": 6})(street(), generator())
    inside = after.boxes[torch.arange(1, len(after.boxes))].contains(after.points)
    for mask in inside:
        intensity = after.points[mask, 3]
        assert intensity.min() >= 4 and len(intensity.unique()) == 1  # no carpet inside
        assert mask.sum() == intensity[0] + 1  # object i has i + 1 points
    assert inside.sum() + (after.points[:, 3] == -1).sum() == len(after.points)


def test_enough_objects_present_means_no_sampling(database):
    before = street()
    after = GroundTruthSampling(database, {"car": 1})(before, generator())
    assert torch.equal(after.points, before.points) and len(after.boxes) == 1


def test_a_class_of_which_none_is_wanted_needs_no_file(database):
    after = GroundTruthSampling(database, {"car": 2, "bus": 0})(street(), generator())
    assert len(after.boxes) == 2


def test_sampling_is_seeded(database):
    sampling = GroundTruthSampling(database, {"car": 8})
    first, again, other = (sampling(street(), generator(s)) for s in (1, 1, 2))
    assert torch.equal(first.points, again.points)
    assert torch.equal(first.boxes.tensor, again.boxes.tensor)
    assert first.boxes.tensor.shape != other.boxes.tensor.shape or not torch.equal(
        first.boxes.tensor, other.boxes.tensor
    )


def test_least_points_by_class(database):
    sampling = GroundTruthSampling(
        database, {"car": 30, "pedestrian": 20}, min_points={"car": 25, "pedestrian": 18}
    )
    after = sampling(street(0), generator())
    counts = after.boxes.contains(after.points).sum(1)
    assert counts[after.labels == 0].min() >= 25 and counts[after.labels == 1].min() >= 18


def test_a_frame_without_labels_stays_as_it_is(database):
    sample = Sample(torch.zeros(3, 4), meta={"class_names": CLASS_NAMES, "columns": COLUMNS})
    assert GroundTruthSampling(database, {"car": 3})(sample, generator()) is sample


def test_sampling_refuses_what_does_not_fit(database):
    with pytest.raises(FileNotFoundError, match="prepare_data"):
        GroundTruthSampling(database, {"bus": 3})
    with pytest.raises(ValueError, match=r"no car of .* has 99 points .*has 30"):
        GroundTruthSampling(database, {"car": 3}, min_points=99)
    sampling = GroundTruthSampling(database, {"car": 3})
    sample = street()
    sample.meta["class_names"] = ["Car"]
    with pytest.raises(ValueError, match="'car', which is no class"):
        sampling(sample, generator())
    sample = street()
    sample.meta["columns"] = [*COLUMNS, "time"]
    with pytest.raises(ValueError, match="make it anew"):
        sampling(sample, generator())


def test_a_database_is_written_whole_or_not_at_all(database, monkeypatch):
    objects = ObjectDatabase.open(database / "car.npz")
    assert len(objects) == 30 and objects.points_of(4).shape == (5, 4)
    assert objects.sample_ids[7] == "frame7" and objects.columns == COLUMNS

    def torn(file, **arrays):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", torn)
    with pytest.raises(OSError, match="disk full"):
        objects.save(database / "car.npz")
    monkeypatch.undo()
    assert len(ObjectDatabase.open(database / "car.npz")) == 30
    assert sorted(p.name for p in database.iterdir()) == ["car.npz", "pedestrian.npz"]
