"""Sentences about a room's objects, each with exactly one answer by the meaning given here.

A ``Query`` says what a sentence means; ``answers`` finds the objects that fulfil it. Every relation
has a strict and a loose reading. A sentence is made only if its target is the one answer in both,
so that nobody could take it otherwise because of a few centimetres.

Meanings (boxes are parallel to the axes, distances in metres, seen from above unless said):
  color      the object's colour has this name; loosely also a colour that is often mistaken for it
  largest, smallest (volume), tallest, lowest (height): by rank, see ``RANKED``
  nearest, farthest: by the distance of the middles from the anchor, and of the gaps likewise
  on         its middle lies over the anchor, and it begins above the anchor's lower part and not
             above its top
  above      it hangs over the anchor: begins above its top, its middle within reach of it
  beside     the gap between the two is small, and it is neither on nor above the anchor
  between    its middle lies near the middle of the line between two anchors
  left, right of an anchor, seen from a viewpoint: its bearing from there is to that side of the
             anchor's
  from left, from right: the n-th of its class by bearing from a viewpoint, looking at them
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

MISTAKABLE = {
    frozenset(pair)
    for pair in (
        ("brown", "orange"),
        ("brown", "beige"),
        ("brown", "black"),
        ("beige", "white"),
        ("beige", "yellow"),
        ("beige", "gray"),
        ("gray", "black"),
        ("gray", "white"),
        ("pink", "red"),
        ("pink", "purple"),
        ("orange", "red"),
        ("orange", "yellow"),
        ("blue", "purple"),
    )
}
"""Colours that may be taken for each other."""

RANKED = {
    "largest": 1.35,
    "smallest": 1.35,
    "tallest": 1.18,
    "lowest": 1.18,
    "nearest": 1.2,
    "farthest": 1.2,
    "from left": 0.0,
    "from right": 0.0,
}
"""Relations that compare all candidates; the least ratio to the next in rank."""

BEARING_GAP = np.radians(8)
WIDEST_VIEW = np.radians(75)
SIZES = ("largest", "smallest", "tallest", "lowest")
PAIRWISE = ("on", "above", "beside", "between", "left", "right")
UNNAMED = frozenset(
    (
        *("wall", "floor", "ceiling", "object", "objects", "doorframe", "structure"),
        *("unannotated", "otherstructure", "otherfurniture", "otherprop"),
    )
)
"""Classes that sentences do not speak of."""


@dataclass(frozen=True)
class Entity:
    """An object as a sentence knows it: its number, class, box [6] (centre, size) and colour."""

    id: int
    name: str
    box: np.ndarray
    color: str = ""

    @property
    def middle(self) -> np.ndarray:
        return self.box[:2]

    @property
    def low(self) -> np.ndarray:
        return self.box[:3] - self.box[3:] / 2

    @property
    def high(self) -> np.ndarray:
        return self.box[:3] + self.box[3:] / 2


@dataclass(frozen=True)
class Query:
    """What a sentence means: the ``rank``-th (0: first) of a class (and colour) by a relation.

    ``anchors`` and ``viewpoint`` are ids; relation '' asks for the class and colour alone.
    """

    name: str
    color: str = ""
    relation: str = ""
    anchors: tuple[int, ...] = ()
    viewpoint: int | None = None
    rank: int = 0


def answers(query: Query, entities: Sequence[Entity], loose: bool = False) -> list[int]:
    """Ids of the entities that ``query`` may mean, by the strict or the loose reading.

    Ranked relations answer nothing where two are too much alike to say which comes first.
    """
    named = [e for e in entities if e.name == query.name and e.id not in query.anchors]
    if query.color:
        named = [e for e in named if _has_color(e, query.color, loose)]
    if not query.relation:
        return [e.id for e in named]
    by_id = {e.id: e for e in entities}
    anchors = [by_id[a] for a in query.anchors]
    eye = None if query.viewpoint is None else by_id[query.viewpoint]
    if query.relation in RANKED:
        return _ranked(query, named, anchors, eye)
    holds = _HOLDS[query.relation]
    given = (anchors, eye) if query.relation in ("left", "right") else (anchors,)
    return [e.id for e in named if holds(e, *given, loose)]


def has_one_answer(query: Query, entities: Sequence[Entity], target: int) -> bool:
    """Whether ``target`` is the one answer, strictly and loosely."""
    return answers(query, entities) == [target] == answers(query, entities, loose=True)


def _has_color(entity: Entity, color: str, loose: bool) -> bool:
    mistaken = loose and frozenset((entity.color, color)) in MISTAKABLE
    return entity.color == color or mistaken or (loose and not entity.color)


def gap(a: Entity, b: Entity) -> float:
    """Distance between two boxes seen from above; 0 when they overlap."""
    apart = np.maximum(np.maximum(a.low - b.high, b.low - a.high)[:2], 0)
    return float(np.hypot(*apart))


def _over(a: Entity, b: Entity, reach: float) -> bool:
    """Whether the middle of ``a`` lies within ``reach`` of ``b``'s footprint."""
    return bool(((a.middle > b.low[:2] - reach) & (a.middle < b.high[:2] + reach)).all())


