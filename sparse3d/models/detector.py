"""VoxelDetector: boxes from a point cloud."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod

import torch
from mmengine.model import BaseModel
from torch import Tensor

from sparse3d.registry import MODELS
from sparse3d.structures import Batch, Detections, Sample, SparseVoxels, VoxelGrid

from .backbones.bev import to_bev
from .preprocessor import BatchPreprocessor

LARGEST = 1e15
"""Least magnitude of a point's value that is refused: its square nears the end of float32."""


@MODELS.register_module()
class VoxelDetector(BaseModel):
    """Points to voxels, a 3-D backbone, a bird's-eye map (or none) and a head.

    Grid, channels, strides and map sizes follow from the range, the voxel size and the parts; a
    config gives none of them twice.

    Args:
        point_range: (x0, y0, z0, x1, y1, z1) in metres.
        voxel_size: (x, y, z) in metres.
        class_names: label i is class_names[i].
        encoder: config of the points' encoder.
        backbone: config of the 3-D backbone.
        head: config of the head.
        bev_backbone: config of the 2-D network; None: the head takes sparse voxels.
        point_channels: columns of a point, x, y, z included.

    Raises:
        ValueError: the range is no whole number of voxels, or the map does not fit the 2-D network.
    """

    def __init__(
        self,
        point_range: Sequence[float],
        voxel_size: Sequence[float],
        class_names: Sequence[str],
        encoder: Mapping,
        backbone: Mapping,
        head: Mapping,
        bev_backbone: Mapping | None = None,
        point_channels: int = 4,
    ):
        super().__init__(data_preprocessor=BatchPreprocessor())
        self.class_names = tuple(class_names)
        self.point_channels = point_channels
        grid = VoxelGrid.from_range(point_range, voxel_size)

        self.encoder = MODELS.build({**encoder, "grid": grid, "point_channels": point_channels})
        channels = self.encoder.out_channels
        self.backbone = MODELS.build({**backbone, "grid": grid, "in_channels": channels})
        channels, stride = self.backbone.out_channels, _map_stride(self.backbone.out_stride)

        self.bev_backbone = None
        columns, rows, *depth = self.backbone.out_shape
        if bev_backbone is not None:
            channels = channels * prod(depth)
            self.bev_backbone = MODELS.build({**bev_backbone, "in_channels": channels})
            self.bev_backbone.out_shape((columns, rows))  # refuses a map that does not fit
            channels = self.bev_backbone.out_channels
            stride = stride * self.bev_backbone.out_stride
        elif depth:
            raise ValueError(
                f"the {type(self.backbone).__name__} ends in 3-D voxels and there is no "
                "bev_backbone to make a map of them: name one, or take a backbone that ends in a "
                "sparse map"
            )

        derived = {"in_channels": channels, "grid": grid, "stride": stride}
        self.head = MODELS.build({**head, **derived, "class_names": self.class_names})

    def forward(self, batch: Batch, mode: str = "tensor"):
        """Losses (mode 'loss'), detections ('predict') or the head's raw output ('tensor')."""
        if mode == "loss":
            return self.loss(batch)
        if mode == "predict":
            return self.predict(batch)
        if mode == "tensor":
            return self.raw(batch)
        raise ValueError(f"mode is {mode!r}; it must be 'loss', 'predict' or 'tensor'")

    def raw(self, batch: Batch):
        """The head's raw output."""
        return self._output(self._voxels(batch))

    def _voxels(self, batch: Batch) -> SparseVoxels:
        return self.encoder(self._points(batch), batch.batch_index, len(batch))

    def _output(self, voxels: SparseVoxels):
        features = self.backbone(voxels)[-1]
        if self.bev_backbone is not None:
            features = self.bev_backbone(to_bev(features))
        return self.head(features)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Weighted losses by name; their sum is what is minimised.

        Raises:
            ValueError: a sample has no boxes to learn from (empty ones are fine), or boxes or
                labels that cannot be learnt.
            FloatingPointError: a loss is not finite.
        """
        for sample in batch.samples:
            _check_truth(sample, self.class_names)
        losses = self.head.loss(self.raw(batch), batch.boxes, batch.labels)
        _refuse_bad_losses(losses, batch)
        return losses

    @torch.no_grad()
    def predict(self, batch: Batch) -> list[Detections]:
        """Detections of each sample, by falling score, with the sample attached.

        A sample without a point in range has none, whatever a dense map says where nothing was
        measured.

        Raises:
            ValueError: a sample's labels mean other classes: every box would bear a wrong name.
        """
        for sample in batch.samples:
            theirs = sample.meta.get("class_names")
            if theirs and [n.lower() for n in theirs] != [n.lower() for n in self.class_names]:
                raise ValueError(
                    f"sample {sample.sample_id!r} is of data of the classes {list(theirs)}, but "
                    f"the model's are {list(self.class_names)}: give model and data the same "
                    "class_names in the same order"
                )
        voxels = self._voxels(batch)
        found = self.head.predict(self._output(voxels))
        seen = torch.bincount(voxels.batch_index, minlength=len(batch)).tolist()
        return [
            replace(one if count else one[:0], sample=sample)
            for one, count, sample in zip(found, seen, batch.samples)
        ]

    def _points(self, batch: Batch) -> Tensor:
        """[sum P, point_channels] float32.

        Raises:
            ValueError: no sample, too few columns, or values that would spoil the batch norms.
        """
        if not batch.samples:
            raise ValueError("the batch has no samples; one at least is needed")
        for sample in batch.samples:
            if sample.points.shape[1] < self.point_channels:
                raise ValueError(
                    f"the points of sample {sample.sample_id!r} have {sample.points.shape[1]} "
                    f"columns; the model takes {self.point_channels}: load more columns or set "
                    "point_channels"
                )
            good = (sample.points[:, : self.point_channels].abs() < LARGEST).all(1)
            if not good.all():
                row = int((~good).nonzero()[0])
                raise ValueError(
                    f"{int((~good).sum())} points of sample {sample.sample_id!r} are not finite or "
                    f"beyond {LARGEST:g}, first row {row}: {sample.points[row].tolist()}; remove "
                    "them, e.g. points[points.isfinite().all(1)], or read the file anew"
                )
        width = self.point_channels
        return torch.cat([sample.points[:, :width].float() for sample in batch.samples])


def _map_stride(stride: Sequence[int]) -> int:
    if stride[0] != stride[1]:
        raise ValueError(
            f"the backbone's stride is {stride[0]} along x but {stride[1]} along y; a bird's-eye "
            "head needs the same: change the backbone's strides"
        )
    return stride[0]


def _check_truth(sample: Sample, class_names: Sequence[str]) -> None:
    """Refuses boxes and labels from which nothing, or the wrong thing, would be learnt."""
    name, boxes, labels = sample.sample_id, sample.boxes, sample.labels
    if boxes is None or labels is None:
        raise ValueError(
            f"sample {name!r} has no boxes or labels to learn from; a scene without objects has "
            "Boxes.empty() and an empty label tensor"
        )
    theirs = sample.meta.get("class_names", class_names)
    if list(theirs) != list(class_names) or bool((labels >= len(class_names)).any()):
        raise ValueError(
            f"sample {name!r} has labels {sorted(set(labels.tolist()))} of the classes "
            f"{list(theirs)}, but the model's are {list(class_names)}: give model and data the "
            "same class_names in the same order"
        )
    bad = ~((boxes.sizes > 0).all(1) & boxes.tensor.isfinite().all(1))
    if bad.any():
        row = int(bad.nonzero()[0])
        raise ValueError(
            f"{int(bad.sum())} boxes of sample {name!r} have a size that is not positive or a "
            f"number that is not finite, first box {row}: {boxes.tensor[row].tolist()}; drop them "
            "(sparse3d.datasets.base.drop_bad_boxes)"
        )


def _refuse_bad_losses(losses: dict[str, Tensor], batch: Batch) -> None:
    values = torch.stack([value.detach().float().sum() for value in losses.values()])
    if torch.isfinite(values).all():
        return
    bad = {name: float(value) for name, value in zip(losses, values) if not torch.isfinite(value)}
    samples = [sample.sample_id for sample in batch.samples]
    raise FloatingPointError(
        f"losses {bad} are not finite for samples {samples}: look at their boxes and points, lower "
        "the learning rate, or train without half precision"
    )
