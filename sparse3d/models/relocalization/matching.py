"""Which key point of a query is which landmark: over the whole map, or near where it should be."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy.spatial import cKDTree
from torch import Tensor
from torch.nn import functional as F

from sparse3d.ops.guided import match_within

from .features import Features
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
    table = similarity.numpy()  # its argmax is five times as fast as torch's
    columns, highest = torch.from_numpy(table.argmax(1)), torch.from_numpy(table.max(0))
    best = similarity.gather(1, columns[:, None])[:, 0]
    rows = ((best >= least) & (best > 0) & (best == highest[columns])).nonzero()[:, 0]
    best, column = best[rows], columns[rows]
    kept = _best(best, column, similarity.shape[1])
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
    local = points.to(matrix) @ matrix[:, :3].T + matrix[:, 3]
    depth = local[:, 2]
    pixels = local[:, :2] / torch.where(depth.abs() < 1e-9, 1e-9, depth)[:, None]
    u, v = pixels.unbind(1)
    inside = (u > border) & (v > border) & (u < size[0] - border) & (v < size[1] - border)
    rows = (inside & (depth > 0)).nonzero()[:, 0]
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
        lengths: [K] of the descriptors that the codes stand for.
        looks: [K, 3] cosine and sine of key points' direction there, and diameter in pixels.
    """

    rows: Tensor
    pixels: Tensor
    codes: Tensor
    lengths: Tensor
    looks: Tensor


@dataclass(frozen=True, eq=False)
class Seen:
    """N key points of a query in the form that matching needs.

    Attributes:
        points: [N, 2] float32 pixels without lens distortion.
        flat: [N, r] and [N], ``LandmarkMap.flatten`` of the descriptors.
        looks: [N, 3] as in ``Expected``; None of features that are upright and of one size.
    """

    points: Tensor
    flat: tuple[Tensor, Tensor]
    looks: Tensor | None

    @classmethod
    def of(cls, place: LandmarkMap, features: Features, points: Tensor, covariant: bool) -> "Seen":
        looks = None
        if covariant:
            angles = features.angles
            looks = torch.stack([angles.cos(), angles.sin(), features.scales], 1)
        return cls(points, place.flatten(features.descriptors), looks)


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
    focal = K.diagonal()[:2].float()
    pixels, depth = pixels.float(), depth.float().clamp(min=1e-6)
    along = place.tangents[rows] @ turn.float().T
    moved = along[:, :2] - (pixels - K[:2, 2].float()) / focal * along[:, 2:]
    widths = place.sizes[rows] * focal.mean() / depth
    looks = torch.cat([F.normalize(moved, dim=1), widths[:, None]], 1)
    return Expected(rows, pixels, codes, place.lengths(codes), looks)


def match_near(expected: Expected, seen: Seen, radius: float, least: float) -> Matches:
    """Mutual nearest neighbours among the key points near each landmark's place in the picture.

    Of features that turn and grow with the picture, pairs are left out whose direction or size
    contradicts the pose.

    Args:
        expected: what should be seen.
        seen: what is.
        radius: pixels.
        least: similarity of a match.
    """
    looks = None if seen.looks is None else (seen.looks, expected.looks)
    keypoint, landmark, similarity = match_within(
        *(seen.points, expected.pixels, seen.flat, expected.codes, expected.lengths),
        *(radius, least, looks, (SAME_WAY, SAME_SIZE)),
    )
    return Matches(keypoint, expected.rows[landmark], similarity)


def near_any(points: Tensor, places: Tensor, radius: float) -> Tensor:
    """Rows [K] of pixels [N, 2] less than ``radius`` from any of ``places`` [M, 2]."""
    if not len(points) or not len(places):
        return torch.zeros(0, dtype=torch.int64)
    distance, _ = cKDTree(places.numpy()).query(points.numpy(), distance_upper_bound=radius)
    return torch.from_numpy(distance).isfinite().nonzero()[:, 0]


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
