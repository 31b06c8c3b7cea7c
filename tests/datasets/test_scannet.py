"""ScanNet's scenes and the sentences about them, on a small scene in the official files."""

import json
import shutil

import numpy as np
import pytest
import torch

from sparse3d.datasets.grounding import Room, to_sample
from sparse3d.datasets.scannet import ReferIt3D, ScanNetGenerated, ScanRefer, color_name
from sparse3d.datasets.scannet_scenes import (
    BENCHMARK_CLASSES,
    benchmark_class,
    benchmark_names,
    list_scenes,
    prepare_scenes,
    read_points,
    read_scene,
    write_scene,
)
from sparse3d.structures.ply import write_ply

from ..conftest import real_data

SCENE = "scene0707_00"
OBJECTS = (("office chair", (0, 0)), ("chair", (2, 0)), ("table", (0, 2)), ("door", (3, 3)))
TURN = np.array([[0, -1, 0, 5], [1, 0, 0, -2], [0, 0, 1, 0.5], [0, 0, 0, 1.0]])


def write_mesh(path, xyz, rgb=None) -> None:
    fields = [(a, "f4") for a in "xyz"] + [(c, "u1") for c in ("red", "green", "blue")] * (
        rgb is not None
    )
    table = np.zeros(len(xyz), fields)
    for k, axis in enumerate("xyz"):
        table[axis] = xyz[:, k]
    for k, name in enumerate(("red", "green", "blue") if rgb is not None else ()):
        table[name] = rgb[:, k]
    write_ply(path, {"vertex": table})


def make_scene(root, turned=True):
    """A folder of the official files: four cubes of points, the mesh not aligned."""
    folder = root / "scans" / SCENE
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    xyz, segments = [], []
    for number, (_, place) in enumerate(OBJECTS):
        xyz.append(rng.uniform(0, 1, (80, 3)) * [0.5, 0.6, 0.8 + 0.3 * number] + [*place, 0])
        segments += [10 * number] * 40 + [10 * number + 1] * 40
    xyz = np.concatenate([*xyz, rng.uniform(-1, 4, (50, 3)) * [1, 1, 0]])
    segments += [99] * 50
    rgb = np.full((len(xyz), 3), (180, 30, 25), np.uint8)
    back = np.linalg.inv(TURN)
    raw = xyz @ back[:3, :3].T + back[:3, 3] if turned else xyz
    write_mesh(folder / f"{SCENE}_vh_clean_2.ply", raw, rgb)
    groups = [
        {"id": n, "objectId": n, "label": label, "segments": [10 * n, 10 * n + 1]}
        for n, (label, _) in enumerate(OBJECTS)
    ]
    (folder / f"{SCENE}_vh_clean_2.0.010000.segs.json").write_text(
        json.dumps({"segIndices": segments})
    )
    (folder / f"{SCENE}.aggregation.json").write_text(json.dumps({"segGroups": groups}))
    values = " ".join(f"{v:f}" for v in TURN.ravel())
    (folder / f"{SCENE}.txt").write_text(f"axisAlignment = {values} \nnumDepthFrames = 3\n")
    return folder


@pytest.fixture
def scene(tmp_path):
    return make_scene(tmp_path)


@pytest.fixture
def annotations(tmp_path):
    rows = [
        {
            "scene_id": SCENE,
            "object_id": "1",
            "object_name": "chair",
            "ann_id": "0",
            "description": "ignored",
            "token": ["the", "chair", "left", "of", "the", "table"],
        },
        {
            "scene_id": "scene0001_00",
            "object_id": "0",
            "object_name": "bed",
            "ann_id": "1",
            "description": "a bed, alone",
        },
    ]
    (tmp_path / "refer.json").write_text(json.dumps(rows))
    (tmp_path / "refer.csv").write_text(
        "scan_id,target_id,distractor_ids,utterance,instance_type,anchor_ids,"
        "mentions_target_class,correct_guess,reference_type\n"
        f'{SCENE},1,"[0]","the chair, near the table",chair,[2],True,True,horizontal\n'
        f'{SCENE},2,"[]",it,table,[],False,True,\n'
        f'{SCENE},0,"[1, 3]",office chair,office chair,[],True,False,\n'
    )
    return tmp_path


def test_scene_is_aligned_and_boxed(scene):
    room = read_scene(scene)
    assert room.names == [name for name, _ in OBJECTS] and room.ids == [0, 1, 2, 3]
    for number, (_, place) in enumerate(OBJECTS):
        low = room.boxes[number, :3] - room.boxes[number, 3:] / 2
        assert np.allclose(low, [*place, 0], atol=0.06)
        assert (room.instance == number).sum() == 80
    assert np.allclose(room.points[0, 3:], np.array([180, 30, 25]) / 255)
    raw = read_scene(scene, aligned=False)
    assert np.allclose(
        raw.points[:, :3] @ TURN[:3, :3].T + TURN[:3, 3], room.points[:, :3], atol=1e-5
    )


