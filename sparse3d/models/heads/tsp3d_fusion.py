"""Voxels and words that attend to each other: the encoders of TSP3D."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparse3d.structures import SparseVoxels

from ..norms import RowBatchNorm


@dataclass(frozen=True)
class Parts:
    """Which rows ask and which they may attend to, scene by scene.

    Attributes:
        asking: per scene the number of rows that ask; all rows in order.
        known: the rows that are attended to, ascending; None: all.
        counts: per scene the number of those.
    """

    asking: list[int]
    known: Tensor | None
    counts: list[int]


class RowAttention(nn.Module):
    """Multi-head attention between rows of the same scene; no scene is padded.

    Parameters are named as in ``nn.MultiheadAttention``. No array of queries x keys exists unless
    dropout asks for one: torch's kernel goes through the keys in blocks.
    """

    def __init__(self, channels: int, heads: int, dropout: float):
        super().__init__()
        if channels % heads:
            raise ValueError(f"heads is {heads}; it must divide the {channels} channels")
        self.heads = heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * channels, channels))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * channels))
        self.out_proj = nn.Linear(channels, channels)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, parts: Parts) -> Tensor:
        """[Q, C] for ``query`` [Q, C]; ``key`` and ``value`` [K, C].

        A scene without keys adds nothing but the last bias.
        """
        if parts.known is not None:
            key, value = key[parts.known], value[parts.known]
        query, key, value = self._project(query, key, value)
        dropout = self.dropout if self.training else 0.0
        found = [query[:0]]
        scenes = (query.split(parts.asking), key.split(parts.counts), value.split(parts.counts))
        for asking, keys, values in zip(*scenes, strict=True):
            if not len(asking) or not len(keys):
                found.append(torch.zeros_like(asking))
                continue
            heads = (self._split(rows) for rows in (asking, keys, values))
            mixed = F.scaled_dot_product_attention(*heads, dropout_p=dropout)
            found.append(mixed[0].transpose(0, 1).flatten(1))
        return self.out_proj(torch.cat(found))

    def weights(self, query: Tensor, key: Tensor) -> Tensor:
        """[Q, K] attention of ``query`` [Q, C] to ``key`` [K, C], the mean over the heads."""
        query, key, _ = self._project(query, key, key)
        query, key = self._split(query)[0], self._split(key)[0]
        scores = query @ key.transpose(1, 2) / query.shape[-1] ** 0.5
        return scores.softmax(-1).mean(0)

    def _project(self, *rows: Tensor) -> list[Tensor]:
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        return [F.linear(*given) for given in zip(rows, weights, biases)]

    def _split(self, rows: Tensor) -> Tensor:
        """[1, heads, N, C / heads]."""
        return rows.reshape(1, len(rows), self.heads, rows.shape[1] // self.heads).transpose(1, 2)


class AttentionBlock(nn.Module):
    """norm(x + attention)."""

    def __init__(self, channels: int, heads: int, dropout: float):
        super().__init__()
        self.attention = RowAttention(channels, heads, dropout)
        self.norm = nn.LayerNorm(channels)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, rows: Tensor, query: Tensor, key: Tensor, value: Tensor, parts: Parts
    ) -> Tensor:
        """The updated ``rows`` [Q, C]; ``query`` is what of them asks (with positions, say)."""
        return self.norm(rows + self.dropout(self.attention(query, key, value, parts)))


class FeedForwardBlock(nn.Module):
    """norm(x + two linear layers)."""

    def __init__(self, channels: int, hidden: int, dropout: float):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(channels, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, channels),
            nn.Dropout(dropout),
        )
        self.norm = nn.LayerNorm(channels)

    def forward(self, rows: Tensor) -> Tensor:
        return self.norm(rows + self.layers(rows))


class FusionLayer(nn.Module):
    """Voxels attend to voxels, words to words, then each to the other."""

    def __init__(self, channels: int, heads: int, hidden: int, dropout: float):
        super().__init__()
        block = (channels, heads, dropout)
        self.voxels_self = AttentionBlock(*block)
        self.words_self = AttentionBlock(*block)
        self.words_cross = AttentionBlock(*block)
        self.words_forward = FeedForwardBlock(channels, hidden, dropout)
        self.voxels_cross = AttentionBlock(*block)
        self.voxels_forward = FeedForwardBlock(channels, hidden, dropout)

    def forward(
        self, voxels: Tensor, positions: Tensor, words: Tensor, parts: dict[str, Parts]
    ) -> tuple[Tensor, Tensor]:
        """The updated ``voxels`` [N, C] and ``words`` [B * T, C]."""
        placed = voxels + positions
        voxels = self.voxels_self(voxels, placed, placed, voxels, parts["voxels_self"])
        words = self.words_self(words, words, words, words, parts["words_self"])
        before = words
        words = self.words_cross(words, words, voxels, voxels, parts["words_cross"])
        words = self.words_forward(words)
        asking = voxels + positions
        voxels = self.voxels_cross(voxels, asking, before, before, parts["voxels_cross"])
        return self.voxels_forward(voxels), words


class FusionEncoder(nn.Module):
    """Layers of bidirectional attention between the voxels of a scene and its sentence.

    Args:
        channels: of voxels and words.
        heads: of every attention.
        hidden: width between the two linear layers.
        dropout: share set to zero.
        layers: number of layers.
        key_limit: voxels of a scene that others attend to; beyond, a subset that depends on the
            coordinates alone. None: all, as published; time then grows with their square.
    """

    def __init__(
        self,
        channels: int,
        heads: int = 8,
        hidden: int = 128,
        dropout: float = 0.1,
        layers: int = 2,
        key_limit: int | None = None,
    ):
        super().__init__()
        self.layers = nn.ModuleList(
            FusionLayer(channels, heads, hidden, dropout) for _ in range(layers)
        )
        self.key_limit = key_limit

    def forward(
        self, voxels: SparseVoxels, positions: Tensor, words: Tensor, padding: Tensor
    ) -> tuple[SparseVoxels, Tensor]:
        """Updated voxels and words.

        Args:
            voxels: [N, C].
            positions: [N, C] embedded positions.
            words: [B, T, C].
            padding: [B, T] bool, true where there is no word.
        """
        parts = self._parts(voxels, padding)
        rows, flat = voxels.features, words.flatten(0, 1)
        for layer in self.layers:
            rows, flat = layer(rows, positions, flat, parts)
        return voxels.replace(rows), flat.reshape(words.shape)

    def _parts(self, voxels: SparseVoxels, padding: Tensor) -> dict[str, Parts]:
        counts = voxels.counts
        limit, known = self.key_limit, None
        if limit is not None and max(counts, default=0) > limit:
            known = scattered(voxels, limit).nonzero().squeeze(1)
        seen = counts if known is None else [min(count, limit) for count in counts]
        said = (~padding.flatten()).nonzero().squeeze(1)
        words, lengths = (~padding).sum(1).tolist(), [padding.shape[1]] * len(padding)
        return {
            "voxels_self": Parts(counts, known, seen),
            "words_self": Parts(lengths, said, words),
            "words_cross": Parts(lengths, known, seen),
            "voxels_cross": Parts(counts, said, words),
        }


class PositionEmbedding(nn.Module):
    """Linear, batch norm, ReLU, linear on metres."""

    def __init__(self, channels: int):
        super().__init__()
        self.inner = nn.Linear(3, channels)
        self.norm = RowBatchNorm(channels)
        self.outer = nn.Linear(channels, channels)

    def forward(self, points: Tensor, padding: Tensor | None = None, rows: int = 0) -> Tensor:
        """[N, C] of ``points`` [N, 3].

        ``padding`` [1, 3] is a point that counts ``rows`` times in the batch norm's statistics, as
        the padding of the published implementation does.
        """
        if padding is None or not rows or not self.training:
            return self.outer(self.norm(self.inner(points), relu=True))
        counts = torch.ones(len(points) + 1, device=points.device)
        counts[-1] = rows
        hidden = self.norm(self.inner(torch.cat([points, padding])), counts, relu=True)
        return self.outer(hidden[:-1])


def scattered(voxels: SparseVoxels, limit: int) -> Tensor:
    """Mask [N] of at most ``limit`` voxels per scene, strewn evenly; coordinates alone decide."""
    mixed = torch.zeros(len(voxels), dtype=torch.int64, device=voxels.device)
    for column in voxels.coords[:, 1:].long().unbind(1):
        mixed = (mixed ^ (column & 0xFFFFFFFF)) * 0x9E3779B1 & 0xFFFFFFFF
        mixed = mixed ^ (mixed >> 15)
    return voxels.best(mixed, limit)
