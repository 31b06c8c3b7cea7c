"""How a scene begins: densely from matches (EDGS), from sparse points, or at random."""

import time
import warnings
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from sparse3d.ops.neighbors import knn
from sparse3d.registry import MODELS
from sparse3d.structures import Gaussians, Sample, SparsePoints

from .consistency import Depths, contradicted
from .discs import flattened
from .fill import fill_behind, fill_holes
from .merge import merge_to
from .photographs import Photograph, choose_neighbours, choose_references, scene_extent
from .sampling import sample_spaced, spacing
from .triangulation import lift

ASKED = 10
"""Nearest views that may contradict a point."""


class TooFewViews(ValueError):
    """These photographs are no start; more of the same place might be."""


@MODELS.register_module()
class PointStart:
    """One Gaussian per sparse point, as wide as its three nearest neighbours are far (3DGS).

    Args:
        opacity: of every Gaussian.
        random: so many points at random where the data have none; 3DGS has 100,000.
    """

    def __init__(self, opacity: float = 0.1, random: int = 100_000):
        self.opacity = opacity
        self.random = random

    def __call__(
        self, samples: list[Sample], points: SparsePoints, sh_degree: int, most: int | None = None
    ) -> tuple[Gaussians, dict[str, float]]:
        """Gaussians, at most ``most``, and what to report of their making."""
        if not len(points):
            warnings.warn(
                f"the data have no sparse points: {self.random} random ones are the start",
                stacklevel=2,
            )
            points = random_points([_camera(s) for s in samples], self.random)
        xyz, rgb = points.xyz, points.rgb
        if most is not None and len(xyz) > most:
            keep = torch.randperm(len(xyz))[:most]
            xyz, rgb = xyz[keep], rgb[keep]
        sizes = neighbour_distance(xyz)
        return Gaussians.from_points(xyz, rgb, sizes, self.opacity, sh_degree), {}