def test_prepared_scene_is_the_same(scene, tmp_path):
    room = read_scene(scene)
    again = read_scene(write_scene(SCENE, tmp_path, tmp_path))
    assert np.array_equal(again.points[:, :3], room.points[:, :3])
    assert np.allclose(again.points, room.points, atol=1e-6)
    assert np.array_equal(again.boxes, room.boxes) and again.names == room.names
    assert list_scenes(tmp_path) == [SCENE]


def test_all_scenes_are_prepared(annotations, scene):
    (annotations / "scans" / "scannetv2-labels.combined.tsv").write_text("raw_category\tnyu40id\n")
    out = annotations / "fast"
    assert prepare_scenes(annotations / "scans", out) == 1
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert set(before) == {f"{SCENE}.npz", "scannetv2-labels.combined.tsv"}
    assert prepare_scenes(annotations, out) == 1
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    fast = ScanRefer(out, annotations / "refer.json", scenes=[SCENE])[0]
    slow = ScanRefer(annotations, annotations / "refer.json", scenes=[SCENE])[0]
    assert torch.equal(fast.boxes.tensor, slow.boxes.tensor) and fast.names == slow.names
    with pytest.raises(FileNotFoundError, match="holds no folders"):
        prepare_scenes(annotations / "scans" / SCENE, out)


def test_missing_alignment_is_warned_of(scene):
    (scene / f"{SCENE}.txt").write_text("numDepthFrames = 3\n")
    with pytest.warns(UserWarning, match="no axisAlignment"):
        read_scene(scene)


@pytest.mark.parametrize(
    ("ending", "match"),
    [
        (".aggregation.json", r"aggregation.json is missing: without it no object is known"),
        ("_vh_clean_2.0.010000.segs.json", r"segs.json is missing"),
        ("_vh_clean_2.ply", r"_vh_clean_2.ply is missing"),
    ],
)
def test_missing_files_are_named(scene, ending, match):
    (scene / f"{SCENE}{ending}").unlink()
    with pytest.raises(FileNotFoundError, match=match):
        read_scene(scene)


@pytest.mark.parametrize("ending", [".aggregation.json", "_vh_clean_2.ply", ".txt"])
def test_truncated_files_are_named(scene, ending):
    path = scene / f"{SCENE}{ending}"
    path.write_bytes(
        path.read_bytes()[:60] if ending != "_vh_clean_2.ply" else path.read_bytes()[:900]
    )
    with pytest.raises(ValueError, match=path.name):
        read_scene(scene)


def test_segments_of_another_mesh_are_refused(scene):
    path = scene / f"{SCENE}_vh_clean_2.0.010000.segs.json"
    path.write_text(json.dumps({"segIndices": [0, 1, 2]}))
    with pytest.raises(ValueError, match="3 segments for 370 vertices"):
        read_scene(scene)


def test_scan_without_colors(tmp_path):
    write_mesh(tmp_path / "a.ply", np.random.default_rng(0).uniform(0, 3, (9, 3)))
    with pytest.warns(UserWarning, match="has no colours"):
        points = read_points(tmp_path / "a.ply")
    assert points.shape == (9, 6) and (points[:, 3:] == 0.5).all()


def test_one_point_and_none(tmp_path):
    for count in (0, 1):
        write_mesh(tmp_path / "a.ply", np.zeros((count, 3)), np.zeros((count, 3), np.uint8))
        points = read_points(tmp_path / "a.ply")
        none = np.zeros((0, 6), np.float32)
        sample = to_sample(Room(points, np.full(count, -1), none, [], []), {})
        assert sample.points.shape == (count, 6) and len(sample.boxes) == 0


@pytest.mark.parametrize(("factor", "word"), [(1000, "millimetres"), (100, "centimetres")])
def test_wrong_units_are_warned_of(scene, factor, word):
    room = read_scene(scene)
    room.points[:, :3] *= factor
    with pytest.warns(UserWarning, match=f"implausible.*{word}"):
        to_sample(room, {"sample_id": "big"})


