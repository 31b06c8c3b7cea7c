"""TextGrounder: the box that a sentence means, from a coloured scan."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from mmengine.model import BaseModel
from torch import Tensor

from sparse3d.registry import MODELS
from sparse3d.structures import Batch, Detections, Sample, SparseVoxels, VoxelGrid

from .heads.tsp3d_decision import Choice, decision_loss
from .preprocessor import BatchPreprocessor
from .text import WORD, Span, TextTokens

MEAN_COLOR = (109.8 / 255, 97.2 / 255, 83.8 / 255)
"""Mean colour of ScanNet in 0..1, as TSP3D has it."""
LARGEST_SCENE = 200.0
"""Metres; a larger extent is warned of as a wrong unit."""


@dataclass(frozen=True, eq=False)
class Explanation:
    """How a sentence led to a box.

    Attributes:
        detections: the answer.
        kept: [N, 3] metres, centres of the voxels that each pruning left, coarse to fine.
        sizes: edge in metres of the voxels of each entry of ``kept``.
        words: [T] how much each word counted: its share of the box's attention, or where a decision
            chose, of how much likelier the answer is than without the word; sums to 1.
        spans: characters (begin, end) of each word; (0, 0): the sentence as a whole.
    """

    detections: Detections
    kept: list[Tensor]
    sizes: list[float]
    words: Tensor
    spans: list[Span]


@MODELS.register_module()
class TextGrounder(BaseModel):
    """Words and voxels to one box per scene.

    Args:
        voxel_size: edge of a voxel in metres.
        text: config of the encoder of sentences.
        backbone: config of the sparse backbone.
        head: config of the head.
        encoder: config of the points' encoder. MeanEncoder averages a voxel's points; with
            ``max_points=1`` it takes the first one in their order, as published.
        teacher: config of an ObjectTeacher, which learns from all objects of a scene beside the
            sentences' targets (published: none).
        mean_color: what is taken off the colours (0..1); a scan without colours has this one.
        guiding: sentences of a scene that go the whole way in training. The others choose among the
            scene's true boxes, which costs little: what words mean takes many sentences to learn.
            None: all of them. Needs a head with a decision.

    Raises:
        ValueError: ``guiding`` is not positive, or the head has no decision.
    """

    def __init__(
        self,
        voxel_size: float,
        text: Mapping,
        backbone: Mapping,
        head: Mapping,
        encoder: Mapping | None = None,
        teacher: Mapping | None = None,
        mean_color: Sequence[float] = MEAN_COLOR,
        guiding: int | None = None,
    ):
        super().__init__(data_preprocessor=BatchPreprocessor())
        if guiding is not None and (guiding < 1 or head.get("decision") is None):
            raise ValueError(
                f"guiding is {guiding}; it must be 1 or more and needs a head with a decision, "
                "or None"
            )
        self.guiding = guiding
        grid = VoxelGrid((float(voxel_size),) * 3, (0.0,) * 3)
        encoder = encoder or {"type": "MeanEncoder"}
        self.encoder = MODELS.build({**encoder, "grid": grid, "point_channels": 6})
        self.text = MODELS.build({**text})
        width = self.encoder.out_channels
        self.backbone = MODELS.build({**backbone, "in_channels": width})
        alone = (self.backbone.out_channels,)
        widths = tuple(getattr(self.backbone, "stage_channels", alone))[-3:]
        derived = {"grid": grid, "in_channels": widths, "text_channels": self.text.out_channels}
        if head.get("decision") is not None:
            stages = getattr(self.backbone, "stage_channels", alone)
            derived["fine_channels"] = stages[-4] if len(stages) > 3 else None
            derived["input_channels"] = width
        self.head = MODELS.build({**head, **derived})
        self.mean_color = tuple(mean_color)
        self.teacher = None
        if teacher is not None:
            derived = {"in_channels": widths[0], "sentence_channels": self.head.sentence_channels}
            self.teacher = MODELS.build({**teacher, "grid": grid, **derived})

    def forward(self, batch: Batch, mode: str = "tensor"):
        """Losses (mode 'loss'), detections ('predict') or the head's raw output ('tensor')."""
        if mode == "loss":
            return self.loss(batch)
        if mode == "predict":
            return self.predict(batch)
        if mode == "tensor":
            return self.raw(batch)
        raise ValueError(f"mode is {mode!r}; it must be 'loss', 'predict' or 'tensor'")

    def raw(self, batch: Batch):
        """The head's raw output."""
        return self._answer(self._stages(batch), batch)

    def _stages(self, batch: Batch) -> list[SparseVoxels]:
        """The backbone's stages, finest first; a single one where it has but one.

        For a decision what the backbone began with comes before the last four, in their finest
        cells.
        """
        voxels = self.voxels(batch)
        found = self.backbone(voxels)
        stages = [found] if isinstance(found, SparseVoxels) else found
        return stages if self.head.decision is None else [voxels.averaged(stages[-4]), *stages[-4:]]

    def _answer(self, stages: list[SparseVoxels], batch: Batch):
        """The head's raw output; ``stages`` have the scenes in the order of their first samples."""
        words, scenes = self.words(batch), _scenes(batch)[1]
        if scenes != list(range(stages[0].batch_size)):
            stages = [voxels.samples_at(scenes) for voxels in stages]
        return self.head(stages, words.features, words.padding)

    def voxels(self, batch: Batch) -> SparseVoxels:
        """Voxels of the scenes; samples that share one tensor of points are one scene.

        Raises:
            ValueError: no scenes, points without coordinates or colours, or not finite.
        """
        if not batch.samples:
            raise ValueError("the batch has no samples; one at least is needed")
        scenes = _scenes(batch)[0]
        parts = [self._points(sample) for sample in scenes]
        counts = torch.tensor([len(part) for part in parts])
        index = torch.repeat_interleave(torch.arange(len(parts)), counts)
        points = torch.cat(parts)
        return self.encoder(points, index.to(points.device), len(parts))

    def words(self, batch: Batch) -> TextTokens:
        """The sentences' words.

        Raises:
            ValueError: a sample has no sentence.
        """
        for sample in batch.samples:
            if sample.text is None:
                raise ValueError(
                    f"sample {sample.sample_id!r} has no text; a sentence is needed: "
                    "Sample(points, text='the brown chair next to the window')"
                )
        return self.text([sample.text for sample in batch.samples])

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Losses by name; their sum is what is minimised.

        Raises:
            ValueError: a sample does not say which of its boxes its sentence means.
        """
        scenes, numbers = _scenes(batch)
        whole, others = _guides(numbers, self.guiding)
        stages, guides = self._stages(batch), Batch([batch.samples[row] for row in whole])
        raw = self._answer(stages, guides)  # the first sentence of every scene guides
        if self.head.decision is None:
            losses = self.head.loss(raw, *_lesson(guides), **self._classes(guides))
        else:
            losses = self.head.loss(raw, *_lesson(guides))
            choices = [raw.choice]
            if others:
                aside = Batch([batch.samples[row] for row in others])
                words = self.words(aside)
                known = self.head.known(stages, [scene.boxes for scene in scenes])
                known = known.of(torch.tensor([numbers[row] for row in others]))
                choices.append(self.head.decide(known, words.features, words.padding))
                guides = Batch([*guides.samples, *aside.samples])
            losses |= decision_loss(choices, *_lesson(guides), **self._classes(guides))
        if self.teacher is not None:
            known = [scene.boxes for scene in scenes], [scene.labels for scene in scenes]
            losses |= self.teacher.loss(stages[-3:], *known)
            meant = [s.labels[_target(s)] for s in (batch.samples[row] for row in whole)]
            losses |= self.teacher.sentence_loss(raw.sentences, torch.stack(meant))
        return losses

    def _classes(self, batch: Batch) -> dict[str, list[Tensor]]:
        """The objects' classes, for a head that learns them."""
        return {"labels": batch.labels} if self.head.learns_classes else {}

    @torch.no_grad()
    def predict(self, batch: Batch) -> list[Detections]:
        """The best box of each scene, none in a scene without points, with the sample attached."""
        found = self.head.predict(self.raw(batch))
        return [replace(one, sample=sample) for one, sample in zip(found, batch.samples)]

    @torch.no_grad()
    def explain(self, sample: Sample) -> Explanation:
        """The answer to one sentence, with what stayed of the scene and which words counted."""
        batch = Batch([sample])
        stages, words = self._stages(batch), self.words(batch)
        if self.head.decision is None:
            raw, shares = self.head.explain(stages, words.features, words.padding)
        else:
            raw = self.head(stages, words.features, words.padding)
            shares = self._missed(sample.text.strip(), words, raw.choice)
        detections = replace(self.head.predict(raw)[0], sample=sample)
        left = self.head.remaining(raw)
        return Explanation(
            detections,
            [voxels.centers() for voxels in left],
            [voxels.stride[0] * voxels.grid.voxel_size[0] for voxels in left],
            shares,
            words.spans[0],
        )

    def _missed(self, text: str, words: TextTokens, choice: Choice) -> Tensor:
        """Share [T] of each word: how much likelier it makes the answer than the text without it.

        A word that speaks against the answer has 0; where none speaks for it, all count alike.
        """
        spans = words.spans[0]
        left_out = {row: f"{text[:a]} {text[b:]}" for row, (a, b) in enumerate(spans)}
        rows = [row for row, (a, b) in enumerate(spans) if a < b and WORD.search(left_out[row])]
        shares = words.features.new_zeros(len(spans))
        if rows and choice.candidates.there.any():
            less = self.text([left_out[row] for row in rows])
            scenes = torch.zeros(len(rows), dtype=torch.int64, device=shares.device)
            found = self.head.decide(choice.candidates.of(scenes), less.features, less.padding)
            best = choice.logits[-1][0].argmax()
            with_all = choice.logits[-1][0].log_softmax(0)[best]
            shares[rows] = (with_all - found.logits[-1].log_softmax(1)[:, best]).clamp(min=0)
        total = shares.sum()
        return shares / total if total > 0 else torch.full_like(shares, 1 / len(shares))

    def _points(self, sample: Sample) -> Tensor:
        """[P, 6] float32: metres, and colours less the mean."""
        points, name = sample.points, sample.sample_id
        if points.shape[1] not in (3, 6):
            raise ValueError(
                f"the points of sample {name!r} have {points.shape[1]} columns; x, y, z in metres, "
                "or these and red, green, blue in 0..1, are needed"
            )
        points = points.float()
        _check_extent(points, name)
        if points.shape[1] == 3:
            warnings.warn(
                f"sample {name!r} has no colours: words of colour mean nothing in it", stacklevel=2
            )
            return torch.cat([points, torch.zeros_like(points)], 1)
        color = points[:, 3:]
        if len(color) and float(color.max()) > 1.5:
            raise ValueError(
                f"the colours of sample {name!r} go up to {float(color.max()):g}; they must be in "
                "0..1: divide them by 255"
            )
        # bytes over 256, as published
        scaled = (color - color.new_tensor(self.mean_color)) * (255 / 256)
        return torch.cat([points[:, :3], scaled], 1)


