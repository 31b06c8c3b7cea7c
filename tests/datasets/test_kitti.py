"""KITTI: formats, the conversion of boxes, and what real frames say of both."""

import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse3d.datasets.kitti import (
    Calibration,
    KittiDataset,
    boxes_from_camera,
    boxes_to_camera,
    difficulty,
    project_labels,
    read_calibration,
    read_labels,
)
from sparse3d.registry import DATASETS
from sparse3d.structures import Boxes
from tests.conftest import real_data

EVERY_CLASS = ["Car", "Pedestrian", "Cyclist", "Van", "Truck", "Person_sitting", "Tram", "Misc"]
# Axes as they ideally are: camera x = -y, y = -z, z = x of the LiDAR.
IDEAL = np.array([[0.0, -1, 0, 0], [0, 0, -1, -0.08], [1, 0, 0, -0.27]])
P2 = np.array([[700.0, 0, 600, 45], [0, 700, 180, 0.2], [0, 0, 1, 0.003]])


def write_frame(root, frame="000000", part="training", labels=("Car",), points=None):
    """An official folder with one frame whose camera looks along the LiDAR's x axis."""
    folder = root / part
    for name in ("velodyne", "calib", "label_2", "image_2"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    if points is None:
        points = np.array([[10, 0, 0, 0.5], [-10, 0, 0, 0.5]])
    points.astype(np.float32).tofile(folder / "velodyne" / f"{frame}.bin")
    rows = {"P0": P2, "P2": P2, "R0_rect": np.eye(3), "Tr_velo_to_cam": IDEAL}
    text = "".join(f"{k}: {' '.join(map(str, v.ravel()))}\n" for k, v in rows.items())
    (folder / "calib" / f"{frame}.txt").write_text(text + "\n")
    if labels is not None:
        line = "{} 0.00 0 -1.57 560 150 640 210 1.50 1.60 4.00 0.00 1.50 20.00 -1.57\n"
        text = "".join(line.format(name) for name in labels)
        (folder / "label_2" / f"{frame}.txt").write_text(text)
    return folder


def random_labels(count, seed):
    generator = np.random.default_rng(seed)
    return {
        "name": np.array(["Car"] * count, dtype=object),
        "dimensions": generator.uniform(0.3, 8, (count, 3)),
        "location": generator.uniform([-40, -2, 1], [40, 4, 80], (count, 3)),
        "rotation_y": generator.uniform(-np.pi, np.pi, count),
    }


def random_calibration(seed):
    """A camera near the ideal one, tilted by some degrees."""
    generator = np.random.default_rng(seed)
    turns = []
    for _ in range(2):
        matrix, _ = np.linalg.qr(np.eye(3) + generator.normal(0, 0.03, (3, 3)))
        turns.append(matrix * np.sign(np.diag(matrix)))
    return Calibration(P2, turns[0], turns[1] @ IDEAL)


# ---------------------------------------------------------------------- conversion


def test_an_ideal_label_has_an_obvious_box():
    """A car 20 m ahead, standing 1.5 m below the camera, that drives away from it."""
    labels = {
        "dimensions": np.array([[4.0, 1.5, 1.6]]),
        "location": np.array([[2.0, 1.5, 20.0]]),
        "rotation_y": np.array([-np.pi / 2]),
    }
    box = boxes_from_camera(labels, Calibration(P2, np.eye(3), IDEAL))
    # x ahead with the camera's shift, y to the left, the bottom at -1.58 and the centre half above.
    assert box[0].tolist() == pytest.approx([20.27, -2, -1.58 + 0.75, 4, 1.6, 1.5, 0])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 6))
def test_conversion_there_and_back(seed, count):
    labels, calibration = random_labels(count, seed), random_calibration(seed)
    back = boxes_to_camera(boxes_from_camera(labels, calibration), calibration)
    for name in ("dimensions", "location"):
        assert np.abs(back[name] - labels[name]).max(initial=0) < 1e-9
    turn = back["rotation_y"] - labels["rotation_y"]
    assert np.abs(np.angle(np.exp(1j * turn))).max(initial=0) < 1e-9


