"""Local features behind one interface: key points with descriptors."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, eq=False)
class Features:
    """Key points of one picture.

    Attributes:
        points: [N, 2] float32 pixels, (0, 0) is the centre of the top left one.
        descriptors: [N, C] float32 of length one.
        scores: [N], larger is more certain.
        scales: [N] diameter of what the descriptor saw, pixels; ones where the kind has none.
        angles: [N] radians, from x towards y; zeros where the kind has none.
    """

    points: Tensor
    descriptors: Tensor
    scores: Tensor
    scales: Tensor
    angles: Tensor

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, rows) -> "Features":
        names = ("points", "descriptors", "scores", "scales", "angles")
        return replace(self, **{name: getattr(self, name)[rows] for name in names})

    @classmethod
    def upright(cls, points: Tensor, descriptors: Tensor, scores: Tensor) -> "Features":
        """Features of a kind without scale and direction."""
        return cls(points, descriptors, scores, torch.ones_like(scores), torch.zeros_like(scores))


class RootSIFT:
    """OpenCV's SIFT with the square root of its histograms: the kind that needs no weights.

    It turns and grows with the picture: a camera that rolls or comes closer sees the same.

    Args:
        most: key points kept per picture, strongest first.
        contrast: least contrast of a key point, OpenCV's ``contrastThreshold``.
    """

    name = "rootsift"
    channels = 128
    covariant = True
    similarity = 0.75
    ratio = 0.8

    def __init__(self, most: int = 1500, contrast: float = 0.02):
        self.most = most
        self._sift = cv2.SIFT_create(nfeatures=most, contrastThreshold=contrast)

    def extract(self, image: np.ndarray) -> Features:
        """Features of a uint8 [H, W] or [H, W, 3] rgb picture."""
        points, raw = self._sift.detectAndCompute(gray(image), None)
        if not points:
            none = torch.zeros(0)
            return Features(torch.zeros(0, 2), torch.zeros(0, self.channels), none, none, none)
        table = np.array([(*p.pt, p.response, p.size, np.deg2rad(p.angle)) for p in points])
        # OpenCV gives a few more than asked for, and in an order of its own
        rows = np.lexsort((*table[:, ::-1].T[2:], -table[:, 2]))[: self.most]
        table = torch.from_numpy(table[rows].astype(np.float32))
        columns = (table[:, 2], table[:, 3], table[:, 4])
        return Features(table[:, :2].contiguous(), root(raw[rows]), *columns)


def root(raw: np.ndarray) -> Tensor:
    """[N, C] unit vectors: square roots of histograms that sum to one."""
    values = torch.from_numpy(np.ascontiguousarray(raw)).float()
    return (values / values.sum(1, keepdim=True).clamp(min=1e-9)).sqrt()


def gray(image: np.ndarray) -> np.ndarray:
    """uint8 [H, W] of a picture.

    Raises:
        ValueError: it is no 8-bit picture, or empty.
    """
    image = image.numpy() if isinstance(image, Tensor) else np.asarray(image)
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.size == 0:
        raise ValueError(
            f"the image is {image.dtype} of shape {image.shape}; uint8 [H, W] or [H, W, 3] rgb is "
            "needed"
        )
    if image.ndim == 2:
        return np.ascontiguousarray(image)
    if image.shape[2] not in (1, 3):
        raise ValueError(f"the image has {image.shape[2]} channels; 1 or 3 are needed")
    image = np.ascontiguousarray(image)
    return image[..., 0] if image.shape[2] == 1 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


def rgb(image: np.ndarray) -> Tensor:
    """[1, 3, H, W] float in 0..1 of a picture."""
    image = image.numpy() if isinstance(image, Tensor) else np.asarray(image)
    if image.ndim == 2 or image.shape[2] == 1:
        image = np.repeat(gray(image)[..., None], 3, 2)
    elif image.dtype != np.uint8 or image.shape[2] != 3:
        gray(image)  # says what is wrong
    return torch.from_numpy(np.ascontiguousarray(image)).movedim(2, 0)[None].float() / 255


def sample_map(dense: Tensor, points: Tensor, size: tuple[int, int]) -> Tensor:
    """[N, C] unit descriptors of a dense map [1, C, h, w] at ``points`` [N, 2] of a picture.

    Args:
        dense: its corners' centres lie on those of the picture (align_corners).
        points: pixels.
        size: (width, height) of the picture.
    """
    last = points.new_tensor([size[0] - 1, size[1] - 1]).clamp(min=1)
    grid = (points / last * 2 - 1)[None, None]
    found = F.grid_sample(dense, grid, mode="bilinear", align_corners=True)
    return F.normalize(found[0, :, 0].T, dim=1)


EXTRACTORS: dict[str, Callable] = {RootSIFT.name: RootSIFT}
"""What makes an extractor of a kind; kinds with weights take ``weights``, a path."""


def make_extractor(name: str, weights: str | Path | None = None, most: int | None = None):
    """The extractor of a kind.

    Args:
        name: a key of ``EXTRACTORS``.
        weights: file of the network's weights; kinds of networks need it.
        most: key points per picture; the kind's own number if None.

    Raises:
        ValueError: an unknown kind, or weights that are missing or not wanted.
    """
    from . import networks  # noqa: F401  adds its kinds

    if name not in EXTRACTORS:
        raise ValueError(f"features {name!r} are unknown; there are {', '.join(EXTRACTORS)}")
    options = {} if most is None else {"most": most}
    if EXTRACTORS[name] is RootSIFT:
        if weights is not None:
            raise ValueError(f"rootsift takes no weights, {weights} was given")
        return RootSIFT(**options)
    if weights is None:
        raise ValueError(f"{name} needs weights: give the path of its state dict")
    return EXTRACTORS[name](weights, **options)
