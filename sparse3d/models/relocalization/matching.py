"""Which key point of a query is which landmark: over the whole map, or near where it should be."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from .features import Features
from .geometry import project
from .landmarks import LandmarkMap

SAME_WAY, SAME_SIZE = 0.5, 2.5
"""Least cosine of the angle, and largest ratio of the sizes, of two looks at one landmark."""


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
    rows = ((best >= least) & (best > 0)).nonzero()[:, 0]
    best, column = best[rows], column[rows]
    kept = (similarity.amax(0)[column] == best) & _best(best, column, similarity.shape[1])
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


@dataclass(frozen=True, eq=False)
class Expected:
    """K landmarks as a camera should see them.

    Attributes:
        rows: [K] int64 rows of the map.
        pixels: [K, 2].
        codes: [K, r] rendered for this view, or each landmark's own.
        angles: [K] radians of key points there.
        widths: [K] their diameters in pixels.
    """

    rows: Tensor
    pixels: Tensor
    codes: Tensor
    angles: Tensor
    widths: Tensor


def expect(
    place: LandmarkMap,
    K: Tensor,
    world_to_cam: Tensor,
    size: tuple[int, int],
    margin: float,
    look: Callable[[Tensor, Tensor], Tensor],
) -> Expected:
    """What a camera should see, up to ``margin`` pixels beyond its picture.

    Args:
        place: the map.
        K: [3, 3] float64.
        world_to_cam: [4, 4] float64.
        size: (width, height) of the picture.
        margin: pixels.
        look: gives the codes of landmarks, rows [K], seen from a centre [3].
    """
    rows, pixels, depth = visible(place.positions, K @ world_to_cam[:3], size, -margin)
    turn, shift = world_to_cam[:3, :3], world_to_cam[:3, 3]
    codes = look(rows, -turn.T @ shift)
    turn = turn.float()
    local = place.positions[rows] @ turn.T + shift.float()
    along = place.tangents[rows] @ turn.T
    moved = along[:, :2] - local[:, :2] / local[:, 2:].clamp(min=1e-6) * along[:, 2:]
    angles = torch.atan2(moved[:, 1], moved[:, 0])
    focal = float(K[0, 0] + K[1, 1]) / 2
    widths = place.sizes[rows] * focal / depth.float().clamp(min=1e-6)
    return Expected(rows, pixels.float(), codes, angles, widths)


def match_near(
    place: LandmarkMap,
    expected: Expected,
    features: Features,
    flat: tuple[Tensor, Tensor],
    points: Tensor,
    radius: float,
    least: float,
    covariant: bool,
) -> Matches:
    """Mutual nearest neighbours among the key points near each landmark's place in the picture.

    Of features that turn and grow with the picture, pairs are left out whose direction or size
    contradicts the pose.

    Args:
        place: the map.
        expected: what should be seen.
        features: of the query.
        flat: ``place.flatten`` of its descriptors.
        points: [N, 2] its key points without lens distortion.
        radius: pixels.
        least: similarity of a match.
        covariant: features have directions and sizes.
    """
    keypoint, landmark = within(points, expected.pixels, radius)
    if covariant:
        turn = features.angles[keypoint] - expected.angles[landmark]
        ratio = features.scales[keypoint] / expected.widths[landmark]
        same = (torch.cos(turn) > SAME_WAY) & (ratio > 1 / SAME_SIZE) & (ratio < SAME_SIZE)
        keypoint, landmark = keypoint[same], landmark[same]
    similarity = place.pair_similarity(flat, expected.codes, keypoint, landmark)
    enough = similarity >= least
    keypoint, landmark, similarity = keypoint[enough], landmark[enough], similarity[enough]
    best = _best(similarity, keypoint, len(points)) & _best(
        similarity, landmark, len(expected.rows)
    )
    return Matches(keypoint[best], expected.rows[landmark[best]], similarity[best])


def within(first: Tensor, second: Tensor, radius: float) -> tuple[Tensor, Tensor]:
    """Rows of [N, 2] and [M, 2] pixels that lie within ``radius``, in ascending order."""
    if not len(first) or not len(second):
        return torch.zeros(2, 0, dtype=torch.int64).unbind(0)
    trees = [cKDTree(points.double().numpy()) for points in (first, second)]
    pairs = trees[0].sparse_distance_matrix(trees[1], radius, output_type="ndarray")
    keys = np.sort(pairs["i"] * len(second) + pairs["j"])
    keys = torch.from_numpy(keys)
    return keys // len(second), keys % len(second)


def _best(values: Tensor, group: Tensor, groups: int) -> Tensor:
    """[K] bool, which of ``values`` is the first of the largest in its group."""
    top = values.new_full((groups,), -1.0).scatter_reduce(0, group, values, "amax")
    order = torch.arange(len(values))
    first = torch.where(values == top[group], order, len(values))
    holder = torch.full((groups,), len(values)).scatter_reduce(0, group, first, "amin")
    return holder[group] == order


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
