"""The check of sentences finds what was broken on purpose, and nothing in sound data."""

from dataclasses import replace

import numpy as np
import pytest

from sparse3d.datasets.check import ERROR, WARNING
from sparse3d.datasets.check_grounding import judge_sentences, sentence_table, survey_sentences
from sparse3d.datasets.grounding import Sentence
from sparse3d.datasets.world.rooms import WorldRooms, make_rooms


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("rooms")
    return make_rooms(root, "small", {"train": 2}, seed=5, points=6000, sentences=10)


@pytest.fixture
def data(world):
    return WorldRooms(world)


def complaints(data, level) -> str:
    problems = judge_sentences(survey_sentences(data, 12))
    return "\n".join(p.text for p in problems if p.level == level)


def change(data, **columns):
    """Points and boxes as functions of what they were."""
    whole = data.load_room

    def load(scene_id):
        room = whole(scene_id)
        return replace(room, **{name: fix(getattr(room, name)) for name, fix in columns.items()})

    data.load_room = load


def test_sound_data(data):
    found = survey_sentences(data)
    assert judge_sentences(found) == []
    text = sentence_table(found)
    assert f"{len(data)} sentences about 2 rooms" in text and "relation" in text
    assert found.looked == len(data) == sum(found.kinds.values())


def test_boxes_of_another_frame(data):
    change(data, points=lambda p: p + np.array([2, 1, 0, 0, 0, 0], np.float32))
    assert "do not hold the target's points" in complaints(data, ERROR)


def test_millimetres(data):
    scale = np.array([1000, 1000, 1000, 1, 1, 1], np.float32)
    change(data, points=lambda p: p * scale, boxes=lambda b: b * 1000)
    assert "the median target measures" in complaints(data, ERROR)
    assert "implausible" in complaints(data, WARNING)


def test_colors_of_bytes_and_none(data, world):
    change(data, points=lambda p: p * np.array([1, 1, 1, 255, 255, 255], np.float32))
    assert "not within 0..1" in complaints(data, ERROR)
    plain = WorldRooms(world)
    change(plain, points=lambda p: p * np.array([1, 1, 1, 0, 0, 0], np.float32))
    assert "one colour only" in complaints(plain, WARNING)


def test_bad_sentences(data):
    scene = data.sentences[0].scene_id
    first, *_, last = data.objects[scene]
    data.sentences += [Sentence(scene, " ?", first["id"]), Sentence(scene, "this", first["id"])]
    data.sentences += [Sentence(scene, "this", last["id"]), Sentence(scene, "that", 999)]
    problems = judge_sentences(survey_sentences(data))
    errors = "\n".join(p.text for p in problems if p.level == ERROR)
    assert "1 sentences have no word" in errors
    assert "1 sentences cannot be loaded" in errors and "object 999" in errors
    assert any("mean two objects" in p.text for p in problems)


def test_no_sentences(data):
    data.sentences = []
    assert complaints(data, ERROR) == "there are no sentences"
