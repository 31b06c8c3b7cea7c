"""Sentences about ScanNet's scenes: ScanRefer, Nr3D and Sr3D, and sentences of our own making."""

import ast
import csv
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sparse3d.registry import DATASETS
from sparse3d.structures import Sample

from .base import read_json, reading
from .grounding import GroundingDataset, Room, Sentence
from .phrases import write_sentences
from .scannet_scenes import (
    BENCHMARK_CLASSES,
    benchmark_class,
    benchmark_names,
    find_scene,
    list_scenes,
    read_scene,
)
from .sentences import Entity

MOST_DISTRACTORS = 32
"""Length at which TSP3D cuts its lists of distractors in ScanRefer."""


class ScanNetSentences(GroundingDataset):
    """Sentences about scenes of ScanNet; a subclass says which.

    ``names`` are the annotation's; labels are the ScanRefer benchmark's classes, -1 its 'others'.
    """

    name = "scannet"

    def __init__(
        self,
        data_root: str | Path,
        class_names: Sequence[str] = BENCHMARK_CLASSES,
        scenes: str | Path | Sequence[str] | None = None,
        limit: int | None = None,
        **options: Any,
    ):
        """Args:
        data_root: folder of the scenes, see ``find_scene``.
        class_names: classes in the order of the labels.
        scenes: ids of the scenes, or a file with one per line (the official splits); None: all.
        limit: use only this many sentences.
        options: of GroundingDataset.
        """
        super().__init__(data_root, class_names, **options)
        self.table = benchmark_names(self.data_root)
        self.scenes = _scene_list(scenes)
        self.sentences = list(self.read())
        if self.scenes is not None:
            self.sentences = [s for s in self.sentences if s.scene_id in self.scenes]
        self.sentences = self.sentences[:limit]

    def read(self) -> Iterator[Sentence]:
        """All sentences."""
        raise TypeError(f"{type(self).__name__} does not define read")

    def class_of(self, name: str) -> int:
        name = self.class_map.get(name, name)
        if name not in self.class_names:
            name = benchmark_class(name, self.table)
        return self.class_names.index(name) if name in self.class_names else -1

    def load_room(self, scene_id: str) -> Room:
        return read_scene(find_scene(self.data_root, scene_id))


@DATASETS.register_module()
class ScanRefer(ScanNetSentences):
    """ScanRefer_filtered_SPLIT.json: people's descriptions.

    ``meta['distractors']`` counts other objects of the target's benchmark class, at most 32, as
    TSP3D does.
    """

    name = "scanrefer"

    def __init__(self, data_root: str | Path, ann_file: str | Path, **options: Any):
        """Args:
        data_root: folder of the scenes.
        ann_file: the JSON file.
        options: of ScanNetSentences.
        """
        self.ann_file = Path(ann_file)
        super().__init__(data_root, **options)

    def read(self) -> Iterator[Sentence]:
        rows = read_json(self.ann_file)
        with reading(self.ann_file):
            for row in rows:
                text = " ".join(row["token"]) if row.get("token") else str(row["description"])
                fields = {"object_name": row["object_name"], "ann_id": str(row.get("ann_id", ""))}
                target = int(row["object_id"])
                yield Sentence(str(row["scene_id"]), spaced(text), target, fields=fields)

    def load(self, index: int, generator: np.random.Generator) -> Sample:
        sample = super().load(index, generator)
        kinds = [benchmark_class(name, self.table) for name in sample.names]
        count = kinds.count(kinds[sample.meta["target"][0]]) - 1
        count = min(count, MOST_DISTRACTORS)
        sample.meta.update(distractors=count, unique=count == 0, hard=count > 1)
        return sample


@DATASETS.register_module()
class ReferIt3D(ScanNetSentences):
    """nr3d.csv or sr3d.csv: sentences that tell an object from others of its class.

    Which rows count: those that mention the target's class, as Sr3D's and Nr3D's benchmarks ask,
    and (Nr3D) those whose listener guessed right.
    """

    name = "referit3d"

    def __init__(
        self,
        data_root: str | Path,
        ann_file: str | Path,
        mentioned_only: bool = True,
        correct_only: bool = False,
        **options: Any,
    ):
        """Args:
        data_root: folder of the scenes.
        ann_file: the CSV file.
        mentioned_only: leave out rows with mentions_target_class false.
        correct_only: leave out rows with correct_guess false (Nr3D's evaluation).
        options: of ScanNetSentences.
        """
        self.ann_file = Path(ann_file)
        self.flags = [("mentions_target_class", mentioned_only), ("correct_guess", correct_only)]
        super().__init__(data_root, **options)

    def read(self) -> Iterator[Sentence]:
        csv.field_size_limit(1 << 24)
        with reading(self.ann_file), self.ann_file.open(newline="") as file:
            for row in csv.DictReader(file):
                if any(wanted and not _true(row.get(flag)) for flag, wanted in self.flags):
                    continue
                yield self._sentence(row)

    def _sentence(self, row: dict[str, str]) -> Sentence:
        others = row.get("distractor_ids")
        anchors = ast.literal_eval(row.get("anchor_ids") or "[]")
        relation = row.get("reference_type") or ""
        return Sentence(
            row["scan_id"],
            spaced(row["utterance"]),
            int(row["target_id"]),
            tuple(int(a) for a in anchors),
            "relation" if relation else "",
            relation,
            None if others is None else len(ast.literal_eval(others or "[]")),
            {"object_name": row.get("instance_type", "")},
        )


