"""TransFusion's transformer layer, and which of its boxes are kept."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparse3d.ops import rotated
from sparse3d.structures import Boxes, Detections


class QueryDecoder(nn.Module):
    """One post-norm transformer layer: among the queries, then from the queries to the map.

    Args:
        channels: width.
        heads: attention heads.
        ffn_channels: width of the feed-forward layer.
        dropout: in training.
        window: odd side in cells of the square around its own cell that a query sees; queries then
            do not see each other. None: every query sees the whole map and all queries.
    """

    def __init__(
        self, channels: int, heads: int, ffn_channels: int, dropout: float, window: int | None
    ):
        super().__init__()
        if window is not None and (window < 1 or window % 2 == 0):
            raise ValueError(f"window is {window}; an odd number of cells, or None, is needed")
        self.window = window
        self.self_attn = nn.MultiheadAttention(channels, heads, dropout, batch_first=True)
        self.multihead_attn = nn.MultiheadAttention(channels, heads, dropout, batch_first=True)
        self.linear1 = nn.Linear(channels, ffn_channels)
        self.linear2 = nn.Linear(ffn_channels, channels)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(channels) for _ in range(3))
        self.dropout = nn.Dropout(dropout)
        self.self_posembed = _position_embedding(channels)
        self.cross_posembed = _position_embedding(channels)

    def forward(self, query: Tensor, features: Tensor, cells: Tensor) -> Tensor:
        """Refined queries [B, C, P].

        Args:
            query: [B, C, P].
            features: [B, C, H, W] the map.
            cells: [B, P] int64 cell of each query, row * W + column.
        """
        size = features.shape[-2:]
        position = cell_centers(size, features.device)
        own = self.self_posembed(position[cells].transpose(1, 2)).transpose(1, 2)
        # each sample repeats the same places, so that batch statistics count them all
        places = position.T.expand(len(features), -1, -1)
        keys = (features.flatten(2) + self.cross_posembed(places)).transpose(1, 2)
        x = query.transpose(1, 2)
        x = self.norm1(x + self.dropout(self._among_queries(x + own)))
        if self.window is None:
            seen, _ = self.multihead_attn(x + own, keys, keys, need_weights=False)
        else:
            seen = self._in_window(x + own, keys, cells, size)
        x = self.norm2(x + self.dropout(seen))
        x = self.norm3(x + self.dropout(self.linear2(self.dropout(F.relu(self.linear1(x))))))
        return x.transpose(1, 2)

    def _among_queries(self, placed: Tensor) -> Tensor:
        shape = placed.shape
        if self.window is not None:
            placed = placed.reshape(-1, 1, shape[-1])
        return self.self_attn(placed, placed, placed, need_weights=False)[0].view(shape)

    def _in_window(self, query: Tensor, keys: Tensor, cells: Tensor, size: Sequence[int]) -> Tensor:
        """Attention [B, P, C] of each query to the keys [B, H*W, C] of its own window.

        The map is projected once and then gathered, which is equal to projecting every window.
        """
        attention = self.multihead_attn
        batch, count, channels = query.shape
        weight, bias = attention.in_proj_weight, attention.in_proj_bias
        q = F.linear(query, weight[:channels], bias[:channels])
        kv = F.linear(keys, weight[channels:], bias[channels:])
        index, inside = window_cells(cells, size, self.window)
        sample = torch.arange(batch, device=cells.device)[:, None, None]
        kv = kv[sample, index].view(batch * count, -1, 2, attention.num_heads, attention.head_dim)
        k, v = kv.permute(2, 0, 3, 1, 4)
        q = q.reshape(batch * count, 1, attention.num_heads, attention.head_dim).transpose(1, 2)
        mask = inside.reshape(batch * count, 1, 1, -1)
        dropout = attention.dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, mask, dropout)
        return attention.out_proj(out.reshape(batch, count, channels))


def cell_centers(size: Sequence[int], device: torch.device) -> Tensor:
    """[H*W, 2] float32 column and row of each cell's centre, for ``size`` (H, W)."""
    rows, columns = (torch.arange(n, device=device) + 0.5 for n in size)
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij")[::-1], -1).flatten(0, 1)