def test_heading_points_where_the_camera_sees_it():
    """With an ideal calibration the front of the box is the front of the label."""
    labels, calibration = random_labels(20, 5), Calibration(P2, np.eye(3), IDEAL)
    boxes = boxes_from_camera(labels, calibration)
    ahead = torch.stack([boxes[:, 6].cos(), boxes[:, 6].sin(), torch.zeros(20)], 1).numpy()
    seen = ahead @ calibration.lidar_to_camera[:3, :3].T
    yaw = labels["rotation_y"]
    expected = np.stack([np.cos(yaw), np.zeros(20), -np.sin(yaw)], 1)
    assert np.abs(seen - expected).max() < 1e-9


def test_projection_equals_that_of_the_camera():
    labels, calibration = random_labels(20, 6), Calibration(P2, np.eye(3), IDEAL)
    labels["location"][:, 2] += 10  # wholly before the camera
    corners = Boxes(boxes_from_camera(labels, calibration)).corners()
    pixels, _ = calibration.camera((1242, 375)).project(corners)
    expected = torch.cat([pixels.amin(1), pixels.amax(1)], 1).numpy()
    assert np.abs(project_labels(labels, P2) - expected).max() < 1e-4


def test_a_box_beside_the_camera_is_cut_at_it():
    """A car that begins behind the camera fills its side of the picture and no other."""
    labels = {
        "dimensions": np.array([[4.0, 1.5, 1.6]] * 2),
        "location": np.array([[3.0, 1.5, 1.0], [3.0, 1.5, -9.0]]),
        "rotation_y": np.array([-np.pi / 2] * 2),
    }
    left, top, right, bottom = project_labels(labels, P2, (1242, 375))[0]
    assert left > 621 and right == 1241 and top < bottom == 374
    assert project_labels(labels, P2, (1242, 375))[1].tolist() == [0, 0, 0, 0]


def test_difficulty_follows_the_benchmark():
    height = np.array([41.0, 40, 26, 41, 41, 41, 25, 60])
    labels = {
        "name": np.array(["Car"] * 7 + ["DontCare"], dtype=object),
        "bbox": np.stack([0 * height, 0 * height, 0 * height + 9, height], 1),
        "occluded": np.array([0, 0, 0, 1, 2, 3, 0, 0]),
        "truncated": np.array([0.15, 0, 0, 0, 0.5, 0, 0, 0]),
    }
    assert difficulty(labels).tolist() == [0, 1, 1, 1, 2, -1, -1, -1]


# ---------------------------------------------------------------------- files


def test_official_folder(tmp_path):
    for frame in ("000000", "000003"):
        write_frame(tmp_path, frame, labels=("Car", "Van", "DontCare"))
    (tmp_path / "ImageSets").mkdir()
    (tmp_path / "ImageSets" / "val.txt").write_text("000003\n\n")
    assert KittiDataset(tmp_path).frames == ["000000", "000003"]
    config = {"type": "KittiDataset", "data_root": str(tmp_path), "split": "val"}
    (sample,) = DATASETS.build(config)
    assert sample.sample_id == "000003" and sample.labels.tolist() == [0]
    assert sample.points[:, 0].tolist() == [10]  # the point behind the camera is cropped
    assert sample.meta["kitti"]["name"].tolist() == ["Car", "Van", "DontCare"]
    assert sample.meta["image_size"] == (1242, 375) and sample.meta["image_path"] is None
    assert len(KittiDataset(tmp_path, fov_only=False)[0].points) == 2


def test_a_frame_of_the_test_split_has_no_labels(tmp_path):
    write_frame(tmp_path)
    write_frame(tmp_path, "000007", "testing", labels=None)
    (sample,) = KittiDataset(tmp_path, split="test")
    assert sample.sample_id == "000007" and sample.boxes is None and sample.labels is None
    assert "kitti" not in sample.meta and "image_2" in sample.cameras


