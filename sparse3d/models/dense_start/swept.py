"""Depths of references by sweeping planes through all that their neighbours show."""

import warnings

import numpy as np
import torch
from torch import Tensor

from sparse3d.ops.stereo import View, confirm_depths, plane_sweep, smooth_planes
from sparse3d.registry import MODELS
from sparse3d.structures import Camera, SparsePoints

from .consistency import AGREES, Depths
from .matchers import FlowMatcher
from .photographs import Photograph
from .triangulation import lift, triangulate

LEAST_POINTS = 20
"""Points of a picture from which its range of depths can be told."""
TRIMMED = 0.005
"""Share of these points at each end that may be wrong."""
NEARER, FARTHER = 0.8, 1.5
"""What lies before the nearest and behind the farthest of the others."""
FEWEST, MOST = 32, 256
"""Planes."""
LEAST_COVER = 0.03
"""Share of a picture's pixels on which another must agree, or it is said that none does."""


@MODELS.register_module()
class SweptDepth:
    """Every reference's depth from all its neighbours at once, where other references agree.

    The cameras are known, so that a pixel's depth is all there is to find: at each of many depths
    the reference is compared with what the neighbours show there, the best half of these counts
    (others may not see the place), and semi-global matching chooses. Thin things and plain walls
    come out better than from matches of pairs.

    Args:
        views: neighbours that are compared.
        radius: of the windows, pixels.
        floor: contrast below which windows count as plain (``ops.stereo.plane_sweep``).
        small, large, edge: prices of steps in depth (``ops.stereo.smooth_planes``).
        agree: others, of all that are near, whose own depths must lead back to the pixel; fewer,
            but one, where fewer see the place.
        max_miss: pixels by which they may miss it.
        min_angle: smallest angle between the rays of a pixel and of one that agrees, degrees.
        apart: pixels between two planes in the view that sees them farthest apart.
        most_pixels: larger pictures are swept reduced.
    """

    def __init__(
        self,
        views: int = 6,
        radius: int = 2,
        floor: float = 1e-3,
        small: float = 13,
        large: float = 300,
        edge: float = 0.05,
        agree: int = 2,
        max_miss: float = 1.5,
        min_angle: float = 0.5,
        apart: float = 2.0,
        most_pixels: int = 100_000,
    ):
        above = dict(views=views, agree=agree, apart=apart, most_pixels=most_pixels)
        for name, value in above.items():
            if not value > 0:
                raise ValueError(f"{name} is {value}; it must be above 0")
        self.views = views
        self.radius, self.floor = radius, floor
        self.prices = (small, large, edge)
        self.agree, self.max_miss = agree, max_miss
        self.min_angle = np.radians(min_angle)
        self.apart = apart
        self.most_pixels = most_pixels

    def __call__(
        self,
        pictures: list[Photograph],
        rows: list[int],
        near: list[list[int]],
        points: SparsePoints,
    ) -> dict[int, Depths]:
        """Depths of the pictures ``rows``; ``near``: the others of each, the best first."""
        reduced = [picture.reduced(self.most_pixels) for picture in pictures]
        swept = {}
        for row in self._with_witnesses(rows, near):
            others = [reduced[j] for j in near[row][: self.views]]
            between = depth_range(pictures[row], [pictures[j] for j in near[row][:3]], points)
            if others and between:
                swept[row] = self._sweep(reduced[row], others, *between)
        found = {}
        alone = [f"{pictures[row].name} 0.0 %" for row in rows if row not in swept]
        for row in (row for row in rows if row in swept):
            witnesses = [j for j in near[row] if j in swept]
            depths = [swept[j] for j in witnesses]
            one = self._agreed(reduced[row], swept[row], [reduced[j] for j in witnesses], depths)
            share = float((one.depth > 0).float().mean())
            if share < LEAST_COVER:
                alone.append(f"{pictures[row].name} {100 * share:.1f} %")
            found[row] = one
        if alone:
            warnings.warn(
                "pictures with hardly a depth that others confirm: wrong poses, or too little in "
                f"common (share of pixels that have one): {'; '.join(alone)[:400]}",
                stacklevel=4,
            )
        return found

    def _with_witnesses(self, rows: list[int], near: list[list[int]]) -> list[int]:
        """``rows``, and pictures near them that must be swept, too, for enough to agree."""
        wanted = set(rows)
        for row in rows:
            lacking = self.agree - len(wanted & set(near[row][: self.views]))
            spare = [j for j in near[row][: self.views] if j not in wanted]
            wanted |= set(spare[: max(lacking, 0)])
        return sorted(wanted)

    def _sweep(
        self, picture: Photograph, others: list[Photograph], low: float, high: float
    ) -> Tensor:
        """Depth [H, W] of every pixel, right or wrong."""
        views = [_seen_from(picture.camera, other.camera, _gray(other)) for other in others]
        steps = max(_pixels_between(picture.camera, other.camera, low, high) for other in others)
        number = int(min(max(steps / self.apart, FEWEST), MOST))
        inverse = torch.linspace(1 / high, 1 / low, number)
        image = _gray(picture)
        cost = plane_sweep(image, views, inverse, self.radius, floor=self.floor)
        plane = smooth_planes(cost, image, *self.prices)
        return 1 / (inverse[0] + plane * (inverse[1] - inverse[0]))

    def _agreed(
        self, picture: Photograph, depth: Tensor, others: list[Photograph], depths: list[Tensor]
    ) -> Depths:
        """What is left of ``depth`` [H, W] where the ``depths`` of enough ``others`` confirm it."""
        surfaces = [
            _seen_from(picture.camera, other.camera, surface)
            for other, surface in zip(others, depths)
        ]
        inverse_K = torch.linalg.inv(picture.camera.K.double())
        voices, asked, doubt = confirm_depths(
            *(depth, inverse_K, surfaces, self.max_miss, AGREES, self.min_angle)
        )
        good = voices >= asked.clamp(1, self.agree)
        return Depths(
            picture.camera, torch.where(good, depth, 0.0), torch.where(good, doubt, torch.inf)
        )