def _on(entity: Entity, anchors: list[Entity], loose: bool) -> bool:
    (anchor,) = anchors
    start = entity.low[2]
    least = anchor.low[2] + (0.15 if loose else 0.25)
    most = anchor.high[2] + (0.2 if loose else 0.06)
    return _over(entity, anchor, 0.1 if loose else 0.0) and least < start < most


def _above(entity: Entity, anchors: list[Entity], loose: bool) -> bool:
    (anchor,) = anchors
    higher = entity.low[2] > anchor.high[2] + (-0.1 if loose else 0.02)
    return (
        higher and _over(entity, anchor, 0.5 if loose else 0.2) and not _on(entity, anchors, False)
    )


def _beside(entity: Entity, anchors: list[Entity], loose: bool) -> bool:
    (anchor,) = anchors
    if _on(entity, anchors, True) or _on(anchor, [entity], True):
        return loose
    apart = max(entity.low[2] - anchor.high[2], anchor.low[2] - entity.high[2])
    return gap(entity, anchor) < (1.0 if loose else 0.5) and apart < (0.3 if loose else 0.0)


def _between(entity: Entity, anchors: list[Entity], loose: bool) -> bool:
    start, end = anchors[0].middle, anchors[1].middle
    line = end - start
    length = float(np.hypot(*line))
    if length < 0.3:
        return loose
    way = entity.middle - start
    along = float(way @ line) / length**2
    aside = abs(float(way[0] * line[1] - way[1] * line[0])) / length
    if loose:
        return 0.05 < along < 0.95 and aside < max(0.5 * length, 1.0)
    return 0.25 < along < 0.75 and aside < min(0.25 * length, 0.5)


def bearing(entity: Entity, eye: Entity, toward: np.ndarray) -> float:
    """Angle to the left, radians, at which ``entity`` is seen from ``eye`` looking ``toward``."""
    look, way = toward - eye.middle, entity.middle - eye.middle
    cross = look[0] * way[1] - look[1] * way[0]
    return float(np.arctan2(cross, look @ way))


def _left(entity: Entity, anchors: list[Entity], eye: Entity, loose: bool) -> bool:
    return _to_side(entity, anchors[0], eye, loose, 1.0)


def _right(entity: Entity, anchors: list[Entity], eye: Entity, loose: bool) -> bool:
    return _to_side(entity, anchors[0], eye, loose, -1.0)


def _to_side(entity: Entity, anchor: Entity, eye: Entity, loose: bool, side: float) -> bool:
    angle = side * bearing(entity, eye, anchor.middle)
    if loose:
        return angle > -np.radians(6)
    return np.radians(10) < angle < np.radians(120) and gap(entity, anchor) < 3.0


def _ranked(query: Query, named: list[Entity], anchors: list[Entity], eye) -> list[int]:
    if len(named) <= query.rank:
        return []
    rows = [_values(query.relation, e, named, anchors, eye) for e in named]
    orders = [np.argsort(column, kind="stable") for column in np.array(rows).T]
    places = {int(order[query.rank]) for order in orders}
    if len(places) > 1:  # the middles and the gaps disagree
        return []
    if not all(_clear(query, np.array(rows)[:, k]) for k in range(len(rows[0]))):
        return []
    return [named[places.pop()].id]