def test_an_empty_label_file_means_no_object(tmp_path):
    write_frame(tmp_path, labels=())
    sample = KittiDataset(tmp_path)[0]
    assert sample.boxes.tensor.shape == (0, 7) and sample.labels.shape == (0,)


def test_negative_sizes_are_dropped_with_a_warning(tmp_path):
    path = write_frame(tmp_path, labels=("Car", "Car")) / "label_2" / "000000.txt"
    path.write_text(path.read_text().replace("1.50 1.60 4.00", "1.50 -1.60 4.00", 1))
    with pytest.warns(UserWarning, match="1 of 2 boxes"):
        assert len(KittiDataset(tmp_path)[0].boxes) == 1


@pytest.mark.parametrize("line", ["Car 0.00 0 -1.57 1 2 3 4", "Car" + " 0" * 16])
def test_a_bad_label_line_is_named(tmp_path, line):
    path = write_frame(tmp_path) / "label_2" / "000000.txt"
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(ValueError, match=r"000000\.txt, line 2 has \d+ values"):
        KittiDataset(tmp_path)[0]


def test_a_bad_calibration_is_named(tmp_path):
    path = write_frame(tmp_path) / "calib" / "000000.txt"
    path.write_text(path.read_text().replace("R0_rect", "R_rect"))
    with pytest.raises(ValueError, match="0 values for R0_rect, 9 are needed"):
        KittiDataset(tmp_path)[0]


def test_labels_without_calibration_are_refused(tmp_path):
    (write_frame(tmp_path) / "calib" / "000000.txt").unlink()
    with pytest.raises(FileNotFoundError, match="no calibration"):
        KittiDataset(tmp_path)[0]


def test_points_alone_load(tmp_path):
    folder = write_frame(tmp_path, labels=None)
    (folder / "calib" / "000000.txt").unlink()
    sample = KittiDataset(tmp_path)[0]
    assert len(sample.points) == 2 and not sample.cameras


def test_an_unknown_split_names_the_known_ones(tmp_path):
    write_frame(tmp_path)
    (tmp_path / "ImageSets").mkdir()
    (tmp_path / "ImageSets" / "train.txt").write_text("000000")
    with pytest.raises(ValueError, match=r"val\.txt; listed there: \['train'\]"):
        KittiDataset(tmp_path, split="val")


def test_a_folder_without_frames_says_what_it_needs(tmp_path):
    with pytest.raises(ValueError, match=r"velodyne/\*\.bin"):
        KittiDataset(tmp_path)


# ---------------------------------------------------------------------- real frames


def frames_below(root):
    dataset = KittiDataset(root, EVERY_CLASS)
    return [dataset[i] for i in range(len(dataset))]


KITTI = pytest.mark.parametrize("root", real_data("kitti"), ids=lambda p: p.name)


@pytest.mark.real_data
@KITTI
def test_real_boxes_hold_points(root):
    """Every easy or moderate object has points inside its box."""
    counted = 0
    for sample in (s for s in frames_below(root) if s.boxes is not None):
        truth = sample.meta["kitti"]
        level = truth["difficulty"][truth["name"] != "DontCare"]
        inside = sample.boxes.contains(sample.points).sum(1)
        assert len(level) == len(inside)
        clear = (level == 0) | (level == 1)
        assert (inside[torch.from_numpy(clear)] > 0).all(), sample.sample_id
        counted += int(clear.sum())
    assert counted > 0


@pytest.mark.real_data
@KITTI
def test_real_boxes_project_onto_their_rectangles(root):
    """Objects neither cut nor hidden: IoU of the projected and the drawn rectangle."""
    overlaps = []
    for sample in (s for s in frames_below(root) if s.boxes is not None):
        truth = sample.meta["kitti"]
        whole = (truth["truncated"] == 0) & (truth["occluded"] == 0) & (truth["difficulty"] >= 0)
        drawn = truth["bbox"][whole]
        camera = boxes_to_camera(
            sample.boxes.tensor, calibration_of(sample), sample.meta["image_size"]
        )
        found = camera["bbox"][whole[truth["name"] != "DontCare"]]
        low, high = np.maximum(drawn[:, :2], found[:, :2]), np.minimum(drawn[:, 2:], found[:, 2:])
        common = (high - low).clip(0).prod(1)
        areas = [(b[:, 2:] - b[:, :2]).prod(1) for b in (drawn, found)]
        overlaps += (common / (areas[0] + areas[1] - common)).tolist()
    assert np.mean(np.array(overlaps) > 0.5) > 0.95 and np.median(overlaps) > 0.75


