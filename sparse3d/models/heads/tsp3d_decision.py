"""The last step of a grounder: its best boxes compared with each other and with the words."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparse3d.structures import SparseVoxels

MARGIN = 0.1
"""Metres by which boxes count as larger where training asks which of them is an object's."""


@dataclass
class Choice:
    """The candidates of all scenes and what was said of them.

    Attributes:
        quality: [M] of every voxel: the logit of its box's IoU with the object that it lies in.
        rows: [B, K] the voxels whose boxes are candidates; 0 where there is none.
        there: [B, K] bool, whether there is one.
        looks: [B, K, 6] their boxes after each look.
        logits: [B, K] of being meant, -inf where there is none.
        names: [B, K, classes + 1] logits of the class, the last one of no object; None without.
    """

    quality: Tensor
    rows: Tensor
    there: Tensor
    looks: list[Tensor]
    logits: Tensor
    names: Tensor | None

    @property
    def boxes(self) -> Tensor:
        """[B, K, 6] after the last look."""
        return self.looks[-1]


class Decision(nn.Module):
    """Boxes of a scene attend to each other by where they lie, and to the words.

    What a voxel sees of other objects through convolutions is vague; a relation such as "nearest to
    the door" compares objects. Candidates are the boxes of best predicted quality that do not
    overlap much, so that one object counts once.

    Args:
        channels: of voxels and words.
        fine_channels: of the finer voxels that the boxes are looked at in.
        classes: of objects, which the candidates learn to tell apart; 0: they do not.
        heads, hidden, layers: of the attention.
        candidates: most boxes of a scene.
        overlap: IoU above which the worse of two boxes is no candidate.
        looks: how often a box is looked at and moved.

    Raises:
        ValueError: no look, or heads that do not divide the channels.
    """

    def __init__(
        self,
        channels: int,
        fine_channels: int,
        classes: int = 0,
        heads: int = 4,
        hidden: int = 128,
        layers: int = 2,
        candidates: int = 48,
        overlap: float = 0.3,
        looks: int = 2,
    ):
        super().__init__()
        if looks < 1 or channels % heads:
            raise ValueError(
                f"looks is {looks} and heads {heads}; one look at least is needed, and heads that "
                f"divide the {channels} channels"
            )
        self.candidates, self.overlap = candidates, overlap
        self.quality = nn.Linear(channels, 1)
        nn.init.constant_(self.quality.bias, -2)  # most boxes are of no object
        self.place = nn.Sequential(nn.Linear(6, hidden), nn.ReLU(), nn.Linear(hidden, channels))
        self.look = BoxLook(fine_channels, channels, hidden)
        self.shifts = nn.ModuleList(nn.Linear(channels, 6) for _ in range(looks))
        self.names = nn.Linear(channels, classes + 1) if classes else None
        for shift in self.shifts:
            nn.init.zeros_(shift.weight)
            nn.init.zeros_(shift.bias)
        self.layers = nn.ModuleList(DecisionLayer(channels, heads, hidden) for _ in range(layers))
        self.score = nn.Linear(channels, 1)

    def forward(
        self,
        voxels: SparseVoxels,
        fine: SparseVoxels,
        boxes: Tensor,
        logits: Tensor,
        words: Tensor,
        padding: Tensor,
    ) -> Choice:
        """What of the boxes is meant.

        Args:
            voxels: [M, C].
            fine: finer voxels of the same scenes.
            boxes: [M, 6] of each voxel, centre and size in metres.
            logits: [M] scores so far.
            words: [B, T, C].
            padding: [B, T] bool, true where there is no word.
        """
        quality = self.quality(voxels.features)[:, 0].float()
        rows, there = self._candidates(voxels, boxes.detach(), quality.detach())
        x, looks = voxels.features[rows], [boxes.detach()[rows]]
        for shift in self.shifts:
            seen = looks[-1].detach()
            x = x + self.look(fine, seen)
            looks.append(shifted(seen, shift(x).float()))
        moved = looks[-1].detach()
        size = moved[..., 3:].clamp(min=1e-3).log()
        x = x + self.place(torch.cat([moved[..., :3] / 2, size], -1))
        names = None if self.names is None else self.names(x).float()
        pairs = pair_features(moved)
        for layer in self.layers:
            x = layer(x, pairs, there, words, padding)
        found = self.score(x)[..., 0].float() + logits[rows]
        found = found.masked_fill(~there, -torch.inf)
        return Choice(quality, rows, there, looks[1:], found, names)

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


