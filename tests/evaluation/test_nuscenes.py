"""nuScenes' metrics: against published results, by hand, and from Detections to numbers."""

import json
import math

import numpy as np
import pytest
import torch

from sparse3d.evaluation import nuscenes
from sparse3d.evaluation.nuscenes import NuScenesMetric, Objects
from sparse3d.structures import Boxes, Detections, Sample
from tests.conftest import fixture_files


def _files() -> list:
    """JSON files with nuScenes results, whatever their names."""
    found = fixture_files("detect/*.json")
    return [
        p for p in found if not hasattr(p, "stem") or "columns_det" in json.loads(p.read_text())
    ]


def _table(rows: list, scored: bool) -> Objects:
    boxes = [[*r[2], r[3][1], r[3][0], r[3][2], r[4], *r[5]] for r in rows]
    return Objects(
        np.array([r[0] for r in rows], int),
        np.array([r[1] for r in rows], dtype=object),
        np.array(boxes, float).reshape(-1, 9),
        np.array([r[6] for r in rows], dtype=object),
        np.array([r[7] for r in rows]) if scored else np.zeros(len(rows)),
    )


def _same(result, published) -> None:
    if isinstance(published, dict):
        for key, value in published.items():
            _same(result[key] if key in result else result[float(key)], value)
    elif published is None:
        assert math.isnan(result)
    else:
        assert result == pytest.approx(published, rel=0, abs=1e-12)


@pytest.mark.parity
@pytest.mark.parametrize("path", _files(), ids=lambda p: p.stem)
def test_metrics_agree_with_published_results(path):
    data = json.loads(path.read_text())
    result = nuscenes.evaluate(
        _table(data["gt"], False),
        _table(data["det"], True),
        list(data["config"]["class_range"]),
        data["config"]["dist_ths"],
    )
    _same(result, data["results"])


# ------------------------------------------------------------------ by hand


def _objects(places, score=None, name="car", frame=0, **columns) -> Objects:
    boxes = np.zeros((len(places), 9))
    boxes[:, 0] = places
    boxes[:, 3:6] = (4, 2, 1.5)
    for column, value in columns.items():
        boxes[:, int(column[1:])] = value
    return Objects(
        np.full(len(places), frame) if np.isscalar(frame) else np.array(frame),
        np.full(len(places), name, dtype=object),
        boxes,
        np.full(len(places), "", dtype=object),
        np.zeros(len(places)) if score is None else np.array(score),
    )


def test_perfect_detections_get_full_marks():
    truth = _objects(np.arange(10) * 10.0)
    found = _objects(np.arange(10) * 10.0, np.linspace(0.1, 0.9, 10))
    result = nuscenes.evaluate(truth, found, ["car"], errors=nuscenes.ERRORS[:4])
    assert result["mean_ap"] == pytest.approx(1)
    assert result["tp_errors"] == pytest.approx(dict.fromkeys(nuscenes.ERRORS[:4], 0))
    assert result["nd_score"] == pytest.approx(1)


def test_better_scores_choose_first_and_take_the_nearest():
    truth = _objects([0.0, 3.0, 0.0], frame=[0, 0, 1])
    found = _objects([1.6, 0.4, 1.0], [0.9, 0.5, 0.1], frame=[0, 0, 0])
    taken = nuscenes._match(truth, found, (2.0, 4.0, 0.5))
    assert taken.tolist() == [[1, 1, -1], [0, 0, 0], [-1, -1, -1]]


def test_matching_of_all_frames_is_that_of_each_frame():
    rng = np.random.default_rng(0)
    truth = _objects(rng.uniform(0, 12, 80), frame=rng.integers(0, 9, 80))
    found = _objects(
        rng.uniform(0, 12, 200), rng.random(200).round(1), frame=rng.integers(0, 11, 200)
    )
    found = found[np.argsort(-found.score, kind="stable")]
    taken = nuscenes._match(truth, found, (0.5, 2.0))
    for t, distance in enumerate((0.5, 2.0)):
        free = set(range(80))
        for d in range(200):
            near = [
                (abs(truth.boxes[g, 0] - found.boxes[d, 0]), g)
                for g in free
                if truth.frame[g] == found.frame[d]
            ]
            best = min(near, default=(np.inf, -1))
            expected = best[1] if best[0] < distance else -1
            free.discard(expected)
            assert taken[d, t] == expected


