"""Sentences have one answer, by definitions that are checked here against plain cases."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse3d.datasets.grounding import Sentence
from sparse3d.datasets.phrases import kind_of, say, write_sentences
from sparse3d.datasets.sentences import (
    PAIRWISE,
    RANKED,
    Entity,
    Query,
    answers,
    described,
    has_one_answer,
    queries,
)
from sparse3d.datasets.world.rooms import make_room
from sparse3d.datasets.world.rooms.generate import entities

ANYTHING = frozenset((*RANKED, *PAIRWISE, ""))


def thing(number, name, x, y, size=(0.5, 0.5, 0.8), color="", bottom=0.0) -> Entity:
    box = np.array([x, y, bottom + size[2] / 2, *size], float)
    return Entity(number, name, box, color)


DOOR = thing(0, "door", 0, -3, (1.0, 0.1, 2.0))
TABLE = thing(1, "table", 0, 0, (1.6, 0.8, 0.75), "brown")
LEFT = thing(2, "chair", -2.3, 0, color="red")
RIGHT = thing(3, "chair", 1.2, 0.1, color="blue")
FAR = thing(4, "chair", 0.3, 2.6, (0.6, 0.6, 1.1), "blue")
LAMP = thing(5, "lamp", 0.1, 0.1, (0.3, 0.3, 0.4), "white", bottom=0.75)
OTHER_LAMP = thing(6, "lamp", 2.5, -2.5, (0.4, 0.4, 1.6), "white")
PICTURE = thing(7, "picture", 0, 0.5, (1.0, 0.03, 0.6), bottom=1.4)
SECOND = thing(8, "picture", -2.5, 2.9, (1.0, 0.03, 0.6), bottom=1.4)
SHELF = thing(9, "bookshelf", 3.4, 0.1, (0.3, 1.0, 1.8))
ROOM = [DOOR, TABLE, LEFT, RIGHT, FAR, LAMP, OTHER_LAMP, PICTURE, SECOND, SHELF]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (Query("table"), [1]),
        (Query("chair"), [2, 3, 4]),
        (Query("chair", "red"), [2]),
        (Query("chair", relation="largest"), [4]),
        (Query("chair", relation="smallest"), []),  # two of the same size
        (Query("chair", relation="tallest"), [4]),
        (Query("lamp", relation="lowest"), [5]),
        (Query("chair", relation="nearest", anchors=(0,)), []),  # two are about as far
        (Query("chair", relation="farthest", anchors=(0,)), [4]),
        (Query("chair", "blue", "nearest", (0,)), [3]),
        (Query("lamp", relation="on", anchors=(1,)), [5]),
        (Query("picture", relation="above", anchors=(1,)), [7]),
        (Query("chair", relation="beside", anchors=(1,)), [3]),
        (Query("chair", relation="between", anchors=(1, 9)), [3]),
        (Query("chair", relation="left", anchors=(1,), viewpoint=0), [2]),
        (Query("chair", relation="right", anchors=(1,), viewpoint=0), [3]),
        (Query("chair", relation="from left", viewpoint=0), [2]),
        (Query("chair", relation="from left", viewpoint=0, rank=2), [3]),
        (Query("chair", relation="from right", viewpoint=0), [3]),
        (Query("bed"), []),
    ],
)
def test_plain_cases(query, expected):
    assert answers(query, ROOM) == expected


def test_seen_from_the_other_side_left_is_right():
    back = [thing(0, "door", 0, 3, (1.0, 0.1, 2.0)), *ROOM[1:4]]
    assert answers(Query("chair", relation="left", anchors=(1,), viewpoint=0), back) == [3]
    assert answers(Query("chair", relation="from left", viewpoint=0), back) == [3]


def test_near_misses_are_no_answers():
    """What is nearly so makes a sentence ambiguous: the loose reading has more answers."""
    nearly = thing(20, "chair", 1.0, -0.95)
    query = Query("chair", relation="beside", anchors=(1,))
    assert has_one_answer(query, ROOM, 3)
    assert not has_one_answer(query, [*ROOM, nearly], 3)
    orange = [LEFT, thing(21, "chair", 2, 2, color="orange")]
    assert answers(Query("chair", "red"), orange) == [2]
    assert not has_one_answer(Query("chair", "red"), orange, 2)


def test_descriptions():
    assert described(TABLE, ROOM) == "table"
    assert described(LEFT, ROOM) == "red chair"
    assert described(FAR, ROOM) is None
    with pytest.raises(ValueError, match=r"object 4 \(chair\) cannot be told"):
        say(Query("lamp", relation="nearest", anchors=(4,)), ROOM, np.random.default_rng(0))


seeds = st.integers(0, 10_000)


def crowd(seed: int) -> list[Entity]:
    """Up to nine objects of a few classes and colours anywhere."""
    rng = np.random.default_rng(seed)
    names, colors = ["chair", "table", "lamp", "door"], ["red", "blue", "brown", ""]
    return [
        thing(
            number,
            names[rng.integers(4)],
            *rng.uniform(-3, 3, 2),
            rng.uniform(0.2, 1.6, 3),
            colors[rng.integers(4)],
            rng.choice([0.0, 0.8, 1.4]),
        )
        for number in range(rng.integers(0, 10))
    ]


@settings(max_examples=12, deadline=None)
@given(seeds)
def test_every_query_has_one_answer_wherever_the_room_lies(seed):
    """Strictly and loosely, and moving the room and turning it by a quarter changes none."""
    room = crowd(seed)
    turned = []
    for e in room:
        x, y, z, dx, dy, dz = e.box
        turned.append(Entity(e.id, e.name, np.array([3 - y, x - 5, z, dy, dx, dz]), e.color))
    for query, target in queries(room):
        assert query.relation in ANYTHING
        assert has_one_answer(query, room, target)
        assert answers(query, turned) == [target]


@settings(max_examples=12, deadline=None)
@given(seeds)
def test_mirrored_rooms_swap_left_and_right(seed):
    room = crowd(seed)
    mirror = np.array([-1, 1, 1, 1, 1, 1])
    mirrored = [Entity(e.id, e.name, e.box * mirror, e.color) for e in room]
    swap = {"left": "right", "right": "left", "from left": "from right", "from right": "from left"}
    for query, target in queries(room):
        other = Query(**{**vars(query), "relation": swap.get(query.relation, query.relation)})
        assert answers(other, mirrored) == [target]


@settings(max_examples=12, deadline=None)
@given(seeds)
def test_order_of_the_objects_means_nothing(seed):
    room = crowd(seed)
    assert dict(queries(room)) == dict(queries(room[::-1]))


@pytest.fixture(scope="module")
def said():
    rooms = [make_room("val", 1, index, 5000, sentences=14) for index in range(4)]
    return [(entities(r.room, r.colors), r.sentences) for r in rooms]


def test_sentences_of_rooms_have_one_answer(said):
    count = 0
    for room, sentences in said:
        for sentence in sentences:
            fields = sentence.fields["query"]
            query = Query(**{**fields, "anchors": tuple(fields["anchors"])})
            assert answers(query, room) == [sentence.target]
            assert answers(query, room, loose=True) == [sentence.target]
            assert sentence.kind == kind_of(query)
            assert query.name in sentence.text and query.color in sentence.text
            count += 1
    assert count > 40


def test_most_sentences_have_distractors(said):
    alone = []
    for room, sentences in said:
        names = {e.id: e.name for e in room}
        alone += [list(names.values()).count(names[s.target]) == 1 for s in sentences]
        assert len({s.text for s in sentences}) == len(sentences)
    assert np.mean(alone) < 0.5
    kinds = [s.kind for _, sentences in said for s in sentences]
    assert min(kinds.count(kind) for kind in ("class", "attribute", "relation")) > 0.1 * len(kinds)


@settings(max_examples=6, deadline=None)
@given(seeds)
def test_equal_numbers_give_equal_sentences(seed):
    room = crowd(seed)
    one, two = (write_sentences("a", room, np.random.default_rng(seed)) for _ in range(2))
    assert one == two
    assert len(write_sentences("a", room, np.random.default_rng(seed), 2)) <= 2


def test_words_of_view():
    assert Sentence("a", "the chair left of the table , seen from the door", 0).view_dependent
    assert Sentence("a", "Left, of it", 0).view_dependent
    assert not Sentence("a", "the chair that was leftover", 0).view_dependent
    assert write_sentences("a", [], np.random.default_rng(0)) == []
