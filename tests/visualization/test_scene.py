import numpy as np
import pytest
import torch

from sparse3d.structures import Detections, Sample
from sparse3d.visualization.scene import TRUTH, Scene, class_color

from .scenes import found, street


def test_a_scene_keeps_truth_and_the_surest_detections_last():
    scene = Scene.from_detections(found(street()))
    assert [box.score for box in scene.boxes] == [None, pytest.approx(0.2), pytest.approx(0.9)]
    assert [box.name for box in scene.boxes] == ["car", "truck", "truck"]
    assert scene.boxes[0].color == TRUTH
    assert scene.boxes[1].color == class_color(1) != TRUTH


def test_of_a_sentence_the_meant_box_is_shown():
    sample = street([(1.0, 2, 3, 4, 2, 1, 0), (5.0, 2, 3, 4, 2, 1, 0)])
    sample.text, sample.meta["target"] = "the car behind", [1]
    scene = Scene.from_sample(sample)
    assert len(scene.truth) == 1 and scene.truth[0].corners[:, 0].mean() == pytest.approx(5)
    assert "'the car behind'" in scene.title


def test_unsure_detections_are_left_out():
    scene = Scene.from_detections(found(street()), min_score=0.5)
    assert [box.score for box in scene.predictions] == [pytest.approx(0.9)]


def test_the_nose_points_along_the_heading():
    nose = Scene.from_sample(street([(1.0, 2, 3, 4, 2, 1, np.pi / 2)])).boxes[0].nose
    assert nose[0] == pytest.approx([1, 4, 2.5], abs=1e-5)
    assert nose[1] == pytest.approx([1, 5.2, 2.5], abs=1e-5)


def test_the_extent_holds_every_box_and_survives_nothing():
    scene = Scene.from_sample(street([(300.0, 0, 0, 4, 2, 1.5, 0)]))
    assert scene.extent()[1, 0] > 302
    low, high = Scene.from_sample(Sample(torch.zeros(0, 4))).extent()
    assert (high > low).all()


def test_images_not_loaded_are_taken_from_their_paths(tmp_path):
    sample = street()
    sample.images = {}
    file = tmp_path / "a.png"
    sample.meta["image_path"] = str(file)
    assert Scene.from_sample(sample).images == {}
    file.write_bytes(b"")
    assert Scene.from_sample(sample).images == {"front": str(file)}


def test_detections_without_their_sample_are_refused():
    alone = found(street())
    with pytest.raises(ValueError, match="no sample"):
        Scene.from_detections(Detections(alone.boxes, alone.scores, alone.labels))
