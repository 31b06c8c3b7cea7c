"""Learned features, when their weights are given: ALIKE, ALIKED, XFeat, and any dense map."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .features import EXTRACTORS, Features, gray, rgb, sample_map
from .network_layers import DescriptorHead, Encoder, XFeatNet

ALIKE_WIDTHS = {
    "alike-t": (8, 16, 32, 64, 64),
    "alike-n": (16, 32, 64, 128, 128),
    "alike-l": (32, 64, 128, 128, 128),
}
ALIKED_WIDTHS = {
    "aliked-t16": (8, 16, 32, 64, 64),
    "aliked-n16": (16, 32, 64, 128, 128),
    "aliked-n16rot": (16, 32, 64, 128, 128),
}


class NetworkExtractor:
    """What the kinds share; a subclass gives ``detect``."""

    covariant = False
    similarity = 0.7
    ratio = 0.95

    def __init__(self, name: str, channels: int, most: int = 1024):
        self.name = name
        self.channels = channels
        self.most = most

    @torch.no_grad()
    def extract(self, image: np.ndarray) -> Features:
        """Features of a uint8 [H, W] or [H, W, 3] rgb picture."""
        points, scores, describe = self.detect(rgb(image))
        order = scores.argsort(descending=True, stable=True)[: self.most]
        points, scores = points[order], scores[order]
        return Features.upright(points, describe(points), scores)

    def detect(self, image: Tensor) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
        """Points [N, 2], scores [N] and what describes points, of [1, 3, H, W]."""
        raise TypeError(f"{type(self).__name__} does not define detect")


class Alike(NetworkExtractor):
    """ALIKE: a dense map of descriptors with differentiable key points."""

    def __init__(self, weights: str | Path, name: str, most: int = 1024, threshold: float = 0.2):
        super().__init__(name, ALIKE_WIDTHS[name][-1], most)
        self.threshold = threshold
        self.net = Encoder(ALIKE_WIDTHS[name], deformable=False, extra=name == "alike-l")
        load(self.net, weights, name)

    def detect(self, image):
        height, width = image.shape[2:]
        padded = F.pad(image, (0, -width % 32, 0, -height % 32))
        out = self.net(padded)[..., :height, :width]
        scores, dense = torch.sigmoid(out[:, -1:]), F.normalize(out[:, :-1], dim=1)
        points, values = key_points(scores, self.threshold, self.most)
        return points, values, lambda p: sample_map(dense, p, (width, height))


class Aliked(NetworkExtractor):
    """ALIKED: descriptors gathered by deformable sampling around key points."""

    def __init__(self, weights: str | Path, name: str, most: int = 1024, threshold: float = 0.2):
        super().__init__(name, ALIKED_WIDTHS[name][-1], most)
        self.threshold = threshold
        self.net = Encoder(ALIKED_WIDTHS[name], deformable=True)
        self.net.desc_head = DescriptorHead(ALIKED_WIDTHS[name][-1], samples=16)
        load(self.net, weights, name)

    def detect(self, image):
        height, width = image.shape[2:]
        x, y = -width % 32, -height % 32
        left, top = x // 2, y // 2
        padded = F.pad(image, (left, x - left, top, y - top), mode="replicate")
        maps = self.net.levels(padded)[..., top : top + height, left : left + width]
        scores = torch.sigmoid(self.net.score_head(maps))
        dense = F.normalize(maps, dim=1)
        points, values = key_points(scores, self.threshold, self.most)
        return points, values, lambda p: self.net.desc_head(dense, p)


class XFeat(NetworkExtractor):
    """XFeat, its sparse mode."""

    similarity = 0.8

    def __init__(self, weights: str | Path, name: str = "xfeat", most: int = 1024):
        super().__init__(name, 64, most)
        self.net = XFeatNet()
        load(self.net, weights, name, skip=("fine_matcher.",))

    def detect(self, image):
        height, width = image.shape[2:]
        size = (max(height // 32, 1) * 32, max(width // 32, 1) * 32)
        small = F.interpolate(image, size, mode="bilinear", align_corners=False)
        dense, logits, reliability = self.net(small)
        heat = logits.softmax(1)[:, :64]
        heat = F.pixel_shuffle(heat, 8)
        peak = (heat == F.max_pool2d(heat, 5, 1, 2)) & (heat > 0.05)
        y, x = peak[0, 0].nonzero().unbind(1)
        points = torch.stack([x, y], 1).float()
        sure = sample(reliability, points, size, "bilinear")[:, 0]
        scores = heat[0, 0, y, x] * sure
        scale = points.new_tensor([width / size[1], height / size[0]])

        def describe(chosen: Tensor) -> Tensor:
            return F.normalize(sample(dense, chosen / scale, size, "bicubic"), dim=1)

        return points * scale, scores, describe


class DenseMap(NetworkExtractor):
    """Features of any function from a picture to a dense map of descriptors.

    Args:
        dense: takes [1, 3, H, W] in 0..1, gives [1, C, h, w] with corners on the picture's.
        name: of the kind, which the map remembers.
        channels: C.
        detector: gives the points; OpenCV's SIFT detector by default.
    """

    def __init__(self, dense: Callable[[Tensor], Tensor], name: str, channels: int, most=1500):
        super().__init__(name, channels, most)
        self.dense = dense

    def extract(self, image: np.ndarray) -> Features:
        import cv2

        found = cv2.SIFT_create(nfeatures=self.most, contrastThreshold=0.02).detect(gray(image))
        points = torch.tensor([p.pt for p in found]).reshape(-1, 2)
        scores = torch.tensor([p.response for p in found])
        height, width = image.shape[:2]
        with torch.no_grad():
            found = sample_map(self.dense(rgb(image)), points, (width, height))
        return Features.upright(points, found, scores)


def key_points(scores: Tensor, threshold: float, most: int) -> tuple[Tensor, Tensor]:
    """Points [N, 2] finer than a pixel and their scores [N] of a map [1, 1, H, W]."""
    kept = suppress(scores, 2)
    kept[..., :3, :] = kept[..., :, :3] = False
    kept[..., -2:, :] = kept[..., :, -2:] = False
    high = kept & (scores > threshold)
    if not high.any():
        high = kept & (scores > scores.mean())
    y, x = high[0, 0].nonzero().unbind(1)
    values = scores[0, 0, y, x]
    order = values.argsort(descending=True, stable=True)[:most]
    y, x, values = y[order], x[order], values[order]
    patches = F.unfold(scores, 5, padding=2)[0].T.view(*scores.shape[2:], 25)[y, x]
    weight = ((patches - patches.amax(1, keepdim=True)) / 0.1).exp()
    offset = torch.arange(5.0) - 2
    grid = torch.stack([offset.repeat(5), offset.repeat_interleave(5)], 1)
    shift = weight @ grid / weight.sum(1, keepdim=True)
    return torch.stack([x, y], 1) + shift, values


def suppress(scores: Tensor, radius: int) -> Tensor:
    """bool like ``scores``: maxima within ``radius``; two rounds revive what lost to the lost."""
    size = 2 * radius + 1

    def largest(x: Tensor) -> Tensor:
        return F.max_pool2d(x, size, 1, radius)

    kept = scores == largest(scores)
    for _ in range(2):
        near = largest(kept.float()) > 0
        rest = torch.where(near, 0.0, scores)
        kept |= (rest == largest(rest)) & ~near
    return kept


def sample(maps: Tensor, points: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """[N, C] of maps [1, C, h, w] at ``points`` of a picture of ``size`` (height, width)."""
    last = points.new_tensor([size[1] - 1, size[0] - 1])
    grid = (points / last * 2 - 1)[None, None]
    return F.grid_sample(maps, grid, mode=mode, align_corners=False)[0, :, 0].T


def load(net: nn.Module, path: str | Path, name: str, skip: tuple[str, ...] = ()) -> None:
    """Loads a state dict; nothing in the file is run.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not of this network.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"weights of {name}: {path} does not exist")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        state = {k: v for k, v in state.items() if not k.startswith(skip or ("\0",))}
        net.load_state_dict(state)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} holds no weights of {name}: {reason}") from error
    net.eval().requires_grad_(False)


EXTRACTORS.update({name: partial(Alike, name=name) for name in ALIKE_WIDTHS})
EXTRACTORS.update({name: partial(Aliked, name=name) for name in ALIKED_WIDTHS})
EXTRACTORS["xfeat"] = XFeat
