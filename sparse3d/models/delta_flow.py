"""Scene flow from differences of voxel features between sweeps, through one sparse U-Net."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn

from sparse3d.ops.ground import ground_mask
from sparse3d.ops.registration import register
from sparse3d.ops.voxelize import segment_expand, segment_reduce, voxelize
from sparse3d.registry import MODELS
from sparse3d.structures import Batch, Flow, SparseVoxels, SweepPair, VoxelGrid
from sparse3d.structures.sweeps import ego_flow, transform

from .flow_losses import balanced_error, self_supervised
from .norms import RowBatchNorm
from .preprocessor import BatchPreprocessor
from .scene_flow import check_pair, counted

LOSSES = ("balanced", "self_supervised")


@dataclass
class _Points:
    """The points of all sweeps of a batch that the network looks at, in the targets' frames.

    Attributes:
        xyz: [P, 3].
        frame: [P] int64, 0 the target, 1 the source, 2 and on: older ones.
        sample: [P] int64.
        source_rows: per sample the rows of the source that are here, in this order.
    """

    xyz: Tensor
    frame: Tensor
    sample: Tensor
    source_rows: list[Tensor]


@MODELS.register_module()
class DeltaFlow(BaseModel):
    """Decayed differences of voxel features over 2 to 5 sweeps, a sparse U-Net, a head on points.

    Everything happens in the target's frame with the ego motion taken out: what is learnt is the
    residual flow. Without a known ego motion it is found by registration, without a known ground
    that is found too. Points on the ground or out of range have the flow of the ego motion.

    Args:
        backbone: config of the U-Net; its in_channels is ``channels``.
        voxel_size: edge of a voxel, metres.
        point_range: (x0, y0, z0, x1, y1, z1) metres in the target's frame that is looked at; None:
            everything.
        channels: of a voxel.
        decay: weight of each older difference against the next younger one.
        absolute: whether a point's own coordinates are among its features. Published: yes; without
            them a model does not mind where the sensor's origin lies.
        hidden: width of the head.
        still: m/s; a slower residual flow is set to zero in prediction. 0: nothing is.
        loss: 'balanced' (needs the true flow) or 'self_supervised' (needs none).
        cycle_weight: of the cycle term of the self-supervised loss; 0 saves the way back.
        refine: config of a RigidFlow: in prediction groups that stand apart move as one, to where
            they fit the next sweep best; what the network found is one of the motions tried. None:
            the network's flow is the result.

    Source: https://arxiv.org/abs/2508.17054.
    """

    def __init__(
        self,
        backbone: dict,
        voxel_size: Sequence[float] = (0.15, 0.15, 0.15),
        point_range: Sequence[float] | None = None,
        channels: int = 16,
        decay: float = 0.4,
        absolute: bool = True,
        hidden: int = 32,
        still: float = 0.0,
        loss: str = "balanced",
        cycle_weight: float = 0.0,
        refine: dict | None = None,
    ):
        super().__init__(data_preprocessor=BatchPreprocessor())
        if loss not in LOSSES:
            raise ValueError(f"loss is {loss!r}; it must be one of {', '.join(LOSSES)}")
        if point_range is not None and len(point_range) != 6:
            raise ValueError(f"point_range is {list(point_range)}; six numbers are needed")
        self.grid = VoxelGrid(tuple(map(float, voxel_size)), (0.0,) * 3)
        self.point_range = None if point_range is None else tuple(map(float, point_range))
        self.decay = decay
        self.absolute = absolute
        self.still = still
        self.loss_kind = loss
        self.cycle_weight = cycle_weight
        self.refine = None if refine is None else MODELS.build(refine)
        self.encoder = nn.Linear(9 if absolute else 6, channels, bias=False)
        self.encoder_norm = RowBatchNorm(channels, eps=1e-3, momentum=0.01)
        self.backbone = MODELS.build({**backbone, "in_channels": channels})
        self.head = nn.Sequential(
            nn.Linear(self.backbone.out_channels + channels, hidden),
            RowBatchNorm(hidden),
            nn.ReLU(),
            nn.Linear(hidden, 3),
        )

    def forward(self, batch: Batch, mode: str = "tensor"):
        """Losses (mode 'loss'), Flows ('predict') or residual flows of all points ('tensor')."""
        if mode not in ("loss", "predict", "tensor"):
            raise ValueError(f"mode is {mode!r}; it must be 'loss', 'predict' or 'tensor'")
        if mode == "loss":
            return self.loss(batch)
        if mode == "predict":
            return self.predict(batch)
        pairs = [complete(pair) for pair in batch.samples]
        return self.residuals(self.gather(pairs))

    # ------------------------------------------------------------------ the network

    def gather(self, pairs: list[SweepPair]) -> _Points:
        """What of each pair the network looks at, in the target's frame."""
        parts, sources = [], []
        for sample, pair in enumerate(pairs):
            moved = transform(pair.source[:, :3], pair.ego_motion).to(pair.source.dtype)
            older = [
                transform(points[:, :3], motion).to(points.dtype)[~ground_mask(points)]
                for points, motion in pair.history
            ]
            kept = self.looked_at(moved) & ~pair.source_ground
            frames = [pair.target[:, :3][~pair.target_ground], moved[kept], *older]
            sources.append(kept.nonzero()[:, 0])
            for frame, xyz in enumerate(frames):
                xyz = xyz[self.looked_at(xyz)] if frame != 1 else xyz
                number = torch.full((len(xyz),), frame, device=xyz.device)
                parts.append((xyz, number, torch.full_like(number, sample)))
        return _Points(*(torch.cat(columns) for columns in zip(*parts)), sources)

    def looked_at(self, xyz: Tensor) -> Tensor:
        """[P] bool: ``xyz`` [P, 3] in range."""
        if self.point_range is None:
            return torch.ones(len(xyz), dtype=torch.bool, device=xyz.device)
        low, high = xyz.new_tensor(self.point_range).split(3)
        return ((xyz >= low) & (xyz < high)).all(1)

    def residuals(self, points: _Points) -> Tensor:
        """[S, 3] residual flow of the source points in ``points``, in their order."""
        coords, index = voxelize(
            points.xyz, points.sample, self.grid.voxel_size, self.grid.origin, None
        )
        features = self.describe(points, coords, index)
        delta = self.differences(features, points.frame, index, len(coords))
        samples = len(points.source_rows)
        fused = self.backbone(SparseVoxels(delta, coords, self.grid, samples))
        source = (points.frame == 1).nonzero()[:, 0]
        around = segment_expand(fused.features, index.index_select(0, source))
        return self.head(torch.cat([around, features.index_select(0, source)], 1))

    def describe(self, points: _Points, coords: Tensor, index: Tensor) -> Tensor:
        """[P, channels] features of points: from their sweep's mean in the voxel and its centre."""
        frames = int(points.frame.max()) + 1 if len(points.frame) else 1
        own = index * frames + points.frame
        mean = segment_reduce(points.xyz, own, len(coords) * frames, "mean")
        size = points.xyz.new_tensor(self.grid.voxel_size)
        centre = (coords[:, 1:] + 0.5) * size
        rows = [points.xyz - segment_expand(mean, own), points.xyz - centre[index]]
        if self.absolute:
            rows.insert(0, points.xyz)
        return self.encoder_norm(self.encoder(torch.cat(rows, 1)), relu=True)

    def differences(self, features: Tensor, frame: Tensor, index: Tensor, voxels: int) -> Tensor:
        """[N, channels]: sum over i of decay^i (target - sweep i) over the number of sweeps i.

        A sweep without points in a voxel counts as zero there.
        """
        others = max(int(frame.max()) if len(frame) else 1, 1)
        scale = (1 - self.decay**others) / (1 - self.decay) if self.decay != 1 else others
        total = scale * _mean_of(features, index, frame == 0, voxels)
        for number in range(1, others + 1):
            older = _mean_of(features, index, frame == number, voxels)
            total = total - self.decay ** (number - 1) * older
        return total / others

    # ------------------------------------------------------------------ learning, predicting

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The loss that the model was made for.

        Raises:
            ValueError: a pair has no true flow, and the loss needs it.
        """
        pairs = [complete(pair) for pair in batch.samples]
        points = self.gather(pairs)
        residual = self.residuals(points)
        if self.loss_kind == "balanced":
            return {"loss_flow": self.supervised(pairs, points, residual)}
        back = self.residuals(_reversed(points)) if self.cycle_weight else None
        return self_supervised(points, residual, back, self.cycle_weight)

    def supervised(self, pairs: list[SweepPair], points: _Points, residual: Tensor) -> Tensor:
        """Mean over the pairs of the error that counts slow, medium and fast points alike."""
        total, start = residual.new_zeros(()), 0
        for pair, rows in zip(pairs, points.source_rows):
            if pair.flow is None:
                raise ValueError(
                    f"pair {pair.sample_id!r} has no true flow to learn from; loss="
                    "'self_supervised' needs none"
                )
            truth = (pair.flow - pair.ego_flow)[rows]
            found = residual[start : start + len(rows)]
            total = total + balanced_error(found, truth, counted(pair)[rows], pair.interval)
            start += len(rows)
        return total / len(pairs)

    @torch.no_grad()
    def predict(self, batch: Batch) -> list[Flow]:
        """The flow of each pair, ego motion included, and the ego motion that was used."""
        pairs = [complete(pair) for pair in batch.samples]
        points = self.gather(pairs)
        parts = self.residuals(points).split([len(rows) for rows in points.source_rows])
        flows = []
        for sample, (pair, rows, residual) in enumerate(zip(pairs, points.source_rows, parts)):
            if self.refine is not None:
                residual = self.refined(points, sample, residual, pair.interval)
            moving = residual.norm(dim=1) >= self.still * pair.interval
            ego = ego_flow(pair.source[:, :3], pair.ego_motion)
            flow = ego.clone()
            flow[rows] += torch.where(moving[:, None], residual, 0.0)
            seen = torch.zeros(len(flow), dtype=torch.bool, device=flow.device)
            seen[rows] = True
            flows.append(Flow(flow, ego, batch.samples[sample], pair.ego_motion, seen))
        return flows

    def refined(self, points: _Points, sample: int, residual: Tensor, interval: float) -> Tensor:
        """[S, 3] residual flow of one sample's source points by the groups they form."""
        own = points.sample == sample
        source, target = (points.xyz[own & (points.frame == frame)] for frame in (1, 0))
        return self.refine.residual(source, target, interval, residual)