def test_errors_are_those_of_the_definition():
    truth = _objects(np.arange(10) * 10.0, c7=1.0)
    found = _objects(np.arange(10) * 10.0 + 0.3, np.ones(10), c3=2.0, c6=np.pi - 0.1, c7=3.0)
    errors = nuscenes.evaluate(truth, found, ["car"])["label_tp_errors"]["car"]
    expected = {
        "trans_err": 0.3,
        "scale_err": 0.5,
        "orient_err": np.pi - 0.1,
        "vel_err": 2,
        "attr_err": 1,
    }
    assert errors == pytest.approx(expected)
    barriers = [
        _objects(o.boxes[:, 0], o.score, "barrier", c6=o.boxes[:, 6]) for o in (truth, found)
    ]
    errors = nuscenes.evaluate(*barriers, ["barrier"])["label_tp_errors"]["barrier"]
    assert errors["orient_err"] == pytest.approx(0.1)
    assert math.isnan(errors["vel_err"])


def test_a_class_that_is_not_found_counts_in_full():
    truth = _objects([0.0, 10.0])
    result = nuscenes.evaluate(truth, truth[np.zeros(2, bool)], ["car", "truck"])
    assert result["mean_ap"] == 0
    assert set(result["tp_errors"].values()) == {1.0}
    assert result["nd_score"] == 0


def test_unmeasured_errors_do_not_weigh():
    truth = _objects(np.arange(10) * 10.0)
    found = _objects(np.arange(5) * 10.0, np.ones(5))
    result = nuscenes.evaluate(truth, found, ["car"], errors=["trans_err"])
    assert result["nd_score"] == pytest.approx((result["mean_ap"] + 1) / 2)


# ------------------------------------------------------------------ from Detections


def _detections(boxes, scores=None, labels=None, truth=None, **meta) -> Detections:
    boxes, truth = (
        torch.as_tensor(b, dtype=torch.float32) for b in (boxes, boxes if truth is None else truth)
    )
    sample = Sample(
        torch.zeros(0, 4),
        Boxes(truth),
        torch.zeros(len(truth), dtype=torch.int64) if labels is None else torch.tensor(labels),
        meta={"sample_id": "one", **meta},
    )
    scores = torch.linspace(0.9, 0.1, len(boxes)) if scores is None else torch.tensor(scores)
    return Detections(Boxes(boxes), scores, torch.zeros(len(boxes), dtype=torch.int64), sample)


def _row(count: int, columns: int = 7, step: float = 6.0) -> np.ndarray:
    boxes = np.zeros((count, columns))
    boxes[:, 0] = np.arange(count) * step
    boxes[:, 3:6] = (4, 2, 1.5)
    return boxes


def _measure(detections: list[Detections], **options) -> dict[str, float]:
    metric = NuScenesMetric(class_names=["car"], **options)
    metric.process(None, detections)
    return metric.evaluate(len(detections))


def test_any_data_set_is_measured_with_what_it_knows():
    result = _measure([_detections(_row(10)) for _ in range(3)])
    assert result["mAP"] == pytest.approx(1)
    assert result["car/AP_0.5"] == pytest.approx(1)
    assert {"mATE", "mASE", "mAOE", "NDS", "car/AOE"} <= set(result)
    assert "mAVE" not in result and "mAAE" not in result
    assert "mAVE" in _measure([_detections(_row(10, 9))])


def test_empty_and_ignored_truth_is_left_out():
    boxes = _row(10)
    keep = boxes[[0, 1, 2, 3, 4]]
    points = torch.tensor([5] * 5 + [0] * 5)
    assert _measure([_detections(keep, truth=boxes, num_points=points)])["mAP"] == pytest.approx(1)
    full = _measure([_detections(keep, truth=boxes, num_points=points)], drop_empty=False)
    assert full["mAP"] < 0.6
    ignored = _detections(keep, truth=boxes, labels=[0] * 5 + [-1] * 5)
    assert _measure([ignored])["mAP"] == pytest.approx(1)


