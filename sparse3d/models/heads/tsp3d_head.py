"""TSP3D: one sentence guides which voxels stay, from coarse to fine, and the best one has the box.

Paper https://arxiv.org/abs/2502.10392. Levels are numbered from the finest: 0, 1, 2 are the last
three stages of the backbone (strides 16, 32, 64 as published).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparse3d.ops.voxelize import segment_expand
from sparse3d.registry import MODELS
from sparse3d.structures import Boxes, Detections, SparseVoxels, VoxelGrid

from ..layers import SubMConv, TransposedConv, VoxelBatchNorm, VoxelSequential
from . import tsp3d_losses as losses
from .room_boxes import overlaps
from .tsp3d_decision import MARGIN, Candidates, Choice, Decision, quality_loss
from .tsp3d_fusion import FusionEncoder, PositionEmbedding, scattered


@dataclass
class Judgement:
    """What an encoder said of the voxels of a level.

    Attributes:
        voxels: [N, C] with the encoder's features.
        logits: [N] of "to be pruned", or in the completion of "belongs to the target".
    """

    voxels: SparseVoxels
    logits: Tensor


@dataclass
class Grounding:
    """The head's raw output.

    Attributes:
        voxels: [M, C] the finest voxels that remain.
        boxes: [M, 6] centre (metres) and size of each voxel's box.
        logits: [M] score of each before the sigmoid.
        kept: judgements of the levels 1 and 2, by level.
        completion: judgement of the backbone's voxels of level 0.
        remaining: voxels after each pruning, by the level that was judged.
        sentences: [B, C] the words that stand for the sentences, after all encoders.
        choice: the comparison of the best boxes, where the head has a decision.
    """

    voxels: SparseVoxels
    boxes: Tensor
    logits: Tensor
    kept: dict[int, Judgement]
    completion: Judgement
    remaining: dict[int, SparseVoxels]
    sentences: Tensor
    choice: Choice | None = None

    def answers(self) -> tuple[Tensor, Tensor, Tensor]:
        """Scenes [A] that have an answer, their boxes [A, 6] and their scores [A] in 0..1."""
        if self.choice is None:
            rows = self.voxels.best(self.logits, 1).nonzero().squeeze(1)
            return self.voxels.batch_index[rows], self.boxes[rows], self.logits[rows].sigmoid()
        candidates = self.choice.candidates
        scenes = candidates.there.any(1).nonzero().squeeze(1)
        if not len(scenes):
            return scenes, self.boxes[:0], self.logits[:0]
        scores, best = self.choice.logits[-1][scenes].softmax(1).max(1)
        return scenes, candidates.boxes[scenes, best], scores


@MODELS.register_module()
class TSP3DHead(nn.Module):
    """Text-guided pruning, completion and the box of the best voxel.

    Where a published rule cannot be repeated or breaks, ours is the default and the argument says
    so. Ties between scores fall to the smaller coordinates.

    Args:
        in_channels: channels of the three levels, finest first; equal.
        grid: the base grid.
        text_channels: width of the words' features.
        fine_channels: channels of the stage before the three; a decision needs it.
        input_channels: channels of the backbone's input; a decision needs it.
        heads, hidden, dropout, layers: of the encoders.
        thresholds: keep score above which a voxel of level 1 and of level 2 stays at test.
        completion_threshold: score above which a missing voxel of level 0 is added.
        keep_limits: most voxels of level 1 and of level 2 per scene that stay at test, the best
            ones; None: all above the threshold, as published, however large the scene.
        fallback: best voxels of a scene that stay where none passes (published: a crash).
        attended: voxels of level 1 and of level 2 that enter their encoders in training.
        completion_limit: voxels of level 0 per scene that the completion looks at: in training
            drawn anew, at test chosen by their coordinates (published: drawn then too).
        keep_most: voxels of level 0 and of level 1 per scene that stay in training: a number, or
            (least, most) of which one is drawn.
        keep_cells: side of the cube about an object that is to stay at level 1 and at level 2, in
            cells of the level.
        nearest: voxels that speak for a box in training.
        key_limit: as in ``FusionEncoder`` (published: None).
        padding_in_norm: count the padding of the published implementation in the statistics of the
            positions' batch norm; for parity in training.
        prune: whether voxels are pruned at test; without, for comparisons.
        cut_first: in training, whether the finer voxels are chosen before their features are
            computed, and the batch norms see those alone (published: after, ten times as many).
        dense_boxes: whether voxels in any object learn its box too (published: only those that
            speak for the target learn a box).
        matching: whether the product of the backbone's feature and the sentence counts in a voxel's
            scores beside the published layers; it learns much faster which words mean which voxels.
        decision: settings of ``Decision``, which compares the best boxes; None: the best voxel
            answers, as published.

    Raises:
        ValueError: the levels differ in width, or a decision has no finer stage to look at.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        grid: VoxelGrid,
        text_channels: int,
        fine_channels: int | None = None,
        input_channels: int | None = None,
        heads: int = 8,
        hidden: int = 128,
        dropout: float = 0.1,
        layers: int = 2,
        thresholds: tuple[float, float] = (0.3, 0.7),
        completion_threshold: float = 0.15,
        keep_limits: tuple[int | None, int | None] = (None, None),
        fallback: int = 1,
        attended: tuple[int, int] = (3200, 320),
        completion_limit: int = 2400,
        keep_most: tuple = ((1200, 3999), 4000),
        keep_cells: tuple[float, float] = (13 / 4, 13 / 4),
        nearest: int = 32,
        key_limit: int | None = 4096,
        padding_in_norm: bool = False,
        prune: bool = True,
        cut_first: bool = False,
        dense_boxes: bool = False,
        matching: bool = False,
        decision: Mapping | None = None,
    ):
        super().__init__()
        if len(set(in_channels)) != 1 or len(in_channels) != 3:
            raise ValueError(
                f"in_channels is {list(in_channels)}; the last three stages of the backbone must "
                "have the same width"
            )
        width = in_channels[0]
        self.grid = grid
        self.learns_classes = False
        self.sentence_channels = in_channels[0]
        self.thresholds, self.completion_threshold = tuple(thresholds), completion_threshold
        self.keep_limits, self.fallback, self.prune = tuple(keep_limits), fallback, prune
        self.attended, self.completion_limit = tuple(attended), completion_limit
        self.keep_most, self.keep_cells = tuple(keep_most), tuple(keep_cells)
        self.nearest, self.padding_in_norm = nearest, padding_in_norm
        self.cut_first, self.dense_boxes = cut_first, dense_boxes

        self.text_projector = nn.Sequential(
            nn.Linear(text_channels, width), nn.LayerNorm(width, eps=1e-12), nn.Dropout(dropout)
        )
        self.positions = PositionEmbedding(width)
        encoder = (width, heads, hidden, dropout, layers, key_limit)
        self.keep_encoders = nn.ModuleList(FusionEncoder(*encoder) for _ in range(2))
        self.completion = FusionEncoder(*encoder)
        self.keep_logits = nn.ModuleList(nn.Linear(width, 1) for _ in range(2))
        self.completion_logit = nn.Linear(width, 1)
        self.up = nn.ModuleList(
            _block(TransposedConv(width, width, 3, 2, meaning="minkowski"), width) for _ in range(2)
        )
        self.lateral = nn.ModuleList(_block(SubMConv(width, width), width) for _ in range(3))
        self.out = _block(SubMConv(width, width), width)
        self.fuse = nn.Linear(2 * width, width, bias=False)
        self.fuse_norm = VoxelBatchNorm(width)
        self.box = nn.Linear(width, 6)
        self.score = nn.Linear(width, 1)
        losses.start_small(self.box)
        self.match = nn.ModuleList(Matching(width) for _ in range(3 if matching else 0))
        self.decision = None
        if decision is not None:
            if fine_channels is None or input_channels is None:
                raise ValueError("a decision needs a backbone of four stages or more")
            self.decision = Decision(width, fine_channels, input_channels, **decision)
            self.learns_classes = self.decision.names is not None

    def forward(self, stages: Sequence[SparseVoxels], text: Tensor, padding: Tensor) -> Grounding:
        """From the backbone's stages and the words.

        Args:
            stages: finest first; the last three are used. For a decision the one before these, and
                before that the backbone's input in the cells of that one.
            text: [B, T, text_channels]; word 0 stands for the sentence.
            padding: [B, T] bool, true where there is no word.
        """
        return self.ground(stages, self.text_projector(text), padding)

    def ground(self, stages: Sequence[SparseVoxels], words: Tensor, padding: Tensor) -> Grounding:
        """As ``forward``, of projected ``words`` [B, T, C]."""
        kept, remaining, given = {}, {}, words
        voxels = stages[-1]
        for level in (2, 1):
            here, finer = stages[level - 3], stages[level - 4]
            kept[level], words = self._judge(level, voxels, here, words, padding)
            voxels, remaining[level] = self._refine(level, kept[level], finer)
        completion, words = self._look_for_missing(stages[-3], words, padding)
        found = completion.logits.sigmoid() > self.completion_threshold
        voxels = voxels.complete(completion.voxels.prune(found))
        hidden = self._fused(self.out(self.lateral[0](voxels)), words[:, 0])
        raw = self.box(hidden.features).float()
        boxes = torch.cat([self.points(hidden) + raw[:, :3], raw[:, 3:].exp()], 1)
        logits = self.score(hidden.features)[:, 0].float()
        if self.match:
            logits = logits + self.match[0](stages[-3], hidden.coords, words[:, 0])
        choice = None
        if self.decision is not None:
            found = self.decision.find(hidden, *stages[-3:-6:-1], boxes)
            choice = self.decision.choose(found, given, padding)
        said = words[:, 0]
        return Grounding(hidden, boxes, logits, kept, completion, remaining, said, choice)

    def known(self, stages: Sequence[SparseVoxels], boxes: list[Boxes]) -> Candidates:
        """Candidates from all objects' ``boxes`` of each scene of ``stages``, for training."""
        return self.decision.known([b.tensor[:, :6] for b in boxes], *stages[-3:-6:-1])

    def decide(self, candidates: Candidates, text: Tensor, padding: Tensor) -> Choice:
        """Which of the candidates, of as many scenes, sentences mean; as ``forward``."""
        return self.decision.choose(candidates, self.text_projector(text), padding)

    def points(self, voxels: SparseVoxels) -> Tensor:
        """[N, 3] metres: the lower corners of the cells, which stand for them in TSP3D."""
        size = voxels.features.new_tensor(self.grid.voxel_size, dtype=torch.float32)
        stride = torch.tensor(voxels.stride, device=voxels.device)
        origin = voxels.features.new_tensor(self.grid.origin, dtype=torch.float32)
        return (voxels.coords[:, 1:] * stride) * size + origin

    # ------------------------------------------------------------------ steps

    def _judge(
        self,
        level: int,
        voxels: SparseVoxels,
        backbone: SparseVoxels,
        words: Tensor,
        padding: Tensor,
    ) -> tuple[Judgement, Tensor]:
        """What of a level is to be pruned, and the words after its encoder."""
        limit = self.attended[level - 1]
        if self.training:
            voxels = voxels.prune(_drawn(voxels, limit))
        encoder = self.keep_encoders[level - 1]
        voxels, after = encoder(voxels, self._positions(voxels, limit), words, padding)
        logits = self.keep_logits[level - 1](voxels.features)[:, 0].float()
        if self.match:
            logits = logits - self.match[level](backbone, voxels.coords, after[:, 0])
        return Judgement(voxels, logits), after

    def _refine(
        self, level: int, judged: Judgement, backbone: SparseVoxels
    ) -> tuple[SparseVoxels, SparseVoxels]:
        """The finer level's voxels with the backbone's features, and what the pruning left."""
        voxels = self.lateral[level](judged.voxels)
        if not self.training:
            left = voxels.prune(self._kept(level, judged)) if self.prune else voxels
            return self._upward(level, left, backbone), left
        up = self.up[level - 1]
        cells = up[0].cells(voxels) if self.cut_first else self._upward(level, voxels, backbone)
        scores = judged.voxels.replace(-judged.logits.detach()[:, None])
        scores = scores.sample_cells(cells.coords, cells.stride)[:, 0]
        left = cells.prune(cells.best(scores, _number(self.keep_most[level - 1])))
        if self.cut_first:
            left = _with_backbone(up[1](up[0].onto(voxels, left), relu=True), backbone)
        return left, left

    def _upward(self, level: int, voxels: SparseVoxels, backbone: SparseVoxels) -> SparseVoxels:
        return _with_backbone(self.up[level - 1](voxels), backbone)

    def _kept(self, level: int, judged: Judgement) -> Tensor:
        """Mask [N] of what stays at test; of a scene where nothing does, its best voxels."""
        voxels = judged.voxels
        kept = 1 - judged.logits.sigmoid() > self.thresholds[level - 1]
        if (limit := self.keep_limits[level - 1]) is not None:
            kept = kept & voxels.best(-judged.logits, limit)
        alive = torch.bincount(voxels.batch_index[kept], minlength=voxels.batch_size) > 0
        return kept | (voxels.best(-judged.logits, self.fallback) & ~alive[voxels.batch_index])

    def _look_for_missing(
        self, voxels: SparseVoxels, words: Tensor, padding: Tensor
    ) -> tuple[Judgement, Tensor]:
        """Which of the backbone's finest voxels belong to the target, and the last words."""
        limit = self.completion_limit
        mask = _drawn(voxels, limit) if self.training else scattered(voxels, limit)
        voxels = voxels.prune(mask)
        positions = self._positions(voxels, limit)
        voxels, after = self.completion(voxels, positions, words, padding)
        logits = self.completion_logit(voxels.features)[:, 0].float()
        return Judgement(voxels, logits), after

    def _positions(self, voxels: SparseVoxels, padded: int) -> Tensor:
        points = self.points(voxels)
        if not self.padding_in_norm:
            return self.positions(points)
        padding = -points.new_tensor([self.grid.voxel_size])
        return self.positions(points, padding, padded * voxels.batch_size - len(voxels))

    def _fused(self, voxels: SparseVoxels, sentence: Tensor) -> SparseVoxels:
        """Each voxel beside the sentence's word [B, C], mixed; the latter once per scene."""
        own, other = self.fuse.weight.chunk(2, 1)
        said = segment_expand(F.linear(sentence, other), voxels.batch_index)
        return self.fuse_norm(voxels.replace(F.linear(voxels.features, own) + said), relu=True)

    # ------------------------------------------------------------------ training and prediction

    def loss(
        self,
        raw: Grounding,
        boxes: list[Boxes],
        target: list[int],
        anchors: list[list[int]],
    ) -> dict[str, Tensor]:
        """Losses but for ``decision_loss``, each the mean over the scenes.

        Args:
            raw: of ``forward``.
            boxes: all objects of each scene; headings do not count.
            target: row of the object that each sentence means.
            anchors: rows of the objects that it names beside it; may be empty.
        """
        total: dict[str, Tensor] = {}
        scenes = zip(boxes, target, anchors, strict=True)
        for scene, (objects, row, beside) in enumerate(scenes):
            rows = objects.tensor[:, :6]
            found = self._scene_losses(raw, scene, rows, row, beside)
            if raw.choice is not None:
                found |= self._candidate_losses(raw, scene, rows)
            for name, value in found.items():
                total[name] = total.get(name, 0) + value / len(boxes)
        return total

    def _scene_losses(
        self, raw: Grounding, scene: int, objects: Tensor, target: int, anchors: list[int]
    ) -> dict[str, Tensor]:
        truth = objects[target : target + 1]
        mine = raw.voxels.coords[:, 0] == scene
        places = self.points(raw.voxels)[mine]
        assigned = losses.assign(places, truth[:, :3], self.nearest)
        box = losses.box_loss(raw.boxes[mine], assigned, truth)
        if self.dense_boxes:
            others = self._objects_of(raw.voxels, mine, objects)
            shares = losses.equal_shares(others)
            box = box + losses.direct_box_loss(raw.boxes[mine], others, objects, shares)
        looked = raw.completion.voxels.coords[:, 0] == scene
        places = self.points(raw.completion.voxels)[looked]
        belongs = losses.assign(places, truth[:, :3], self.nearest)
        keep = 0.0
        for level, judged in raw.kept.items():
            rows = judged.voxels.coords[:, 0] == scene
            wanted = objects if level == 2 else objects[[target, *anchors]]
            cell = judged.voxels.stride[0] * self.grid.voxel_size[0]
            side = self.keep_cells[level - 1] * cell
            near = losses.near_boxes(self.points(judged.voxels)[rows], wanted[:, :3], side)
            keep = keep + losses.keep_loss(judged.logits[rows], near)
        return {
            "loss_box": box,
            "loss_class": losses.class_loss(raw.logits[mine], assigned),
            "loss_keep": keep,
            "loss_completion": losses.class_loss(raw.completion.logits[looked], belongs),
        }

    def _objects_of(self, voxels: SparseVoxels, rows: Tensor, objects: Tensor) -> Tensor:
        """The object that each of the voxels ``rows`` lies in, -1 for none."""
        edge = voxels.stride[0] * self.grid.voxel_size[0]
        return losses.smallest_box(self.points(voxels)[rows] + edge / 2, objects, edge / 2)

    def _candidate_losses(self, raw: Grounding, scene: int, objects: Tensor) -> dict[str, Tensor]:
        """Losses of the candidates' boxes and of their quality."""
        found, mine = raw.choice.candidates, raw.voxels.coords[:, 0] == scene
        inside = self._objects_of(raw.voxels, mine, objects)
        own = overlaps(raw.boxes[mine].detach(), objects, MARGIN)
        own = own.gather(1, inside.clamp(min=0)[:, None])[:, 0]
        there = found.there[scene]
        before, second = raw.boxes[found.rows[scene][there]].detach(), 0.0
        for look in found.looks:
            overlap, row = overlaps(before, objects, MARGIN).max(1)
            wanted = torch.where(overlap > 0.1, row, -1)
            second = second + losses.direct_box_loss(look[scene][there], wanted, objects)
            before = look[scene][there].detach()
        shares = losses.equal_shares(inside)
        return {
            "loss_quality": quality_loss(
                found.quality[mine], torch.where(inside >= 0, own, 0), shares
            ),
            "loss_second_box": second / len(found.looks),
        }

    def predict(self, raw: Grounding) -> list[Detections]:
        """The box of the best voxel of each scene; none where there is no voxel."""
        scenes, boxes, scores = raw.answers()
        boxes = torch.cat([boxes, boxes.new_zeros(len(boxes), 1)], 1)
        found = []
        for scene in range(raw.voxels.batch_size):
            mine = scenes == scene
            labels = torch.zeros(int(mine.sum()), dtype=torch.int64, device=scores.device)
            found.append(Detections(Boxes(boxes[mine]), scores[mine], labels))
        return found

    def remaining(self, raw: Grounding) -> list[SparseVoxels]:
        """What each pruning left, coarse to fine, and last the voxels that have a box."""
        return [*(raw.remaining[level] for level in (2, 1)), raw.voxels]

    def explain(
        self, stages: Sequence[SparseVoxels], text: Tensor, padding: Tensor
    ) -> tuple[Grounding, Tensor]:
        """As ``forward`` for a single scene, and the share [T] of its attention on each word.

        That is the completion's last attention to the words, the mean over the voxels inside the
        answer's box, or the one nearest to its centre.
        """
        attention, caught = self.completion.layers[-1].voxels_cross.attention, []
        hook = attention.register_forward_pre_hook(lambda _, given: caught.append(given))
        try:
            raw = self(stages, text, padding)
        finally:
            hook.remove()
        query, key, _, parts = caught[0]
        words = key[parts.known]
        if not len(query) or not len(raw.logits):
            return raw, words.new_full((len(words),), 1 / len(words))
        box = raw.answers()[1][0]
        away = ((self.points(raw.completion.voxels) - box[:3]).abs() - box[3:] / 2).amax(1)
        near = (away < 0) | (away == away.min())
        return raw, attention.weights(query[near], words).mean(0)