def _values(relation: str, entity: Entity, named, anchors, eye) -> tuple[float, ...]:
    """What is compared, the first in rank being the least; several must agree."""
    size = entity.box[3:]
    if relation == "largest":
        return (-float(np.log(np.prod(size))),)
    if relation == "smallest":
        return (float(np.log(np.prod(size))),)
    if relation == "tallest":
        return (-float(np.log(size[2])),)
    if relation == "lowest":
        return (float(np.log(size[2])),)
    if relation in ("nearest", "farthest"):
        sign = 1 if relation == "nearest" else -1
        middle = float(np.hypot(*(entity.middle - anchors[0].middle)))
        return sign * middle, sign * gap(entity, anchors[0])
    angle = bearing(entity, eye, np.mean([e.middle for e in named], 0))
    return (-angle if relation == "from left" else angle,)


def _clear(query: Query, values: np.ndarray) -> bool:
    """Whether the one in rank differs enough from those before and after it."""
    chosen = np.sort(values)
    near = [chosen[k] for k in (query.rank - 1, query.rank + 1) if 0 <= k < len(chosen)]
    here, ratio = chosen[query.rank], RANKED[query.relation]
    if query.relation in SIZES:
        return all(abs(other - here) > np.log(ratio) for other in near)
    if query.relation in ("nearest", "farthest"):
        big = [max(abs(other), abs(here)) for other in near]
        return all(
            abs(other - here) > max(0.2, (1 - 1 / ratio) * most) for other, most in zip(near, big)
        )
    return (
        all(abs(other - here) > BEARING_GAP for other in near)
        and np.abs(values).max() < WIDEST_VIEW
    )


_HOLDS = {
    "on": _on,
    "above": _above,
    "beside": _beside,
    "between": _between,
    "left": _left,
    "right": _right,
}


# ---------------------------------------------------------------------- queries of a room


def queries(entities: Sequence[Entity]) -> Iterator[tuple[Query, int]]:
    """Every query of this room that has one answer, and the answer's id."""
    spoken = sorted((e for e in entities if e.name.lower() not in UNNAMED), key=lambda e: e.id)
    for query in _candidates(spoken):
        found = answers(query, spoken)
        if len(found) == 1 and answers(query, spoken, loose=True) == found:
            yield query, found[0]


def described(entity: Entity, entities: Sequence[Entity]) -> str | None:
    """Words that mean ``entity`` alone: its class or its colour and class; None if none do."""
    if has_one_answer(Query(entity.name), entities, entity.id):
        return entity.name
    if entity.color and has_one_answer(Query(entity.name, entity.color), entities, entity.id):
        return f"{entity.color} {entity.name}"
    return None


def _candidates(spoken: list[Entity]) -> Iterator[Query]:
    kinds = [(name, "") for name in sorted({e.name for e in spoken})]
    kinds += sorted({(e.name, e.color) for e in spoken if e.color})
    anchors = [e for e in spoken if described(e, spoken)]
    eyes = [e for e in anchors if e.name in ("door", "window")] or anchors[:3]
    for name, color in kinds:
        same = [e for e in spoken if e.name == name and color in ("", e.color)]
        yield Query(name, color)
        if color and len(same) < 2:
            continue  # the colour says enough
        others = [a for a in anchors if a.name != name]
        for relation in SIZES if len(same) > 1 else ():
            yield Query(name, color, relation)
            if len(same) > 2 and relation in ("largest", "tallest"):
                yield Query(name, color, relation, rank=1)
        yield from _relational(name, color, others, eyes, len(same))


def _relational(name: str, color: str, others, eyes, count: int) -> Iterator[Query]:
    for anchor in others:
        for relation in ("nearest", "farthest") if count > 1 else ():
            yield Query(name, color, relation, (anchor.id,))
        for relation in ("on", "above", "beside"):
            yield Query(name, color, relation, (anchor.id,))
        for eye in eyes:
            if eye.id != anchor.id and eye.name != name:
                yield Query(name, color, "left", (anchor.id,), eye.id)
                yield Query(name, color, "right", (anchor.id,), eye.id)
    for a, b in combinations(others, 2):
        yield Query(name, color, "between", (a.id, b.id))
    for eye in eyes:
        if eye.name != name and count > 1:
            for rank in range(min(count, 3)):
                yield Query(name, color, "from left", (), eye.id, rank)
                yield Query(name, color, "from right", (), eye.id, rank)