def complete(pair: SweepPair) -> SweepPair:
    """The pair with ego motion and ground, found where they are not known.

    Raises:
        ValueError: points that are none, or too few to find the ego motion from.
    """
    check_pair(pair)
    motion = pair.ego_motion
    if motion is None:
        both = len(pair.source) and len(pair.target)
        motion = register(pair.source, pair.target) if both else torch.eye(4).double()
    ground = [
        ground_mask(getattr(pair, name)) if known is None else known.bool()
        for name, known in (("source", pair.source_ground), ("target", pair.target_ground))
    ]
    return replace(pair, ego_motion=motion, source_ground=ground[0], target_ground=ground[1])


def _mean_of(features: Tensor, index: Tensor, chosen: Tensor, voxels: int) -> Tensor:
    """[N, C] mean of the ``chosen`` rows of each voxel."""
    rows = chosen.nonzero()[:, 0]
    own = features.index_select(0, rows), index.index_select(0, rows)
    return segment_reduce(*own, voxels, "mean")


def _reversed(points: _Points) -> _Points:
    """Source and target changed about; older sweeps left out."""
    young = points.frame <= 1
    frame = 1 - points.frame[young]
    sample = points.sample[young]
    rows = [
        torch.arange(int(((sample == s) & (frame == 1)).sum()))
        for s in range(len(points.source_rows))
    ]
    return _Points(points.xyz[young], frame, sample, rows)
