import cv2
import numpy as np
import pytest
import torch

from sparse3d.structures import Sample
from sparse3d.visualization.report import birds_eye, camera_view, write_image, write_report
from sparse3d.visualization.scene import TRUTH, Scene, class_color

from .scenes import found, street


def reached(image: np.ndarray, color) -> np.ndarray:
    """[N, 2] pixels (x, y) drawn in ``color``, nearly."""
    close = (np.abs(image.astype(int) - np.array(color)) < 40).all(-1)
    return np.argwhere(close)[:, ::-1]


def test_from_above_x_is_right_and_y_is_up():
    scene = Scene.from_sample(street([(15.0, 15, 0, 2, 2, 2, 0)]))
    image = birds_eye(scene, width=400)
    pixels = reached(image, TRUTH)
    box = pixels[pixels[:, 0] > 200]  # the legend is on the left
    low, high = scene.extent()
    expected = (np.array([15, 15]) - low) / (high - low) * [image.shape[1], -image.shape[0]]
    expected[1] += image.shape[0]
    assert np.abs(np.median(box, axis=0) - expected).max() < 12
    assert image.shape[1] == 400


def test_predictions_are_drawn_in_the_colour_of_their_class():
    image = birds_eye(Scene.from_detections(found(street())), width=400)
    assert len(reached(image, class_color(1))) > 20
    assert not len(reached(birds_eye(Scene.from_sample(street()), width=400), class_color(1)))


def test_a_box_ahead_is_seen_where_the_camera_projects_it():
    sample = street()
    pixels = reached(camera_view(Scene.from_sample(sample), "front"), TRUTH)
    corners, _ = sample.cameras["front"].project(sample.boxes.corners()[0])
    assert np.abs(pixels.min(0) - corners.numpy().min(0)).max() <= 2
    assert np.abs(pixels.max(0) - corners.numpy().max(0)).max() <= 2


def test_a_box_behind_the_camera_is_not_seen_and_one_around_it_is_cut():
    behind = camera_view(Scene.from_sample(street([(-10.0, 0, 0, 4, 2, 1.5, 0)])), "front")
    assert not behind.any()
    around = camera_view(Scene.from_sample(street([(0.0, 0, 0, 8, 2, 1.5, 0)])), "front")
    assert around.any()


def test_a_report_is_a_file_per_view_and_reads_back(tmp_path):
    files = write_report(Scene.from_detections(found(street())), tmp_path / "new" / "a.png")
    assert [file.name for file in files] == ["a.png", "a_front.png"]
    assert cv2.imread(str(files[1])).shape == (120, 160, 3)


def test_an_image_file_is_opened_when_drawn(tmp_path):
    sample = street()
    image = np.full((120, 160, 3), (200, 100, 50), np.uint8)
    write_image(tmp_path / "front.png", image)
    sample.images, sample.meta["image_path"] = {}, tmp_path / "front.png"
    assert camera_view(Scene.from_sample(sample), "front")[0, 0].tolist() == [200, 100, 50]


def test_nothing_at_all_is_a_picture_too():
    assert birds_eye(Scene.from_sample(Sample(torch.zeros(0, 4)))).ndim == 3


def test_errors_name_what_there_is(tmp_path):
    with pytest.raises(KeyError, match="front"):
        camera_view(Scene.from_sample(street()), "rear")
    with pytest.raises(ValueError, match=r"\.png"):
        write_image(tmp_path / "a.gif", np.zeros((2, 2, 3), np.uint8))
