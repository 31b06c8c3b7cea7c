"""The last step of a grounder: its best boxes compared with each other and with the words."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparse3d.structures import Boxes, SparseVoxels

from .room_boxes import PAIR_FEATURES, BoxLook, BoxMean, overlaps, pair_features, shifted

MARGIN = 0.1
"""Metres by which boxes count as larger where training asks which of them is an object's."""
SAME = 0.25
"""IoU from which on a candidate counts as an object in training."""
JITTER = 0.12
"""Deviation of the logarithm of a known box's sides, and twice that of its place in sides."""


@dataclass
class Candidates:
    """Boxes that may be meant, whatever the words.

    Attributes:
        there: [B, K] bool, whether there is one.
        looks: [B, K, 6] their boxes after each look.
        features: [B, K, C].
        names: [B, K, classes + 1] logits of the class, the last one of no object; None without.
        quality: [M] of every voxel: the logit of its box's IoU with the object that it lies in;
            None where the boxes were known.
        rows: [B, K] the voxels whose boxes are candidates, 0 where there is none; None likewise.
    """

    there: Tensor
    looks: list[Tensor]
    features: Tensor
    names: Tensor | None
    quality: Tensor | None = None
    rows: Tensor | None = None

    @property
    def boxes(self) -> Tensor:
        """[B, K, 6] after the last look."""
        return self.looks[-1]

    def of(self, scenes: Tensor) -> "Candidates":
        """The candidates of ``scenes`` [S], which may come several times."""
        return Candidates(
            self.there[scenes],
            [look[scenes] for look in self.looks],
            self.features[scenes],
            None if self.names is None else self.names[scenes],
            self.quality,
            None if self.rows is None else self.rows[scenes],
        )


@dataclass
class Choice:
    """What was said of the candidates of all scenes.

    Attributes:
        candidates: the boxes.
        logits: [B, K] of being meant after each layer, -inf where there is no candidate.
        beside: [B, K] logits of being named beside what is meant.
    """

    candidates: Candidates
    logits: list[Tensor]
    beside: Tensor