def test_scanrefer(annotations, scene):
    data = ScanRefer(annotations, annotations / "refer.json", scenes=[SCENE], num_points=200)
    assert len(data) == 1 and len(ScanRefer(annotations, annotations / "refer.json")) == 2
    sample = data[0]
    assert sample.text == "the chair left of the table" and sample.meta["view_dependent"]
    assert sample.names[sample.meta["target"][0]] == "chair"
    assert sample.meta["distractors"] == 1 and not sample.meta["unique"]
    assert sample.labels.tolist() == [
        BENCHMARK_CLASSES.index(n) for n in ("chair", "chair", "table", "door")
    ]
    assert sample.points.shape == (200, 6) and torch.equal(sample.points, data[0].points)


def test_scanrefer_of_an_absent_scene(annotations, scene):
    with pytest.raises(FileNotFoundError, match="scene0001_00"):
        ScanRefer(annotations, annotations / "refer.json")[1]


def test_referit3d(annotations, scene):
    data = ReferIt3D(annotations, annotations / "refer.csv")
    assert [s.text for s in data.sentences] == ["the chair , near the table", "office chair"]
    meta = data[0].meta
    assert meta["target"] == [1] and meta["anchors"] == [2] and meta["distractors"] == 1
    assert data[1].meta["hard"] and not meta["hard"] and meta["relation"] == "horizontal"
    assert len(ReferIt3D(annotations, annotations / "refer.csv", correct_only=True)) == 1
    assert len(ReferIt3D(annotations, annotations / "refer.csv", mentioned_only=False)) == 3


@pytest.mark.parametrize("name", ["refer.json", "refer.csv"])
def test_damaged_annotations_are_named(annotations, scene, name):
    path = annotations / name
    text = path.read_text()
    path.write_text(text[:50] if name.endswith("json") else text.replace("target_id", "target"))
    kind = ScanRefer if name.endswith("json") else ReferIt3D
    with pytest.raises(ValueError, match=name):
        kind(annotations, path)


def test_sentence_about_no_object(annotations, scene):
    rows = json.loads((annotations / "refer.json").read_text())[:1]
    rows[0]["object_id"] = "17"
    (annotations / "refer.json").write_text(json.dumps(rows))
    with pytest.raises(ValueError, match=r"object 17, which scene0707_00 does not have"):
        ScanRefer(annotations, annotations / "refer.json")[0]


def test_generated_sentences(annotations, scene):
    data = ScanNetGenerated(annotations, per_scene=8)
    assert len(data) > 3
    for index, sentence in enumerate(data.sentences):
        sample = data[index]
        assert sample.names[sample.meta["target"][0]] in sentence.text
    assert data.sentences == ScanNetGenerated(annotations, per_scene=8).sentences


def test_benchmark_classes(tmp_path):
    assert benchmark_class("office_chair", {}) == "chair"
    assert benchmark_class("shower curtain", {}) == "shower curtain"
    assert benchmark_class("lamp", {}) == "others" == benchmark_class("", {})
    (tmp_path / "scannetv2-labels.combined.tsv").write_text(
        "id\traw_category\tnyu40id\n1\tthrone\t5\n2\tlamp\t35\n3\tempty\t\n"
    )
    table = benchmark_names(tmp_path)
    assert table == {"throne": "chair"} and benchmark_class("stool", table) == "others"


@pytest.mark.parametrize(
    ("rgb", "name"),
    [
        ((0.8, 0.1, 0.1), "red"),
        ((0.1, 0.2, 0.8), "blue"),
        ((0.3, 0.18, 0.08), "brown"),
        ((0.95, 0.95, 0.93), "white"),
        ((0.5, 0.5, 0.52), "gray"),
        ((0.05, 0.05, 0.05), "black"),
        ((0.85, 0.75, 0.6), "beige"),
    ],
)
def test_color_names(rgb, name):
    many = np.tile(rgb, (10, 1))
    assert color_name(many) == name
    many[:5] = 1 - many[:5]
    assert color_name(many) in ("", name if name == "gray" else "")
    assert color_name(many[:0]) == ""


@pytest.mark.parametrize("path", real_data("scannet/scene*_[0-9][0-9].npz"), ids=lambda p: p.stem)
def test_real_scene(path, tmp_path):
    shutil.copy(path, tmp_path / path.name)
    room = read_scene(tmp_path / path.name)
    with np.load(path) as data:
        boxes, numbers = data["bbox"], data["bbox_inst_idx"].astype(int)
    rows = [room.ids.index(n - 1) for n in numbers]
    assert np.allclose(room.boxes[rows], boxes[:, :6], atol=1e-4)
    data = ScanNetGenerated(tmp_path, per_scene=10, num_points=20_000, colors=False)
    assert 0 < len(data) <= 10
    sample = data[0]
    assert sample.points.shape == (20_000, 6)
    assert sample.boxes.contains(sample.points)[sample.meta["target"][0]].any()
