"""TransFusion's LiDAR head: queries from the heat map's peaks, refined by one transformer layer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparse3d.registry import MODELS
from sparse3d.structures import Boxes, Detections, VoxelGrid

from .center_decode import top_cells
from .center_head import HEATMAP_PRIOR, check_code_weights
from .center_losses import heatmap_loss, iou_branch_loss
from .center_targets import MapFrame
from .transfusion_decoder import QueryDecoder, QueryDecoding, cell_centers
from .transfusion_targets import (
    MatchCosts,
    QueryTargets,
    decode_queries,
    match_queries,
    query_heatmap,
)

BRANCHES = {"center": 2, "height": 1, "dim": 3, "rot": 2}
BRANCH_WIDTH = 64


@dataclass(frozen=True)
class QueryLosses:
    """Weights of the losses.

    Attributes:
        heatmap: of the dense heat map.
        classes: of the queries' classes.
        boxes: of the box codes.
        iou: of the IoU branch.
        code_weights: of each code entry (x, y, z, three log sizes, sin, cos[, vx, vy]); None: ones.
        focal_alpha: of the classification loss.
        focal_gamma: of the classification loss.
    """

    heatmap: float = 1.0
    classes: float = 1.0
    boxes: float = 0.25
    iou: float = 0.5
    code_weights: Sequence[float] | None = None
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0


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
        window: odd side in cells of the square around it that a query sees, and queries do not see
            each other, as in DSVT's nuScenes model; None: a query sees the whole map and the
            others.
        velocity: predict vx, vy.
        iou: predict the IoU of each box with the truth.
        num_convs: convolutions of each branch (by name; 2 where not named) or of all.
        bias_before_norm: give convolutions a bias though a norm follows, as some weights have.
        bn_momentum: of the batch norms.
        peak_size: side in cells of the square whose maximum a peak must be.
        point_classes: classes so small that every cell is a peak.
        overlap: IoU that fixes the radius of a heat map bump.
        min_radius: least radius in cells.
        losses: settings of ``QueryLosses``.
        match: settings of ``MatchCosts``.
        decoding: settings of ``QueryDecoding``.

    Raises:
        ValueError: unknown point classes, or settings of another length.
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
        window: int | None = None,
        velocity: bool = True,
        iou: bool = False,
        num_convs: int | Mapping[str, int] = 2,
        bias_before_norm: bool = False,
        bn_momentum: float = 0.1,
        peak_size: int = 3,
        point_classes: Sequence[str] = (),
        overlap: float = 0.1,
        min_radius: int = 2,
        losses: Mapping | None = None,
        match: Mapping | None = None,
        decoding: Mapping | None = None,
    ):
        super().__init__()
        self.class_names = tuple(class_names)
        self.frame = MapFrame.of(grid, stride)
        self.point_range = grid.point_range
        self.queries, self.velocity, self.iou = queries, velocity, iou
        self.peak_size = peak_size
        self.point_labels = _labels_of(point_classes, self.class_names)
        self.overlap, self.min_radius = overlap, min_radius
        self.losses, self.costs = QueryLosses(**(losses or {})), MatchCosts(**(match or {}))
        check_code_weights(self.losses.code_weights, velocity)
        self.decoding = QueryDecoding(**(decoding or {}))
        self.decoding.check(self.class_names)

        classes = len(self.class_names)
        self.shared_conv = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.heatmap_head = nn.Sequential(
            _block(nn.Conv2d(channels, channels, 3, padding=1, bias=bias_before_norm)),
            nn.Conv2d(channels, classes, 3, padding=1),
        )
        self.class_encoding = nn.Conv1d(classes, channels, 1)
        self.decoder = QueryDecoder(channels, heads, ffn_channels, dropout, window)
        optional = {**({"vel": 2} if velocity else {}), **({"iou": 1} if iou else {})}
        outputs = {**BRANCHES, **optional, "heatmap": classes}
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
            sin and cos, heatmap [B, classes, P] logits, where predicted vel [B, 2, P] and iou
            [B, 1, P]; dense_heatmap [B, classes, H, W] logits, query_heatmap_score [B, classes, P]
            peaks at the queries' cells, query_labels [B, P].
        """
        features = self.shared_conv(x)
        dense_heatmap = self.heatmap_head(features).float()
        peaks = self.peaks(dense_heatmap.detach().sigmoid()).flatten(2)
        labels, cells = top_queries(peaks, self.queries)

        flat = features.flatten(2)
        one_hot = F.one_hot(labels, len(self.class_names)).transpose(1, 2).to(flat)
        index = cells[:, None]
        query = flat.gather(2, index.expand(-1, flat.shape[1], -1)) + self.class_encoding(one_hot)
        query = self.decoder(query, features, cells)

        raw = {name: branch(query).float() for name, branch in self.prediction_head.items()}
        raw["center"] = raw["center"] + cell_centers(x.shape[-2:], x.device)[cells].transpose(1, 2)
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
        return torch.where(heatmap == best, heatmap, 0)  # NaN is no peak

    def loss(
        self, raw: dict[str, Tensor], boxes: list[Boxes], labels: list[Tensor]
    ) -> dict[str, Tensor]:
        """Weighted losses by name; their sum is what is minimised."""
        target, weights = self.targets(raw, boxes, labels), self.losses
        dense = self.target_heatmap(raw, boxes, labels)
        positives = max(int(target.matched.sum()), 1)
        logits = raw["heatmap"].transpose(1, 2)
        one_hot = F.one_hot(target.labels, logits.shape[-1] + 1)[..., :-1].to(logits)
        focal = sigmoid_focal(logits, one_hot, weights.focal_alpha, weights.focal_gamma)
        error = (query_code(raw) - target.code).abs()[target.matched]
        if weights.code_weights is not None:
            error = error * error.new_tensor(weights.code_weights)
        losses = {
            "loss_heatmap": weights.heatmap * heatmap_loss(raw["dense_heatmap"], dense),
            "loss_class": weights.classes * focal.sum() / positives,
            "loss_box": weights.boxes * error.sum() / positives,
        }
        if self.iou:
            predicted = decode_queries(query_code(raw), self.frame)[target.matched]
            truth = decode_queries(target.code, self.frame)[target.matched]
            quality = raw["iou"][:, 0][target.matched]
            losses["loss_iou"] = weights.iou * iou_branch_loss(quality, predicted, truth)
        return losses

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
        iou = raw["iou"][:, 0] if self.iou else [None] * len(scores)
        return list(map(self.decoding.choose, boxes, scores, labels, iou))


def top_queries(peaks: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Class and cell [B, P] of the ``count`` highest of each sample's ``peaks`` [B, C, cells]."""
    best = [top_cells(sample, count)[1:] for sample in peaks]
    return torch.stack([b[0] for b in best]), torch.stack([b[1] for b in best])


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
