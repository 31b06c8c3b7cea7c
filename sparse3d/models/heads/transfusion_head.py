"""TransFusion's LiDAR head: queries from the heat map's peaks, refined by one transformer layer."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparse3d.registry import MODELS
from sparse3d.structures import Boxes, Detections, VoxelGrid

from .center_decode import top_cells
from .center_head import HEATMAP_PRIOR, check_code_weights
from .center_losses import heatmap_loss
from .center_targets import MapFrame
from .transfusion_targets import (
    MatchCosts,
    QueryTargets,
    decode_queries,
    match_queries,
    query_heatmap,
)

BRANCHES = {"center": 2, "height": 1, "dim": 3, "rot": 2}
BRANCH_WIDTH = 64


@MODELS.register_module()
class TransFusionHead(nn.Module):
    """TransFusion-L's head (https://arxiv.org/abs/2203.11496) as OpenPCDet has it.

    Args:
        in_channels: channels of the map.
        grid: the base grid.
        stride: base cells per map cell.
        class_names: all classes.
        channels: width of queries and map.
        queries: number of queries.
        heads: attention heads.
        ffn_channels: width of the feed-forward layer.
        dropout: in training.
        velocity: predict vx, vy.
        num_convs: convolutions of each branch (by name; 2 where not named) or of all.
        bias_before_norm: give convolutions a bias though a norm follows, as some weights have.
        bn_momentum: of the batch norms.
        peak_size: side in cells of the square whose maximum a peak must be.
        point_classes: classes so small that every cell is a peak.
        overlap: IoU that fixes the radius of a heat map bump.
        min_radius: least radius in cells.
        heatmap_weight: of the heat map's loss.
        class_weight: of the classification loss.
        box_weight: of the box code's loss.
        code_weights: of each code entry (x, y, z, three log sizes, sin, cos[, vx, vy]).
        focal_alpha: of the classification loss.
        focal_gamma: of the classification loss.
        match: settings of ``MatchCosts``.
        score_threshold: boxes need a higher score.
        center_limit: (x0, y0, z0, x1, y1, z1) in metres that holds the centres; None: everywhere.
    """

    def __init__(
        self,
        in_channels: int,
        grid: VoxelGrid,
        stride: float,
        class_names: Sequence[str],
        channels: int = 128,
        queries: int = 200,
        heads: int = 8,
        ffn_channels: int = 256,
        dropout: float = 0.1,
        velocity: bool = True,
        num_convs: int | Mapping[str, int] = 2,
        bias_before_norm: bool = False,
        bn_momentum: float = 0.1,
        peak_size: int = 3,
        point_classes: Sequence[str] = (),
        overlap: float = 0.1,
        min_radius: int = 2,
        heatmap_weight: float = 1.0,
        class_weight: float = 1.0,
        box_weight: float = 0.25,
        code_weights: Sequence[float] | None = None,
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
        match: Mapping | None = None,
        score_threshold: float = 0.0,
        center_limit: Sequence[float] | None = None,
    ):
        super().__init__()
        self.class_names = tuple(class_names)
        self.frame = MapFrame.of(grid, stride)
        self.point_range = grid.point_range
        self.queries, self.velocity = queries, velocity
        self.peak_size = peak_size
        self.point_labels = _labels_of(point_classes, self.class_names)
        self.overlap, self.min_radius = overlap, min_radius
        self.heatmap_weight, self.class_weight = heatmap_weight, class_weight
        self.box_weight = box_weight
        self.code_weights = check_code_weights(code_weights, velocity)
        self.focal_alpha, self.focal_gamma = focal_alpha, focal_gamma
        self.costs = MatchCosts(**(match or {}))
        self.score_threshold, self.center_limit = score_threshold, center_limit

        classes = len(self.class_names)
        self.shared_conv = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.heatmap_head = nn.Sequential(
            _block(nn.Conv2d(channels, channels, 3, padding=1, bias=bias_before_norm)),
            nn.Conv2d(channels, classes, 3, padding=1),
        )
        self.class_encoding = nn.Conv1d(classes, channels, 1)
        self.decoder = QueryDecoder(channels, heads, ffn_channels, dropout)
        outputs = {**BRANCHES, **({"vel": 2} if velocity else {}), "heatmap": classes}
        self.prediction_head = nn.ModuleDict()
        for name, width in outputs.items():
            count = num_convs if isinstance(num_convs, int) else num_convs.get(name, 2)
            self.prediction_head[name] = _branch(channels, width, count, bias_before_norm)
        for module in self.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                module.momentum = bn_momentum
        nn.init.constant_(self.heatmap_head[-1].bias, HEATMAP_PRIOR)
        nn.init.constant_(self.prediction_head["heatmap"][-1].bias, HEATMAP_PRIOR)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Raw output from the map [B, C, H, W].

        Returns:
            center [B, 2, P] cells, height [B, 1, P] metres, dim [B, 3, P] log metres, rot [B, 2, P]
            sin and cos, vel [B, 2, P] where predicted, heatmap [B, classes, P] logits,
            dense_heatmap [B, classes, H, W] logits, query_heatmap_score [B, classes, P] peaks at
            the queries' cells, query_labels [B, P].
        """
        features = self.shared_conv(x)
        dense_heatmap = self.heatmap_head(features).float()
        peaks = self.peaks(dense_heatmap.detach().sigmoid()).flatten(2)
        labels, cells = top_queries(peaks, self.queries)

        flat = features.flatten(2)
        one_hot = F.one_hot(labels, len(self.class_names)).transpose(1, 2).to(flat)
        index = cells[:, None]
        query = flat.gather(2, index.expand(-1, flat.shape[1], -1)) + self.class_encoding(one_hot)
        position = cell_centers(x.shape[-2:], x.device)
        query_position = position[cells]
        query = self.decoder(query, flat, query_position, position)

        raw = {name: branch(query).float() for name, branch in self.prediction_head.items()}
        raw["center"] = raw["center"] + query_position.transpose(1, 2)
        raw["query_heatmap_score"] = peaks.gather(2, index.expand(-1, peaks.shape[1], -1))
        raw["dense_heatmap"] = dense_heatmap
        raw["query_labels"] = labels
        return raw

    def peaks(self, heatmap: Tensor) -> Tensor:
        """``heatmap`` [B, classes, H, W] where it is the maximum of its square, else zero.

        The border, where the square leaves the map, has no peak.
        """
        border = self.peak_size // 2
        best = torch.zeros_like(heatmap)
        if min(heatmap.shape[-2:]) > 2 * border:
            inner = F.max_pool2d(heatmap, self.peak_size, 1)
            best = F.pad(inner, [border] * 4)
        if self.point_labels:
            best[:, self.point_labels] = heatmap[:, self.point_labels]
        return heatmap * (heatmap == best)

    def loss(
        self, raw: dict[str, Tensor], boxes: list[Boxes], labels: list[Tensor]
    ) -> dict[str, Tensor]:
        """Weighted losses by name; their sum is what is minimised."""
        target = self.targets(raw, boxes, labels)
        dense = self.target_heatmap(raw, boxes, labels)
        positives = max(int(target.matched.sum()), 1)
        logits = raw["heatmap"].transpose(1, 2)
        one_hot = F.one_hot(target.labels, logits.shape[-1] + 1)[..., :-1].to(logits)
        focal = sigmoid_focal(logits, one_hot, self.focal_alpha, self.focal_gamma)
        error = (query_code(raw) - target.code).abs()[target.matched]
        if self.code_weights is not None:
            error = error * error.new_tensor(self.code_weights)
        return {
            "loss_heatmap": self.heatmap_weight * heatmap_loss(raw["dense_heatmap"], dense),
            "loss_class": self.class_weight * focal.sum() / positives,
            "loss_box": self.box_weight * error.sum() / positives,
        }

    def targets(
        self, raw: dict[str, Tensor], boxes: list[Boxes], labels: list[Tensor]
    ) -> QueryTargets:
        """The true box of each query, by a Hungarian match."""
        return match_queries(
            query_code(raw).detach(),
            raw["heatmap"].detach().transpose(1, 2),
            boxes,
            labels,
            self.frame,
            self.point_range,
            self.costs,
        )

    def target_heatmap(
        self, raw: dict[str, Tensor], boxes: list[Boxes], labels: list[Tensor]
    ) -> Tensor:
        """What the dense heat map [B, classes, H, W] should be."""
        return query_heatmap(
            boxes, labels, raw["dense_heatmap"], self.frame, self.overlap, self.min_radius
        )

    @torch.no_grad()
    def predict(self, raw: dict[str, Tensor]) -> list[Detections]:
        """Detections of each sample, by falling score."""
        labels = raw["query_labels"]
        prior = raw["query_heatmap_score"] * raw["heatmap"].sigmoid()
        scores = prior.gather(1, labels[:, None])[:, 0]
        boxes = decode_queries(query_code(raw), self.frame)
        keep = scores > self.score_threshold
        if self.center_limit is not None:
            low, high = boxes.new_tensor(self.center_limit).view(2, 3)
            keep &= ((boxes[..., :3] >= low) & (boxes[..., :3] <= high)).all(-1)
        found = []
        for sample in range(len(scores)):
            rows = keep[sample].nonzero()[:, 0]
            rows = rows[scores[sample, rows].argsort(descending=True, stable=True)]
            found.append(
                Detections(Boxes(boxes[sample, rows]), scores[sample, rows], labels[sample, rows])
            )
        return found


