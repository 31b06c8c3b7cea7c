"""Where was this photograph taken: FaVoR's idea on landmark volumes.

render what the landmarks should look like from a prior -> match -> pose from matches, repeated.
"""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .relocalization.features import Features, gray, make_extractor
from .relocalization.landmarks import LandmarkMap
from .relocalization.lens import Intrinsics
from .relocalization.map_file import load_map
from .relocalization.matching import (
    Expected,
    Matches,
    Seen,
    expect,
    match_all,
    match_near,
    near_any,
)
from .relocalization.pose import LEAST, Pose, refine_pose, solve_pose
from .relocalization.tracking import check_poses
from .relocalization.uncertainty import pose_set

WIDE = 160.0
"""Pixels around a landmark's place searched from a prior."""
AGREE = 0.6
"""Share of ``QuerySettings.error`` within which matches agree with a refined pose."""
SAME_VIEW = 0.03
"""Radians by which views of a landmark may differ without being rendered again."""
CELL = 4.0
"""Edge of what counts as one place of a picture, in ``QuerySettings.error``."""
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
        retrieval: first match only what so many most alike mapping pictures saw; 0: all.
        least_score: a pose of a lower score is refused.
    """

    error: float = 5.0
    radii: tuple[float, ...] = (40.0, 15.0, 8.0)
    near: float = 0.6
    render: bool = True
    retrieval: int = 0
    least_score: float = 0.25


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
        seen = Seen.of(self.place, features, pixels, self.extractor.covariant)
        error = self.settings.error * self._magnified(lens)
        codes = _Codes(self.place, self.settings.render)
        query = _Query(features, seen, torch.from_numpy(lens.K), lens.size, error, codes)
        pose = None
        if prior is not None:
            prior = torch.as_tensor(prior).double()
            if prior.shape != (4, 4):
                raise ValueError(
                    f"the prior has shape {tuple(prior.shape)}; a [4, 4] matrix from the world to "
                    "the camera is needed"
                )
            check_poses(prior[None], ["the prior"])
            pose = self._near(query, prior.numpy(), WIDE, fresh=True)
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
        if self.settings.retrieval:
            count = self.settings.retrieval
            alike = retrieve(self.place, query.features, similarity, count)
            rows = self.place.seen[alike].any(0).nonzero()[:, 0]
        matches = match_all(self.place, query.features, similarity, rows)
        return solve_pose(*self._pairs(query, matches), query.K.numpy(), query.error)

    def _refined(self, query: "_Query", pose: Pose) -> Pose:
        """The pose after rounds of rendering, matching nearby and solving again."""
        for number, radius in enumerate(self.settings.radii):
            found = self._near(query, pose.world_to_cam, radius, fresh=number == 0)
            pose = found or pose
        return pose

    def _near(self, query: "_Query", world_to_cam, radius: float, fresh: bool) -> Pose | None:
        radius = radius * query.error / self.settings.error
        expected = self._expected(query, world_to_cam, radius)
        matches = match_near(expected, query.seen, radius, self.settings.near)
        pairs = self._pairs(query, matches)
        if fresh:
            return solve_pose(*pairs, query.K.numpy(), query.error)
        return refine_pose(*pairs, query.K.numpy(), world_to_cam, AGREE * query.error)

    def _expected(self, query: "_Query", world_to_cam, margin: float) -> Expected:
        pose = torch.from_numpy(world_to_cam)
        return expect(self.place, query.K, pose, query.size, margin, query.codes.of)

    def _pairs(self, query: "_Query", matches: Matches) -> tuple[np.ndarray, np.ndarray]:
        points = self.place.positions[matches.landmarks]
        return query.seen.points[matches.keypoints].double().numpy(), points.double().numpy()

    def _score(self, query: "_Query", pose: Pose) -> tuple[float, Matches]:
        """How many more key points agree than those of another place would, and which do.

        Only matches count that would do anywhere in the picture: the pose was chosen for the
        others. Chance is measured on the picture itself: key points near expected places exchange
        what they look like, and find what they find.
        """
        least = self.extractor.similarity
        radius = AGREE * query.error
        expected = self._expected(query, pose.world_to_cam, radius)
        near = near_any(query.seen.points, expected.pixels, radius)
        matches = match_near(expected, query.seen, radius, self.settings.near)
        strong = query.places(matches, least)
        chance = 0.0
        for step in (1, 2):
            other = query.exchanged(near, step)
            found = match_near(expected, other, radius, self.settings.near)
            chance += query.places(found, least) / 2
        likely = chance + 3 * math.sqrt(chance + 1)
        return max(1 - likely / max(strong, 1), 0.0), matches

    def _answer(self, query: "_Query", pose: Pose) -> Localization:
        score, matches = self._score(query, pose)
        inliers = len(matches)
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
            query.seen.points,
            self.place.meta.get("calibration", []),
        )


class _Codes:
    """Codes of landmarks, rendered again only where the camera has moved too far."""

    def __init__(self, place: LandmarkMap, render: bool):
        self.place = place
        self.render = render and place.renders
        self.center: Tensor | None = None
        self.known = torch.zeros(len(place), dtype=torch.bool)
        self.table = torch.zeros(len(place) if self.render else 0, place.rank)

    def of(self, rows: Tensor, center: Tensor) -> Tensor:
        """[K, r] codes of ``rows`` [K] seen from ``center`` [3]."""
        if not self.render:
            return self.place.base[rows]
        if self.center is None or self._moved(rows, center):
            self.center = center
            self.known = torch.zeros_like(self.known)
        new = rows[~self.known[rows]]
        if len(new):
            self.table[new] = self.place.render(new, self.center)
            self.known[new] = True
        return self.table[rows]

    def _moved(self, rows: Tensor, center: Tensor) -> bool:
        if not len(rows):
            return False
        distance = (self.place.positions[rows] - center.float()).norm(dim=1).median()
        return bool((center - self.center).norm() > SAME_VIEW * distance)


@dataclass(frozen=True, eq=False)
class _Query:
    """One picture's features, in the form every step needs."""

    features: Features
    seen: Seen
    K: Tensor
    size: tuple[int, int]
    error: float
    codes: _Codes

    def places(self, matches: Matches, least: float) -> int:
        """How many distinct places of the picture hold matches of ``least`` similarity."""
        pixels = self.seen.points[matches.keypoints[matches.similarity >= least]]
        return len(set(map(tuple, (pixels / (CELL * self.error)).floor().tolist())))

    def exchanged(self, near: Tensor, step: int) -> Seen:
        """What is seen where the key points ``near`` [K] look like others of them."""
        order = torch.arange(len(self.seen.points))
        order[near] = near.roll(step * len(near) // 3)
        flat = tuple(part[order] for part in self.seen.flat)
        looks = self.seen.looks
        return replace(self.seen, flat=flat, looks=looks if looks is None else looks[order])


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
    "retrieve",
]
