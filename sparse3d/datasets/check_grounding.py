"""What is wrong with sentences about rooms, before a training finds nothing and does not say why.

The usual silent failures: boxes in the mesh's frame and points in the aligned one, object numbers
of other files, colours of 0..255 or none, one sentence for two objects.
"""

import warnings
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import torch

from sparse3d.structures import Sample

from .check import ERROR, NOTE, WARNING, Problem
from .grounding import GroundingDataset, words

LARGEST = 4.0  # metres; a median target with a longer edge is no piece of furniture
SMALLEST = 0.05


@dataclass
class SentenceSurvey:
    """Numbers of a data set of sentences.

    Attributes:
        sentences, rooms: how many there are in all.
        empty: texts without a word.
        torn: (room, text) that mean different objects of the room.
        unknown: messages about sentences whose room or object is missing.
        looked: how many samples the rest is about.
        kinds: sentences by kind.
        words: number of words of each sentence.
        vocabulary: how often each word occurs.
        names: classes of the targets.
        named: sentences that have the target's class in them.
        alone: targets without another object of their class.
        sizes: [N, 3] of the targets' boxes.
        held: share of the target's own points that its box holds.
        points: points of the target.
        low_color, high_color: least and greatest colour value; of rooms whose colours do not vary.
        colorless: rooms without colours.
        complaints: warnings given while loading.
    """

    sentences: int = 0
    rooms: int = 0
    empty: int = 0
    torn: list[tuple[str, str]] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    looked: int = 0
    kinds: Counter = field(default_factory=Counter)
    words: list[int] = field(default_factory=list)
    vocabulary: Counter = field(default_factory=Counter)
    names: Counter = field(default_factory=Counter)
    named: int = 0
    alone: int = 0
    sizes: list[list[float]] = field(default_factory=list)
    held: list[float] = field(default_factory=list)
    points: list[int] = field(default_factory=list)
    low_color: float = np.inf
    high_color: float = -np.inf
    colorless: int = 0
    complaints: Counter = field(default_factory=Counter)


def survey_sentences(dataset: GroundingDataset, limit: int | None = None) -> SentenceSurvey:
    """Reads all sentences, loads some samples without transforms, and counts.

    Args:
        dataset: what is checked.
        limit: at most so many samples, evenly over the data set; None: all.
    """
    found = SentenceSurvey(sentences=len(dataset))
    meant: dict[tuple[str, str], int] = {}
    for sentence in dataset.sentences:
        tokens = words(sentence.text)
        found.words.append(len(tokens))
        found.vocabulary.update(tokens)
        found.empty += not tokens
        found.kinds[sentence.kind or "not stated"] += 1
        key = (sentence.scene_id, " ".join(tokens))
        if meant.setdefault(key, sentence.target) != sentence.target:
            found.torn.append(key)
    found.rooms = len({sentence.scene_id for sentence in dataset.sentences})
    number = len(dataset) if limit is None else min(limit, len(dataset))
    for index in np.linspace(0, len(dataset) - 1, number).round().astype(int).tolist():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                sample = dataset.label(dataset.load(index, np.random.default_rng(0)))
            except (FileNotFoundError, ValueError) as error:
                found.unknown.append(str(error))
                continue
        found.complaints.update(str(warning.message) for warning in caught)
        _count(found, sample)
    return found


def _count(found: SentenceSurvey, sample: Sample) -> None:
    target = sample.meta["target"][0]
    name = sample.names[target]
    found.looked += 1
    found.names[name] += 1
    found.named += name.replace("_", " ").lower() in (sample.text or "").lower()
    found.alone += bool(sample.meta["unique"])
    found.sizes.append(sample.boxes.sizes[target].tolist())
    mine = sample.points[sample.instance == target, :3]
    found.points.append(len(mine))
    if len(mine):
        box = sample.boxes.tensor[target]
        inside = ((mine - box[:3]).abs() <= box[3:6] / 2 + 0.02).all(1)
        found.held.append(float(inside.float().mean()))
    color = sample.points[:, 3:6]
    if len(color):
        found.low_color = min(found.low_color, float(color.min()))
        found.high_color = max(found.high_color, float(color.max()))
        found.colorless += bool((color == color[0]).all())


