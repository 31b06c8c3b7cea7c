"""KITTI's AP: against published results, and its matching told again frame by frame."""

import json

import numpy as np
import pytest
import torch

from sparse3d.datasets.kitti import (
    Calibration,
    KittiDataset,
    boxes_from_camera,
    project_labels,
)
from sparse3d.evaluation import kitti
from sparse3d.ops import backend
from sparse3d.structures import Boxes, Detections, Sample
from tests.conftest import fixture_files, real_data

CALIBRATION = Calibration(
    np.array([[700.0, 0, 600, 45], [0, 700, 180, 0.2], [0, 0, 1, 0.003]]),
    np.eye(3),
    np.array([[0.0, -1, 0, 0.01], [0, 0, -1, -0.07], [1, 0, 0, -0.27]]),
)
SIZE = (1242, 375)


def _files() -> list:
    """JSON files with KITTI results, whatever their names."""
    found = fixture_files("detect/*.json")
    return [
        p
        for p in found
        if not hasattr(p, "stem") or "min_overlap_sets" in json.loads(p.read_text())
    ]


@pytest.mark.parity
@pytest.mark.parametrize("implementation", ("reference", "native"))
@pytest.mark.parametrize("path", _files(), ids=lambda p: p.stem)
def test_ap_agrees_with_published_results(path, implementation):
    data = json.loads(path.read_text())
    with backend.forced(implementation):
        frames = kitti.gather(data["gt"], data["det"])
    for number, overlaps in enumerate(data["min_overlap_sets"]):
        least = {name: [row[c] for row in overlaps] for c, name in enumerate(data["classes"])}
        result = kitti.average_precision(frames, data["classes"], least)
        for key, values in data["results"].items():
            published = np.array(values, float)[:, :, number]
            np.testing.assert_allclose(result[key], published, rtol=0, atol=1e-9, err_msg=key)


# ------------------------------------------------------------------ scenes of our own


def _frame(seed: int) -> tuple[dict, dict]:
    """A frame with a row of cars, some hard to see, and detections of them and of nothing."""
    rng = np.random.default_rng(seed)
    count = 6
    truth = {
        "name": rng.choice(["Car", "Car", "Van", "Pedestrian", "DontCare"], count).astype(object),
        "truncated": rng.choice([0.0, 0.2], count),
        "occluded": rng.integers(0, 3, count),
        "dimensions": np.tile([4.0, 1.6, 1.8], (count, 1)),
        "location": np.stack(
            [rng.uniform(-4, 4, count), np.full(count, 1.5), rng.uniform(8, 60, count)], 1
        ),
        "rotation_y": rng.uniform(-3, 3, count),
    }
    truth["alpha"] = truth["rotation_y"] - np.arctan2(
        truth["location"][:, 0], truth["location"][:, 2]
    )
    truth["bbox"] = project_labels(truth, CALIBRATION.P2, SIZE)
    twice = np.r_[0:count, 0:count]
    found = {
        name: truth[name][twice].copy() for name in ("dimensions", "rotation_y", "alpha", "bbox")
    }
    found["name"] = rng.choice(["Car", "Pedestrian"], len(twice), p=[0.8, 0.2]).astype(object)
    found["location"] = truth["location"][twice] + rng.normal(0, 0.15, (len(twice), 3))
    found["bbox"] = found["bbox"] + rng.normal(0, 2, (len(twice), 4))
    found["score"] = rng.random(len(twice)).round(1)
    return truth, found


def _told_step_by_step(true_state, found_state, overlap, scores, least, threshold, by_score):
    """The detection each true object of a frame takes; overlap [G, D]. Loops, as one tells it."""
    taken, free = [], [s >= threshold for s in scores]
    for g in range(len(true_state)):
        best = -1
        for d in range(len(found_state)):
            if -1 in (true_state[g], found_state[d]) or not free[d] or overlap[g, d] <= least:
                continue
            if best < 0:
                best = d
            elif by_score:
                best = d if scores[d] > scores[best] else best
            elif found_state[d] == 0 and (
                found_state[best] == 1 or overlap[g, d] > overlap[g, best]
            ):
                best = d
        if best >= 0:
            free[best] = False
        taken.append(best)
    return taken


