from collections import Counter

import numpy as np
import pytest
import torch

from sparse3d.datasets.grounding import GroundingDataset, Room, Sentence
from sparse3d.datasets.room_groups import (
    RoomAugmentation,
    SentenceGroups,
    collate_groups,
    other_side,
)


class TwoRooms(GroundingDataset):
    """Two rooms of two boxes, with five and two sentences."""

    name = "two rooms"

    def __init__(self, data_root, **options):
        super().__init__(data_root, ["bed", "bin"], **options)
        texts = ["the bed", "a bin", "left of the bed", "the bed", "the rightmost bin"]
        self.sentences = [
            Sentence(scene, text, target=("bin" in text) + 5)
            for scene, count in (("a", 5), ("b", 2))
            for text in texts[:count]
        ]

    def load_room(self, scene_id):
        rng = np.random.default_rng(len(scene_id))
        boxes = np.array([[1, 0.5, 0.3, 0.8, 0.4, 0.6], [-1, 0.7, 0.5, 0.3, 0.9, 1.0]], np.float32)
        instance = rng.integers(0, 2, 400)
        inside = (rng.uniform(-0.49, 0.49, (400, 3))) * boxes[instance, 3:] + boxes[instance, :3]
        points = np.concatenate([inside, np.full((400, 3), 0.5)], 1).astype(np.float32)
        return Room(points, instance, boxes, ["bed", "bin"], [5, 6])


def groups(tmp_path, per_room=2, **options):
    return SentenceGroups(TwoRooms(tmp_path, **options), per_room)


def test_every_sentence_comes_up_in_every_epoch_beside_others_of_its_room(tmp_path):
    data = groups(tmp_path)
    orders = []
    for epoch in range(2):
        data.set_epoch(epoch)
        seen = []
        for number in range(len(data)):
            group = data[number]
            assert len({s.meta["scene_id"] for s in group}) == 1
            assert all(s.points is group[0].points for s in group)
            seen += [(s.meta["sample_id"], s.text, tuple(s.meta["target"])) for s in group]
        assert len(data) == 4 and len(set(seen)) == 7
        orders.append(seen)
    assert orders[0] != orders[1] and Counter(orders[0]).most_common(1)[0][1] <= 2


def test_groups_know_their_words_and_what_they_are_of(tmp_path):
    data = groups(tmp_path)
    assert data.vocabulary == ["a", "bed", "bin", "left", "of", "rightmost", "the"]
    assert data.data_root == tmp_path and data.contents() == groups(tmp_path).contents()


def test_a_group_makes_a_batch_of_all_its_sentences(tmp_path):
    batch = collate_groups([groups(tmp_path, 3)[0], groups(tmp_path, 3)[2]])["batch"]
    assert len(batch) == 6 and batch.samples[0].points is batch.samples[2].points
    with pytest.raises(ValueError, match="per_room is 0"):
        groups(tmp_path, 0)


def test_an_augmented_room_keeps_points_in_their_boxes_and_sentences_true(tmp_path):
    data = groups(tmp_path, 5, transforms=[RoomAugmentation(noise=0.0)])
    mirrored = set()
    for epoch in range(12):
        data.set_epoch(epoch)
        group = data[0]
        first = group[0]
        boxes = first.boxes.tensor[first.instance]
        away = (first.points[:, :3] - boxes[:, :3]).abs() - boxes[:, 3:6] / 2
        assert float(away.max()) < 1e-4 and (boxes[:, 6] == 0).all()
        assert (first.points[:, 3:] <= 1).all()
        flipped = first.meta["mirrored"]
        mirrored.add(flipped)
        texts = {s.text for s in group}
        assert ("right of the bed" in texts) == flipped == ("the leftmost bin" in texts)
        # seen from above, from the bed to the bin turns the other way in a mirrored room
        cross = torch.linalg.det(first.boxes.tensor[:, :2])
        assert bool(cross < 0) == flipped
    assert mirrored == {True, False}


def test_sides_are_swapped_as_whole_words():
    assert other_side("the left lamp , right of the leftover") == (
        "the right lamp , left of the leftover"
    )
