"""Which key point of a query is which landmark: over the whole map, or near where it should be."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .features import Features
from .geometry import project
from .landmarks import LandmarkMap


@dataclass(frozen=True, eq=False)
class Matches:
    """K pairs.

    Attributes:
        keypoints: [K] int64 rows of the query's features.
        landmarks: [K] int64 rows of the map.
        similarity: [K] cosines.
    """

    keypoints: Tensor
    landmarks: Tensor
    similarity: Tensor

    def __len__(self) -> int:
        return len(self.keypoints)


def mutual(similarity: Tensor, least: float) -> tuple[Tensor, Tensor]:
    """Rows and columns [K] that are each other's best, at ``least`` similar."""
    if similarity.numel() == 0:
        return torch.zeros(2, 0, dtype=torch.int64).unbind(0)
    best, column = similarity.max(1)
    back = similarity.argmax(0)
    rows = torch.arange(len(similarity))
    kept = (back[column] == rows) & (best >= least) & (best > 0)
    return rows[kept], column[kept]


def visible(
    points: Tensor, matrix: Tensor, size: tuple[int, int], border: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows [K] of world ``points`` [M, 3] that a camera sees, their pixels [K, 2] and depths [K].

    Args:
        points: world metres.
        matrix: [3, 4] from the world to pixels.
        size: (width, height).
        border: pixels to the edge of the picture; a negative one looks beyond it.
    """
    pixels, depth = project(matrix, points.to(matrix))
    high = pixels.new_tensor(size) - border
    rows = ((depth > 0) & (pixels > border).all(1) & (pixels < high).all(1)).nonzero()[:, 0]
    return rows, pixels[rows], depth[rows]


def match_all(place: LandmarkMap, features: Features, least: float, rows: Tensor) -> Matches:
    """Mutual nearest neighbours of a query among landmarks ``rows``, seen from nowhere special."""
    similarity = place.similarity(features.descriptors, place.base[rows])
    keypoints, found = mutual(similarity, least)
    return Matches(keypoints, rows[found], similarity[keypoints, found])


def match_near(
    place: LandmarkMap,
    features: Features,
    points: Tensor,
    K: Tensor,
    world_to_cam: Tensor,
    size: tuple[int, int],
    radius: float,
    least: float,
    covariant: bool,
    render: bool = True,
) -> Matches:
    """Mutual nearest neighbours among what lies near each landmark's place in the picture.

    Landmarks are rendered from where the camera should be. Of features that turn and grow with the
    picture, pairs are left out whose direction or size contradicts the pose.

    Args:
        place: the map.
        features: of the query.
        points: [N, 2] its key points without lens distortion.
        K: [3, 3] float64.
        world_to_cam: [4, 4] float64 where the camera should be.
        size: (width, height) of the picture.
        radius: pixels.
        least: similarity of a match.
        covariant: features have directions and sizes.
        render: render descriptors for this view; else the base is taken.
    """
    matrix = K @ world_to_cam[:3]
    rows, pixels, depth = visible(place.positions, matrix, size, -radius)
    center = -world_to_cam[:3, :3].T @ world_to_cam[:3, 3]
    codes = place.render(rows, center) if render else place.base[rows]
    similarity = place.similarity(features.descriptors, codes)
    near = torch.cdist(points.float(), pixels.float()) <= radius
    if covariant:
        angle, width = expected(place, rows, K, world_to_cam, depth)
        turn = features.angles[:, None] - angle
        near &= torch.cos(turn) > 0.5
        near &= (features.scales[:, None] / width).log().abs() < 0.9
    similarity = torch.where(near, similarity, 0.0)
    keypoints, found = mutual(similarity, least)
    return Matches(keypoints, rows[found], similarity[keypoints, found])


def expected(
    place: LandmarkMap, rows: Tensor, K: Tensor, world_to_cam: Tensor, depth: Tensor
) -> tuple[Tensor, Tensor]:
    """Angles [K] in radians and diameters [K] in pixels of key points at landmarks ``rows``."""
    turn = world_to_cam[:3, :3].float()
    local = place.positions[rows] @ turn.T + world_to_cam[:3, 3].float()
    along = place.tangents[rows] @ turn.T
    moved = along[:, :2] - local[:, :2] / local[:, 2:].clamp(min=1e-6) * along[:, 2:]
    angle = torch.atan2(moved[:, 1], moved[:, 0])
    focal = float(K[0, 0] + K[1, 1]) / 2
    return angle, place.sizes[rows] * focal / depth.float().clamp(min=1e-6)


def anchor(
    features_angles: Tensor,
    features_scales: Tensor,
    depth: Tensor,
    focal: Tensor,
    turns: Tensor,
    present: Tensor,
) -> tuple[Tensor, Tensor]:
    """Tangents [T, 3] and sizes [T] in metres of landmarks from their key points.

    Args:
        features_angles: [T, V] radians.
        features_scales: [T, V] pixels.
        depth: [T, V] metres.
        focal: [T, V] pixels.
        turns: [T, V, 3, 3] world to camera.
        present: [T, V] bool.
    """
    flat = torch.stack(
        [features_angles.cos(), features_angles.sin(), torch.zeros_like(features_angles)], -1
    )
    world = (turns.mT @ flat[..., None])[..., 0] * present[..., None]
    tangent = torch.nn.functional.normalize(world.sum(1), dim=1)
    size = (features_scales * depth.clamp(min=1e-6) / focal).clamp(min=1e-9).log()
    mean = (size * present).sum(1) / present.sum(1).clamp(min=1)
    return tangent, mean.exp()
