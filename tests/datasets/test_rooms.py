"""The world's rooms: equal seeds give equal bytes, things fit, pictures agree with the scan."""

import json

import cv2
import numpy as np
import pytest
import torch

from sparse3d.datasets.world.rooms import (
    CLASS_NAMES,
    SEMANTICS,
    WorldRooms,
    make_pictures,
    make_room,
    make_rooms,
)
from sparse3d.datasets.world.rooms.furniture import MAKERS, make
from sparse3d.datasets.world.rooms.generate import build
from sparse3d.datasets.world.rooms.layout import Interior, Thing
from sparse3d.datasets.world.rooms.pictures import camera_path, intrinsics, photograph
from sparse3d.datasets.world.rooms.render import Stage
from sparse3d.datasets.world.rooms.scan import free_place, scan
from sparse3d.datasets.world.rooms.textures import PALETTE, PATTERNS, Surface, draw_color, paint
from sparse3d.structures.ply import read_ply

POINTS = 6000


@pytest.fixture(scope="module")
def made():
    return [make_room("train", 3, index, POINTS) for index in range(4)]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("rooms")
    return make_rooms(root, "small", {"train": 2, "val": 1}, seed=5, points=POINTS, sentences=6)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
    return make_pictures(root, "small", {"train": 1}, 5, frames=3, queries=2, size=(80, 60))


@pytest.mark.parametrize("kind", MAKERS)
def test_furniture_stands_in_the_middle(kind):
    rng = np.random.default_rng(0)
    for _ in range(8):
        piece = make(rng, kind)
        low, high = piece.mesh.bounds()
        assert ((high - low) > 0.005).all() and ((high - low) < 2.4).all()
        if kind not in ("picture", "window"):
            assert abs(low[2]) < 0.02
        assert piece.mesh.material.max() < len(piece.surfaces)
        assert piece.color in ("", *PALETTE)
        assert np.isfinite(piece.mesh.vertices).all()


def test_colors_are_told_apart():
    """The mean of a colour's draws is nearer to them than any other colour's mean."""
    rng = np.random.default_rng(0)
    draws = {name: np.array([draw_color(rng, name) for _ in range(30)]) for name in PALETTE}
    means = np.array([draws[name].mean(0) for name in PALETTE])
    for number, colors in enumerate(draws.values()):
        nearest = np.linalg.norm(colors[:, None] - means, axis=2).argmin(1)
        assert (nearest == number).mean() > 0.9


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_stay_on_the_surface(pattern):
    """What a place looks like depends on the place alone, and varies enough to be recognised."""
    rng = np.random.default_rng(1)
    surface = Surface((0.5, 0.4, 0.3), pattern, 0.2, 0.2, (0.2, 0.3, 0.4), 7)
    local, normal = rng.uniform(-1, 1, (400, 3)), rng.normal(size=(400, 3))
    index = np.zeros(400, np.int64)
    color = paint([surface], index, local, normal)
    assert color.min() >= 0 and color.max() <= 1
    order = rng.permutation(400)
    assert np.array_equal(paint([surface], index, local[order], normal[order]), color[order])
    assert color.std(0).max() > (0.004 if pattern == "glow" else 0.02)


def test_nothing_stands_in_anything(made):
    for room in made:
        for t in room.interior.taken:
            assert (np.abs(t[[0, 2]]) <= room.interior.size[0] / 2 + 1e-6).all()
            assert (np.abs(t[[1, 3]]) <= room.interior.size[1] / 2 + 1e-6).all()
        for i, a in enumerate(room.interior.taken):
            for b in room.interior.taken[:i]:
                apart = a[0] >= b[2] or b[0] >= a[2] or a[1] >= b[3] or b[1] >= a[3]
                assert apart


