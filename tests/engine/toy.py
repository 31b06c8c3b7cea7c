"""A model, a data set and a metric small enough to train in a second, by way of the registries."""

import time

import torch
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from torch import nn
from torch.utils.data import Dataset

from sparse3d.models.preprocessor import BatchPreprocessor
from sparse3d.registry import DATASETS, METRICS, MODELS
from sparse3d.structures import Boxes, Detections, Sample


@MODELS.register_module()
class ToyModel(BaseModel):
    """Fits the mean of the points; draws noise, so that generator states matter."""

    def __init__(self, poison: str | None = None, pause: float = 0.0):
        super().__init__(data_preprocessor=BatchPreprocessor())
        self.layers = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
        self.poison = poison
        self.pause = pause
        self.dtypes = set()

    def forward(self, batch, mode="loss"):
        means = torch.stack([sample.points.mean(0) for sample in batch.samples])
        out = self.layers(means)
        if mode == "predict":
            self.predicted = out.dtype
            return [
                Detections(
                    Boxes(torch.cat([row, row.new_tensor([2.0, 1, 1, 0])])[None].float()),
                    torch.ones(1),
                    torch.zeros(1, dtype=torch.int64),
                    sample,
                )
                for row, sample in zip(out, batch.samples)
            ]
        time.sleep(self.pause)
        self.dtypes.add(out.dtype)
        loss = (out + 0.1 * torch.randn_like(out) - means).pow(2).mean()
        if self.poison == "loss" and any(s.sample_id == "5" for s in batch.samples):
            loss = loss * float("nan")
        if self.poison == "gradient" and any(s.sample_id == "5" for s in batch.samples):
            loss = loss + (out * 0).abs().sum().sqrt()  # the root's slope at zero is infinite
        return {"loss_fit": loss}


@DATASETS.register_module()
class ToyDataset(Dataset):
    """Clouds drawn from (epoch, index)."""

    def __init__(self, size: int = 12):
        self.size = size
        self.epoch = torch.zeros(1, dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        self.epoch.fill_(epoch)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Sample:
        generator = torch.Generator().manual_seed(1000 * int(self.epoch) + index)
        points = torch.randn(20, 3, generator=generator) + index
        boxes = Boxes(torch.tensor([[float(index), 0, 0, 4, 2, 1.5, 0.3]]))
        return Sample(
            points, boxes, torch.zeros(1, dtype=torch.int64), meta={"sample_id": str(index)}
        )


@METRICS.register_module()
class ToyMetric(BaseMetric):
    """Counts samples, and a score."""

    def process(self, data_batch, data_samples):
        self.results += [
            (d.sample.sample_id, float(d.boxes.tensor[:, :3].abs().sum())) for d in data_samples
        ]

    def compute_metrics(self, results):
        return {
            "mAP": 1 / (1 + sum(score for _, score in results)),
            "samples": len(results),
            "different": len({name for name, _ in results}),
        }