@DATASETS.register_module()
class ScanNetGenerated(ScanNetSentences):
    """Sentences made from a scene's instances and classes, as for the procedural rooms.

    Each has one answer by the definitions in ``sentences``. Colours are named where most of an
    object's points agree on one.
    """

    name = "scannet_generated"

    def __init__(
        self,
        data_root: str | Path,
        per_scene: int = 12,
        colors: bool = True,
        smallest: float = 0.1,
        **options: Any,
    ):
        """Args:
        data_root: folder of the scenes.
        per_scene: most sentences of a scene.
        colors: whether to name colours.
        smallest: objects whose longest edge is shorter, metres, are not spoken of.
        options: of ScanNetSentences; its seed draws the sentences.
        """
        self.per_scene, self.colors, self.smallest = per_scene, colors, smallest
        self.drawn = int(options.get("seed", 0))
        super().__init__(data_root, **options)

    def read(self) -> Iterator[Sentence]:
        scenes = sorted(self.scenes) if self.scenes is not None else list_scenes(self.data_root)
        if not scenes:
            raise FileNotFoundError(f"{self.data_root} holds no ScanNet scenes (scene*_*)")
        for number, scene_id in enumerate(scenes):
            room = self.load_room(scene_id)
            rng = np.random.default_rng((self.drawn, number))
            spoken = entities(room, self.colors, self.smallest)
            yield from write_sentences(scene_id, spoken, rng, self.per_scene)


def entities(room: Room, colors: bool = True, smallest: float = 0.0) -> list[Entity]:
    """What sentences know of a scene's objects; those of one class too small to see are left out.

    A class goes entirely when one of its objects is smaller than ``smallest``: else a sentence
    could mean the one that is left out.
    """
    boxes = room.boxes.astype(np.float64)
    small = {name for name, box in zip(room.names, boxes) if box[3:].max() < smallest}
    found = []
    for row, (number, name, box) in enumerate(zip(room.ids, room.names, boxes)):
        if name not in small:
            color = color_name(room.points[room.instance == row, 3:6]) if colors else ""
            found.append(Entity(number, name, box, color))
    return found


def color_name(rgb: np.ndarray, agree: float = 0.6) -> str:
    """The colour that a share ``agree`` of ``rgb`` [P, 3] (0..1) has, or '' for none."""
    if not len(rgb):
        return ""
    value, least = rgb.max(1), rgb.min(1)
    spread = np.maximum(value - least, 1e-6)
    saturation = spread / np.maximum(value, 1e-6)
    r, g, b = rgb.T
    hue = np.where(
        value == r,
        (g - b) / spread,
        np.where(value == g, 2 + (b - r) / spread, 4 + (r - g) / spread),
    )
    hue = hue / 6 % 1
    edges = np.array([0.025, 0.1, 0.19, 0.45, 0.69, 0.82, 0.96])
    tints = np.array(["red", "orange", "yellow", "green", "blue", "purple", "pink", "red"])
    name = tints[np.searchsorted(edges, hue)]
    warm = (hue < 0.12) | (hue > 0.98)
    name = np.where(warm & (value < 0.55), "brown", name)
    name = np.where(warm & (value >= 0.55) & (saturation < 0.4), "beige", name)
    gray = saturation < 0.17
    name = np.where(gray, np.where(value > 0.75, "white", "gray"), name)
    name = np.where(value < 0.18, "black", name)
    (most, count), *_ = Counter(name.tolist()).most_common(1)
    return most if count >= agree * len(rgb) else ""


def spaced(text: str) -> str:
    """The text with commas set off by blanks, as the published tokenizers want it."""
    return " ".join(text.replace(",", " , ").split())


def _true(value: str | None) -> bool:
    return value is None or value.strip().lower() in ("true", "1", "")


def _scene_list(scenes: str | Path | Sequence[str] | None) -> set[str] | None:
    if scenes is None:
        return None
    if isinstance(scenes, (str, Path)):
        with reading(scenes):
            scenes = Path(scenes).read_text().split()
    if not scenes:
        warnings.warn("the list of scenes is empty: no sentence is left", stacklevel=3)
    return set(scenes)