def test_things_stand_on_what_carries_them(made):
    carried = [(r, t) for r in made for t in r.interior.things if t.support >= 0]
    assert carried
    for room, thing in carried:
        low, high = room.interior.things[thing.support].bounds()
        mine_low, mine_high = thing.bounds()
        middle = (mine_low + mine_high) / 2
        assert (middle[:2] > low[:2]).all() and (middle[:2] < high[:2]).all()
        assert low[2] + 0.2 < mine_low[2] < high[2] + 0.01


def test_most_rooms_hold_distractors():
    counts = []
    for index in range(12):
        interior, _ = build("val", 0, index)
        names = [t.piece.kind for t in interior.things]
        counts.append(max(names.count(name) for name in set(names)))
    assert np.mean(np.array(counts) >= 2) > 0.8


def test_scan_rows_belong_together(made):
    for room in made:
        points, instance = room.room.points, room.room.instance
        assert points.dtype == np.float32 and points.shape[1] == 6 and len(points) <= POINTS
        assert (points[:, 3:] >= 0).all() and (points[:, 3:] <= 1).all()
        assert instance.max() < len(room.room.boxes) == len(room.room.names) == len(room.colors)
        half = room.interior.size[:2] / 2
        assert (np.abs(points[:, :2]) < half + 0.1).all()
        for number, box in enumerate(room.room.boxes):
            mine = points[instance == number, :3]
            assert np.allclose(mine.min(0), box[:3] - box[3:] / 2, atol=0.006)
            assert np.allclose(mine.max(0), box[:3] + box[3:] / 2, atol=0.006)


def test_boxes_are_those_of_the_things(made):
    """What is seen of a thing lies in its bounds; most of most things is seen."""
    shares = []
    for room in made:
        for number, box in zip(room.room.ids, room.room.boxes):
            low, high = room.interior.things[number].bounds()
            assert (box[:3] - box[3:] / 2 > low - 0.08).all()
            assert (box[:3] + box[3:] / 2 < high + 0.08).all()
            shares.append(np.prod(np.maximum(box[3:], 0.02)) / np.prod(high - low))
    assert np.median(shares) > 0.75


def test_main_color_is_seen(made):
    """The name of a colour is that of most of what is seen of the object, brightness aside."""
    rng = np.random.default_rng(0)
    means = {n: np.mean([draw_color(rng, n) for _ in range(50)], 0) for n in PALETTE}
    vivid = ("red", "green", "blue", "yellow", "purple")
    right = total = 0
    for room in made:
        for number, color in enumerate(room.colors):
            seen = room.room.points[room.room.instance == number, 3:]
            if color not in vivid or len(seen) < 60:
                continue
            seen = np.median(seen, 0)
            hues = {n: means[n] / means[n].sum() for n in vivid}
            nearest = min(hues, key=lambda n: np.abs(hues[n] - seen / seen.sum()).sum())
            right, total = right + (nearest == color), total + 1
    assert total > 10 and right / total > 0.85


def test_same_seed_same_room():
    one, two = (make_room("train", 0, 7, 2000) for _ in range(2))
    assert np.array_equal(one.room.points, two.room.points)
    assert np.array_equal(one.room.boxes, two.room.boxes)
    assert one.sentences == two.sentences


@pytest.mark.parametrize("other", [("val", 0, 7), ("train", 1, 7), ("train", 0, 8)])
def test_other_seed_other_room(other):
    one, two = make_room("train", 0, 7, 1000), make_room(*other, 1000)
    assert not np.array_equal(one.room.points[:50], two.room.points[:50])


def test_world_folder_is_completed_with_equal_bytes(world):
    before = {path: path.read_bytes() for path in sorted(world.rglob("*.*"))}
    (world / "train" / "000001.npz").unlink()
    counts = {"train": 2, "val": 1}
    again = {"seed": 5, "points": POINTS, "sentences": 6}
    make_rooms(world.parent, "small", counts, workers=2, **again)
    assert {path: path.read_bytes() for path in sorted(world.rglob("*.*"))} == before
    with pytest.raises(ValueError, match="seed 5"):
        make_rooms(world.parent, "small", counts, **{**again, "seed": 6})


