"""Words for queries about a room, and the choice of which to ask."""

import re
from collections.abc import Sequence

import numpy as np

from .grounding import Sentence
from .sentences import SIZES, UNNAMED, Entity, Query, described, queries

SHARES = {"class": 0.25, "attribute": 0.4, "relation": 0.35}
"""How often which kind of sentence is wanted, where the room has it."""

WEIGHTS = {"color": 6.0, "nearest": 2.0, "on": 2.0, "above": 2.0, "beside": 1.5}
"""How much more often than others an attribute or a relation is asked for."""

ALONE = 0.2
"""Share of the relational and attribute sentences that may be about the only one of its class."""

ORDINALS = ("first", "second", "third", "fourth")
_OPENINGS = (
    "{}",
    "{}",
    "{}",
    "find {}",
    "please find {}",
    "look for {}",
    "i mean {}",
    "where is {}",
)
_WORDS = {
    "largest": ("the largest {n}", "the biggest {n}", "the {n} that is the largest"),
    "smallest": ("the smallest {n}", "the {n} that is the smallest"),
    "tallest": ("the tallest {n}", "the {n} that is the tallest"),
    "lowest": ("the lowest {n}", "the shortest {n}", "the {n} that is the lowest"),
    "nearest": (
        "the {n} closest to the {a}",
        "the {n} nearest to the {a}",
        "the {n} that is nearest the {a}",
    ),
    "farthest": ("the {n} farthest from the {a}", "the {n} that is farthest away from the {a}"),
    "on": ("the {n} on the {a}", "the {n} that stands on the {a}", "the {n} on top of the {a}"),
    "above": ("the {n} above the {a}", "the {n} over the {a}"),
    "beside": ("the {n} next to the {a}", "the {n} beside the {a}", "the {n} by the {a}"),
    "between": ("the {n} between the {a} and the {b}", "the {n} in between the {a} and the {b}"),
    "left": (
        "the {n} left of the {a} , seen from the {v}",
        "standing at the {v} and facing the {a} , the {n} to the left of it",
        "the {n} to the left of the {a} when you look from the {v}",
    ),
    "right": (
        "the {n} right of the {a} , seen from the {v}",
        "standing at the {v} and facing the {a} , the {n} to the right of it",
        "the {n} to the right of the {a} when you look from the {v}",
    ),
    "from left": (
        "the {o} {n} from the left , seen from the {v}",
        "looking from the {v} , the {o} {n} from the left",
    ),
    "from right": (
        "the {o} {n} from the right , seen from the {v}",
        "looking from the {v} , the {o} {n} from the right",
    ),
}
_LEADERS = {
    "from left": ("the leftmost {n} , seen from the {v}", "the {n} on the far left from the {v}"),
    "from right": (
        "the rightmost {n} , seen from the {v}",
        "the {n} on the far right from the {v}",
    ),
}
_COLORED = ("the {c} {n}", "the {n} that is {c}", "the {n} with the {c} color", "a {c} {n}")
_PLAIN = ("the {n}", "a {n}", "the only {n} in the room", "there is one {n} here")


def kind_of(query: Query) -> str:
    """'class', 'attribute' (colour, size, rank by size) or 'relation'."""
    if query.relation and query.relation not in SIZES:
        return "relation"
    return "attribute" if query.relation or query.color else "class"


def say(query: Query, entities: Sequence[Entity], rng: np.random.Generator) -> str:
    """A sentence that means ``query``.

    Raises:
        ValueError: an anchor has no description of its own.
    """
    words = dict(zip("ab", _name_all(query.anchors, entities)))
    if query.viewpoint is not None:
        words["v"] = _name_all([query.viewpoint], entities)[0]
    words |= {"c": query.color, "o": ORDINALS[query.rank]}
    if not query.relation:
        words["n"] = query.name
        text = _pick(rng, _COLORED if query.color else _PLAIN).format(**words)
    else:
        words["n"] = f"{query.color} {query.name}".strip()
        templates = _WORDS[query.relation]
        if query.rank == 0 and query.relation in _LEADERS:
            templates = templates + _LEADERS[query.relation]
        text = _pick(rng, templates).format(**words)
        if query.rank and query.relation in SIZES:
            text = text.replace(
                f"the {query.relation}", f"the {ORDINALS[query.rank]} {query.relation}"
            )
            text = text.replace("the biggest", f"the {ORDINALS[query.rank]} biggest")
    text = re.sub(r"\ba (?=[aeiou])", "an ", text)
    plain = text.startswith(("the ", "a ", "an "))
    return _pick(rng, _OPENINGS).format(text) if plain else text


def _name_all(ids: Sequence[int], entities: Sequence[Entity]) -> list[str]:
    found = []
    for number in ids:
        entity = next(e for e in entities if e.id == number)
        words = described(entity, entities)
        if words is None:
            raise ValueError(f"object {number} ({entity.name}) cannot be told from the others")
        found.append(words)
    return found


def _pick(rng: np.random.Generator, choices: Sequence[str]) -> str:
    return choices[int(rng.integers(len(choices)))]


def write_sentences(
    scene_id: str, entities: Sequence[Entity], rng: np.random.Generator, count: int = 12
) -> list[Sentence]:
    """At most ``count`` different sentences about a room, of the kinds in ``SHARES``.

    Most speak of an object that others of its class surround. Fewer come where the room has not
    enough to say.
    """
    spoken = [e for e in entities if e.name.lower() not in UNNAMED]
    alike = {e.name: sum(o.name == e.name for o in spoken) for e in spoken}
    pools: dict[str, dict[str, list]] = {kind: {} for kind in SHARES}
    for query, target in queries(entities):
        lonely = alike[query.name] == 1 and kind_of(query) != "class"
        if not lonely or rng.random() < ALONE:
            topic = query.relation or ("color" if query.color else "class")
            pools[kind_of(query)].setdefault(topic, []).append((query, target))
    made: dict[str, Sentence] = {}
    for _ in range(4 * count):
        there = [kind for kind in pools if pools[kind]]
        if not there or len(made) == count:
            break
        weights = np.array([SHARES[kind] for kind in there])
        kind = there[int(rng.choice(len(there), p=weights / weights.sum()))]
        topics = list(pools[kind])
        weights = np.array([WEIGHTS.get(topic, 1.0) for topic in topics])
        topic = topics[int(rng.choice(len(topics), p=weights / weights.sum()))]
        pool = pools[kind][topic]
        query, target = pool.pop(int(rng.integers(len(pool))))
        if not pool:
            del pools[kind][topic]
        text = say(query, spoken, rng)
        made.setdefault(text, _sentence(scene_id, text, query, target))
    return list(made.values())


def _sentence(scene_id: str, text: str, query: Query, target: int) -> Sentence:
    topic = query.relation or ("color" if query.color else "")
    anchors = query.anchors if query.viewpoint is None else (*query.anchors, query.viewpoint)
    fields = {"query": {**vars(query), "anchors": list(query.anchors)}}
    return Sentence(scene_id, text, target, anchors, kind_of(query), topic, fields=fields)
