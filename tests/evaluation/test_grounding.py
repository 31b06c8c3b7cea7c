import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse3d.evaluation.grounding import GroundingMetric, accuracy, aligned_iou
from sparse3d.ops import rotated
from sparse3d.structures import Boxes, Detections, Sample


def test_iou_of_known_boxes():
    one = np.array([[0, 0, 0, 2, 2, 2.0]] * 4)
    other = np.array(
        [[0, 0, 0, 2, 2, 2.0], [1, 0, 0, 2, 2, 2], [2, 0, 0, 2, 2, 2], [0, 0, 0, 1, 1, 1]]
    )
    assert aligned_iou(one, other) == pytest.approx([1, 1 / 3, 0, 1 / 8])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_iou_is_that_of_boxes_without_a_turn(seed):
    rng = np.random.default_rng(seed)
    a, b = (np.concatenate([rng.normal(size=(5, 3)), rng.uniform(0.1, 3, (5, 3))], 1) for _ in "ab")
    turned = [torch.from_numpy(np.concatenate([x, np.zeros((5, 1))], 1)).float() for x in (a, b)]
    expected = rotated.paired_iou3d(*turned).numpy()
    assert aligned_iou(a, b) == pytest.approx(expected, abs=1e-4)


def test_a_threshold_must_be_exceeded_and_parts_sum_to_the_whole():
    iou = np.array([0.25, 0.26, 0.5, 0.9])
    mask = np.array([True, False, False, True])
    result = accuracy(iou, {"unique": mask, "multiple": ~mask, "none": mask & ~mask})
    assert result["Acc@0.25"] == 0.75 and result["Acc@0.5"] == 0.25 and result["sentences"] == 4
    assert result["unique/Acc@0.25"] == 0.5 and result["multiple/Acc@0.25"] == 1.0
    assert "none/Acc@0.25" not in result
    whole = sum(result[f"{p}/Acc@0.25"] * result[f"{p}/sentences"] for p in ("unique", "multiple"))
    assert whole == result["Acc@0.25"] * result["sentences"]


def answer(box, **meta) -> Detections:
    truth = torch.tensor([[0, 0, 0, 1, 1, 1, 0], [5, 0, 0, 1, 1, 1, 0], [9, 0, 0, 1, 1, 1, 0.0]])
    sample = Sample(
        torch.zeros(1, 6),
        boxes=Boxes(truth),
        labels=torch.tensor([0, -1, -1]),
        names=["chair", "vase", "clock"],
        meta={"target": [0], **meta},
    )
    boxes = Boxes(torch.tensor(box, dtype=torch.float32).reshape(-1, 7))
    count = len(boxes)
    return Detections(boxes, torch.ones(count), torch.zeros(count, dtype=torch.int64), sample)


def test_the_metric_reports_both_definitions_of_unique_by_name():
    metric = GroundingMetric()
    hit, miss = [0, 0, 0, 1, 1, 1, 0], [5, 0, 0, 1, 1, 1, 0]
    found = [
        answer(hit, kind="class", view_dependent=False),
        answer([], kind="relation", view_dependent=True),
        # another vase or clock: to ScanRefer both are 'others', by name they differ
        answer(miss, target=[1], kind="class"),
        answer(hit, target=[1], distractors=2),
    ]
    metric.process({}, found)
    result = metric.compute_metrics(metric.results)
    assert result["Acc@0.25"] == 0.5 and result["sentences"] == 4
    assert result["unique_scanrefer/sentences"] == 2
    assert result["multiple_scanrefer/Acc@0.5"] == 0.5
    assert result["unique_tsp3d/sentences"] == 3 and result["hard/sentences"] == 1
    assert result["class/Acc@0.25"] == 1.0 and result["relation/Acc@0.25"] == 0.0
    assert result["view_dependent/sentences"] == 1


@pytest.mark.parametrize("meta", [{"target": None}, {"target": [0, 1]}])
def test_an_answer_without_one_truth_is_refused(meta):
    with pytest.raises(ValueError, match="one row of the sample's boxes"):
        GroundingMetric().process({}, [answer([], **meta)])
