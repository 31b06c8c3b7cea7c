"""Photographs as matching needs them, and which of them to match."""

from dataclasses import dataclass, replace
from functools import cached_property

import cv2
import numpy as np
import torch
from scipy.cluster.vq import kmeans2
from torch import Tensor

from sparse3d.structures import Camera, Sample, SparsePoints

BEST_ANGLE = 5.0
"""Degrees between two rays to a point at which matching and triangulating are both good."""
NARROWER, WIDER = 1.0, 10.0
"""Degrees by which the angle may miss that, at the cost of 40 % of a point's weight."""


@dataclass(eq=False)
class Photograph:
    """One picture.

    Attributes:
        name: of the view.
        image: uint8 [H, W, 3] rgb.
        camera: its camera.
        mask: bool [H, W], the pixels of which points may be made; None: all.
    """

    name: str
    image: np.ndarray
    camera: Camera
    mask: Tensor | None = None

    @classmethod
    def from_sample(cls, sample: Sample) -> "Photograph":
        """The only view of ``sample``."""
        (name, camera), *_ = sample.cameras.items()
        image = sample.images[name].cpu().numpy()
        return cls(sample.sample_id, image, camera, sample.meta.get("mask"))

    def reduced(self, most: int) -> "Photograph":
        """The picture brought to at most ``most`` pixels."""
        height, width = self.image.shape[:2]
        scale = (most / (height * width)) ** 0.5
        if scale >= 1:
            return self
        size = max(int(width * scale), 1), max(int(height * scale), 1)
        image = cv2.resize(self.image, size, interpolation=cv2.INTER_AREA)
        return Photograph(self.name, image, self.camera.resized(size))

    def with_margin(self, share: float) -> "Photograph":
        """The picture with its border repeated on all sides, by a share of its longer one."""
        height, width = self.image.shape[:2]
        rim = round(share * max(height, width))
        image = cv2.copyMakeBorder(self.image, rim, rim, rim, rim, cv2.BORDER_REPLICATE)
        K = self.camera.K.clone()
        K[:2, 2] += rim
        size = width + 2 * rim, height + 2 * rim
        return Photograph(self.name, image, replace(self.camera, K=K, size=size))

    @cached_property
    def gray(self) -> np.ndarray:
        """uint8 [H, W]."""
        return cv2.cvtColor(self.image, cv2.COLOR_RGB2GRAY)

    @cached_property
    def features(self) -> tuple[np.ndarray, np.ndarray]:
        """SIFT's places [F, 2] pixels and descriptors [F, 128] float32 of unit length."""
        spots, found = cv2.SIFT_create(4000).detectAndCompute(self.gray, None)
        if found is None:
            return np.zeros((0, 2), np.float32), np.zeros((0, 128), np.float32)
        found = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-9)
        return np.float32([spot.pt for spot in spots]), found


def scene_extent(cameras: list[Camera]) -> float:
    """1.1 times the largest distance of a camera from their mean, as in 3DGS; at least 1e-3."""
    centers = torch.stack([camera.center for camera in cameras])
    distance = (centers - centers.mean(0)).norm(dim=1).max()
    return max(1.1 * float(distance), 1e-3)


def choose_references(cameras: list[Camera], most: int, seed: int = 0) -> list[int]:
    """At most ``most`` cameras that stand for all: those nearest the centres of clusters."""
    if most >= len(cameras):
        return list(range(len(cameras)))
    vectors = _vectors(cameras)
    centers, label = kmeans2(vectors, most, minit="++", seed=np.random.default_rng(seed))
    distance = ((vectors - centers[label]) ** 2).sum(1)
    rows = [np.flatnonzero(label == k) for k in range(most)]
    return sorted(int(group[distance[group].argmin()]) for group in rows if len(group))


def choose_neighbours(
    names: list[str], cameras: list[Camera], points: SparsePoints, count: int
) -> list[list[int]]:
    """For every camera the ``count`` others to match it with, the best first.

    Cameras that share points are weighed by these, each by the angle of its two rays (the view
    selection of MVSNet); where nothing is known of points, the nearest cameras that do not stand in
    the same place are taken.
    """
    near = _nearness(cameras)
    weight = _shared_weight(names, cameras, points)
    chosen = []
    for i in range(len(cameras)):
        # Shared points decide; nearness orders the cameras that share none.
        order = sorted(
            (j for j in range(len(cameras)) if np.isfinite(near[i, j])),
            key=lambda j: (-weight[i, j], near[i, j]),
        )
        chosen.append(order[:count])
    return chosen


def _vectors(cameras: list[Camera]) -> np.ndarray:
    """[N, 6]: where a camera stands, in extents of the scene, and where it looks."""
    centers = torch.stack([camera.center for camera in cameras])
    centers = (centers - centers.mean(0)) / scene_extent(cameras)
    axes = torch.stack([camera.axis for camera in cameras])
    return torch.cat([centers, axes], 1).double().numpy()


def _nearness(cameras: list[Camera]) -> np.ndarray:
    """[N, N] distance; infinite for the camera itself and for those in the same place."""
    vectors = _vectors(cameras)
    distance = np.linalg.norm(vectors[:, None] - vectors[None], axis=2)
    apart = np.linalg.norm(vectors[:, None, :3] - vectors[None, :, :3], axis=2)
    distance[apart < 1e-4] = np.inf
    return distance


def _shared_weight(names, cameras, points: SparsePoints) -> np.ndarray:
    """[N, N] how many points two cameras share, each weighed by the angle of its rays."""
    number = len(names)
    weight = np.zeros((number, number))
    if not points.views:
        return weight
    row_of = {name: row for row, name in enumerate(names)}
    seen = np.zeros((number, len(points)), bool)
    for column, views in enumerate(points.views):
        for name in views:
            if name in row_of:
                seen[row_of[name], column] = True
    centers = torch.stack([camera.center for camera in cameras])
    rays = torch.nn.functional.normalize(points.xyz[None] - centers[:, None], dim=2).numpy()
    for i in range(number):
        for j in range(i + 1, number):
            both = seen[i] & seen[j]
            angle = np.degrees(np.arccos(np.clip((rays[i, both] * rays[j, both]).sum(1), -1, 1)))
            width = np.where(angle < BEST_ANGLE, NARROWER, WIDER)
            share = np.exp(-((angle - BEST_ANGLE) ** 2) / (2 * width**2))
            weight[i, j] = weight[j, i] = share.sum()
    return weight


def fundamental(a: Camera, b: Camera) -> Tensor:
    """[3, 3] float64: F with x_b^T F x_a = 0 for pixels of the same point."""
    pose = b.world_to_cam.double() @ torch.linalg.inv(a.world_to_cam.double())
    x, y, z = pose[:3, 3].tolist()
    cross = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64)
    inverse_a, inverse_b = (torch.linalg.inv(c.K.double()) for c in (a, b))
    return inverse_b.T @ cross @ pose[:3, :3] @ inverse_a