class BoxLook(nn.Module):
    """What lies in and around a box, cell by cell of a grid over it.

    Args:
        channels: of the voxels that are looked at.
        out_channels: of what is said of a box.
        hidden: width between.
        cells: of the grid, along each side.
        reach: side of the grid over the box's.
        least: metres; a thinner box is looked at as one of this size.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        hidden: int = 128,
        cells: int = 6,
        reach: float = 1.4,
        least: float = 0.24,
    ):
        super().__init__()
        self.reach, self.least = reach, least
        steps = ((torch.arange(cells) + 0.5) / cells - 0.5) * reach
        self.register_buffer("steps", torch.cartesian_prod(steps, steps, steps), persistent=False)
        self.narrow = nn.Linear(channels, 16)
        self.layers = nn.Sequential(
            nn.Linear(16 * cells**3, hidden), nn.ReLU(), nn.Linear(hidden, out_channels)
        )

    def forward(self, voxels: SparseVoxels, boxes: Tensor) -> Tensor:
        """[B, K, out_channels] of ``boxes`` [B, K, 6], centre and size in metres."""
        size = boxes[..., None, 3:].clamp(min=self.least)
        points = boxes[..., None, :3] + self.steps * size
        edge = points.new_tensor(voxels.grid.voxel_size) * points.new_tensor(voxels.stride)
        cells = ((points - points.new_tensor(voxels.grid.origin)) / edge).floor().int()
        scene = torch.arange(len(boxes), dtype=torch.int32, device=cells.device)
        scene = scene[:, None, None, None].expand(*cells.shape[:3], 1)
        coords = torch.cat([scene, cells], -1).reshape(-1, 4)
        narrow = voxels.replace(F.relu(self.narrow(voxels.features)))
        seen = narrow.features_at(coords)
        return self.layers(seen.reshape(*boxes.shape[:2], self.layers[0].in_features))


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
    """Boxes attend to boxes, with a bias by their places, then to words; post-norm."""

    def __init__(self, channels: int, heads: int, hidden: int):
        super().__init__()
        self.heads = heads
        self.bias = nn.Sequential(
            nn.Linear(PAIR_FEATURES, 4 * heads), nn.ReLU(), nn.Linear(4 * heads, heads)
        )
        self.qkv = nn.Linear(channels, 3 * channels)
        self.own = nn.Linear(channels, channels)
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
        query, key, value = self.qkv(x).chunk(3, -1)
        x = self.norms[0](x + self.own(self._attend(query, key, value, bias)))
        key, value = self.said(words).chunk(2, -1)
        hidden = torch.zeros_like(padding, dtype=x.dtype).masked_fill(padding, -torch.inf)
        heard = self._attend(self.asked(x), key, value, hidden[:, None, None])
        x = self.norms[1](x + self.heard(heard))
        return self.norms[2](x + self.forward_part(x))

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
        split = [
            rows.unflatten(2, (self.heads, -1)).transpose(1, 2) for rows in (query, key, value)
        ]
        found = F.scaled_dot_product_attention(*split, attn_mask=bias.to(query.dtype))
        return found.transpose(1, 2).flatten(2)


PAIR_FEATURES = 8


def pair_features(boxes: Tensor) -> Tensor:
    """[B, K, K, 8] how box j lies to box i: offset, distances, gaps, and ratio of volumes.

    Args:
        boxes: [B, K, 6] centre and size, metres.
    """
    center, half = boxes[..., :3], boxes[..., 3:] / 2
    offset = center[:, None] - center[:, :, None]
    gap = (offset.abs() - half[:, None] - half[:, :, None]).clamp(min=0)
    flat = offset[..., :2].norm(dim=-1, keepdim=True)
    apart = gap[..., :2].norm(dim=-1, keepdim=True)
    volume = boxes[..., 3:].clamp(min=1e-3).log().sum(-1)
    ratio = (volume[:, None] - volume[:, :, None])[..., None]
    return torch.cat([offset, flat, torch.log1p(4 * flat), apart, gap[..., 2:], ratio / 3], -1)


def shifted(boxes: Tensor, shift: Tensor) -> Tensor:
    """Boxes [..., 6] with each face moved by ``shift`` [..., 6], in shares of half the box's size.

    Thin boxes move in shares of 10 cm; sizes stay positive.
    """
    unit = boxes[..., 3:].clamp(min=0.2) / 2
    low = boxes[..., :3] - boxes[..., 3:] / 2 + shift[..., :3] * unit
    high = boxes[..., :3] + boxes[..., 3:] / 2 + shift[..., 3:] * unit
    return torch.cat([(low + high) / 2, (high - low).clamp(min=0.01)], -1)


def overlaps(boxes: Tensor, others: Tensor, margin: float = 0.0) -> Tensor:
    """[N, M] IoU of ``boxes`` [N, 6] with ``others`` [M, 6], taken as parallel to the axes.

    With a ``margin`` in metres all boxes count as larger by it: pictures and doors are so thin that
    two centimetres decide over their IoU, which says little of how near a box is.
    """
    wider = torch.tensor([0.0] * 3 + [margin] * 3, device=boxes.device)
    boxes, others = boxes + wider, others + wider
    low, high = boxes[:, :3] - boxes[:, 3:] / 2, boxes[:, :3] + boxes[:, 3:] / 2
    other_low, other_high = others[:, :3] - others[:, 3:] / 2, others[:, :3] + others[:, 3:] / 2
    inner = torch.minimum(high[:, None], other_high) - torch.maximum(low[:, None], other_low)
    inner = inner.clamp(min=0).prod(2)
    union = boxes[:, 3:].prod(1)[:, None] + others[:, 3:].prod(1) - inner
    return inner / union.clamp(min=1e-9)


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


def choice_loss(logits: Tensor, boxes: Tensor, truth: Tensor, least: float = 0.25) -> Tensor:
    """Cross entropy of the candidate that overlaps the truth most; none where all overlap little.

    Args:
        logits: [K].
        boxes: [K, 6].
        truth: [1, 6].
        least: IoU that counts.
    """
    if not len(boxes):
        return logits.sum()
    overlap = overlaps(boxes, truth, MARGIN)[:, 0]
    best = overlap.argmax()
    if overlap[best] < least:
        return logits.sum() * 0
    return F.cross_entropy(logits[None], best[None])
