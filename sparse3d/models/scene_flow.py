"""Scene flow between two clouds by transport of features: FLOT, and SCTN that grew out of it."""

from typing import Any

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn
from torch.nn import functional as F

from sparse3d.ops.interpolate import inverse_distance, weighted_rows
from sparse3d.ops.transport import RADIUS, transport_flow
from sparse3d.ops.voxelize import segment_expand, segment_reduce, voxelize
from sparse3d.registry import MODELS
from sparse3d.structures import Batch, SparseVoxels, SweepPair, VoxelGrid
from sparse3d.structures.sweeps import Flow

from .flow_losses import component_error, consistency
from .point_transformer import PointTransformer
from .preprocessor import BatchPreprocessor
from .set_conv import NeighborGraph, SetConv
from .votes import DisplacementVotes

LARGEST = 1e4
"""Metres. What lies farther out is no point of a scene: a wrong unit, or a broken file."""


class TransportFlow(BaseModel):
    """What FLOT and SCTN share: transport of features, refinement of the flow, modes and losses.

    Ego motion is part of the flow that is learnt and found: nothing is subtracted.

    Args:
        neighbors: of the graph that refinement runs on.
        iterations: of Sinkhorn.
        least_eps: what is added to the learnt weight of the entropy.
        channels: widths of the three refining set convolutions.
        radius: metres; farther apart nothing corresponds.
        transport_weight: of the transported flow's own error in the loss, before refinement.
        groups: config of a RigidFlow that has the last word in prediction (``RigidFlow.improve``).

    The last two are off as published; they are for sparse LiDAR, where most points stand still.
    """

    published_role = "scene_flow"

    def __init__(
        self,
        neighbors: int,
        iterations: int,
        least_eps: float,
        channels: tuple[int, int, int],
        radius: float = RADIUS,
        transport_weight: float = 0.0,
        groups: dict | None = None,
    ):
        super().__init__(data_preprocessor=BatchPreprocessor())
        self.radius = radius
        self.transport_weight = transport_weight
        self.groups = None if groups is None else MODELS.build(groups)
        self.neighbors = neighbors
        self.iterations = iterations
        self.least_eps = least_eps
        self.gamma = nn.Parameter(torch.zeros(()))
        self.epsilon = nn.Parameter(torch.zeros(()))
        width = 3
        for number, wider in enumerate(channels, 1):
            setattr(self, f"ref_conv{number}", SetConv(width, wider))
            width = wider
        self.fc = nn.Linear(width, 3)

    def features(self, batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
        """Per pair the features [P, C] of its source's points and [Q, C] of its target's."""
        raise TypeError(f"{type(self).__name__} does not define features")

    def forward(self, batch: Batch, mode: str = "tensor"):
        """Losses (mode 'loss'), Flows ('predict') or flows [P, 3] and features ('tensor')."""
        if mode not in ("loss", "predict", "tensor"):
            raise ValueError(f"mode is {mode!r}; it must be 'loss', 'predict' or 'tensor'")
        if mode == "loss":
            return self.loss(batch)
        if mode == "predict":
            return self.predict(batch)
        return self.flows(batch)

    def flows(self, batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
        """Per pair the flow [P, 3], ego motion included, and the features [P, C] of the source."""
        return self._flows(batch)[:2]

    def _flows(self, batch: Batch) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """As ``flows``, and the flow [P, 3] by transport alone."""
        for pair in batch.samples:
            check_pair(pair)
        own, others = self.features(batch)
        flows, carried = [], []
        for pair, first, second in zip(batch.samples, own, others):
            found, refined = self.carry(pair, first, second)
            carried.append(found)
            flows.append(refined)
        return flows, own, carried

    def carry(self, pair: SweepPair, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Flow [P, 3] by transport of features alone, and refined."""
        flow, _ = self.transport(pair, first, second)
        return flow, flow + self.correction(pair.source[:, :3], flow)

    def transport(self, pair: SweepPair, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Flow [P, 3] by transport of features, and the plan's row sums [P]."""
        units = (unit_rows(first), unit_rows(second))
        points = (pair.source[:, :3], pair.target[:, :3])
        eps = self.epsilon.exp() + self.least_eps
        return transport_flow(units, points, eps, self.gamma.exp(), self.iterations, self.radius)

    def correction(self, points: Tensor, rows: Tensor) -> Tensor:
        """[P, 3] what set convolutions over ``rows`` [P, C], the flow first, would add to it."""
        if not len(points):
            return rows[:, :3]
        graph = NeighborGraph.of(points, self.neighbors)
        hidden = self.ref_conv1(graph, rows)
        return self.fc(self.ref_conv3(graph, self.ref_conv2(graph, hidden)))

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The mean absolute error of the flow's components over valid points.

        Raises:
            ValueError: a pair has no true flow.
        """
        flows, _, carried = self._flows(batch)
        return self.supervised(flows, carried, batch)

    def supervised(
        self, flows: list[Tensor], carried: list[Tensor], batch: Batch
    ) -> dict[str, Tensor]:
        """Losses of the flows and, where that counts, of the flows by transport alone."""
        losses = {"loss_flow": supervised(flows, batch.samples)}
        if self.transport_weight:
            losses["loss_transport"] = self.transport_weight * supervised(carried, batch.samples)
        return losses

    @torch.no_grad()
    def predict(self, batch: Batch) -> list[Flow]:
        """The flow of each pair; what its pair knows of ego motion only ``groups`` uses."""
        flows, _ = self.flows(batch)
        if self.groups is not None:
            return [self.groups.improve(*both) for both in zip(batch.samples, flows)]
        return [
            Flow(flow, pair.ego_flow, pair, pair.ego_motion)
            for flow, pair in zip(flows, batch.samples)
        ]


@MODELS.register_module()
class FLOT(TransportFlow):
    """FLOT: features of both clouds by set convolutions on xyz.

    Args:
        neighbors: of a point in the graphs.
        iterations: of Sinkhorn (1 in the published weights).
        channels: widths of the three set convolutions.
        options: of TransportFlow.

    Source: https://arxiv.org/abs/2007.11142. Parts are named as in its published state dicts.
    """

    def __init__(
        self,
        neighbors: int = 32,
        iterations: int = 1,
        channels: tuple[int, int, int] = (32, 64, 128),
        **options: Any,
    ):
        super().__init__(neighbors, iterations, 0.03, channels, **options)
        width = 3
        for number, wider in enumerate(channels, 1):
            setattr(self, f"feat_conv{number}", SetConv(width, wider))
            width = wider

    def features(self, batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
        pairs = batch.samples
        return (
            [self.describe(pair.source[:, :3]) for pair in pairs],
            [self.describe(pair.target[:, :3]) for pair in pairs],
        )

    def describe(self, points: Tensor) -> Tensor:
        """Features [P, C] of a cloud [P, 3]."""
        graph = NeighborGraph.of(points, self.neighbors)
        hidden = self.feat_conv1(graph, points)
        return self.feat_conv3(graph, self.feat_conv2(graph, hidden))


@MODELS.register_module()
class SCTN(TransportFlow):
    """SCTN: features by a sparse U-Net, carried to the points, and attention among them.

    Args:
        backbone: config of the U-Net over voxels; its in_channels follow from ``absolute``.
        voxel_size: edge of a voxel, metres.
        neighbors: of the refinement's graph.
        voxel_neighbors: voxels that a point takes its feature from; None: ``neighbors``.
        iterations: of Sinkhorn.
        channels: widths of the refining set convolutions.
        consistency_weight: of the consistency loss.
        consistency_epoch: from which on that loss counts. The published training needs 60 epochs
            to reach it; the published script's default stops before.
        absolute: whether a voxel's features are the position of its first point, as published;
            else its points' mean position within it, their mean height, and 1.
        votes: options of DisplacementVotes, which then take the place of attention among all points
            and of transport; refinement sees, beside the flow, their evidence and the features.
            ``iterations`` and ``radius`` mean nothing then. None, as published: attention and
            transport.
        options: of TransportFlow.

    Source: https://arxiv.org/abs/2105.04447.
    """

    def __init__(
        self,
        backbone: dict,
        voxel_size: float = 0.07,
        neighbors: int = 32,
        iterations: int = 1,
        channels: tuple[int, int, int] = (32, 64, 128),
        consistency_weight: float = 0.3,
        consistency_epoch: int = 40,
        voxel_neighbors: int | None = None,
        absolute: bool = True,
        votes: dict | None = None,
        **options: Any,
    ):
        super().__init__(neighbors, iterations, 0.025, channels, **options)
        nn.init.constant_(self.epsilon, -5.0)
        self.grid = VoxelGrid((float(voxel_size),) * 3, (0.0,) * 3)
        self.absolute = absolute
        self.backbone = MODELS.build({**backbone, "in_channels": 3 if absolute else 5})
        width = self.backbone.out_channels
        self.attention = PointTransformer(width) if votes is None else None
        self.votes = None if votes is None else DisplacementVotes(width, **votes)
        if self.votes is not None:
            self.gamma = self.epsilon = None  # of the transport that votes take the place of
            nn.init.zeros_(self.fc.weight)
            nn.init.zeros_(self.fc.bias)
            self.ref_conv1 = SetConv(3 + self.votes.evidence + width, channels[0])
        self.voxel_neighbors = voxel_neighbors or neighbors
        self.consistency_weight = consistency_weight
        self.consistency_epoch = consistency_epoch
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Tell the model which epoch is trained: the losses depend on it."""
        self.epoch = epoch

    def features(self, batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
        return tuple(
            self.describe([getattr(pair, name)[:, :3] for pair in batch.samples])
            for name in ("source", "target")
        )

    def describe(self, clouds: list[Tensor]) -> list[Tensor]:
        """Features [P, C] of each cloud [P, 3] of a batch."""
        points, counts = torch.cat(clouds), [len(cloud) for cloud in clouds]
        sample = torch.repeat_interleave(torch.tensor(counts)).to(points.device)
        local = self.interpolate(
            self.backbone(self.voxelize(points, sample, len(clouds))), points, sample
        )
        if self.attention is not None:
            local = local + self.attention(points, local, counts)
        return list(local.split(counts))

    def carry(self, pair: SweepPair, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        if self.votes is None:
            return super().carry(pair, first, second)
        points = pair.source[:, :3]
        flow, evidence = self.votes((points, pair.target[:, :3]), (first, second))
        return flow, flow + self.correction(points, torch.cat([flow, evidence, first], 1))

    def voxelize(self, points: Tensor, sample: Tensor, samples: int) -> SparseVoxels:
        """Voxels with the position of the first of their points, as published, or with means."""
        size, origin = self.grid.voxel_size, self.grid.origin
        coords, index = voxelize(points, sample, size, origin, None)
        if not self.absolute:
            edge = points.new_tensor(size)
            within = points / edge - segment_expand(coords[:, 1:] + 0.5, index)
            rows = torch.cat([within, points[:, 2:], torch.ones_like(points[:, :1])], 1)
            means = segment_reduce(rows, index, len(coords), "mean")
            return SparseVoxels(means, coords, self.grid, samples)
        rows = torch.arange(len(points), device=points.device)
        first = torch.zeros(len(coords), dtype=torch.int64, device=points.device)
        first = first.scatter_reduce(0, index, rows, "amin", include_self=False)
        return SparseVoxels(points[first], coords, self.grid, samples)

    def interpolate(self, voxels: SparseVoxels, points: Tensor, sample: Tensor) -> Tensor:
        """Features [P, C] at points from those of the nearest voxels, each of norm one.

        A voxel lies where its lower corner is, as published.
        """
        corners = voxels.coords[:, 1:].to(points.dtype) * points.new_tensor(self.grid.voxel_size)
        index, weights = inverse_distance(
            points, corners, self.voxel_neighbors, sample, voxels.batch_index
        )
        return weighted_rows(F.normalize(voxels.features, dim=1), index, weights)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """As FLOT's, and from ``consistency_epoch`` on the consistency of the flow.

        Raises:
            ValueError: a pair has no true flow.
        """
        flows, features, carried = self._flows(batch)
        losses = self.supervised(flows, carried, batch)
        if self.epoch >= self.consistency_epoch:
            weight = self.consistency_weight
            losses["loss_consistency"] = weight * self.consistency(flows, features, batch)
        return losses

    def consistency(self, flows: list[Tensor], features: list[Tensor], batch: Batch) -> Tensor:
        """The mean consistency loss over valid points."""
        parts = [
            consistency(pair.source[:, :3], feature, flow, self.neighbors)[counted(pair)]
            for flow, feature, pair in zip(flows, features, batch.samples)
        ]
        together = torch.cat(parts)
        return together.sum() / max(len(together), 1)


def supervised(flows: list[Tensor], pairs: list[SweepPair]) -> Tensor:
    """Mean absolute component error over the valid points of all pairs."""
    for pair in pairs:
        if pair.flow is None:
            raise ValueError(f"pair {pair.sample_id!r} has no true flow to learn from")
    masks = torch.cat([counted(pair) for pair in pairs])
    return component_error(torch.cat(flows), torch.cat([pair.flow for pair in pairs]), masks)


def counted(pair: SweepPair) -> Tensor:
    """[P] bool: points whose true flow is known."""
    if pair.valid is None:
        return torch.ones(len(pair.source), dtype=torch.bool, device=pair.source.device)
    return pair.valid.bool()


def unit_rows(rows: Tensor) -> Tensor:
    """``rows`` over their norm, which is kept from 0 as FLOT does."""
    return rows / (rows.square().sum(1, keepdim=True) + 1e-8).sqrt()


def check_pair(pair: SweepPair) -> None:
    """Refuses points that would spoil a whole batch.

    Raises:
        ValueError: a coordinate that is not finite, or farther out than a scene is.
    """
    for name in ("source", "target"):
        points = getattr(pair, name)[:, :3]
        bad = ~(points.abs() < LARGEST).all(1)
        if bad.any():
            row = int(bad.nonzero()[0])
            raise ValueError(
                f"{int(bad.sum())} points of the {name} of pair {pair.sample_id!r} are not finite "
                f"or beyond {LARGEST:g} m, first row {row}: {points[row].tolist()}; remove them, "
                "or divide by 1000 if the file is in millimetres"
            )