def test_what_is_far_is_left_out():
    boxes = _row(10)
    far_first = _detections(boxes, scores=[0.1] * 5 + [0.9] * 5, truth=boxes[:5])
    for limit in (25.0, {"car": 25.0}):
        assert _measure([far_first], max_distance=limit)["mAP"] == pytest.approx(1)
    for limit in (None, {"truck": 25.0}):
        assert _measure([far_first], max_distance=limit)["mAP"] < 0.5


def test_frames_without_anything_are_legal():
    none = _detections(_row(0))
    assert _measure([none])["mAP"] == 0
    assert _measure([none, _detections(_row(10)), none])["mAP"] == pytest.approx(1)


def _nuscenes_frame(angle: float) -> Detections:
    """Ten cars in a LiDAR frame that is turned and shifted against the car and the world."""
    turn = np.eye(4)
    turn[:2, :2] = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    lidar_to_ego, ego_to_global = turn.copy(), turn.copy()
    lidar_to_ego[:3, 3], ego_to_global[:3, 3] = (0.9, 0, 1.8), (1000, 2000, 0)
    boxes = _row(10, 9)
    boxes[:, 7] = 5.0
    objects = {
        "boxes": np.vstack([boxes, _row(1, 9) + 30]),
        "name": np.array(["car"] * 10 + ["animal"], dtype=object),
        "attribute": np.array(["vehicle.moving"] * 10 + [""], dtype=object),
        "num_lidar_points": np.array([3] * 5 + [0] * 6),
        "num_radar_points": np.array([0] * 5 + [1] * 6),
    }
    return _detections(
        boxes, nuscenes=objects, lidar_to_ego=lidar_to_ego, ego_to_global=ego_to_global
    )


def test_nuscenes_frames_are_measured_and_written_in_the_global_frame(tmp_path):
    path = tmp_path / "made" / "results.json"
    result = _measure([_nuscenes_frame(0.5)], result_file=str(path))
    assert result["mAP"] == pytest.approx(1)
    assert result["mAVE"] == pytest.approx(0, abs=1e-5)
    assert result["mAAE"] == 0
    written = json.loads(path.read_text())
    assert written["meta"]["use_lidar"] and not written["meta"]["use_camera"]
    first = written["results"]["one"][0]
    assert first["size"] == pytest.approx([2, 4, 1.5])
    assert first["rotation"] == pytest.approx(
        [math.cos(0.5), 0, 0, math.sin(0.5)]
    )  # turned twice by 0.5
    place = [1000 + 0.9 * math.cos(0.5), 2000 + 0.9 * math.sin(0.5), 1.8]
    assert first["translation"] == pytest.approx(place)
    assert first["velocity"] == pytest.approx([5 * math.cos(1), 5 * math.sin(1)])
    assert first["detection_name"] == "car" and first["attribute_name"] == "vehicle.moving"
    assert len(written["results"]["one"]) == 10


def test_official_range_is_measured_from_the_car():
    frame = _nuscenes_frame(0.0)
    kept = NuScenesMetric(["car"], max_distance="official")
    kept.process(None, [frame])
    distances = 0.9 + 6.0 * np.arange(10)
    assert len(kept.results[0][1]) == (distances < 50).sum()


def test_the_best_500_of_a_frame_are_written(tmp_path):
    path = tmp_path / "results.json"
    found = _objects(np.zeros(600), np.linspace(0, 1, 600))
    nuscenes.write_results(path, found, ["a", "b"])
    written = json.loads(path.read_text())["results"]
    assert len(written["a"]) == 500 and written["b"] == []
    assert min(entry["detection_score"] for entry in written["a"]) == found.score[100]


def test_refusals_name_the_value_and_the_remedy():
    with pytest.raises(ValueError, match="'near'"):
        NuScenesMetric(["car"], max_distance="near")
    with pytest.raises(ValueError, match="give class_names"):
        NuScenesMetric().process(None, [_detections(_row(2))])
    with pytest.raises(ValueError, match="num_points of 3 boxes but 2"):
        NuScenesMetric(["car"]).process(None, [_detections(_row(2), num_points=torch.ones(3))])
    bare = _detections(_row(2))
    bare.sample.boxes = None
    with pytest.raises(ValueError, match="no labelled boxes"):
        NuScenesMetric(["car"]).process(None, [bare])