def window_cells(cells: Tensor, size: Sequence[int], window: int) -> tuple[Tensor, Tensor]:
    """Cells of the square of side ``window`` around each of ``cells`` [..., P].

    Returns:
        [..., P, window**2] int64 cells, and which of them lie in the map of ``size`` (H, W); the
        others are cell 0.
    """
    height, width = size
    step = torch.arange(-(window // 2), window // 2 + 1, device=cells.device)
    down, right = (axis.flatten() for axis in torch.meshgrid(step, step, indexing="ij"))
    row, column = cells[..., None] // width + down, cells[..., None] % width + right
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    return torch.where(inside, row * width + column, 0), inside


@dataclass(frozen=True)
class QueryDecoding:
    """Which boxes of the queries are kept.

    Attributes:
        score_threshold: boxes need a higher score.
        center_limit: (x0, y0, z0, x1, y1, z1) in metres that holds the centres; None: everywhere.
        iou_power: with an IoU branch, score^(1-r) * iou^r is the score, r this number.
        nms_threshold: per class the overlap at which boxes are dropped, None for a class without
            NMS; None: no class has it.
        nms_pre_max: best boxes of a class that enter NMS.
        nms_post_max: most boxes of a class that leave it.
    """

    score_threshold: float = 0.0
    center_limit: Sequence[float] | None = None
    iou_power: float = 0.5
    nms_threshold: Sequence[float | None] | None = None
    nms_pre_max: int | None = 1000
    nms_post_max: int | None = 100

    def check(self, class_names: Sequence[str]) -> None:
        """Refuse a list of another length than the classes.

        Raises:
            ValueError: so it is.
        """
        if self.nms_threshold is not None and len(self.nms_threshold) != len(class_names):
            raise ValueError(
                f"nms_threshold is {list(self.nms_threshold)}; it needs one number or None for "
                f"each of {list(class_names)}"
            )

    def choose(
        self, boxes: Tensor, scores: Tensor, labels: Tensor, iou: Tensor | None
    ) -> Detections:
        """The boxes of one sample by falling score.

        Args:
            boxes: [P, 7 or 9].
            scores: [P] in 0..1.
            labels: [P] int64.
            iou: [P] predicted 2 IoU - 1, or None.
        """
        if iou is not None:
            quality = ((iou + 1) / 2).clamp(0, 1)
            scores = scores ** (1 - self.iou_power) * quality**self.iou_power
        keep = scores > self.score_threshold
        if self.center_limit is not None:
            low, high = boxes.new_tensor(self.center_limit).view(2, 3)
            keep &= ((boxes[:, :3] >= low) & (boxes[:, :3] <= high)).all(1)
        rows = self._suppress(keep.nonzero()[:, 0], boxes, scores, labels)
        rows = rows[scores[rows].argsort(descending=True, stable=True)]
        return Detections(Boxes(boxes[rows]), scores[rows], labels[rows])

    def _suppress(self, rows: Tensor, boxes: Tensor, scores: Tensor, labels: Tensor) -> Tensor:
        """Those of ``rows`` that survive NMS."""
        if self.nms_threshold is None:
            return rows
        kept = []
        for label, threshold in enumerate(self.nms_threshold):
            own = rows[labels[rows] == label]
            if threshold is not None:
                own_boxes = boxes[own, :7].contiguous()
                limits = (self.nms_pre_max, self.nms_post_max)
                own = own[rotated.nms(own_boxes, scores[own], threshold, *limits)]
            kept.append(own)
        return torch.cat(kept)


def _position_embedding(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv1d(2, channels, 1),
        nn.BatchNorm1d(channels),
        nn.ReLU(),
        nn.Conv1d(channels, channels, 1),
    )
