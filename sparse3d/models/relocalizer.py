"""Where was this photograph taken: FaVoR's idea on landmark volumes.

render what the landmarks should look like from a prior -> match -> pose from matches, repeated.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .relocalization.features import Features, gray, make_extractor
from .relocalization.landmarks import LandmarkMap
from .relocalization.lens import Intrinsics
from .relocalization.map_file import load_map
from .relocalization.matching import Matches, match_all, match_near, mutual, visible
from .relocalization.pose import LEAST, Pose, refine_pose, solve_pose
from .relocalization.tracking import check_poses
from .relocalization.uncertainty import pose_set

FLAT = 2.0
"""Standard deviation of grey values below which a picture shows nothing."""


@dataclass(frozen=True)
class QuerySettings:
    """How a query is answered.

    Attributes:
        error: pixels within which a match agrees with a pose, at the map's focal length.
        radii: pixels around each landmark's expected place searched in each round.
        near: similarity of matches found near their place.
        render: render descriptors for the view; else take each landmark's mean.
        least_score: a pose of a lower score is refused.
    """

    error: float = 5.0
    radii: tuple[float, ...] = (40.0, 15.0, 8.0)
    near: float = 0.6
    render: bool = True
    least_score: float = 0.3


@dataclass(frozen=True, eq=False)
class Localization:
    """The answer to one query.

    Attributes:
        success: there is a pose to trust.
        score: 0..1, share of the inliers beyond what chance gives in this picture.
        inliers: matches that agree with the pose.
        reason: why there is no pose; empty on success.
        pose: [4, 4] float64 world to camera, metres; None where it was refused.
        covariance: [6, 6] of rotation (radians, camera's frame) and position (metres, world).
        matches: landmarks and key points of the inliers.
        pixels: [N, 2] of all key points, without distortion.
    """

    success: bool
    score: float
    inliers: int
    reason: str = ""
    pose: np.ndarray | None = None
    covariance: np.ndarray | None = None
    matches: Matches | None = None
    pixels: Tensor | None = None
    calibration: list[float] = field(default_factory=list, repr=False)

    @property
    def center(self) -> np.ndarray | None:
        """[3] where the camera stood, world metres."""
        return None if self.pose is None else -self.pose[:3, :3].T @ self.pose[:3, 3]

    @property
    def sigma(self) -> tuple[float, float] | None:
        """Standard deviations: position in metres, direction in radians."""
        if self.covariance is None:
            return None
        variance = np.diag(self.covariance)
        return math.sqrt(variance[3:].sum()), math.sqrt(variance[:3].sum())

    def pose_set(self, confidence: float = 0.9) -> tuple[float, float] | None:
        """Radii (metres, radians) that hold the true pose so often; None: unknown."""
        if self.sigma is None or not self.calibration:
            return None
        return pose_set(self.sigma, self.calibration, confidence)


class Relocalizer:
    """Answers queries by one map, which it never changes.

    Args:
        place: the map.
        extractor: of the kind of features the map is made of; None: made from its name, which
            works for kinds without weights.
        settings: how.

    Raises:
        ValueError: the extractor is of another kind than the map.
    """

    def __init__(self, place: LandmarkMap, extractor=None, settings: QuerySettings | None = None):
        kind = place.meta.get("features", "")
        self.extractor = make_extractor(kind) if extractor is None else extractor
        if self.extractor.name != kind or self.extractor.channels != len(place.offset):
            raise ValueError(
                f"the map is made of {kind} features of {len(place.offset)} channels, the query's "
                f"are {self.extractor.name} of {self.extractor.channels}: take the map's kind, or "
                "build a map of the other"
            )
        self.place = place
        self.settings = settings or QuerySettings()

    @classmethod
    def load(cls, path: str | Path, weights: str | Path | None = None) -> "Relocalizer":
        """From a map's file, and its features' weights where they need some."""
        place = load_map(path)
        return cls(place, make_extractor(place.meta.get("features", ""), weights))

    def localize(self, image, intrinsics, prior=None) -> Localization:
        """Where ``image`` was taken.

        Args:
            image: uint8 [H, W] or [H, W, 3] rgb, of any size.
            intrinsics: K [3, 3] of this picture, a Camera, or Intrinsics with distortion.
            prior: [4, 4] world to camera somewhere near, or None.

        Raises:
            ValueError: the picture or the intrinsics cannot be used.
        """
        plain = gray(image)
        size = (plain.shape[1], plain.shape[0])
        lens = Intrinsics.of(intrinsics).for_size(size)
        if plain.std() < FLAT:
            return Localization(False, 0.0, 0, "the picture shows nothing: it is one colour")
        return self.localize_features(self.extractor.extract(image), lens, prior)

    def localize_features(self, features: Features, lens: Intrinsics, prior=None) -> Localization:
        """Where the picture with these features was taken; ``lens.size`` must be known."""
        pixels = lens.straighten(features.points)
        K = torch.from_numpy(lens.K)
        error = self.settings.error * self._magnified(lens)
        query = _Query(features, pixels, K, lens.size, error)
        pose = None
        if prior is not None:
            prior = torch.as_tensor(prior).double().reshape(4, 4)
            check_poses(prior[None], ["the prior"])
            pose = self._near(query, prior.numpy(), 4 * self.settings.radii[0], fresh=True)
            pose = pose and self._refined(query, pose)
        if pose is None or self._score(query, pose)[0] < self.settings.least_score:
            found = self._anywhere(query)
            pose = (found and self._refined(query, found)) or pose
        if pose is None:
            return Localization(
                False,
                0.0,
                0,
                f"fewer than {LEAST} of {len(features)} key points agree on a pose in this map",
            )
        return self._answer(query, pose)

    def _magnified(self, lens: Intrinsics) -> float:
        """How many pixels of the query one of the mapping pictures makes."""
        focal = (lens.K[0, 0] + lens.K[1, 1]) / 2
        return max(focal / self.place.meta.get("focal", focal), 0.5)

    def _anywhere(self, query: "_Query") -> Pose | None:
        rows = torch.arange(len(self.place))
        similarity = self.extractor.similarity
        matches = match_all(self.place, query.features, similarity, rows)
        return solve_pose(*self._pairs(query, matches), query.K.numpy(), query.error)

    def _refined(self, query: "_Query", pose: Pose) -> Pose:
        """The pose after rounds of rendering, matching nearby and solving again."""
        for number, radius in enumerate(self.settings.radii):
            found = self._near(query, pose.world_to_cam, radius, fresh=number == 0)
            pose = found or pose
        return pose

    def _near(self, query: "_Query", world_to_cam, radius: float, fresh: bool) -> Pose | None:
        matches = self._matches(query, world_to_cam, radius)
        pairs = self._pairs(query, matches)
        if fresh:
            return solve_pose(*pairs, query.K.numpy(), query.error)
        return refine_pose(*pairs, query.K.numpy(), world_to_cam, 0.6 * query.error)

    def _matches(self, query: "_Query", world_to_cam, radius: float) -> Matches:
        return match_near(
            self.place,
            query.features,
            query.pixels,
            query.K,
            torch.from_numpy(world_to_cam),
            query.size,
            radius * query.error / self.settings.error,
            self.settings.near,
            self.extractor.covariant,
            self.settings.render,
        )

    def _pairs(self, query: "_Query", matches: Matches) -> tuple[np.ndarray, np.ndarray]:
        points = self.place.positions[matches.landmarks]
        return query.pixels[matches.keypoints].double().numpy(), points.double().numpy()

    def _score(self, query: "_Query", pose: Pose) -> tuple[float, int, Matches]:
        """Score, inliers and their matches: how many more agree than key points of elsewhere would.

        Chance is measured on the picture: key points moved by 60 pixels find what they find.
        """
        matches = self._matches(query, pose.world_to_cam, self.settings.radii[-1])
        kept = self._agreeing(query, pose, matches)
        matches = Matches(
            *(x[kept] for x in (matches.keypoints, matches.landmarks, matches.similarity))
        )
        chance = []
        for x, y in ((60, 0), (0, 60), (-60, 0), (0, -60)):
            shift = query.pixels.new_tensor([x, y]) * query.error / self.settings.error
            moved = _Query(query.features, query.pixels + shift, query.K, query.size, query.error)
            found = self._matches(moved, pose.world_to_cam, self.settings.radii[-1])
            chance.append(int(self._agreeing(moved, pose, found).sum()))
        mean = sum(chance) / len(chance)
        likely = mean + 3 * math.sqrt(mean + 1)
        return max(1 - likely / max(len(matches), 1), 0.0), len(matches), matches

    def _agreeing(self, query: "_Query", pose: Pose, matches: Matches) -> Tensor:
        matrix = query.K @ torch.from_numpy(pose.world_to_cam)[:3]
        points = self.place.positions[matches.landmarks].double()
        local = points @ matrix[:, :3].T + matrix[:, 3]
        off = local[:, :2] / local[:, 2:] - query.pixels[matches.keypoints]
        return off.norm(dim=1) < 0.6 * query.error

    def _answer(self, query: "_Query", pose: Pose) -> Localization:
        score, inliers, matches = self._score(query, pose)
        if score < self.settings.least_score:
            reason = (
                f"{inliers} key points agree on the best pose, hardly more than chance gives in "
                "this picture: it may show another place"
            )
            return Localization(False, score, inliers, reason)
        return Localization(
            True,
            score,
            inliers,
            "",
            pose.world_to_cam,
            pose.covariance,
            matches,
            query.pixels,
            self.place.meta.get("calibration", []),
        )


@dataclass(frozen=True, eq=False)
class _Query:
    """One picture's features, in the form every step needs."""

    features: Features
    pixels: Tensor
    K: Tensor
    size: tuple[int, int]
    error: float


def retrieve(place: LandmarkMap, features: Features, least: float, count: int = 1) -> list[int]:
    """The ``count`` mapping pictures that saw most of what the query shows.

    Raises:
        ValueError: the map does not say what its pictures saw.
    """
    if place.seen is None:
        raise ValueError("the map was compressed without its pictures; retrieval needs them")
    matches = match_all(place, features, least, torch.arange(len(place)))
    votes = (place.seen[:, matches.landmarks] * matches.similarity).sum(1)
    return votes.argsort(descending=True, stable=True)[:count].tolist()


__all__ = [
    "Intrinsics",
    "Localization",
    "QuerySettings",
    "Relocalizer",
    "mutual",
    "retrieve",
    "visible",
]
