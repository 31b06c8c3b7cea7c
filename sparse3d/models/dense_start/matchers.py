"""Dense matching of two photographs, behind one call: matcher(reference, neighbour) -> Matches."""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from scipy.interpolate import LinearNDInterpolator, NearestNDInterpolator

from sparse3d.registry import MODELS

from .photographs import Photograph, fundamental

PRESETS = {
    "fast": cv2.DISOPTICAL_FLOW_PRESET_FAST,
    "medium": cv2.DISOPTICAL_FLOW_PRESET_MEDIUM,
}


@dataclass(frozen=True, eq=False)
class Matches:
    """Where each pixel of a reference lies in its neighbour.

    Attributes:
        target: float32 [H, W, 2] pixels (x, y) in the neighbour.
        certainty: float32 [H, W], 0..1; 0: no match.
    """

    target: np.ndarray
    certainty: np.ndarray


@MODELS.register_module()
class FlowMatcher:
    """OpenCV's dense inverse search flow, believed where forward and backward flow agree.

    Pictures taken from far apart are first brought near each other by SIFT matches that obey the
    cameras, spread over the picture.

    Args:
        preset: 'medium' or 'fast'.
        tolerance: pixels by which a pixel may miss itself on the way forth and back.
        seed_below: share of pixels with a match that obeys the cameras under which SIFT is asked;
            0: never, 1: always.
        epipolar: pixels by which such a match may miss its epipolar line.

    Source: Kroeger et al., Fast Optical Flow using Dense Inverse Search, 2016.
    """

    def __init__(
        self,
        preset: str = "medium",
        tolerance: float = 1.0,
        seed_below: float = 0.6,
        epipolar: float = 2.0,
    ):
        if preset not in PRESETS:
            raise ValueError(f"preset is {preset!r}; it must be one of {', '.join(PRESETS)}")
        self.preset = preset
        self.tolerance = tolerance
        self.seed_below = seed_below
        self.epipolar = epipolar

    def __call__(self, reference: Photograph, neighbour: Photograph) -> Matches:
        """Matches of every pixel of ``reference``."""
        height, width = reference.gray.shape
        other = neighbour.gray
        stretch = np.float32([other.shape[1] / width, other.shape[0] / height])
        if other.shape != reference.gray.shape:  # flow needs pictures of one size
            other = cv2.resize(other, (width, height), interpolation=cv2.INTER_AREA)
        grid = np.stack(np.meshgrid(np.arange(width), np.arange(height)), 2).astype(np.float32)
        line = fundamental(reference.camera, neighbour.camera)

        def on_line(flow: np.ndarray) -> np.ndarray:
            target = (grid + flow + 0.5) * stretch - 0.5
            miss = epipolar_miss(line, grid.reshape(-1, 2), target.reshape(-1, 2))
            return miss.reshape(height, width) < self.epipolar

        flow, good = self._both_ways(reference.gray, other)
        right = good & on_line(flow)
        if right.mean() < self.seed_below:
            start, end = self.sparse(reference, neighbour)
            end = (end + 0.5) / stretch - 0.5
            if len(start) >= 8:
                seeded, also = self._both_ways(reference.gray, other, start, end)
                better = also & ((on_line(seeded) & ~right) | ~good)
                flow[better], good = seeded[better], good | also
        target = (grid + flow + 0.5) * stretch - 0.5
        return Matches(target, good.astype(np.float32))

    def sparse(self, reference: Photograph, neighbour: Photograph) -> tuple[np.ndarray, np.ndarray]:
        """SIFT matches that obey the cameras: pixels [M, 2] in each picture."""
        (place_a, found_a), (place_b, found_b) = reference.features, neighbour.features
        if len(found_a) < 2 or len(found_b) < 2:
            return np.zeros((0, 2), np.float32), np.zeros((0, 2), np.float32)
        likeness = torch.from_numpy(found_a) @ torch.from_numpy(found_b).T
        top, best = likeness.topk(2, 1)
        back = likeness.argmax(0)
        mutual = back[best[:, 0]] == torch.arange(len(found_a))
        # Lowe's ratio of distances, for descriptors of unit length.
        distinct = (1 - top[:, 0]) < 0.8**2 * (1 - top[:, 1])
        rows = (mutual & distinct).nonzero()[:, 0].numpy()
        start, end = place_a[rows], place_b[best[rows, 0].numpy()]
        miss = epipolar_miss(fundamental(reference.camera, neighbour.camera), start, end)
        return start[miss < self.epipolar], end[miss < self.epipolar]

    def _both_ways(self, a, b, start=None, end=None) -> tuple[np.ndarray, np.ndarray]:
        """Flow [H, W, 2] from ``a`` to ``b``, and where the flow back agrees with it."""
        forth, back = None, None
        if start is not None:
            forth, back = _spread(start, end - start, a.shape), _spread(end, start - end, a.shape)
        engine = cv2.DISOpticalFlow_create(PRESETS[self.preset])
        forth, back = engine.calc(a, b, forth), engine.calc(b, a, back)
        height, width = a.shape
        x, y = np.meshgrid(np.arange(width, dtype="f4"), np.arange(height, dtype="f4"))
        x, y = x + forth[..., 0], y + forth[..., 1]
        returned = cv2.remap(back, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        inside = (x >= 0) & (y >= 0) & (x <= width - 1) & (y <= height - 1)
        return forth, inside & (np.linalg.norm(forth + returned, axis=2) < self.tolerance)


def epipolar_miss(line: torch.Tensor, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Pixels [M] between places ``end`` [M, 2] and the lines [3, 3] of places ``start`` [M, 2]."""
    lines = np.c_[start, np.ones(len(start))] @ line.T.numpy()
    miss = np.abs((lines[:, :2] * end).sum(1) + lines[:, 2])
    return miss / np.maximum(np.linalg.norm(lines[:, :2], axis=1), 1e-12)


def _spread(places: np.ndarray, values: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """``values`` [M, 2] known at pixels ``places`` [M, 2], spread to float32 [H, W, 2]."""
    step = 8
    y, x = np.mgrid[0 : shape[0] : step, 0 : shape[1] : step]
    places, first = np.unique(places, axis=0, return_index=True)
    values = values[first]
    nearest = NearestNDInterpolator(places, values)(x, y)
    try:
        inner = LinearNDInterpolator(places, values)(x, y)
    except Exception:  # qhull's own error: all places lie on one line
        inner = nearest
    coarse = np.where(np.isnan(inner), nearest, inner).astype(np.float32)
    return cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_LINEAR)


@MODELS.register_module()
class RomaMatcher:
    """RoMa, where its package and weights are there.

    Args:
        weights, dinov2_weights: files of the network's and its encoder's state dict.
        device: on which it runs.

    Raises:
        ValueError: package or weights are missing; says what to do.
    """

    def __init__(self, weights: str, dinov2_weights: str, device: str = "cpu"):
        try:
            from romatch import roma_outdoor
        except ImportError:
            raise ValueError(
                "RomaMatcher needs the package romatch: pip install romatch, or take "
                "matcher=dict(type='FlowMatcher'), which needs nothing"
            ) from None
        try:
            states = [
                torch.load(f, map_location=device, weights_only=True)
                for f in (weights, dinov2_weights)
            ]
        except FileNotFoundError as error:
            raise ValueError(
                f"RomaMatcher lacks {error.filename}: download RoMa's weights, or take "
                "matcher=dict(type='FlowMatcher')"
            ) from error
        self.network = roma_outdoor(device, weights=states[0], dinov2_weights=states[1])
        self.network.symmetric = False
        self.network.upsample_preds = False

    @torch.no_grad()
    def __call__(self, reference: Photograph, neighbour: Photograph) -> Matches:
        """Matches of every pixel of ``reference``."""
        from PIL import Image

        pictures = [Image.fromarray(p.image) for p in (reference, neighbour)]
        warp, certainty = self.network.match(*pictures)
        size = reference.gray.shape[::-1]
        target = cv2.resize(warp[..., 2:].float().cpu().numpy(), size)
        certainty = cv2.resize(certainty.float().cpu().numpy(), size)
        scale = np.float32(neighbour.gray.shape[::-1])
        target = (target + 1) / 2 * scale - 0.5
        return Matches(target, np.where(certainty > 0.05, certainty, 0).astype(np.float32))