class QueryDecoder(nn.Module):
    """One post-norm transformer layer: among the queries, then from the queries to the map."""

    def __init__(self, channels: int, heads: int, ffn_channels: int, dropout: float):
        super().__init__()
        self.self_attn = nn.MultiheadAttention(channels, heads, dropout, batch_first=True)
        self.multihead_attn = nn.MultiheadAttention(channels, heads, dropout, batch_first=True)
        self.linear1 = nn.Linear(channels, ffn_channels)
        self.linear2 = nn.Linear(ffn_channels, channels)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(channels) for _ in range(3))
        self.dropout = nn.Dropout(dropout)
        self.self_posembed = _position_embedding(channels)
        self.cross_posembed = _position_embedding(channels)

    def forward(self, query: Tensor, features: Tensor, query_position: Tensor, position: Tensor):
        """Refined queries [B, C, P].

        Args:
            query: [B, C, P].
            features: [B, C, N] the map.
            query_position: [B, P, 2] in cells.
            position: [N, 2] in cells.
        """
        query_embedding = self.self_posembed(query_position.transpose(1, 2)).transpose(1, 2)
        # each sample repeats the same places, so that batch statistics count them all
        places = position.T.expand(len(features), -1, -1)
        keys = (features + self.cross_posembed(places)).transpose(1, 2)
        x = query.transpose(1, 2)
        placed = x + query_embedding
        attended, _ = self.self_attn(placed, placed, placed, need_weights=False)
        x = self.norm1(x + self.dropout(attended))
        attended, _ = self.multihead_attn(x + query_embedding, keys, keys, need_weights=False)
        x = self.norm2(x + self.dropout(attended))
        x = self.norm3(x + self.dropout(self.linear2(self.dropout(F.relu(self.linear1(x))))))
        return x.transpose(1, 2)


