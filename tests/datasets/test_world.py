"""The procedural world: equal seeds give equal bytes, boxes fit, nothing stands in anything."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse3d.datasets.world import (
    CLASS_NAMES,
    KINDS,
    SEMANTICS,
    SENSORS,
    WorldStreets,
    frame_seed,
    generate,
    make_frame,
    make_world,
    people,
    vehicles,
)
from sparse3d.datasets.world.dataset import KITTI_VIEW, in_view
from sparse3d.datasets.world.layout import lay_out
from sparse3d.datasets.world.shapes import Mesh, box, merge, ring, tube
from sparse3d.datasets.world.streets import Street
from sparse3d.ops.rotated import bev_overlap


@pytest.fixture(scope="module", params=["hdl64_front", "hdl32"])
def frames(request):
    return request.param, [make_frame("train", 3, i, request.param) for i in range(4)]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    return make_world(root, "small", "hdl64_front", {"train": 2, "val": 1}, seed=5, workers=1)


def local(points: np.ndarray, row: np.ndarray) -> np.ndarray:
    """``points`` in the frame of a box [9]."""
    cos, sin = np.cos(row[6]), np.sin(row[6])
    x, y, z = (points[:, :3] - row[:3]).T
    return np.stack([x * cos + y * sin, -x * sin + y * cos, z], 1)


def equal(a, b) -> bool:
    return all(np.array_equal(getattr(a, key), getattr(b, key)) for key in vars(a))


@pytest.mark.parametrize("sensor", SENSORS)
def test_same_seed_same_frame(sensor):
    assert equal(make_frame("train", 0, 7, sensor), make_frame("train", 0, 7, sensor))


@pytest.mark.parametrize("other", [("val", 0, 7), ("train", 1, 7), ("train", 0, 8)])
def test_other_seed_other_frame(other):
    one, two = make_frame("train", 0, 7, "hdl32"), make_frame(*other, "hdl32")
    assert not np.array_equal(one.points[:100], two.points[:100])


@given(
    st.tuples(st.sampled_from(generate.SPLITS), st.integers(0, 99), st.integers(0, 9_999_999)),
    st.tuples(st.sampled_from(generate.SPLITS), st.integers(0, 99), st.integers(0, 9_999_999)),
)
def test_splits_never_share_a_seed(one, two):
    assert (frame_seed(*one) == frame_seed(*two)) == (one == two)


@pytest.mark.parametrize("wrong", [("training", 0, 0), ("train", 0, -1), ("train", 0, 10_000_000)])
def test_wrong_seed_is_refused(wrong):
    with pytest.raises(ValueError, match=r"must"):
        frame_seed(*wrong)


def test_unknown_sensor_is_refused():
    with pytest.raises(ValueError, match="hdl64_front"):
        make_frame("train", 0, 0, "vlp16")


def test_rows_belong_together(frames):
    _, made = frames
    for frame in made:
        assert frame.points.dtype == np.float32 and frame.points.shape[1] == 4
        assert len(frame.semantic) == len(frame.instance) == len(frame.points)
        assert frame.boxes.dtype == np.float32 and frame.boxes.shape == (len(frame.kinds), 9)
        assert (frame.points[:, 3] >= 0).all() and (frame.points[:, 3] <= 1).all()
        assert frame.semantic.max() < len(SEMANTICS)
        for label, kind in zip(frame.labels, frame.kinds):
            expected = {"bus": "truck"}.get(KINDS[kind], KINDS[kind])
            assert label == (CLASS_NAMES.index(expected) if expected in CLASS_NAMES else -1)
        counts = np.bincount(frame.instance[frame.instance >= 0], minlength=len(frame.boxes))
        assert np.array_equal(counts, frame.num_points)


def test_boxes_contain_their_points(frames):
    """But for mirrors, slopes and veils: 95 in 100 points within 5 cm of the box."""
    _, made = frames
    inside, total = 0, 0
    for frame in made:
        for number, row in enumerate(frame.boxes):
            points = local(frame.points[frame.instance == number], row)
            inside += (np.abs(points) <= row[3:6] / 2 + 0.05).all(1).sum()
            total += len(points)
    assert total > 1000
    assert inside / total > 0.95


def test_boxes_are_tight():
    """The mesh of a vehicle or person reaches every side of its box."""
    rng = np.random.default_rng(0)
    makers = [vehicles.car] * 20 + [vehicles.van, vehicles.truck, vehicles.bus] * 4
    for make in [*makers, *[people.pedestrian, people.cyclist] * 6]:
        mesh, size = make(rng)
        low, high = mesh.bounds()
        mirrors = np.array([0.03, 0.37, 0.03])
        assert (high - low >= size - 0.05).all(), make.__name__
        assert (high - low <= size + mirrors).all(), make.__name__
        assert abs(low[2]) < 0.02, make.__name__


def test_car_sizes_are_those_of_cars():
    rng = np.random.default_rng(1)
    sizes = np.array([vehicles.car(rng)[1] for _ in range(300)])
    assert np.allclose(sizes.mean(0), [4.1, 1.7, 1.53], atol=[0.3, 0.12, 0.1])
    assert (sizes > [3.1, 1.4, 1.2]).all() and (sizes < [5.1, 2.0, 1.95]).all()


def test_boxes_rest_on_the_ground():
    for index in range(3):
        street = lay_out(np.random.default_rng(index))
        assert street.things
        for thing in street.things:
            # The road's own coordinates of the place, by bending back.
            x, y = thing.position[:2]
            bend = street.road.bend
            s, t = x, y
            if abs(bend) >= 1e-5:
                angle = np.arctan2(np.sign(bend) * x, np.sign(bend) * (1 / bend - y))
                s, t = angle / bend, 1 / bend - np.sign(bend) * np.hypot(x, 1 / bend - y)
            assert abs(thing.position[2] - street.road.height(s, t)) < 0.45
            if thing.kind:
                row = thing.box()
                assert row[2] - row[5] / 2 == pytest.approx(thing.position[2])


@settings(max_examples=4, deadline=None)
@given(st.integers(0, 10_000))
def test_nothing_stands_in_anything(seed):
    street = lay_out(np.random.default_rng(seed))
    rows = torch.tensor(np.array([t.box()[:7] for t in street.things if t.kind])).float()
    rows = rows.reshape(-1, 7)
    ego = torch.tensor([[*street.ego_place[:2], 0, 4, 1.8, 1.5, street.ego[1]]]).float()
    rows = torch.cat([rows, ego])
    overlap = bev_overlap(rows, rows)
    overlap.fill_diagonal_(0)
    assert overlap.max() < 1e-3


def test_things_move_along_their_heading():
    street = lay_out(np.random.default_rng(4))
    moving = [thing for thing in street.things if thing.speed > 0]
    assert moving
    for thing in moving:
        step = thing.box(0.1) - thing.box()
        along = thing.speed * 0.1 * np.array([np.cos(thing.yaw), np.sin(thing.yaw)])
        assert np.allclose(step[:2], along) and np.allclose(step[2:], 0)
        shift = thing.placed(0.1) - thing.placed()
        assert np.allclose(shift[:, :2], along)


def test_front_scanner_sees_the_front(frames):
    name, made = frames
    for frame in made:
        angle = np.degrees(np.arctan2(frame.points[:, 1], frame.points[:, 0]))
        if name == "hdl64_front":
            assert np.abs(angle).max() < 45.5
        else:
            assert np.histogram(angle, 12, (-180, 180))[0].min() > 0


@pytest.mark.parametrize(
    ("name", "beams", "low", "high"), [("hdl64", 64, -25.3, 2.3), ("hdl32", 32, -30.9, 10.9)]
)
def test_beams(name, beams, low, high):
    from sparse3d.datasets.world.sensors import beams as cast_beams

    sensor = SENSORS[name]
    origin, direction = cast_beams(sensor, np.random.default_rng(0))
    assert np.allclose(np.linalg.norm(direction, axis=1), 1)
    elevation = np.degrees(np.arcsin(direction[:, 2])).reshape(beams, -1)
    assert low < elevation.min() and elevation.max() < high
    assert (np.diff(elevation.mean(1)) < 0.05).all()
    assert len(direction) / beams == pytest.approx(360 / sensor.azimuth_step, rel=0.06)
    assert np.array_equal(np.unique(origin[:, 2])[::-1], np.unique(sensor.rise)[::-1])


@pytest.mark.parametrize("name", ["hdl64", "hdl32"])
def test_the_carrying_car_stops_the_lowest_beams(name):
    from sparse3d.datasets.world.sensors import beams, meets_roof

    sensor = SENSORS[name]
    origin, direction = beams(sensor, np.random.default_rng(0))
    stopped = meets_roof(sensor, origin, direction).reshape(len(sensor.elevations), -1).mean(1)
    assert (np.diff(stopped) >= -0.01).all()
    assert stopped[0] == 0 and stopped[-1] > 0.3


def test_scan_measures_a_wall():
    """A wall 10 m ahead, without noise: every point lies on it."""
    from sparse3d.datasets.world.materials import Material
    from sparse3d.datasets.world.sensors import scan

    wall = box((10.5, 0, 0), (1, 40, 6), Material.WALL)
    sensor = replace(SENSORS["hdl64_front"], noise=(0.0, 0.0))
    owner = np.zeros(len(wall), np.int64)
    rng = np.random.default_rng(0)
    echoes = scan(sensor, rng, wall.vertices, wall.faces, wall.material, owner)
    on_wall = np.abs(echoes.points[:, 0] - 10) < 0.002
    assert len(on_wall) > 5000
    assert on_wall.mean() > 0.99


def test_scan_of_nothing_is_empty():
    from sparse3d.datasets.world.sensors import scan

    far = box((500, 0, 0), (1, 1, 1), 0)
    rng = np.random.default_rng(0)
    owner = np.zeros(len(far), np.int64)
    echoes = scan(SENSORS["hdl32"], rng, far.vertices, far.faces, far.material, owner)
    assert echoes.points.shape == (0, 4) and echoes.faces.shape == (0,)


def test_empty_street_has_no_boxes():
    filled = lay_out(np.random.default_rng(0))
    empty = Street(filled.road, filled.ego, front=False)
    frame = generate.observe(empty, SENSORS["hdl32"], np.random.default_rng(0))
    assert frame.boxes.shape == (0, 9) and len(frame.points) > 1000
    assert (frame.instance == -1).all()


def test_glass_lets_rays_through():
    from sparse3d.datasets.world.materials import Material
    from sparse3d.datasets.world.sensors import scan

    pane = box((5, 0, 0), (0.01, 40, 6), Material.GLASS)
    wall = box((10, 0, 0), (0.1, 80, 12), Material.WALL)
    mesh = merge([pane, wall])
    owner = np.repeat([0, 1], 12)
    sensor = SENSORS["hdl64_front"]
    echoes = scan(sensor, np.random.default_rng(0), mesh.vertices, mesh.faces, mesh.material, owner)
    behind = (echoes.points[:, 0] > 9).mean()
    assert 0.1 < behind < 0.99


def test_meshes_are_sound():
    rng = np.random.default_rng(0)
    for mesh in (tube((0, 0, 0), (1, 2, 3), (0.1, 0.2), 4), ring((0, 0, 1), 0.5, 0.1, 4)):
        assert isinstance(mesh, Mesh) and len(mesh.material) == len(mesh.faces)
        assert mesh.faces.max() == len(mesh.vertices) - 1
    bar = tube((1, 0, 0), (4, 0, 0), (0.5, 0.5), 4, sides=12)
    distance = np.hypot(bar.vertices[:, 1], bar.vertices[:, 2])
    assert np.allclose(distance[(distance > 1e-9)], 0.5)
    assert len(merge([])) == 0
    turned = box((1, 0, 0), (2, 1, 1), 4).moved((0, 0, 0), rng.choice([np.pi / 2]))
    assert np.allclose(turned.bounds()[1], [0.5, 2, 0.5])


def test_world_folder(world):
    assert sorted(p.name for p in (world / "train").iterdir()) == ["000000.npz", "000001.npz"]
    before = {path: path.read_bytes() for path in world.glob("*/*.npz")}
    lost = world / "train" / "000001.npz"
    lost.unlink()
    kept = world / "train" / "000000.npz"
    stamp = kept.stat().st_mtime_ns
    make_world(world.parent, "small", "hdl64_front", {"train": 2, "val": 1}, seed=5, workers=1)
    assert kept.stat().st_mtime_ns == stamp
    assert {path: path.read_bytes() for path in world.glob("*/*.npz")} == before


def test_number_of_workers_does_not_matter(world):
    other = make_world(world.parent, "twin", "hdl64_front", {"train": 2}, seed=5, workers=2)
    for path in sorted((other / "train").iterdir()):
        assert path.read_bytes() == (world / "train" / path.name).read_bytes()


def test_world_made_otherwise_is_refused(world):
    with pytest.raises(ValueError, match="seed 5"):
        make_world(world.parent, "small", "hdl64_front", {"train": 1}, seed=6)


def test_dataset(world):
    data = WorldStreets(world, "train", class_names=["pedestrian", "car"], keep_ignored=True)
    assert len(data) == 2
    sample = data[0]
    assert sample.points.dtype == torch.float32 and sample.boxes.tensor.shape[1] == 7
    assert len(sample.boxes) == len(sample.labels) == len(sample.names) > 0
    for label, name in zip(sample.labels.tolist(), sample.names):
        assert label == {"pedestrian": 0, "car": 1}.get(name, -1)
    few = WorldStreets(world, "train", min_points=50, velocity=True)[0]
    assert len(few.boxes) <= len(sample.boxes) and few.boxes.tensor.shape[1] == 9
    assert len(WorldStreets(world, "val", limit=1)) == 1


def test_dataset_crops_to_the_picture(world):
    cropped = WorldStreets(world, "train", fov_deg=KITTI_VIEW)[0].points
    angle = torch.rad2deg(torch.atan2(cropped[:, 1], cropped[:, 0]).abs())
    assert angle.max() <= 40.5 + 1e-3
    assert 10_000 < len(cropped) < 24_000
    whole = WorldStreets(world, "train")[0].points.numpy()
    assert np.array_equal(whole[in_view(whole, KITTI_VIEW)], cropped.numpy())
    assert in_view(whole, 60.0).sum() < in_view(whole, None).sum() == len(whole)
    with pytest.raises(ValueError, match="180"):
        in_view(whole, (190, 10, 10))


def test_dataset_names_what_is_wrong(world):
    with pytest.raises(FileNotFoundError, match="prepare_data"):
        WorldStreets(world, "test")
    with pytest.raises(ValueError, match="tram"):
        WorldStreets(world, "train", class_names=["tram"])