def judge_sentences(found: SentenceSurvey) -> list[Problem]:
    """What is wrong, the worst first."""
    problems = [*_text_problems(found), *_box_problems(found), *_color_problems(found)]
    for text, count in found.complaints.most_common(5):
        problems.append(Problem(WARNING, f"{text} ({count} times)"))
    return sorted(problems, key=lambda p: (ERROR, WARNING, NOTE).index(p.level))


def _text_problems(found: SentenceSurvey) -> list[Problem]:
    problems = []
    if not found.sentences:
        return [Problem(ERROR, "there are no sentences", "check the annotation file and its split")]
    if found.unknown:
        text = f"{len(found.unknown)} sentences cannot be loaded; the first: {found.unknown[0]}"
        problems.append(Problem(ERROR, text))
    if found.empty:
        text = f"{found.empty} sentences have no word"
        problems.append(Problem(ERROR, text, "take them out of the annotation"))
    if found.torn:
        scene, text = found.torn[0]
        text = f"{len(found.torn)} sentences mean two objects of a room; {scene}: {text!r}"
        problems.append(Problem(WARNING, text, "nobody could tell which: add words, or drop them"))
    if found.looked and found.named < 0.5 * found.looked:
        text = f"only {found.named} of {found.looked} sentences have their target's class in them"
        remedy = "if classes are written otherwise in the annotation, that is harmless"
        problems.append(Problem(NOTE, text, f"object numbers may belong to other files; {remedy}"))
    rare = sum(count == 1 for count in found.vocabulary.values())
    if rare > 0.5 * len(found.vocabulary) > 50:
        text = f"{rare} of {len(found.vocabulary)} words occur once"
        problems.append(Problem(NOTE, text, "an encoder trained on other text knows them better"))
    return problems


def _box_problems(found: SentenceSurvey) -> list[Problem]:
    problems = []
    if not found.looked:
        return problems
    bare = sum(count == 0 for count in found.points)
    if bare > 0.02 * found.looked:
        level = ERROR if bare > 0.5 * found.looked else WARNING
        text = f"{bare} of {found.looked} targets have no point"
        problems.append(Problem(level, text, "raise num_points, or drop objects nobody sees"))
    astray = sum(share < 0.8 for share in found.held)
    if astray > 0.05 * found.looked:
        text = f"{astray} of {found.looked} targets' boxes do not hold the target's points"
        remedy = "boxes and points must share a frame: the axis alignment is applied to one only"
        problems.append(Problem(ERROR, text, remedy))
    median = np.median(np.array(found.sizes), 0)
    if not SMALLEST < median.max() < LARGEST:
        text = f"the median target measures {' x '.join(f'{v:.3g}' for v in median)}"
        problems.append(Problem(ERROR, text, "coordinates must be in metres"))
    return problems


def _color_problems(found: SentenceSurvey) -> list[Problem]:
    problems = []
    if found.high_color > 1.001 or found.low_color < -0.001:
        text = f"colours run from {found.low_color:g} to {found.high_color:g}, not within 0..1"
        problems.append(Problem(ERROR, text, "divide bytes by 255"))
    if found.colorless:
        text = f"{found.colorless} of {found.looked} scans have one colour only"
        problems.append(Problem(WARNING, text, "words of colour mean nothing in them"))
    return problems


def sentence_table(found: SentenceSurvey) -> str:
    """The numbers, for a person to read."""
    lines = [f"{found.sentences} sentences about {found.rooms} rooms"]
    if found.words:
        kinds = ", ".join(f"{kind} {count}" for kind, count in found.kinds.most_common())
        lines += [
            f"kinds: {kinds}",
            f"words: {np.mean(found.words):.1f} per sentence (longest {max(found.words)}), "
            f"{len(found.vocabulary)} different",
        ]
    if found.looked:
        size = torch.tensor(found.sizes).median(0).values.tolist()
        common = ", ".join(f"{name} {count}" for name, count in found.names.most_common(12))
        lines += [
            f"{found.looked} loaded: {found.alone} targets alone of their class, "
            f"{found.looked - found.alone} among others",
            f"median target: {' x '.join(f'{v:.2f}' for v in size)} m, "
            f"{int(np.median(found.points))} points",
            f"targets: {common}",
        ]
    return "\n".join(lines)