@pytest.mark.real_data
@KITTI
def test_real_labels_there_and_back(root):
    for sample in (s for s in frames_below(root) if s.boxes is not None):
        truth = sample.meta["kitti"]
        real = truth["name"] != "DontCare"
        labels = {k: v[real] for k, v in truth.items()}
        back = boxes_to_camera(
            boxes_from_camera(labels, calibration_of(sample)), calibration_of(sample)
        )
        for name in ("dimensions", "location", "rotation_y"):
            assert np.abs(back[name] - labels[name]).max(initial=0) < 1e-5
        turn = np.angle(np.exp(1j * (back["alpha"] - labels["alpha"])))
        assert np.median(np.abs(turn)) < 0.03  # alpha is written with two digits


@pytest.mark.real_data
@KITTI
def test_real_points_are_in_the_picture(root):
    for sample in frames_below(root):
        assert len(sample.points) > 1000
        assert sample.cameras["image_2"].sees(sample.points[:, :3]).all()
        assert sample.points[:, 3].min() >= 0 and sample.points[:, 3].max() <= 1
        assert sample.meta["image_path"] is not None


@pytest.mark.real_data
@KITTI
def test_real_info_files_agree_with_the_text_files(root, tmp_path):
    """A frame's labels written as an info file give the same boxes."""
    source = KittiDataset(root, EVERY_CLASS)
    frame = next(f for f in source.frames if (source.folder / "label_2" / f"{f}.txt").is_file())
    labels = read_labels(source.folder / "label_2" / f"{frame}.txt")
    calibration = read_calibration(source.folder / "calib" / f"{frame}.txt")
    (tmp_path / "velodyne").mkdir()
    shutil.copy(source._points_path(frame), tmp_path / "velodyne")
    (tmp_path / "infos.json").write_text(json.dumps(as_info(frame, labels, calibration)))
    copy, original = KittiDataset(tmp_path, EVERY_CLASS)[0], source[source.frames.index(frame)]
    assert torch.allclose(copy.boxes.tensor, original.boxes.tensor, atol=1e-5)
    assert copy.names == original.names
    assert (
        copy.meta["kitti"]["difficulty"].tolist() == original.meta["kitti"]["difficulty"].tolist()
    )


def calibration_of(sample):
    return Calibration(*(sample.meta[name] for name in ("P2", "R0_rect", "Tr_velo_to_cam")))


def as_info(frame, labels, calibration):
    """mmdet3d's info file (version 1.1) of one frame."""
    table = {name: number for number, name in enumerate(EVERY_CLASS)}
    pad = {name: np.eye(4) for name in ("P2", "R0_rect", "Tr_velo_to_cam")}
    for name, matrix in pad.items():
        value = getattr(calibration, name)
        matrix[: value.shape[0], : value.shape[1]] = value
    objects = [
        {
            "bbox": labels["bbox"][i].tolist(),
            "bbox_label_3d": table.get(name, -1),
            "bbox_3d": [
                *labels["location"][i],
                *labels["dimensions"][i],
                labels["rotation_y"][i],
            ],
            **{key: float(labels[key][i]) for key in ("truncated", "occluded", "alpha")},
        }
        for i, name in enumerate(labels["name"])
    ]
    entry = {
        "images": {"CAM2": {"cam2img": pad["P2"].tolist()}, "R0_rect": pad["R0_rect"].tolist()},
        "lidar_points": {
            "lidar_path": f"{frame}.bin",
            "Tr_velo_to_cam": pad["Tr_velo_to_cam"].tolist(),
        },
        "instances": objects,
    }
    return {"metainfo": {"categories": table}, "data_list": [entry]}
