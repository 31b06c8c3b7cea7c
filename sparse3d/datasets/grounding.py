"""Rooms with sentences: what every data set for grounding shares.

A sample is one sentence about one room. Its boxes are those of ALL objects of the room, parallel to
the axes (yaw 0); ``meta['target']`` and ``meta['anchors']`` are lists of rows of them: the object
that the sentence means, and those that it names beside it.
"""

import functools
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sparse3d.structures import Boxes, Sample

from .base import PointDataset, crop, in_range

COLUMNS = ("x", "y", "z", "red", "green", "blue")
KINDS = ("class", "attribute", "relation")
VIEW_WORDS = frozenset(
    (
        "front",
        "behind",
        "back",
        "left",
        "right",
        "facing",
        "leftmost",
        "rightmost",
        "looking",
        "across",
    )
)
"""Words that make a sentence depend on where one stands, as the published evaluations have them."""


@dataclass(frozen=True)
class Sentence:
    """A sentence about a room.

    Attributes:
        scene_id: the room.
        text: the words.
        target: id of the object that is meant.
        anchors: ids of the other objects that the sentence names, if known.
        kind: 'class' (the class alone), 'attribute' (colour, size, ordinal by size), 'relation' (to
            another object or a viewpoint), or '' where the data do not say.
        relation: its name, such as 'nearest'; '' for none.
        distractors: other objects of the target's class, or None to have them counted.
        fields: more plain data for ``meta``.
    """

    scene_id: str
    text: str
    target: int
    anchors: tuple[int, ...] = ()
    kind: str = ""
    relation: str = ""
    distractors: int | None = None
    fields: dict[str, Any] = field(default_factory=dict)

    @property
    def view_dependent(self) -> bool:
        """Whether a word of ``VIEW_WORDS`` occurs, whole."""
        return not VIEW_WORDS.isdisjoint(words(self.text))


@dataclass
class Room:
    """A coloured scan with its objects.

    Attributes:
        points: [P, 6] float32 x, y, z in metres and colour in 0..1.
        instance: [P] int64 row of the object, -1 for none.
        boxes: [N, 6] float32 centre and size, parallel to the axes.
        names: [N] classes.
        ids: [N] the data set's numbers of the objects.
    """

    points: np.ndarray
    instance: np.ndarray
    boxes: np.ndarray
    names: list[str]
    ids: list[int]


class GroundingDataset(PointDataset):
    """Sentences and the rooms they speak of; a subclass fills ``sentences`` and loads a room.

    A sample has ``points`` [P, 6], ``instance`` [P], ``text``, all objects' ``boxes`` and
    ``names``, and in ``meta``: 'target' and 'anchors' (rows of the boxes), 'scene_id', 'kind',
    'relation', 'unique' (no other object of its class), 'distractors' (their number), 'hard' (more
    than one of them) and 'view_dependent'.
    """

    columns = COLUMNS

    def __init__(
        self,
        data_root: str | Path,
        class_names: Sequence[str],
        num_points: int | None = 50_000,
        text: str | None = None,
        **options: Any,
    ):
        """Args:
            data_root: folder of the data.
            class_names: known classes; objects of others keep label -1 and stay.
            num_points: points drawn of each room, once and for all epochs; None: all.
            text: what every sentence is replaced with, to measure what words are worth.
            options: of PointDataset.

        Raises:
            ValueError: ``num_points`` is not positive.
        """
        if num_points is not None and num_points <= 0:
            raise ValueError(f"num_points is {num_points}; it must be positive, or None for all")
        super().__init__(data_root, class_names, keep_ignored=True, **options)
        self.num_points = num_points
        self.text = text
        self.sentences: list[Sentence] = []

    def __len__(self) -> int:
        return len(self.sentences)

    @functools.cached_property
    def vocabulary(self) -> list[str]:
        """All words of the sentences, in order of the alphabet."""
        return sorted({word for sentence in self.sentences for word in words(sentence.text)})

    def load_room(self, scene_id: str) -> Room:
        """The room called ``scene_id``."""
        raise TypeError(f"{type(self).__name__} does not define load_room")

    def room(self, scene_id: str) -> Room:
        """The room called ``scene_id`` with the points that are drawn of it."""
        return thinned(self.load_room(scene_id), self.num_points, scene_id)

    def load(self, index: int, generator: np.random.Generator) -> Sample:
        sentence = self.sentences[index]
        room = self.room(sentence.scene_id)
        row = {number: row for row, number in enumerate(room.ids)}
        if sentence.target not in row:
            raise ValueError(
                f"{self.name}: the sentence {sentence.text!r} means object {sentence.target}, which"
                f" {sentence.scene_id} does not have (it has {sorted(row)}): remove the sentence, "
                "or use the annotation files that belong to these scenes"
            )
        target = row[sentence.target]
        others = sum(name == room.names[target] for name in room.names) - 1
        others = others if sentence.distractors is None else sentence.distractors
        meta = {
            "sample_id": f"{sentence.scene_id}/{index}",
            "scene_id": sentence.scene_id,
            "target": [target],
            "anchors": [row[a] for a in sentence.anchors if a in row],
            "kind": sentence.kind,
            "relation": sentence.relation,
            "distractors": others,
            "unique": others == 0,
            "hard": others > 1,
            "view_dependent": sentence.view_dependent,
            **sentence.fields,
        }
        sample = to_sample(room, meta)
        return replace(sample, text=sentence.text if self.text is None else self.text)

    def finish(self, sample: Sample) -> Sample:
        """The points in range; boxes stay, so that the rows in ``meta`` stay right."""
        if self.point_range is None:
            return sample
        inside = in_range(sample.points, self.point_range)
        return crop(sample, inside, f"point_range {list(self.point_range)}")


