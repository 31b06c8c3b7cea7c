"""The check of posed photographs finds what was broken on purpose, and nothing in a sound room."""

import json
import shutil

import cv2
import numpy as np
import pytest

from sparse3d.datasets.check import ERROR, WARNING
from sparse3d.datasets.check_views import judge_views, survey_views, view_table
from sparse3d.datasets.transforms_json import TransformsViews
from sparse3d.datasets.world.rooms import make_pictures

AXES = np.diag([1.0, -1.0, -1.0, 1.0])


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
    folder = make_pictures(root, "a", {"train": 1}, 5, frames=6, queries=0, size=(80, 60))
    return folder / "train-000000"


@pytest.fixture
def room(pictures, tmp_path):
    return shutil.copytree(pictures, tmp_path / "room")


def edit(room, change) -> None:
    """Applies ``change`` to the matrix of every frame."""
    path = room / "transforms.json"
    content = json.loads(path.read_text())
    for frame in content["frames"]:
        frame["transform_matrix"] = change(np.array(frame["transform_matrix"])).tolist()
    path.write_text(json.dumps(content))


def complaints(room, level, part="text"):
    found = survey_views(TransformsViews(room, split="all"))
    return "\n".join(getattr(p, part) for p in judge_views(found) if p.level == level)


def test_sound_room(room):
    found = survey_views(TransformsViews(room, split="all"), limit=4)
    assert judge_views(found) == []
    assert "6 photographs" in view_table(found) and "80 x 60 (4)" in view_table(found)


@pytest.mark.parametrize(
    ("change", "remedy"),
    [
        (np.linalg.inv, "invert the poses in the file's own axes"),
        (lambda pose: pose @ AXES, "turn the cameras' axes"),
        (lambda pose: np.linalg.inv(pose @ AXES) @ AXES, "invert the poses: world to camera"),
    ],
    ids=["inverted OpenGL", "axes", "inverted"],
)
def test_poses_meant_otherwise(room, change, remedy):
    edit(room, change)
    assert "do not fit the pictures as the poses are" in complaints(room, ERROR)
    assert remedy in complaints(room, ERROR, "remedy")


def test_points_of_another_frame(room):
    edit(room, lambda pose: np.diag([1, 1, 1, 1.0]) @ pose + np.eye(4, 4, 3) * 500)
    assert "see none of the sparse points" in complaints(room, ERROR)


def test_one_place(room):
    def still(pose):
        pose[:3, 3] = [0.1, 0.2, 1.5]
        return pose

    edit(room, still)
    assert "all cameras stand within" in complaints(room, ERROR)


def test_focal_length_of_another_size(room):
    path = room / "transforms.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "fl_x": 4000.0, "fl_y": 4000.0}))
    assert "field of view of 1 degrees" in complaints(room, ERROR)


def test_flat_pictures_and_no_points(room):
    black = np.zeros((60, 80, 3), np.uint8)
    cv2.imwrite(str(room / "seq-01" / "frame-000002.color.png"), black)
    assert "1 pictures are of one brightness" in complaints(room, WARNING)
    (room / "points.ply").unlink()
    found = survey_views(TransformsViews(room, split="all"))
    assert any("no sparse points" in p.text for p in judge_views(found))


def test_one_photograph(room):
    path = room / "transforms.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "frames": content["frames"][:1]}))
    assert "the split has 1 photograph" in complaints(room, ERROR)
