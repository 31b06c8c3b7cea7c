"""3D-SPS: keypoints chosen by the description, then objects mined from them step by step.

Paper https://arxiv.org/abs/2204.06272. Seeds are voxels of a sparse backbone in place of
PointNet++'s points, and boxes are parallel to the axes: a centre and the logarithm of a size where
the paper has classes of heading and size with residuals.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparse3d.ops.neighbors import radius_neighbors
from sparse3d.ops.voxelize import segment_expand
from sparse3d.registry import MODELS
from sparse3d.structures import Boxes, Detections, SparseVoxels, VoxelGrid

from .sps_decoder import DecoderLayer, ObjectPredictor, Objects, best_rows
from .tsp3d_fusion import Parts, scattered
from .tsp3d_losses import direct_box_loss, focal_loss, smallest_box, start_small


@dataclass
class Mining:
    """The head's raw output.

    Attributes:
        seeds: [S] all seeds.
        present: [S] logit of each seed, "on an object".
        keypoints: the seeds that looked like objects, with the logit of "described" in ``scores``.
        stages: objects with their predictions, the proposals first, then after each layer.
        sentences: [B, C] the sentences' words after the last layer.
        voxels: the seeds' voxels.
    """

    seeds: Objects
    present: Tensor
    keypoints: Objects
    stages: list[Objects]
    sentences: Tensor
    voxels: SparseVoxels


@MODELS.register_module()
class SPSHead(nn.Module):
    """Description-aware keypoint sampling and target-oriented progressive mining.

    Args:
        in_channels: widths of the backbone's stages; the first of the last three has the seeds.
        grid: the base grid.
        text_channels: width of the words' features.
        class_names: what labels mean, for the class lessons.
        channels: width inside (published: 384).
        heads, hidden, dropout, layers: of the decoder (published: 4, 2048, .05, 5).
        seeds: seeds per scene, strewn by their coordinates (published: 1024).
        keypoints: seeds that may be objects, and those of them that the sentence may describe; the
            latter become objects (published: 768 and 512).
        radius: metres about a keypoint that it gathers seeds from.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        grid: VoxelGrid,
        text_channels: int,
        class_names: Sequence[str],
        channels: int = 384,
        heads: int = 4,
        hidden: int = 2048,
        dropout: float = 0.05,
        layers: int = 5,
        seeds: int = 1024,
        keypoints: tuple[int, int] = (768, 512),
        radius: float = 0.3,
    ):
        super().__init__()
        self.learns_classes = True
        self.decision = None
        self.sentence_channels = channels
        self.seeds, self.keypoints, self.radius = seeds, tuple(keypoints), radius
        classes = len(class_names) + 1
        self.text_projector = nn.Sequential(
            nn.Linear(text_channels, channels), nn.LayerNorm(channels), nn.Dropout(dropout)
        )
        self.seed_projector = nn.Linear(in_channels[0], channels)
        self.seed_present = nn.Linear(channels, 1)
        self.gather = nn.Sequential(
            nn.Linear(channels + 3, channels), nn.ReLU(), nn.Linear(channels, channels)
        )
        self.described = nn.Sequential(
            nn.Linear(2 * channels, channels), nn.ReLU(), nn.Linear(channels, 1)
        )
        self.decoder = nn.ModuleList(
            DecoderLayer(channels, heads, hidden, dropout) for _ in range(layers)
        )
        self.predictors = nn.ModuleList(
            ObjectPredictor(channels, classes) for _ in range(layers + 1)
        )
        self.sentence_class = nn.Linear(channels, classes)
        for predictor in self.predictors:
            start_small(predictor.box)

    def forward(self, stages: Sequence[SparseVoxels], text: Tensor, padding: Tensor) -> Mining:
        """From the backbone's stages and the words.

        Args:
            stages: finest first; the first of the last three has the seeds.
            text: [B, T, text_channels]; word 0 stands for the sentence.
            padding: [B, T] bool, true where there is no word.
        """
        words = self.text_projector(text)
        voxels = stages[-3:][0]
        voxels = voxels.prune(scattered(voxels, self.seeds))
        counts = voxels.counts
        seeds = Objects(self.seed_projector(voxels.features), voxels.centers(), counts)
        present = self.seed_present(seeds.features)[:, 0].float()
        keypoints = self._keypoints(seeds, present, words[:, 0])
        objects = keypoints.at(*self._best(keypoints.scores, keypoints.counts, self.keypoints[1]))
        said = Parts(
            [words.shape[1]] * len(words),
            (~padding.flatten()).nonzero().squeeze(1),
            (~padding).sum(1).tolist(),
        )
        flat, found = words.flatten(0, 1), [self.predictors[0](objects)]
        left = found[0]
        for number, layer in enumerate(self.decoder):
            objects, flat, share = layer(left, seeds, flat, said)
            left = self.predictors[number + 1](objects)
            found.append(left)
            if number:  # published: from the second layer on, the half that words look at most
                left = left.at(*best_rows(share, left.counts, [-(-n // 2) for n in left.counts]))
        sentences = flat.reshape(words.shape)[:, 0]
        return Mining(seeds, present, keypoints, found, sentences, voxels)

    def _best(self, scores: Tensor, counts: list[int], limit: int) -> tuple[Tensor, list[int]]:
        return best_rows(scores.detach(), counts, [limit] * len(counts))

    def _keypoints(self, seeds: Objects, present: Tensor, sentences: Tensor) -> Objects:
        """Seeds that look like objects, with what lies about them and whether it is described."""
        chosen = seeds.at(*self._best(present, seeds.counts, self.keypoints[0]))
        scene, of_seed = _scenes(chosen), _scenes(seeds)
        near, _ = radius_neighbors(chosen.points, seeds.points, self.radius, 16, scene, of_seed)
        around = seeds.points[near.clamp(min=0)] - chosen.points[:, None]
        rows = torch.cat([seeds.features[near.clamp(min=0)], around], 2)
        hidden = self.gather(rows).masked_fill((near < 0)[..., None], -torch.inf)
        features = chosen.features + (hidden.amax(1) if len(hidden) else hidden.sum(1))
        said = segment_expand(sentences, scene)
        scores = self.described(torch.cat([features, said], 1))[:, 0].float()
        return Objects(features, chosen.points, chosen.counts, scores=scores)

    # ------------------------------------------------------------------ training and prediction

    def loss(
        self,
        raw: Mining,
        boxes: list[Boxes],
        target: list[int],
        anchors: list[list[int]],
        labels: list[Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Losses with the published weights.

        Args:
            raw: of ``forward``.
            boxes: all objects of each scene; headings do not count.
            target: row of the object that each sentence means.
            anchors: rows of the objects named beside it; not used by this head.
            labels: class of each object, -1 for others; None: no class lessons.
        """
        truth = [objects.tensor[:, :6] for objects in boxes]
        wanted = [rows[row : row + 1] for rows, row in zip(truth, target)]
        keypoint = _nearest_loss(raw.present, raw.seeds, truth, 5)
        keypoint = keypoint + _nearest_loss(raw.keypoints.scores, raw.keypoints, wanted, 16)
        parts = [self._stage_losses(stage, truth, wanted, labels) for stage in raw.stages]
        present, box, names, meant = (torch.stack(part).mean() for part in zip(*parts))
        result = {
            "loss_keypoints": 8 * keypoint,
            "loss_present": 5 * present,
            "loss_box": 10 * box,
            "loss_mined_class": 5 * names,
            "loss_meant": meant,
        }
        if labels is not None:
            known = torch.stack([rows[row] for rows, row in zip(labels, target)])
            logits = self.sentence_class(raw.sentences).float()
            result["loss_mined_sentence"] = F.cross_entropy(logits, _or_last(known, logits))
        return result

    def _stage_losses(self, stage: Objects, truth, wanted, labels) -> list[Tensor]:
        """Objectness, boxes, classes and which is meant, of the objects of one stage."""
        total = [stage.boxes.sum() * 0.0 for _ in range(4)]
        split = [getattr(stage, n).split(stage.counts) for n in ("boxes", "present", "names")]
        places = stage.points.split(stage.counts)
        scores = stage.scores.split(stage.counts)
        for scene, rows in enumerate(truth):
            boxes, present, names = (part[scene] for part in split)
            if not len(boxes):
                continue
            row = smallest_box(places[scene], rows, 0.1)
            share = 1 / len(truth)
            positive = row >= 0
            total[0] = total[0] + share * F.binary_cross_entropy_with_logits(
                present, positive.to(present)
            )
            total[1] = total[1] + share * direct_box_loss(boxes, row, rows)
            if labels is not None and positive.any():
                own = _or_last(labels[scene][row[positive]], names)
                total[2] = total[2] + share * F.cross_entropy(names[positive], own)
            total[3] = total[3] + share * _ranking_loss(scores[scene], boxes, wanted[scene])
        return total

    def explain(
        self, stages: Sequence[SparseVoxels], text: Tensor, padding: Tensor
    ) -> tuple[Mining, Tensor]:
        """As ``forward`` for a single scene, and the answer's attention [T] to each word."""
        attention, caught = self.decoder[-1].objects_words.attention, []
        hook = attention.register_forward_pre_hook(lambda _, given: caught.append(given))
        try:
            raw = self(stages, text, padding)
        finally:
            hook.remove()
        query, key, _, parts = caught[0]
        words = key[parts.known]
        if not len(query):
            return raw, words.new_full((len(words),), 1 / len(words))
        best = raw.stages[-1].scores.argmax()
        return raw, attention.weights(query[best : best + 1], words)[0]

    def remaining(self, raw: Mining) -> list[SparseVoxels]:
        """The seeds, the described keypoints, and the objects of the last stage."""
        voxels = raw.voxels
        chosen = (raw.stages[0], raw.stages[-1])
        return [voxels, *(voxels.prune(_stands_on(voxels, one.points)) for one in chosen)]

    def predict(self, raw: Mining) -> list[Detections]:
        """The object of each scene that is most likely meant, among those of the last stage."""
        last, found = raw.stages[-1], []
        for boxes, scores in zip(last.boxes.split(last.counts), last.scores.split(last.counts)):
            best = scores.argmax().reshape(1) if len(scores) else scores.new_zeros(0).long()
            box = torch.cat([boxes[best], boxes.new_zeros(len(best), 1)], 1)
            found.append(Detections(Boxes(box), scores[best].sigmoid(), torch.zeros_like(best)))
        return found


def _stands_on(voxels: SparseVoxels, points: Tensor) -> Tensor:
    """Mask [N] of the voxels of one scene whose centres are among ``points`` [M, 3]."""
    return (voxels.centers()[:, None] == points[None]).all(2).any(1)


def _scenes(objects: Objects) -> Tensor:
    """[N] scene of each row."""
    counts = torch.tensor(objects.counts, device=objects.points.device)
    return torch.arange(len(counts), device=counts.device).repeat_interleave(counts)


def _or_last(labels: Tensor, logits: Tensor) -> Tensor:
    """Labels with the last class for -1."""
    return torch.where(labels >= 0, labels, logits.shape[1] - 1)


def _nearest_loss(logits: Tensor, points: Objects, truth: list[Tensor], count: int) -> Tensor:
    """Focal loss where the ``count`` points nearest to each box's centre are positive."""
    total = logits.sum() * 0.0
    parts = zip(logits.split(points.counts), points.points.split(points.counts), truth)
    for own, places, boxes in parts:
        if not len(own) or not len(boxes):
            continue
        distance = torch.cdist(boxes[:, :3], places)
        near = distance.topk(min(count, len(places)), 1, largest=False).indices
        positive = torch.zeros(len(own), dtype=torch.bool, device=own.device)
        positive[near.flatten()] = True
        total = total + focal_loss(own, positive) / positive.sum() / len(truth)
    return total


def _ranking_loss(scores: Tensor, boxes: Tensor, truth: Tensor) -> Tensor:
    """Cross entropy over the objects; the four that overlap the target most (IoU > .25) share it.

    Where none does, the nearest one has it.
    """
    iou = _overlaps(boxes.detach(), truth[0])
    near = (boxes.detach()[:, :3] - truth[0, :3]).norm(dim=1)
    best = iou.topk(min(4, len(iou))).indices
    best = best[iou[best] > 0.25]
    best = best if len(best) else near.argmin().reshape(1)
    return -scores.log_softmax(0)[best].mean()


def _overlaps(boxes: Tensor, box: Tensor) -> Tensor:
    """IoU [N] of boxes [N, 6] with one [6], parallel to the axes."""
    low = torch.maximum(boxes[:, :3] - boxes[:, 3:] / 2, box[:3] - box[3:] / 2)
    high = torch.minimum(boxes[:, :3] + boxes[:, 3:] / 2, box[:3] + box[3:] / 2)
    inner = (high - low).clamp(min=0).prod(1)
    return inner / (boxes[:, 3:].prod(1) + box[3:].prod() - inner).clamp(min=1e-9)