def to_sample(room: Room, meta: dict[str, Any]) -> Sample:
    """A sample of ``room`` without a sentence; warns of an implausible scale."""
    check_scale(room.points, str(meta.get("sample_id", "the scene")))
    boxes = np.concatenate([room.boxes, np.zeros((len(room.boxes), 1))], 1).astype(np.float32)
    return Sample(
        points=torch.from_numpy(np.ascontiguousarray(room.points, np.float32)),
        instance=torch.from_numpy(np.ascontiguousarray(room.instance, np.int64)),
        boxes=Boxes(torch.from_numpy(boxes)),
        names=list(room.names),
        meta=meta,
    )


def thinned(room: Room, count: int | None, scene_id: str) -> Room:
    """The room with ``count`` of its points, the same ones whenever it is asked for."""
    if count is None or len(room.points) <= count:
        return room
    generator = np.random.default_rng(zlib.crc32(scene_id.encode()))
    rows = np.sort(generator.permutation(len(room.points))[:count])
    return replace(room, points=room.points[rows], instance=room.instance[rows])


def words(text: str) -> list[str]:
    """The sentence's words in lower case, without punctuation."""
    return "".join(c if c.isalnum() else " " for c in text.lower()).split()


def check_scale(points: np.ndarray, origin: str) -> None:
    """Warns where a scan [P, >=3] has no size that a place of rooms in metres can have."""
    finite = points[np.isfinite(points[:, :3]).all(1), :3]
    if len(finite) < 2:
        return
    size = np.ptp(finite, axis=0)
    if size.max() > 200 or size.max() < 0.3:
        shown = " x ".join(f"{edge:.3g}" for edge in size)
        unit = "millimetres" if size.max() > 1000 else "centimetres" if size.max() > 200 else ""
        unit = f"they look like {unit}: divide them" if unit else "multiply them"
        warnings.warn(
            f"{origin}: the scan measures {shown}, which is implausible for a room in metres; "
            f"{unit} so that coordinates are metres",
            stacklevel=3,
        )


def with_color(points: np.ndarray, origin: str) -> np.ndarray:
    """``points`` [P, >=3] as [P, 6] with colours in 0..1; grey, with a warning, where none are.

    Colours of 0..255 are divided by 255.
    """
    points = np.asarray(points, np.float32)
    if points.shape[1] < 6:
        warnings.warn(f"{origin} has no colours: grey is taken for all points", stacklevel=3)
        grey = np.full((len(points), 3), 0.5, np.float32)
        return np.concatenate([points[:, :3], grey], 1)
    color = points[:, 3:6]
    scale = 255 if len(color) and np.nanmax(color) > 1.001 else 1
    return np.concatenate([points[:, :3], np.clip(color / scale, 0, 1)], 1)