@MODELS.register_module()
class DenseStart:
    """EDGS: the depths of reference views are found densely, and their pixels become Gaussians.

    What EDGS does not do, and this does: neighbours share points and have parallax; a point must
    not be gainsaid by other references; detailed places get more points than plain ones; Gaussians
    are as wide as their pixels are apart; duplicates of several references become one; and where
    nothing is known, or only what stands before something else, the surfaces around are continued.

    Args:
        depth: config of what finds the depths: MatchedDepth (EDGS's way, the default) or
            SweptDepth.
        references: most reference views.
        matches: most points per reference; EDGS takes 15,000 to 25,000, of large photographs.
        pixels: of a reference per point at least, where it is as detailed as photographs mostly
            are (``sampling.spacing``): small pictures get fewer points. With more than their pixels
            can tell apart, training is slower and learns the pictures by heart.
        opacity: of every Gaussian.
        spread: standard deviation of a Gaussian, in distances of sampled pixels.
        merge: edge of the voxel in which one Gaussian stays, in standard deviations; 0: no merging.
        keep_points: add the sparse points where no dense one is near.
        fill: edge of the squares of which each gets a Gaussian in every picture, in distances of
            sampled pixels; 0: holes stay.
        margin: as much around each picture is filled, too, in shares of its longer side: other
            views see it.
        behind: fill what stands behind something else, seen by no picture; as far, in squares,
            from the edge of what hides it. 0: do not.
        fill_opacity: of the Gaussians in holes.
        flat: thickness of the flattest Gaussians, in widths; 1: all begin round, as in EDGS.
        seed: of the choice of pixels and references.

    Source: Kotovenko, Grebenkova, Ommer: EDGS, 2025.
    """

    def __init__(
        self,
        depth: Mapping | None = None,
        references: int = 180,
        matches: int = 15_000,
        pixels: float = 16.0,
        opacity: float = 0.5,
        spread: float = 0.5,
        merge: float = 2.0,
        keep_points: bool = True,
        fill: float = 1.9,
        margin: float = 0.1,
        behind: int = 5,
        fill_opacity: float = 0.5,
        flat: float = 0.25,
        seed: int = 0,
    ):
        above = dict(references=references, matches=matches, pixels=pixels, spread=spread)
        for name, value in above.items():
            if not value > 0:
                raise ValueError(f"{name} is {value}; it must be above 0")
        for name, value in dict(merge=merge, fill=fill, margin=margin, behind=behind).items():
            if not value >= 0:
                raise ValueError(f"{name} is {value}; it must be 0 (nothing of the kind) or more")
        for name, value in dict(opacity=opacity, fill_opacity=fill_opacity).items():
            if not 0 < value < 1:
                raise ValueError(f"{name} is {value}; it must lie between 0 and 1")
        self.depth = MODELS.build(depth or {"type": "MatchedDepth"})
        self.references = references
        self.matches = matches
        self.pixels = pixels
        self.opacity = opacity
        self.spread = spread
        self.merge = merge
        self.keep_points = keep_points
        self.fill, self.fill_opacity = fill, fill_opacity
        self.margin, self.behind = margin, behind
        self.flat = flat
        self.seed = seed

    def __call__(
        self, samples: list[Sample], points: SparsePoints, sh_degree: int, most: int | None = None
    ) -> tuple[Gaussians, dict[str, float]]:
        """Gaussians, at most ``most``, and what to report of their making.

        Raises:
            TooFewViews: fewer than two photographs, or no pair with parallax or matches.
        """
        if len(samples) < 2:
            raise TooFewViews(
                f"the dense start has {len(samples)} photograph; it needs two of the same place at "
                "least: add some, or begin from points: start=dict(type='PointStart')"
            )
        started = time.time()
        pictures = [Photograph.from_sample(sample) for sample in samples]
        found = self._all_references(pictures, points)
        if not found:
            raise TooFewViews(
                f"no two of the {len(pictures)} photographs agree on a depth: the views have no "
                "parallax, nothing in common, wrong poses, or are hidden by masks; take others, or "
                "begin from points: start=dict(type='PointStart')"
            )
        xyz, rgb, sizes, doubt = (torch.cat(part) for part in zip(*found))
        triangulated = len(xyz)
        if self.merge:
            rows, factor = merge_to(xyz, sizes * self.merge, doubt, most)
            xyz, rgb, sizes = xyz[rows], rgb[rows], sizes[rows] * factor
        report = {"triangulated": triangulated, "merged": len(xyz), "references": len(found)}
        if self.keep_points and len(points):
            cameras = [picture.camera for picture in pictures]
            xyz, rgb, sizes = _add_sparse(xyz, rgb, sizes, points, cameras)
        gaussians = Gaussians.from_points(xyz, rgb, sizes, self.opacity, sh_degree)
        if self.fill:
            gaussians = Gaussians.cat([gaussians, self._in_holes(pictures, gaussians)])
        gaussians = flattened(gaussians, self.flat)
        report = {**report, "filled": len(gaussians) - len(xyz)}
        report["start_seconds"] = time.time() - started
        return gaussians[: most or len(gaussians)], report

    def _in_holes(self, pictures: list[Photograph], gaussians: Gaussians) -> Gaussians:
        area = float(np.mean([picture.gray.size for picture in pictures]))
        cell = max(self.fill * self._usual_distance(area), 1.0)
        wider = [picture.with_margin(self.margin) for picture in pictures]
        found = [fill_holes(wider, gaussians.means, cell)]
        if self.behind:
            known = torch.cat([gaussians.means, found[0][0]])
            colors = torch.cat([gaussians.rgb, found[0][1]])
            found.append(fill_behind(pictures, known, colors, cell, self.behind))
        xyz, rgb, edges = (torch.cat(column) for column in zip(*found))
        sizes = self.spread * edges
        return Gaussians.from_points(xyz, rgb, sizes, self.fill_opacity, gaussians.sh_degree)

    def _usual_distance(self, area: float) -> float:
        """Pixels between two points of a reference of ``area`` pixels."""
        return max(self.pixels, area / self.matches) ** 0.5

    def _all_references(self, pictures: list[Photograph], points: SparsePoints) -> list[tuple]:
        """Points, colours, sizes and doubt of each reference that has any."""
        cameras, names = [p.camera for p in pictures], [p.name for p in pictures]
        near = choose_neighbours(names, cameras, points, ASKED)
        rows = choose_references(cameras, self.references, self.seed)
        known = self.depth(pictures, rows, near, points)
        generator = np.random.default_rng(self.seed)
        kept = []
        for row, one in known.items():
            part = self._points_of(pictures[row], one, generator)
            good = ~contradicted(part[0], row, near[row], known)
            kept += [tuple(column[good] for column in part)] if good.any() else []
        return kept

    def _points_of(self, picture: Photograph, known: Depths, generator) -> tuple[Tensor, ...]:
        depth, doubt = (plane.reshape(-1) for plane in known.enlarged(picture.gray.shape))
        width = picture.gray.shape[1]
        if picture.mask is not None:
            depth = depth * picture.mask.reshape(-1)
        good = (depth > 0).numpy().reshape(-1, width)
        distance = spacing(picture.image, self._usual_distance(good.size))
        chosen, step = sample_spaced(good, distance, self.matches, generator)
        depth = depth[chosen]
        color = torch.from_numpy(picture.image).reshape(-1, 3)[chosen].float() / 255
        focal = float(picture.camera.K[0, 0] + picture.camera.K[1, 1]) / 2
        pixels = torch.stack([chosen % width, chosen // width], 1).float()
        points = lift(picture.camera, pixels, depth)
        return points, color, self.spread * step * depth / focal, doubt[chosen]


def neighbour_distance(points: Tensor) -> Tensor:
    """[N] root of the mean squared distance of ``points`` [N, 3] to the three nearest others, in
    their unit; at least 1e-7. A point alone has 1e-2."""
    count = min(4, len(points))
    if count < 2:
        return torch.full((len(points),), 1e-2)
    _, squared = knn(points, points, count)
    return squared[:, 1:].mean(1).clamp(min=1e-14).sqrt()


def random_points(cameras: list, count: int) -> SparsePoints:
    """Grey points in the cube of three extents around the place where the cameras look."""
    centers = torch.stack([camera.center for camera in cameras])
    axes = torch.stack([camera.axis for camera in cameras])
    # The point nearest to all optical axes.
    flat = torch.eye(3) - axes[:, :, None] * axes[:, None]
    system = flat.sum(0) + 1e-3 * torch.eye(3)
    middle = torch.linalg.solve(
        system, (flat @ centers[..., None]).sum(0) + 1e-3 * centers.mean(0)[:, None]
    )
    half = max(scene_extent(cameras), float((centers - middle[:, 0]).norm(dim=1).mean()))
    xyz = middle[:, 0] + 1.5 * half * (2 * torch.rand(count, 3) - 1)
    return SparsePoints(xyz, torch.rand(count, 3))


def _camera(sample: Sample):
    return next(iter(sample.cameras.values()))


def _add_sparse(xyz, rgb, sizes, points: SparsePoints, cameras: list):
    """Dense points, then the sparse ones that no dense one is near.

    A lone point far from all others would be a ball before everything: it is made at most four
    times as wide, in the picture, as the dense ones are in theirs.
    """
    far = neighbour_distance(points.xyz)
    _, squared = knn(points.xyz, xyz, 1)
    lonely = squared[:, 0].sqrt() > far
    widest = 4 * (sizes / _least_depth(xyz, cameras)).median() * _least_depth(points.xyz, cameras)
    return (
        torch.cat([xyz, points.xyz[lonely]]),
        torch.cat([rgb, points.rgb[lonely]]),
        torch.cat([sizes, torch.minimum(far * 0.5, widest)[lonely]]),
    )


def _least_depth(points: Tensor, cameras: list) -> Tensor:
    """[N] depth in the nearest camera that sees a point; where none does, the distance to one."""
    least = torch.full((len(points),), float("inf"))
    distance = least.clone()
    for camera in cameras:
        depth = camera.project(points)[1]
        least = torch.minimum(least, torch.where(camera.sees(points), depth, torch.inf))
        distance = torch.minimum(distance, (points - camera.center).norm(dim=1))
    return torch.where(least.isfinite(), least, distance)
