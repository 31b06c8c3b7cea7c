"""LPIPS with VGG16, in plain torch; its weights are not delivered."""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

STAGES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
"""Numbers of VGG16's convolutions in ``features``; a pooling stands between two stages."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Lpips:
    """Distance of two pictures as a network sees them, 0 for equal ones.

    Args:
        weights: a state dict with torchvision's ``features.N.weight`` and ``.bias`` of VGG16 and
            the ``linK.model.1.weight`` (K from 0 to 4) of the lpips package's VGG variant.

    Source: Zhang et al., The Unreasonable Effectiveness of Deep Features, 2018.

    Raises:
        ValueError: the file lacks a tensor.
    """

    def __init__(self, weights: str | Path):
        state = torch.load(weights, map_location="cpu", weights_only=True)
        wanted = [f"features.{n}.{p}" for s in STAGES for n in s for p in ("weight", "bias")]
        wanted += [f"lin{k}.model.1.weight" for k in range(len(STAGES))]
        missing = [name for name in wanted if name not in state]
        if missing:
            raise ValueError(
                f"{weights} lacks {len(missing)} tensors of LPIPS, the first is {missing[0]}: put "
                "VGG16's features and the lpips package's lin layers into one state dict"
            )
        self.state = {name: state[name].float() for name in wanted}

    @torch.no_grad()
    def __call__(self, a: Tensor, b: Tensor) -> float:
        """Distance of [H, W, 3] pictures in 0..1."""
        total = 0.0
        for k, (x, y) in enumerate(zip(self._features(a), self._features(b))):
            weight = self.state[f"lin{k}.model.1.weight"].reshape(1, -1, 1, 1)
            total += float(((x - y) ** 2 * weight).sum(1).mean())
        return total

    def _features(self, image: Tensor) -> list[Tensor]:
        x = (image - image.new_tensor(MEAN)) / image.new_tensor(STD)
        x, found = x.permute(2, 0, 1)[None].float(), []
        for stage, numbers in enumerate(STAGES):
            x = F.max_pool2d(x, 2) if stage else x
            for n in numbers:
                kernel, bias = (self.state[f"features.{n}.{p}"] for p in ("weight", "bias"))
                x = F.conv2d(x, kernel, bias, padding=1).relu()
            found.append(x / (x.norm(dim=1, keepdim=True) + 1e-10))
        return found