@pytest.mark.parametrize("kind", kitti.KINDS)
@pytest.mark.parametrize("by_score", (True, False))
def test_matching_of_all_frames_is_that_of_each_frame(kind, by_score):
    scenes = [_frame(seed) for seed in range(12)]
    frames = kitti.gather(*zip(*scenes))
    thresholds = np.array([-np.inf, 0.3, 0.7])
    state = kitti._states(frames, "Car", 1)
    rows, taken = kitti._match(frames, state, kind, 0.3, thresholds, by_score)
    matches = 0
    for number in range(len(scenes)):
        true, seen = (
            np.flatnonzero(labels["frame"] == number) for labels in (frames.truth, frames.found)
        )
        overlap = np.zeros((len(true), len(seen)))
        i, j, value = frames.pairs[kind]
        mine = np.isin(i, true)
        overlap[i[mine] - true[0], j[mine] - seen[0]] = value[mine]
        for t, threshold in enumerate(thresholds):
            told = _told_step_by_step(
                state[0][true],
                state[1][seen],
                overlap,
                frames.found["score"][seen],
                0.3,
                threshold,
                by_score,
            )
            result = dict(zip(rows, taken[:, t]))
            assert [result.get(row, -1) for row in true] == [
                seen[d] if d >= 0 else -1 for d in told
            ]
            matches += sum(d >= 0 for d in told)
    assert matches > 50


def test_boxes_in_the_picture_overlap_as_drawn():
    a = np.array([[0.0, 0, 10, 10], [20, 0, 30, 10]])
    b = np.array([[5.0, 0, 15, 10]])
    np.testing.assert_allclose(kitti._image_iou(a, b), [[50 / 150], [0]])


def _street(count: int = 60) -> dict:
    """Easy cars, one to a frame's corner of the world, all in the picture."""
    steps = np.arange(count)
    labels = {
        "name": np.full(count, "Car", dtype=object),
        "truncated": np.zeros(count),
        "occluded": np.zeros(count, int),
        "dimensions": np.tile([4.0, 1.6, 1.8], (count, 1)),
        "location": np.stack([steps % 3 * 6.0 - 6, np.full(count, 1.6), 12.0 + steps % 5 * 1.0], 1),
        "rotation_y": steps * 0.1,
    }
    labels["alpha"] = labels["rotation_y"] - np.arctan2(
        labels["location"][:, 0], labels["location"][:, 2]
    )
    labels["bbox"] = project_labels(labels, CALIBRATION.P2, SIZE)
    return labels


def _detections(labels: dict, rows, score: np.ndarray, **change) -> Detections:
    """Detections at true boxes of a frame; the truth is ``labels`` at ``rows``."""
    mine = {name: values[rows] for name, values in labels.items()}
    boxes = boxes_from_camera(mine, CALIBRATION)
    for column, value in change.items():
        boxes[:, int(column[1:])] += value
    meta = {"kitti": mine, "image_size": SIZE, **vars(CALIBRATION)}
    truth = Sample(torch.zeros(0, 4), meta=meta)
    labels = torch.zeros(len(rows), dtype=torch.int64)
    return Detections(Boxes(boxes.float()), torch.from_numpy(score[rows]), labels, truth)


def _measure(**change) -> dict[str, float]:
    labels, score = _street(), np.linspace(0.405, 0.995, 60)
    metric = kitti.KittiMetric(class_names=["car", "tree"], summary_score=0.5)
    for i in range(len(score)):
        metric.process(None, [_detections(labels, np.array([i]), score, **change)])
    return metric.evaluate(len(score))


def test_perfect_detections_get_full_marks_through_both_conversions():
    result = _measure()
    for key in ("bbox_R40", "bev_R40", "3d_R40", "aos_R40", "3d_R11", "loose_3d_R40"):
        assert result[f"Car/{key}/moderate"] == pytest.approx(100, abs=1e-4)
    assert result["mAP"] == pytest.approx(100)
    assert result["Car/summary/recall"] == pytest.approx(50 / 60)
    assert result["Car/summary/precision"] == 1
    assert result["Car/summary/false_per_frame"] == 0
    assert not any("tree" in key.lower() for key in result)