def _scenes(batch: Batch) -> tuple[list[Sample], list[int]]:
    """One sample of each scene, and the number of each sample's scene."""
    numbers: dict[int, int] = {}
    scenes = [numbers.setdefault(id(sample.points), len(numbers)) for sample in batch.samples]
    return [batch.samples[scenes.index(number)] for number in range(len(numbers))], scenes


def _guides(scenes: list[int], limit: int | None) -> tuple[list[int], list[int]]:
    """Rows of the sentences that guide the pruning, ``limit`` of a scene at most, and the others.

    Args:
        scenes: the scene of each sentence.
        limit: None: all of them guide.
    """
    rows = range(len(scenes))
    turn = [scenes[:row].count(scenes[row]) for row in rows]
    whole = [row for row in rows if limit is None or turn[row] < limit]
    return whole, [row for row in rows if row not in whole]


def _lesson(batch: Batch) -> tuple[list, list[int], list[list[int]]]:
    """Per sentence all boxes, the row of what it means, and the rows that it names beside it."""
    anchors = [list(sample.meta.get("anchors", ())) for sample in batch.samples]
    return batch.boxes, [_target(sample) for sample in batch.samples], anchors


def _check_extent(points: Tensor, name: str) -> None:
    """Warns of a scan so large that its unit must be another than metres."""
    if not len(points):
        return
    low, high = points[:, :3].T.contiguous().aminmax(dim=1)
    extent = float((high - low).max())
    if extent > LARGEST_SCENE:
        warnings.warn(
            f"sample {name!r} extends over {extent:g} m, which is implausible for rooms: its unit "
            "may be millimetres or centimetres; divide the coordinates by 1000 or 100",
            stacklevel=3,
        )


def _target(sample: Sample) -> int:
    """The row of the box that the sentence means."""
    rows = sample.meta.get("target")
    if sample.boxes is None or rows is None or len(rows) != 1:
        raise ValueError(
            f"sample {sample.sample_id!r} does not say what its sentence means: it needs boxes and "
            f"meta['target'], a list with one row of them (it has {rows})"
        )
    if not 0 <= rows[0] < len(sample.boxes):
        raise ValueError(
            f"meta['target'] of sample {sample.sample_id!r} is row {rows[0]} of "
            f"{len(sample.boxes)} boxes"
        )
    return int(rows[0])