def depth_range(
    picture: Photograph, others: list[Photograph], points: SparsePoints
) -> tuple[float, float] | None:
    """Least and largest depth to look at: of the points that the picture sees, or of SIFT matches.

    None: there are neither.
    """
    if points.views:
        seen = torch.tensor([picture.name in views for views in points.views], dtype=torch.bool)
    else:
        seen = picture.camera.sees(points.xyz)
    depth = picture.camera.project(points.xyz[seen])[1]
    depth = depth[depth > 0]
    if len(depth) < LEAST_POINTS:
        parts = [depth]
        for other in others:
            start, end = (torch.from_numpy(e).float() for e in FlowMatcher().sparse(picture, other))
            two = triangulate(picture.camera, start, other.camera, end)
            parts.append(two.depth[two.in_front & (two.angle > 0.01) & two.depth.isfinite()])
        depth = torch.cat(parts)
    if len(depth) < LEAST_POINTS:
        return None
    low, high = depth.quantile(depth.new_tensor([TRIMMED, 1 - TRIMMED])).tolist()
    return NEARER * low, FARTHER * high


def _gray(picture: Photograph) -> Tensor:
    return torch.from_numpy(picture.gray).float() / 255


def _seen_from(camera: Camera, other: Camera, image: Tensor) -> View:
    """The picture or depths ``image`` of ``other``, as a view beside that of ``camera``."""
    pose = other.world_to_cam.double() @ torch.linalg.inv(camera.world_to_cam.double())
    K = other.K.double()
    rotation = K @ pose[:3, :3] @ torch.linalg.inv(camera.K.double())
    return View(image, rotation.float(), (K @ pose[:3, 3]).float())


def _pixels_between(camera: Camera, other: Camera, low: float, high: float) -> float:
    """Pixels of ``other`` between the two depths of a pixel, where they are farthest apart."""
    width, height = camera.size
    pixels = torch.tensor([[0.2, 0.5], [0.5, 0.5], [0.8, 0.5]]) * torch.tensor([width, height])
    ends = [
        other.project(lift(camera, pixels, torch.full((3,), depth)))[0] for depth in (low, high)
    ]
    return float((ends[0] - ends[1]).norm(dim=1).clamp(max=1e6).max())
