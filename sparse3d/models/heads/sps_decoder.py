"""Objects and words that attend to each other while the objects become fewer: 3D-SPS's decoder."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from .tsp3d_fusion import AttentionBlock, FeedForwardBlock, Parts


@dataclass(frozen=True, eq=False)
class Objects:
    """Candidates of several scenes, rows in order of the scenes.

    Attributes:
        features: [N, C].
        points: [N, 3] metres, the keypoints that they stand on.
        counts: candidates of each scene.
        boxes: [N, 6] centre and size in metres.
        present: [N] logit of "there is an object".
        names: [N, K] logits of the class.
        scores: [N] logit of "this one is meant".
    """

    features: Tensor
    points: Tensor
    counts: list[int]
    boxes: Tensor | None = None
    present: Tensor | None = None
    names: Tensor | None = None
    scores: Tensor | None = None

    def at(self, rows: Tensor, counts: list[int]) -> "Objects":
        """Those at ``rows``, ascending, of which each scene has ``counts``."""
        tensors = {
            name: value[rows] for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **tensors, counts=counts)


class ObjectPredictor(nn.Module):
    """What each candidate says: box, objectness, class and whether it is meant."""

    def __init__(self, channels: int, classes: int):
        super().__init__()
        self.hidden = nn.Sequential(
            nn.Linear(channels, channels), nn.LayerNorm(channels), nn.ReLU()
        )
        self.box = nn.Linear(channels, 6)
        self.present = nn.Linear(channels, 1)
        self.names = nn.Linear(channels, classes)
        self.score = nn.Linear(channels, 1)

    def forward(self, objects: Objects) -> Objects:
        """The objects with their predictions."""
        hidden = self.hidden(objects.features)
        raw = self.box(hidden).float()
        return replace(
            objects,
            boxes=torch.cat([objects.points + raw[:, :3], raw[:, 3:].exp()], 1),
            present=self.present(hidden)[:, 0].float(),
            names=self.names(hidden).float(),
            scores=self.score(hidden)[:, 0].float(),
        )


class DecoderLayer(nn.Module):
    """Objects to objects, objects to seeds, words to words; then objects and words to each other.

    The last two run from the same inputs.
    """

    def __init__(self, channels: int, heads: int, hidden: int, dropout: float):
        super().__init__()
        block = (channels, heads, dropout)
        self.objects_self = AttentionBlock(*block)
        self.objects_seeds = AttentionBlock(*block)
        self.words_self = AttentionBlock(*block)
        self.objects_words = AttentionBlock(*block)
        self.words_objects = AttentionBlock(*block)
        self.objects_forward = FeedForwardBlock(channels, hidden, dropout)
        self.words_forward = FeedForwardBlock(channels, hidden, dropout)
        self.box_place = _place(6, channels)
        self.seed_place = _place(3, channels)

    def forward(
        self, objects: Objects, seeds: Objects, words: Tensor, said: Parts
    ) -> tuple[Objects, Tensor, Tensor]:
        """Updated objects and words, and the share [N] of the words' attention on each object.

        Args:
            objects: with the boxes of the layer before.
            seeds: what objects look at.
            words: [B * T, C].
            said: which words attend to which.
        """
        rows, lengths = objects.features, said.asking
        place = self.box_place(objects.boxes.detach())
        among = Parts(objects.counts, None, objects.counts)
        rows = self.objects_self(rows, rows + place, rows + place, rows, among)
        spots = seeds.features + self.seed_place(seeds.points)
        among = Parts(objects.counts, None, seeds.counts)
        rows = self.objects_seeds(rows, rows + place, spots, seeds.features, among)
        words = self.words_self(words, words, words, words, said)
        asked = Parts(objects.counts, said.known, said.counts)
        asking = Parts(lengths, None, objects.counts)
        share = self._shares(words, rows, said, objects.counts)
        new_rows = self.objects_words(rows, rows + place, words, words, asked)
        new_words = self.words_objects(words, words, rows, rows, asking)
        features = self.objects_forward(new_rows)
        return replace(objects, features=features), self.words_forward(new_words), share

    @torch.no_grad()
    def _shares(self, words: Tensor, rows: Tensor, said: Parts, counts: list[int]) -> Tensor:
        """[N] mean attention of a scene's words on each of its objects."""
        spoken = words[said.known].split(said.counts)
        parts = [
            self.words_objects.attention.weights(asking, known).mean(0)
            for asking, known in zip(spoken, rows.split(counts))
        ]
        return torch.cat(parts) if parts else rows.new_zeros(0)


def best_rows(scores: Tensor, counts: list[int], limits: list[int]) -> tuple[Tensor, list[int]]:
    """The rows of highest ``scores`` [N] of each scene, ascending, and how many each has left.

    Rows lie in the order of their coordinates: equal scores are decided by them.
    """
    rows, left, first = [torch.zeros(0, dtype=torch.int64, device=scores.device)], [], 0
    for part, limit in zip(scores.split(counts), limits, strict=True):
        order = part.argsort(descending=True, stable=True)[:limit]
        rows.append(order.sort().values + first)
        left.append(len(order))
        first += len(part)
    return torch.cat(rows), left


def _place(columns: int, channels: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(columns, channels),
        nn.LayerNorm(channels),
        nn.ReLU(),
        nn.Linear(channels, channels),
    )
