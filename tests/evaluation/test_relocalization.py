"""Errors of poses, their summary, and pose sets."""

import math

import numpy as np
import pytest

from sparse3d.evaluation.relocalization import FAILED, lines, pose_errors, summarize
from sparse3d.models.relocalization.uncertainty import coverage, pose_set, quantile, score


def pose(angle: float, center) -> np.ndarray:
    c, s = math.cos(angle), math.sin(angle)
    matrix = np.eye(4)
    matrix[:3, :3] = [[c, -s, 0], [s, c, 0], [0, 0, 1]]
    matrix[:3, 3] = -matrix[:3, :3] @ np.asarray(center, float)
    return matrix


def test_errors_are_of_centres_and_rotations():
    metres, degrees = pose_errors(pose(0.1, (1, 2, 3)), pose(0.3, (1, 2, 3.5)))
    assert metres == pytest.approx(0.5) and degrees == pytest.approx(math.degrees(0.2))
    assert pose_errors(None, pose(0, (0, 0, 0))) == FAILED
    assert pose_errors(pose(1e-7, (0, 0, 0)), np.eye(4))[1] == pytest.approx(math.degrees(1e-7))


def test_failures_count_as_infinite():
    errors = [(0.004, 0.2), (0.03, 1.0), FAILED]
    found = summarize(errors, "survey", ["a", "a", "b"])
    assert found["median_cm"] == pytest.approx(3) and found["failures"] == 1
    assert found["recall_1cm_1deg"] == pytest.approx(100 / 3)
    assert found["recall_5cm_5deg"] == pytest.approx(200 / 3)
    assert found["b/median_cm"] == math.inf and found["a/queries"] == 2
    text = lines(found)
    assert text[0] == "ground truth: survey" and len(text) == 4
    assert math.isinf(summarize([FAILED, FAILED, (0.0, 0.0)], "x")["median_cm"])


def test_no_queries():
    assert summarize([], "x")["queries"] == 0
    assert lines(summarize([], "x")) == ["ground truth: x"]


def test_quantile_is_the_conformal_one():
    scores = [3.0, 1.0, 2.0, 4.0]
    assert quantile(scores, 0.5) == 3.0  # ceil(5 * 0.5) = 3rd smallest
    assert quantile(scores, 0.8) == 4.0
    assert quantile(scores, 0.9) == math.inf  # too few to be so sure
    with pytest.raises(ValueError, match="confidence is 1"):
        quantile(scores, 1)


def test_sets_of_exchangeable_queries_hold_as_often_as_asked():
    random = np.random.default_rng(0)
    sigma = (0.01, 0.01)

    def draw(count):
        return [tuple(np.abs(random.standard_t(3, 2)) * 0.01) for _ in range(count)]

    held = []
    for _ in range(40):
        scores = [score(e, sigma) for e in draw(60)]
        found = coverage(draw(60), [sigma] * 60, scores, 0.9)
        held.append(found["coverage"])
    assert 0.89 < np.mean(held) < 0.94


def test_failures_make_sets_unknown():
    scores = [1.0] * 5 + [score(FAILED, (0.1, 0.1))] * 5
    assert pose_set((0.01, 0.01), scores, 0.9) is None
    found = coverage([(0.1, 0.1), FAILED], [(0.1, 0.1), None], scores, 0.9)
    assert found["unknown"] == 2 and math.isnan(found["coverage"])