class Decision(nn.Module):
    """Boxes of a scene attend to each other by where they lie, and to the words.

    What a voxel sees of other objects through convolutions is vague; a relation such as "nearest to
    the door" compares objects. Candidates are the boxes of best predicted quality that do not
    overlap much, so that one object counts once. What is known of them does not depend on the
    words: any sentence about the scene can be answered with them.

    Args:
        channels: of voxels and words.
        fine_channels: of the finer voxels that the boxes are looked at in.
        input_channels: of the backbone's input; colours, say.
        classes: of objects, which the candidates learn to tell apart; 0: they do not.
        heads, hidden, layers: of the attention.
        candidates: most boxes of a scene.
        overlap: IoU above which the worse of two boxes is no candidate.
        looks: how often a box is looked at and moved.

    Raises:
        ValueError: no look or layer, or heads that do not divide the channels.
    """

    def __init__(
        self,
        channels: int,
        fine_channels: int,
        input_channels: int,
        classes: int = 0,
        heads: int = 4,
        hidden: int = 128,
        layers: int = 3,
        candidates: int = 48,
        overlap: float = 0.3,
        looks: int = 2,
    ):
        super().__init__()
        if looks < 1 or layers < 1 or channels % heads:
            raise ValueError(
                f"looks is {looks}, layers {layers} and heads {heads}; one look and one layer at "
                f"least are needed, and heads that divide the {channels} channels"
            )
        self.candidates, self.overlap = candidates, overlap
        self.quality = nn.Linear(channels, 1)
        nn.init.constant_(self.quality.bias, -2)  # most boxes are of no object
        self.place = nn.Sequential(nn.Linear(6, hidden), nn.ReLU(), nn.Linear(hidden, channels))
        self.look = BoxLook(fine_channels, channels, hidden)
        self.around = BoxMean(channels, channels, channels)
        self.colors = BoxMean(input_channels, channels)
        self.shifts = nn.ModuleList(nn.Linear(channels, 6) for _ in range(looks))
        self.names = nn.Linear(channels, classes + 1) if classes else None
        for shift in self.shifts:
            nn.init.zeros_(shift.weight)
            nn.init.zeros_(shift.bias)
        self.words = nn.TransformerEncoderLayer(channels, heads, hidden, 0.0, batch_first=True)
        self.layers = nn.ModuleList(DecisionLayer(channels, heads, hidden) for _ in range(layers))
        self.scores = nn.ModuleList(nn.Linear(channels, 1) for _ in range(layers))
        self.beside = nn.Linear(channels, 1)
        self.own = nn.Linear(channels, channels)
        self.sentence = nn.Linear(channels, channels)

    def find(
        self,
        voxels: SparseVoxels,
        backbone: SparseVoxels,
        fine: SparseVoxels,
        inputs: SparseVoxels,
        boxes: Tensor,
    ) -> Candidates:
        """The candidates.

        Args:
            voxels: [M, C].
            backbone: [*, C] voxels of the same scenes, which have not met the words.
            fine: finer voxels of the same scenes.
            inputs: what the backbone began with, in the cells of ``fine``.
            boxes: [M, 6] of each voxel, centre and size in metres.
        """
        quality = self.quality(voxels.features)[:, 0].float()
        rows, there = self._candidates(voxels, boxes.detach(), quality.detach())
        given = boxes.detach()[rows]
        return Candidates(there, *self._seen(given, backbone, fine, inputs), quality, rows)

    def known(
        self,
        boxes: list[Tensor],
        backbone: SparseVoxels,
        fine: SparseVoxels,
        inputs: SparseVoxels,
    ) -> Candidates:
        """Candidates of which it is known that they are objects, for training.

        Args:
            boxes: [N, 6] per scene; they are moved a little, as if they had been found.
            backbone, fine, inputs: as ``find``'s.
        """
        given = nn.utils.rnn.pad_sequence(boxes, batch_first=True)
        counts = torch.tensor([len(part) for part in boxes], device=given.device)
        there = torch.arange(given.shape[1], device=given.device) < counts[:, None]
        size = given[..., 3:] * (JITTER * torch.randn_like(given[..., 3:])).exp()
        center = given[..., :3] + JITTER / 2 * torch.randn_like(size) * size
        moved = torch.cat([center, size], -1)
        return Candidates(there, *self._seen(moved, backbone, fine, inputs))

    def _seen(
        self, boxes: Tensor, backbone: SparseVoxels, fine: SparseVoxels, inputs: SparseVoxels
    ) -> tuple[list[Tensor], Tensor, Tensor | None]:
        """Looks at boxes [B, K, 6], and what was seen: features [B, K, C] and names."""
        x, looks = self.around(backbone, boxes), [boxes]
        for shift in self.shifts:
            seen = looks[-1].detach()
            x = x + self.look(fine, seen)
            looks.append(shifted(seen, shift(x).float()))
        moved = looks[-1].detach()
        size = moved[..., 3:].clamp(min=1e-3).log()
        x = x + self.place(torch.cat([moved[..., :3] / 2, size], -1)) + self.colors(inputs, moved)
        return looks[1:], x, None if self.names is None else self.names(x).float()

    def choose(self, candidates: Candidates, words: Tensor, padding: Tensor) -> Choice:
        """Which of the candidates is meant.

        Args:
            candidates: of as many scenes as there are sentences.
            words: [B, T, C]; word 0 stands for the sentence.
            padding: [B, T] bool, true where there is no word.
        """
        words = self.words(words, src_key_padding_mask=padding)
        x, there = candidates.features, candidates.there
        pairs = pair_features(candidates.boxes.detach(), there)
        logits, beside = [], None
        for layer, score in zip(self.layers, self.scores):
            x = layer(x, pairs, there, words, padding)
            beside = self.beside(x)[..., 0].float() if beside is None else beside
            logits.append(score(x)[..., 0].float())
        match = (self.own(x) * self.sentence(words[:, :1])).sum(-1) / x.shape[-1] ** 0.5
        logits[-1] = logits[-1] + match.float()
        return Choice(candidates, [part.masked_fill(~there, -torch.inf) for part in logits], beside)

    def _candidates(
        self, voxels: SparseVoxels, boxes: Tensor, quality: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Rows [B, K] of the candidates, best first, and where there are any."""
        found = []
        best = voxels.best(quality, 8 * self.candidates)
        for scene in range(voxels.batch_size):
            rows = ((voxels.coords[:, 0] == scene) & best).nonzero().squeeze(1)
            rows = rows[quality[rows].argsort(descending=True, stable=True)]
            found.append(rows[_apart(boxes[rows], self.overlap, self.candidates)])
        rows = nn.utils.rnn.pad_sequence(found, batch_first=True)
        counts = torch.tensor([len(part) for part in found], device=rows.device)
        return rows, torch.arange(rows.shape[1], device=rows.device) < counts[:, None]


def _apart(boxes: Tensor, overlap: float, limit: int) -> Tensor:
    """Rows of the first ``limit`` boxes that no earlier one of them overlaps by more."""
    near = (overlaps(boxes, boxes) > overlap).cpu().numpy()
    alive, kept = np.ones(len(boxes), bool), []
    while alive.any() and len(kept) < limit:
        kept.append(int(alive.argmax()))
        alive &= ~near[kept[-1]]
        alive[kept[-1]] = False
    return torch.tensor(kept, dtype=torch.int64, device=boxes.device)


class DecisionLayer(nn.Module):
    """Boxes attend to boxes by their places, then to words; post-norm.

    A box hears from another also how the two lie to each other: how far away the object is that a
    sentence names decides.
    """

    def __init__(self, channels: int, heads: int, hidden: int):
        super().__init__()
        self.heads = heads
        self.bias = nn.Sequential(
            nn.Linear(PAIR_FEATURES, 4 * heads), nn.ReLU(), nn.Linear(4 * heads, heads)
        )
        self.qkv = nn.Linear(channels, 3 * channels)
        self.own = nn.Linear(channels + heads * PAIR_FEATURES, channels)
        self.asked = nn.Linear(channels, channels)
        self.said = nn.Linear(channels, 2 * channels)
        self.heard = nn.Linear(channels, channels)
        self.forward_part = nn.Sequential(
            nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(3))

    def forward(
        self, x: Tensor, pairs: Tensor, there: Tensor, words: Tensor, padding: Tensor
    ) -> Tensor:
        """[B, K, C]; ``pairs`` [B, K, K, PAIR_FEATURES], ``there`` [B, K]."""
        bias = self.bias(pairs).permute(0, 3, 1, 2)
        bias = bias.masked_fill(~there[:, None, None], -torch.inf)
        bias = torch.where(there.any(1)[:, None, None, None], bias, torch.zeros_like(bias))
        query, key, value = (self._split(rows) for rows in self.qkv(x).chunk(3, -1))
        share = (query @ key.transpose(2, 3) / query.shape[-1] ** 0.5 + bias).softmax(-1)
        placed = torch.einsum("bhij,bijf->bihf", share, pairs.to(share.dtype)).flatten(2)
        heard = torch.cat([(share @ value).transpose(1, 2).flatten(2), placed], -1)
        x = self.norms[0](x + self.own(heard))
        key, value = (self._split(rows) for rows in self.said(words).chunk(2, -1))
        hidden = torch.zeros_like(padding, dtype=x.dtype).masked_fill(padding, -torch.inf)
        heard = F.scaled_dot_product_attention(
            self._split(self.asked(x)), key, value, attn_mask=hidden[:, None, None]
        )
        x = self.norms[1](x + self.heard(heard.transpose(1, 2).flatten(2)))
        return self.norms[2](x + self.forward_part(x))

    def _split(self, rows: Tensor) -> Tensor:
        """[B, heads, N, C / heads]."""
        return rows.unflatten(2, (self.heads, -1)).transpose(1, 2)


def quality_loss(logits: Tensor, overlap: Tensor, weights: Tensor) -> Tensor:
    """Quality focal loss (https://arxiv.org/abs/2006.04388) over the sum of what is wanted.

    Args:
        logits: [N].
        overlap: [N] wanted IoU, 0 for boxes of no object.
        weights: [N].
    """
    miss = weights * (overlap - logits.sigmoid()).abs() ** 2
    loss = miss * F.binary_cross_entropy_with_logits(logits, overlap, reduction="none")
    return loss.sum() / (weights * overlap).sum().clamp(min=1)


def choice_loss(logits: Tensor, overlap: Tensor) -> Tensor:
    """Cross entropy of the candidate that overlaps the truth most; 0 where all overlap little.

    Args:
        logits: [K].
        overlap: [K] IoU with what is meant.
    """
    if not len(logits) or overlap.max() < SAME:
        return logits.sum() * 0
    return F.cross_entropy(logits[None], overlap.argmax()[None])


def beside_loss(logits: Tensor, overlap: Tensor) -> Tensor:
    """Cross entropy of "is named beside it", the rare yes five times; 0 where nothing is named.

    Args:
        logits: [K].
        overlap: [K, A] IoU with the objects that are named.
    """
    if not overlap.numel():
        return logits.sum() * 0
    named = (overlap > SAME).any(1).to(logits)
    weight = logits.new_tensor(5.0)
    return F.binary_cross_entropy_with_logits(logits, named, pos_weight=weight)


def names_loss(logits: Tensor, overlap: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of the candidates' classes.

    Args:
        logits: [K, classes + 1], the last one of no object.
        overlap: [K, N] IoU with all objects.
        labels: [N] their classes, -1 for others.
    """
    if not overlap.numel():
        return logits.sum() * 0
    best, row = overlap.max(1)
    known = (best > SAME) & (labels[row] >= 0)
    return F.cross_entropy(logits, torch.where(known, labels[row], logits.shape[1] - 1))


def decision_loss(
    choices: Sequence[Choice],
    boxes: list[Boxes],
    target: list[int],
    anchors: list[list[int]],
    labels: list[Tensor] | None = None,
) -> dict[str, Tensor]:
    """Losses of what was chosen, each the mean over the sentences of all ``choices``.

    Each layer learns what is meant, the last one with twice the weight; the first one also what
    is named beside it, where that is known.

    Args:
        choices: what was chosen for all sentences, one after the other.
        boxes: per sentence all objects of its scene.
        target: row of the object that each sentence means.
        anchors: rows of the objects that it names beside it; may be empty.
        labels: classes of ``boxes``, -1 for others, where candidates learn theirs.
    """
    parts: dict[str, list] = {"loss_choice": [], "loss_beside": [], "loss_names": []}
    places = [(choice, row) for choice in choices for row in range(len(choice.beside))]
    for number, (choice, scene) in enumerate(places):
        there, truth = choice.candidates.there[scene], boxes[number].tensor[:, :6]
        found = choice.candidates.boxes[scene][there].detach()
        overlap = overlaps(found, truth, MARGIN)
        *before, last = (logits[scene][there] for logits in choice.logits)
        meant = overlap[:, target[number]]
        parts["loss_choice"].append(
            choice_loss(last, meant) + 0.5 * sum(choice_loss(part, meant) for part in before)
        )
        named = overlap[:, anchors[number]]
        parts["loss_beside"].append(0.5 * beside_loss(choice.beside[scene][there], named))
        if labels is not None and choice.candidates.names is not None:
            names = choice.candidates.names[scene][there]
            parts["loss_names"].append(names_loss(names, overlap, labels[number]))
    return {name: sum(part) / len(part) for name, part in parts.items() if part}