def top_queries(peaks: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Class and cell [B, P] of the ``count`` highest of each sample's ``peaks`` [B, C, cells]."""
    best = [top_cells(sample, count)[1:] for sample in peaks]
    return torch.stack([b[0] for b in best]), torch.stack([b[1] for b in best])


def cell_centers(size: Sequence[int], device: torch.device) -> Tensor:
    """[H*W, 2] float32 column and row of each cell's centre, for ``size`` (H, W)."""
    rows, columns = (torch.arange(n, device=device) + 0.5 for n in size)
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij")[::-1], -1).flatten(0, 1)


def query_code(raw: dict[str, Tensor]) -> Tensor:
    """Box code [B, P, 8 or 10] of the raw output."""
    names = [*BRANCHES, "vel"] if "vel" in raw else list(BRANCHES)
    return torch.cat([raw[name] for name in names], 1).transpose(1, 2)


def sigmoid_focal(logits: Tensor, target: Tensor, alpha: float, gamma: float) -> Tensor:
    """Focal loss (https://arxiv.org/abs/1708.02002) of each entry; ``target`` is 0 or 1."""
    p = logits.sigmoid()
    wrong = target * (1 - p) + (1 - target) * p
    balance = target * alpha + (1 - target) * (1 - alpha)
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return balance * wrong**gamma * entropy


def _labels_of(names: Sequence[str], class_names: Sequence[str]) -> list[int]:
    unknown = sorted(set(names) - set(class_names))
    if unknown:
        raise ValueError(f"point_classes names {unknown}; the classes are {list(class_names)}")
    return [list(class_names).index(name) for name in names]


def _block(conv: nn.Module) -> nn.Sequential:
    norm = nn.BatchNorm2d if isinstance(conv, nn.Conv2d) else nn.BatchNorm1d
    return nn.Sequential(conv, norm(conv.out_channels), nn.ReLU())


def _branch(channels: int, width: int, count: int, bias: bool) -> nn.Sequential:
    sizes = [channels, *[BRANCH_WIDTH] * (count - 1)]
    blocks = [_block(nn.Conv1d(a, b, 1, bias=bias)) for a, b in pairwise(sizes)]
    return nn.Sequential(*blocks, nn.Conv1d(sizes[-1], width, 1))


def _position_embedding(channels: int) -> nn.Sequential:
    block = _block(nn.Conv1d(2, channels, 1))
    return nn.Sequential(*block, nn.Conv1d(channels, channels, 1))