class Matching(nn.Module):
    """The product of a voxel's feature and a sentence, each after a linear layer."""

    def __init__(self, channels: int):
        super().__init__()
        self.voxel = nn.Linear(channels, channels)
        self.sentence = nn.Linear(channels, channels)

    def forward(self, backbone: SparseVoxels, coords: Tensor, sentence: Tensor) -> Tensor:
        """[N] how well the features at ``coords`` [N, 4] go with their scenes' sentences [B, C]."""
        own = backbone.replace(self.voxel(backbone.features)).features_at(coords)
        said = segment_expand(self.sentence(sentence), coords[:, 0].long())
        return (own * said).sum(1).float() / own.shape[1] ** 0.5


def _block(conv: nn.Module, channels: int) -> VoxelSequential:
    """A convolution ("0"), its batch norm ("1") and a ReLU."""
    return VoxelSequential(conv, VoxelBatchNorm(channels), nn.ReLU())


def _with_backbone(voxels: SparseVoxels, backbone: SparseVoxels) -> SparseVoxels:
    """The voxels with the backbone's features of the same cells added."""
    return voxels.replace(voxels.features + backbone.features_at(voxels.coords))


def _drawn(voxels: SparseVoxels, limit: int) -> Tensor:
    """Mask [N] of ``limit`` voxels of each scene at random, all where there are no more."""
    return voxels.best(torch.rand(len(voxels), device=voxels.device), limit)


def _number(limit: int | Sequence[int]) -> int:
    """``limit``, or a number drawn between its two, both included."""
    if isinstance(limit, int):
        return limit
    return int(torch.randint(limit[0], limit[1] + 1, ()))
