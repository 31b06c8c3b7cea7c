"""7-Scenes and Cambridge as they are published."""

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
@pytest.mark.parametrize("root", real_data("redkitchen"), ids=lambda p: p.name)
def test_the_published_scene_opens(root):
    data = SevenScenesViews(root, split="test")
    assert len(data.categories()) == len(data) > 0
    assert data[0].images[VIEW].shape == (480, 640, 3)
    assert len(SevenScenesViews(root, split="train", train_views=6)) == 6
