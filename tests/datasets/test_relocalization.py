"""7-Scenes and Cambridge as they are published."""

import json

import cv2
import numpy as np
import pytest

from sparse3d.datasets.relocalization import CambridgeViews, SevenScenesViews, quaternion
from sparse3d.datasets.views import VIEW
from tests.conftest import real_data


def write_scene(root, count: int = 3):
    """A scene of 7-Scenes without pgt files: picture and pose of the depth camera."""
    for split, name in (("Train", "seq-01"), ("Test", "seq-02")):
        (root / f"{split}Split.txt").write_text(f"sequence{int(name[-2:])}\n")
        (root / name).mkdir()
        for number in range(count):
            stem = root / name / f"frame-{number:06d}"
            cv2.imwrite(f"{stem}.color.png", np.full((480, 640, 3), 50, np.uint8))
            pose = np.eye(4)
            pose[:3, 3] = number, 0, 1
            np.savetxt(f"{stem}.pose.txt", pose)


def test_depth_poses_are_said_to_be_such(tmp_path):
    write_scene(tmp_path)
    data = SevenScenesViews(tmp_path, split="test")
    assert len(data) == 3 and "depth camera" in data.ground_truth
    np.testing.assert_allclose(data[2].cameras[VIEW].center, [2, 0, 1], atol=1e-6)


def test_colour_poses_take_their_place(tmp_path):
    write_scene(tmp_path)
    line = "seq-01/frame-000001.color.png 1 0 0 0 0.5 0 2 525.505\n"
    (tmp_path / "pgt_sfm_train.txt").write_text(line)
    data = SevenScenesViews(tmp_path, split="train")
    camera = data[0].cameras[VIEW]
    assert len(data) == 1 and "colour camera" in data.ground_truth
    np.testing.assert_allclose(camera.center, [-0.5, 0, -2], atol=1e-6)
    assert float(camera.K[0, 0]) == pytest.approx(525.505)
    (tmp_path / "pgt_sfm_train.txt").write_text(line[:40])
    with pytest.raises(ValueError, match="path qw qx"):
        SevenScenesViews(tmp_path, split="train")


def test_intrinsics_of_the_folder_count(tmp_path):
    write_scene(tmp_path)
    lens = {"w": 320, "h": 240, "fx": 300.0, "fy": 300.0, "cx": 161.0, "cy": 120.0}
    table = {"color": lens, "poses": "exact"}
    (tmp_path / "intrinsics.json").write_text(json.dumps(table))
    data = SevenScenesViews(tmp_path, split="test")
    assert data.ground_truth == "exact"
    K = data[0].cameras[VIEW].K  # of the picture, which has 640 x 480 pixels
    np.testing.assert_allclose(K[:2, 2], [321.5, 239.5])
    np.testing.assert_allclose(K[0, 0], 600)
    (tmp_path / "intrinsics.json").write_text("{}")
    with pytest.raises(ValueError, match=r"intrinsics\.json"):
        SevenScenesViews(tmp_path, split="test")


def test_cambridge_gives_centres(tmp_path):
    (tmp_path / "seq1").mkdir()
    cv2.imwrite(str(tmp_path / "seq1" / "a.png"), np.zeros((1080, 1920, 3), np.uint8))
    heading = "Visual Landmark Dataset V1\nImageFile, Camera Position [X Y Z W P Q R]\n\n"
    line = "seq1/a.png 1.0 2.0 3.0 0.7071068 0.0 0.7071068 0.0\n"
    (tmp_path / "dataset_train.txt").write_text(heading + line)
    data = CambridgeViews(tmp_path, split="train")
    camera = data[0].cameras[VIEW]
    np.testing.assert_allclose(camera.center, [1, 2, 3], atol=1e-5)
    np.testing.assert_allclose(
        camera.world_to_cam[:3, :3], quaternion(np.array([1, 0, 1, 0])), atol=1e-6
    )


def test_a_quaternion_without_length_is_refused():
    with pytest.raises(ValueError, match="no rotation"):
        quaternion(np.zeros(4))


@pytest.mark.real_data
@pytest.mark.parametrize("split", real_data("*/TestSplit.txt"), ids=lambda p: p.parent.name)
def test_published_scenes_open(split):
    root = split.parent
    data = SevenScenesViews(root, split="test")
    groups = data.categories()
    assert len(data) > 0 and (groups is None or len(groups) == len(data))
    sample = data[0]
    height, width = sample.images[VIEW].shape[:2]
    assert sample.cameras[VIEW].size == (width, height)
    mapping = SevenScenesViews(root, split="train")
    assert len(SevenScenesViews(root, split="train", train_views=6)) == min(6, len(mapping))
