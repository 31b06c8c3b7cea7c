"""Depths of references by matching each with its neighbours, a pair at a time: EDGS's own way."""

import warnings
from collections.abc import Mapping

import numpy as np
import torch

from sparse3d.registry import MODELS
from sparse3d.structures import SparsePoints

from .consistency import AGREES, Depths
from .photographs import Photograph
from .triangulation import triangulate

LEAST_MATCHES = 100
"""Matches of a pair from which its poses can be judged."""


@MODELS.register_module()
class MatchedDepth:
    """Every reference is matched densely with its neighbours and triangulated.

    What EDGS does not do, and this does: a point must lie in front of both cameras, be seen under
    an angle, hit its match, and have another neighbour agree where several see it; a pair in which
    many matches defy the cameras is left out.

    Args:
        matcher: config of the matcher.
        neighbours: views with which each is matched.
        max_miss: largest distance of a point from its match, in widths of the picture.
        min_angle: smallest angle between the two rays, degrees.
        least_share: share of a pair's matches that must obey the cameras.
    """

    def __init__(
        self,
        matcher: Mapping | None = None,
        neighbours: int = 3,
        max_miss: float = 0.002,
        min_angle: float = 1.0,
        least_share: float = 0.35,
    ):
        self.matcher = MODELS.build(matcher or {"type": "FlowMatcher"})
        self.neighbours = neighbours
        self.max_miss = max_miss
        self.min_angle = np.radians(min_angle)
        self.least_share = least_share

    def __call__(
        self,
        pictures: list[Photograph],
        rows: list[int],
        near: list[list[int]],
        points: SparsePoints,
    ) -> dict[int, Depths]:
        """Depths of the pictures ``rows``; ``near``: the others of each, the best first."""
        found, odd = {}, {}
        for row in rows:
            others = [pictures[j] for j in near[row][: self.neighbours]]
            found[row], shares = self._one_reference(pictures[row], others)
            for other, share in zip(others, shares):
                if share is not None and share < self.least_share:
                    odd.setdefault(pictures[row].name, []).append(
                        f"{other.name} {100 * share:.0f} %"
                    )
        if odd:
            shown = "; ".join(f"{name} with {', '.join(pairs)}" for name, pairs in odd.items())
            warnings.warn(
                "matches that do not obey the cameras: wrong poses, or too little in common. Left "
                f"out (share of matches that do): {shown[:400]}",
                stacklevel=4,
            )
        return found

    def _one_reference(self, picture: Photograph, others: list[Photograph]):
        """Depths, and each pair's share of matches that obey the cameras."""
        height, width = picture.gray.shape
        y, x = np.mgrid[0:height, 0:width]
        pixels = torch.from_numpy(np.stack([x, y], 2).reshape(-1, 2)).float()
        depth = torch.zeros(len(pixels))
        doubt = torch.full((len(pixels),), float("inf"))
        all_depths = torch.zeros(len(others), len(pixels))
        shares: list[float | None] = []
        for number, other in enumerate(others):
            matches = self.matcher(picture, other)
            matched = torch.from_numpy(matches.certainty).reshape(-1) > 0
            rows = matched.nonzero()[:, 0]
            target = torch.from_numpy(matches.target).reshape(-1, 2)[rows]
            two = triangulate(picture.camera, pixels[rows], other.camera, target)
            obeys = two.in_front & (two.miss < self.max_miss * width)
            share = float(obeys.float().mean()) if len(rows) >= LEAST_MATCHES else None
            shares.append(share)
            if share is None or share < self.least_share:
                continue
            seen = obeys & (two.angle > self.min_angle)
            all_depths[number, rows[seen]] = two.depth[seen]
            better = seen & (two.doubt < doubt[rows])
            depth[rows[better]], doubt[rows[better]] = two.depth[better], two.doubt[better]
        # Where several neighbours give a depth, two at least must give the same.
        voices = (all_depths > 0).sum(0)
        agreeing = ((all_depths / depth.clamp(min=1e-12) - 1).abs() < AGREES).sum(0)
        odd = (voices > 1) & (agreeing < 2)
        known = doubt.isfinite() & ~odd
        depth = torch.where(known, depth, 0.0)
        planes = depth.reshape(height, width), doubt.reshape(height, width)
        return Depths(picture.camera, *planes), shares