def test_dataset(world):
    data = WorldRooms(world, "train", num_points=3000)
    assert len(data) > 6
    sample = data[0]
    assert sample.points.shape == (3000, 6) and sample.instance.shape == (3000,)
    assert torch.equal(sample.points, data[0].points)
    target, meta = sample.meta["target"][0], sample.meta
    assert sample.names[target] in sample.text
    assert sample.labels[target] == CLASS_NAMES.index(sample.names[target])
    assert meta["unique"] == (sample.names.count(sample.names[target]) == 1)
    things = (sample.instance >= 0).nonzero()[:, 0]  # of all: the target alone may be three points
    inside = sample.boxes.contains(sample.points)[sample.instance[things], things]
    assert inside.float().mean() > 0.8
    assert {s.kind for s in data.sentences} <= {"class", "attribute", "relation"}


def test_dataset_options(world):
    said = WorldRooms(world, "train", text="the thing", kinds=["relation"])
    assert said[0].text == "the thing" and {s.kind for s in said.sentences} == {"relation"}
    assert len(WorldRooms(world, "val", limit=1).objects) == 1
    with pytest.raises(FileNotFoundError, match=r"prepare_data.py rooms"):
        WorldRooms(world, "test")
    with pytest.raises(ValueError, match="kinds of sentences are class, attribute, relation"):
        WorldRooms(world, kinds=["relations"])
    with pytest.raises(ValueError, match="num_points is 0"):
        WorldRooms(world, num_points=0)


def test_damaged_room_is_named(world, tmp_path):
    folder = tmp_path / "broken" / "train"
    folder.mkdir(parents=True)
    source = world / "train" / "000000.npz"
    (folder / "000000.npz").write_bytes(source.read_bytes()[:2000])
    with pytest.raises(FileNotFoundError, match=r"000000.json is missing"):
        WorldRooms(folder.parent)
    (folder / "000000.json").write_text(source.with_suffix(".json").read_text())
    with pytest.raises(ValueError, match=r"000000.npz cannot be read"):
        WorldRooms(folder.parent)[0]


def test_empty_room_can_be_scanned():
    surface = Surface((0.5, 0.5, 0.5))
    interior = Interior(np.array([4.0, 4.0, 2.5]), "empty", [surface] * 6)
    stage = Stage(interior, np.random.default_rng(0))
    room = scan(stage, np.random.default_rng(0), 2000)
    assert len(room.points) == 2000 and room.boxes.shape == (0, 6)
    assert (room.instance == -1).all()


def test_points_have_a_semantic_label(world):
    with np.load(world / "val" / "000000.npz") as data:
        semantic, instance = data["semantic"], data["instance"]
    objects = json.loads((world / "val" / "000000.json").read_text())["objects"]
    for number, entry in enumerate(objects):
        assert (semantic[instance == number] == SEMANTICS.index(entry["name"])).all()
    rest = set(np.unique(semantic[instance < 0]).tolist())
    assert rest <= {SEMANTICS.index(name) for name in ("floor", "ceiling", "wall")}
    assert SEMANTICS.index("floor") in rest and SEMANTICS.index("wall") in rest


# ---------------------------------------------------------------------- pictures


def test_camera_path_is_smooth_and_clear():
    interior, _ = build("train", 0, 1)
    poses = camera_path(interior, np.random.default_rng(0), 60)
    assert np.allclose(poses[:, :3, :3] @ poses[:, :3, :3].transpose(0, 2, 1), np.eye(3))
    assert np.allclose(np.linalg.det(poses[:, :3, :3]), 1)
    steps = np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1)
    turn = np.einsum("nij,nij->n", poses[1:, :3, :3], poses[:-1, :3, :3])
    assert steps.max() < 0.35 and np.degrees(np.arccos((turn.min() - 1) / 2)) < 25
    assert all(free_place(interior, pose[:3, 3], 0.2) for pose in poses)
    assert (poses[:, 2, 1] < 0).all()  # the picture's down is the room's down