def test_a_turn_costs_orientation_and_a_lift_costs_volume():
    turned = _measure(c6=np.pi)
    assert turned["Car/aos_R40/moderate"] == pytest.approx(0, abs=1e-4)
    assert turned["Car/3d_R40/moderate"] == pytest.approx(100)
    lifted = _measure(c2=0.6)
    assert lifted["Car/bev_R40/moderate"] == pytest.approx(100)
    assert lifted["Car/3d_R40/moderate"] == 0
    assert lifted["Car/loose_3d_R40/moderate"] == 0
    assert lifted["Car/summary/false_per_frame"] == pytest.approx(50 / 60)


def test_summary_forgives_what_is_not_asked_for():
    street, score = _street(8), np.full(8, 0.9)
    found = kitti.as_labels(_detections(street, np.arange(8), score), ["Car"])
    truth = {name: values.copy() for name, values in street.items()}
    truth["name"][0] = "Van"
    truth["occluded"][1] = 2
    truth["name"][2] = "DontCare"
    truth["name"][3] = "Pedestrian"
    empty = {name: values[:0] for name, values in truth.items()}
    nothing = {name: values[:0] for name, values in found.items()}
    summary = kitti.detection_summary(kitti.gather([truth, empty], [found, nothing]), 0.5)
    assert summary["true"] == 4
    assert summary["recall"] == 1
    assert summary["false_per_frame"] == 0.5  # the pedestrian
    assert summary["precision"] == pytest.approx(4 / 5)
    assert kitti.detection_summary(kitti.gather([truth], [found]), 0.95)["recall"] == 0


def test_detections_outside_the_picture_are_left_out():
    street, score = _street(4), np.full(4, 0.9)
    detections = _detections(street, np.arange(4), score, c1=torch.tensor([0, 500.0, 0, 0]))
    detections.boxes.tensor[2, 0] = -20  # behind the camera
    assert len(kitti.as_labels(detections, ["Car"])["name"]) == 2


def test_nothing_is_legal():
    street = _street(2)
    empty = {name: values[:0] for name, values in street.items()}
    none = {**empty, "score": np.zeros(0)}
    for truth, found in (([], []), ([empty], [none]), ([street], [none])):
        frames = kitti.gather(truth, found)
        assert all((value == 0).all() for value in kitti.average_precision(frames).values())
        assert kitti.detection_summary(frames, 0.5)["false_per_frame"] == 0


def test_refusals_name_what_is_missing():
    street = _street(2)
    with pytest.raises(ValueError, match="1 frames of truth but 0"):
        kitti.gather([street], [])
    with pytest.raises(ValueError, match="'score'"):
        kitti.gather([street], [street])
    with pytest.raises(ValueError, match="Bus"):
        kitti.average_precision(kitti.gather([], []), ["Bus"])
    detections = _detections(street, np.arange(2), np.ones(2))
    detections.sample.meta.pop("P2")
    with pytest.raises(ValueError, match="P2"):
        kitti.KittiMetric(["Car"]).process(None, [detections])
    with pytest.raises(ValueError, match="give class_names"):
        kitti.KittiMetric().process(None, [detections])


@pytest.mark.real_data
@pytest.mark.parametrize("folder", real_data("kitti"), ids=lambda p: p.stem)
def test_true_boxes_of_real_frames_match_their_labels(folder):
    names = ("Car", "Pedestrian", "Cyclist")
    truth, found = [], []
    for sample in KittiDataset(folder, names):
        if sample.labels is None:
            continue
        detections = Detections(sample.boxes, torch.ones(len(sample.labels)), sample.labels, sample)
        truth.append(sample.meta["kitti"])
        found.append(kitti.as_labels(detections, names))
    frames = kitti.gather(truth, found)
    wanted = sum(kitti.detection_summary(frames, 0.5, 0.9, name)["true"] for name in names)
    assert wanted > 0
    for name in names:
        summary = kitti.detection_summary(frames, 0.5, 0.9, name)
        assert summary["found"] == summary["true"]
        assert summary["false_per_frame"] == 0
    true, _, overlap = frames.pairs["bbox"]
    whole = (frames.truth["truncated"] == 0) & np.isin(frames.truth["name"], names)
    best = np.zeros(len(whole))
    np.maximum.at(best, true, overlap)
    assert np.median(best[whole]) > 0.85
