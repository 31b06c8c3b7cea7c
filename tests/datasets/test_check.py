"""The data check finds each mistake that people make with their own data, and only that one."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sparse3d.datasets.base import PointDataset
from sparse3d.datasets.check import ERROR, WARNING, headings, judge, survey, table
from sparse3d.datasets.kitti import KittiDataset
from sparse3d.structures import Boxes, Sample
from tests.conftest import real_data

RANGE = (-40.0, -40, -3, 40, 40, 1)
FRAMES = 4


class Street(PointDataset):
    """Cars and pedestrians on a plane, all well; ``spoil`` does the harm."""

    spoil = staticmethod(lambda sample: sample)

    def __len__(self):
        return FRAMES

    def load(self, index, generator):
        draw = np.random.default_rng(index)
        boxes, clouds = [], [draw.uniform([-40, -40, -2.01], [40, 40, -1.99], (4000, 3))]
        for i in range(12):
            size = np.array([4.2, 1.8, 1.5] if i < 8 else [0.7, 0.6, 1.75]) * draw.uniform(0.9, 1.1)
            yaw = draw.uniform(-np.pi, np.pi)
            center = np.array([(i % 4) * 12 - 18, (i // 4) * 12 - 12, -2 + size[2] / 2 + 0.03])
            local = draw.uniform(-0.5, 0.5, (80, 3))
            local[np.arange(80), draw.integers(0, 3, 80)] = draw.choice([-0.48, 0.48], 80)
            turn = np.array(
                [[np.cos(yaw), -np.sin(yaw), 0], [np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]]
            )
            clouds.append((local * size) @ turn.T + center)
            boxes.append([*center, *size, yaw])
        cloud = np.concatenate(clouds)
        cloud = np.c_[cloud, draw.uniform(0, 1, len(cloud))]
        sample = Sample(
            torch.from_numpy(cloud).float(),
            boxes=Boxes(torch.tensor(boxes).float()),
            names=["car"] * 8 + ["pedestrian"] * 4,
            meta={"sample_id": str(index)},
        )
        return self.spoil(sample)


def boxes_with(change):
    """Spoils the boxes: ``change`` gets a copy of [n, 7] and works in place."""

    def spoil(sample):
        boxes = sample.boxes.tensor.clone()
        change(boxes)
        return replace(sample, boxes=Boxes(boxes))

    return spoil


def points_with(change):
    def spoil(sample):
        points = sample.points.clone()
        change(points)
        return replace(sample, points=points)

    return spoil


@pytest.fixture
def problems(tmp_path):
    def find(spoil=None, class_names=("car", "pedestrian"), point_range=RANGE):
        dataset = Street(tmp_path, class_names, point_range)
        if spoil is not None:
            dataset.spoil = spoil
        return judge(survey(dataset))

    return find


def test_good_data_has_no_problem(problems):
    assert problems() == []


def scale(columns, factor):
    def change(values):
        values[:, columns] *= factor

    return change


def shift(column, amount):
    def change(values):
        values[:, column] += amount

    return change


def swap_length_and_width(boxes):
    boxes[:, 3:5] = boxes[:, [4, 3]]


def to_height_width_length(boxes):
    boxes[:, 3:6] = boxes[:, [5, 4, 3]]


def clockwise_from_y(boxes):
    boxes[:, 6] = np.pi / 2 - boxes[:, 6]


def half_height(sign):
    def change(boxes):
        boxes[:, 2] += sign * boxes[:, 5] / 2

    return change


@pytest.mark.parametrize(
    "spoil, text, remedy",
    [
        (boxes_with(swap_length_and_width), "wider than long", "swap dx and dy"),
        (boxes_with(to_height_width_length), "long, .* wide, .* high", "length, width, height"),
        (boxes_with(scale([3, 4, 5], 100.0)), "the median car is", "in metres"),
        (boxes_with(scale(6, -1.0)), "if they were meant otherwise", "negate the yaw"),
        (boxes_with(shift(6, np.pi / 2)), "if they were meant otherwise", "by a quarter"),
        (boxes_with(clockwise_from_y), "if they were meant otherwise", "pi/2 - yaw"),
        (boxes_with(scale(6, 180 / np.pi)), "yaw reaches", "degrees"),
        (boxes_with(half_height(-1)), "too low", "add half the height"),
        (boxes_with(half_height(1)), "too high", "subtract half the height"),
        (boxes_with(shift(0, 300.0)), "hold no point", "in the frame of the points"),
        (boxes_with(shift(0, 300.0)), "centre outside point_range", "widen it"),
        (points_with(scale([0, 1, 2], 100.0)), "coordinates reach", "in metres"),
        (lambda s: replace(s, boxes=None, names=None), "no frame has labels", "label files"),
        (lambda s: replace(s, points=s.points[:0]), "4 of 4 frames have no points", "copy"),
    ],
)
def test_serious_mistakes_are_found_with_their_remedy(problems, spoil, text, remedy):
    import re

    errors = [p for p in problems(spoil) if p.level == ERROR]
    assert any(re.search(text, p.text) and remedy in p.remedy for p in errors), errors


@pytest.mark.parametrize(
    "spoil, text",
    [
        (points_with(scale(3, 255.0)), "intensity runs from"),
        (points_with(scale(3, 0.0)), "intensity is 0 everywhere"),
        (points_with(shift(3, float("nan"))), "are NaN or infinite"),
        (boxes_with(lambda boxes: boxes[:1, 3].neg_()), "1 of 12 boxes have a size"),
    ],
)
def test_lesser_mistakes_are_warnings(problems, spoil, text):
    assert any(text in p.text for p in problems(spoil) if p.level == WARNING)


def test_a_class_that_matches_nothing_is_named_with_what_there_is(problems):
    (error,) = [p for p in problems(class_names=("car", "Pedestrian")) if p.level == ERROR]
    assert "'Pedestrian'" in error.text and "pedestrian (16)" in error.text
    assert "class_map" in error.remedy


def test_a_range_without_the_points_names_one_that_has_them(problems):
    found = problems(point_range=(100, 100, 100, 200, 200, 200))
    assert any(p.level == ERROR and "99.8 % of the points lie in" in p.text for p in found)


def test_a_range_that_cuts_the_boxes_heights_is_told(problems):
    found = problems(point_range=(-40, -40, -1.4, 40, 40, 4))
    assert any(p.level == WARNING and "heights" in p.text for p in found)


def test_one_heading_for_all_is_suspicious(tmp_path):
    def spoil(sample):
        tensor = sample.boxes.tensor.repeat(2, 1)
        tensor[:, 6] = 0.01
        return replace(sample, boxes=Boxes(tensor), names=sample.names * 2)

    dataset = Street(tmp_path, ["car", "pedestrian"])
    dataset.spoil = spoil
    assert any("same heading" in p.text for p in judge(survey(dataset)))


def test_headings_are_counted_around_the_axes():
    yaw = torch.tensor([0.0, 0.3, -0.3, 2 * torch.pi, torch.pi / 2, torch.pi, -torch.pi, -0.8])
    assert headings(yaw).tolist() == [4, 0, 1, 0, 2, 0, 0, 1]


def test_the_table_shows_counts_and_limit_holds(tmp_path):
    dataset = Street(tmp_path, ["car", "bus"], RANGE)
    text = table(survey(dataset, limit=2))
    assert "2 frames" in text and "intensity" in text
    rows = {line.split()[0]: line.split() for line in text.splitlines() if line}
    assert rows["car"][1:3] == ["16", "2"] and rows["bus"][1] == "0"


def test_empty_frames_do_not_break_the_table(tmp_path):
    dataset = Street(tmp_path, ["car"], RANGE)
    dataset.spoil = lambda s: Sample(torch.zeros(0, 4), Boxes.empty(), names=[])
    found = survey(dataset)
    assert "4 frames, 0 points, 0 boxes" in table(found)
    assert any("no box is a 'car'" in p.text for p in judge(found))


@pytest.mark.real_data
@pytest.mark.parametrize("root", real_data("kitti"), ids=lambda p: p.name)
def test_real_frames_have_no_serious_problem(root):
    dataset = KittiDataset(root, ["Car", "Pedestrian"], point_range=(0, -40, -3, 70.4, 40, 1))
    assert [p for p in judge(survey(dataset)) if p.level == ERROR] == []


@pytest.mark.real_data
@pytest.mark.parametrize("root", real_data("kitti"), ids=lambda p: p.name)
@pytest.mark.parametrize(
    "spoil, remedy",
    [
        (half_height(-1), "add half the height"),
        (half_height(1), "subtract half the height"),
        (shift(6, np.pi / 2), "by a quarter"),
        (scale(6, -1.0), "negate the yaw"),
    ],
)
def test_spoilt_real_boxes_are_noticed(root, spoil, remedy):
    class Spoilt(KittiDataset):
        def load(self, index, generator):
            sample = super().load(index, generator)
            return sample if sample.boxes is None else boxes_with(spoil)(sample)

    errors = [p for p in judge(survey(Spoilt(root, ["Car"]))) if p.level == ERROR]
    assert any(remedy in p.remedy for p in errors)