def test_pictures_agree_with_each_other():
    """A picture's pixels, moved by depth and pose, find their colour in the next one."""
    interior, stage = build("train", 0, 2)
    poses = camera_path(interior, np.random.default_rng(0), 60)[:2]
    size, rng = (80, 60), np.random.default_rng(0)
    (first, depth), (second, other) = (photograph(stage, pose, size, rng) for pose in poses)
    K = intrinsics(size)
    v, u = np.mgrid[:60, :80] + 0.5
    z = depth.ravel() / 1000
    local = np.stack([(u.ravel() - 40) / K[0, 0] * z, (v.ravel() - 30) / K[1, 1] * z, z], 1)
    world = local @ poses[0][:3, :3].T + poses[0][:3, 3]
    there = (world - poses[1][:3, 3]) @ poses[1][:3, :3]
    x = np.floor(there[:, 0] / there[:, 2] * K[0, 0] + 40).astype(int)
    y = np.floor(there[:, 1] / there[:, 2] * K[1, 1] + 30).astype(int)
    seen = (x >= 0) & (x < 80) & (y >= 0) & (y < 60)
    assert seen.mean() > 0.7
    same = np.abs(other[y[seen], x[seen]] / 1000 - there[seen, 2]) < 0.05
    assert same.mean() > 0.85
    gap = np.abs(first.reshape(-1, 3)[seen][same] - second[y[seen], x[seen]][same].astype(float))
    assert np.median(gap) < 6


def test_picture_folder(pictures):
    room = pictures / "train-000000"
    assert (room / "TrainSplit.txt").read_text() == "sequence1\n"
    lens = json.loads((room / "intrinsics.json").read_text())["color"]
    shot = json.loads((room / "transforms.json").read_text())
    assert (lens["w"], lens["h"]) == (80, 60) == (shot["w"], shot["h"])
    for number, frame in enumerate(shot["frames"]):
        pose = np.loadtxt(room / "seq-01" / f"frame-{number:06d}.pose.txt")
        assert np.allclose(pose @ np.diag([1, -1, -1, 1]), frame["transform_matrix"], atol=1e-8)
        assert cv2.imread(str(room / frame["file_path"])).shape == (60, 80, 3)
        depth = cv2.imread(str(room / frame["depth_file_path"]), cv2.IMREAD_UNCHANGED)
        assert depth.dtype == np.uint16 and 300 < np.median(depth) < 9000
    cloud = read_ply(room / "points.ply")["vertex"]
    assert len(cloud) > 5000 and np.abs(cloud["x"]).max() < 4
    assert len(list((room / "seq-02").glob("*.color.png"))) == 2


def test_pictures_repeat_byte_for_byte(pictures):
    lost = pictures / "train-000000" / "seq-01" / "frame-000001.color.png"
    before = {path: path.read_bytes() for path in sorted(pictures.rglob("*.*"))}
    lost.unlink()
    make_pictures(pictures.parents[1], "small", {"train": 1}, 5, 3, 2, (80, 60), workers=2)
    assert {path: path.read_bytes() for path in sorted(pictures.rglob("*.*"))} == before


def test_too_few_pictures_are_refused(tmp_path):
    with pytest.raises(ValueError, match="frames is 1"):
        make_pictures(tmp_path, "x", {"train": 1}, frames=1)


def test_thing_is_where_it_is_put():
    piece = make(np.random.default_rng(0), "box")
    low, high = Thing(piece, np.array([1.0, 2.0, 0.5]), 0.0).bounds()
    assert np.allclose((low + high)[:2] / 2, [1, 2]) and low[2] == pytest.approx(0.5, abs=0.003)
