"""Makes a map of posed pictures: features, tracks, points, descriptors, volumes."""

from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from sparse3d.ops.volume import RaySettings
from sparse3d.structures import Camera, SparseVoxels

from .features import Features
from .geometry import project
from .landmarks import GRID, LandmarkMap, voxels_of
from .matching import anchor
from .tracking import Match, Posed, build_tracks, check_poses, keep_good, match_pairs
from .training import Schedule, Views, train_volumes

Report = Callable[[float, str], None]
FEW = 20
"""Below so many pictures, two views make a landmark; from here on three are needed."""


@dataclass(frozen=True)
class BuildSettings:
    """How a map is made.

    Attributes:
        landmarks: at most so many, chosen so that every picture sees enough.
        rank: numbers per descriptor.
        volumes: train a volume per landmark; else it looks alike from everywhere.
        frames: keep every observation by itself instead; a baseline.
        patch: edge of a landmark's box in pixels of its closest picture.
        pixels: largest reprojection error of an observation.
        least_angle: radians under which a landmark's views must differ.
        schedule: of the training.
    """

    landmarks: int = 1500
    rank: int = 64
    volumes: bool = True
    frames: bool = False
    patch: float = 7.0
    pixels: float = 2.5
    least_angle: float = 0.026
    schedule: Schedule = field(default_factory=Schedule)


@dataclass(frozen=True, eq=False)
class Observations:
    """What M landmarks looked like in up to V pictures each, present ones first.

    Attributes:
        points: [M, 3] float64 world metres.
        views: [M, V] int64 pictures.
        present: [M, V] bool.
        descriptors: [M, V, C].
        angles: [M, V] radians.
        scales: [M, V] pixels.
    """

    points: Tensor
    views: Tensor
    present: Tensor
    descriptors: Tensor
    angles: Tensor
    scales: Tensor

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, rows) -> "Observations":
        names = ("points", "views", "present", "descriptors", "angles", "scales")
        return replace(self, **{name: getattr(self, name)[rows] for name in names})

    def seen(self, pictures: int) -> Tensor:
        """[P, M] bool, which landmark was seen in which of P pictures."""
        table = torch.zeros(pictures, len(self), dtype=torch.bool)
        landmark, place = self.present.nonzero().unbind(1)
        table[self.views[landmark, place], landmark] = True
        return table


def extract_all(
    pictures: Iterable[tuple[str, Any, Camera]], extractor, count: int, report: Report
) -> tuple[list[Features], Posed, list[str]]:
    """Features, cameras and names of (name, uint8 image, camera)."""
    features, cameras, names = [], [], []
    for done, (name, image, camera) in enumerate(pictures):
        features.append(extractor.extract(image))
        cameras.append(camera)
        names.append(name)
        report((done + 1) / count, f"features of picture {done + 1} of {count}")
    if len(features) < 2:
        raise ValueError(
            f"{len(features)} mapping pictures were given; at least two that see the same things "
            "are needed to find where those are"
        )
    posed = Posed(
        torch.stack([c.K for c in cameras]).double(),
        torch.stack([c.world_to_cam for c in cameras]).double(),
        torch.tensor([c.size for c in cameras]),
    )
    check_poses(posed.world_to_cam, names)
    return features, posed, names


def observe(
    features: list[Features], posed: Posed, matches: list[Match], settings: BuildSettings
) -> Observations:
    """All landmarks that the pictures make certain.

    Raises:
        ValueError: there is none.
    """
    tracks, rows = build_tracks(features, matches)
    least_views = 2 if len(posed) < FEW else 3
    kept, points, good = keep_good(
        tracks, posed, least_views, settings.pixels, settings.least_angle
    )
    if not len(kept):
        raise ValueError(
            f"{len(posed)} pictures with {sum(map(len, features))} key points and {len(tracks)} "
            f"matched ones gave no landmark seen in {least_views} pictures: they must overlap, be "
            "taken from different places, and their poses must fit their intrinsics"
        )
    order = torch.argsort((~good.present).int(), dim=1, stable=True)
    order = order[:, : int(good.present.sum(1).max())]
    views, present = good.views.gather(1, order), good.present.gather(1, order)
    starts = torch.tensor([0, *(len(f) for f in features)]).cumsum(0)
    at = starts[views] + rows[kept].gather(1, order)

    def column(name: str) -> Tensor:
        values = torch.cat([getattr(f, name) for f in features])[at]
        return values * present.view(*present.shape, *(1,) * (values.dim() - 2))

    return Observations(
        points, views, present, column("descriptors"), column("angles"), column("scales")
    )


def cover(seen: Tensor, count: int) -> Tensor:
    """[count] landmarks of [P, M], each the best for pictures that see few of those before it."""
    gain = seen.float()
    have = torch.zeros(len(seen))
    free = torch.ones(seen.shape[1])
    chosen = []
    for _ in range(min(count, seen.shape[1])):
        row = int((((1 / (1 + have)) @ gain) * free - (1 - free)).argmax())
        chosen.append(row)
        free[row] = 0
        have += gain[:, row]
    return torch.tensor(chosen, dtype=torch.int64)


def principal(descriptors: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Mean [C] and the first ``rank`` principal directions [r, C] of [N, C]."""
    mean = descriptors.mean(0)
    away = (descriptors - mean).double()
    rows = torch.linalg.eigh(away.T @ away)[1].flip(1).T[:rank]
    sign = rows.gather(1, rows.abs().argmax(1, keepdim=True)).sign()  # of no other meaning
    return mean, (rows * sign).float()


def make_map(
    seen: Observations, posed: Posed, settings: BuildSettings, report: Report, **meta: Any
) -> LandmarkMap:
    """The map of ``settings.landmarks`` of the observed landmarks."""
    table = seen.seen(len(posed))
    rows = cover(table, settings.landmarks)
    seen, table = seen[rows], table[:, rows]
    present = seen.present
    offset, basis = principal(seen.descriptors[present], settings.rank)
    codes = (seen.descriptors - offset) @ basis.T * present[..., None]
    base = codes.sum(1) / present.sum(1, keepdim=True)
    centers = posed.centers[seen.views]
    depth = project(posed.matrices[seen.views], seen.points[:, None])[1]
    focal = posed.K.diagonal(dim1=1, dim2=2)[:, :2].mean(1)[seen.views]
    turns = posed.world_to_cam[seen.views][..., :3, :3].float()
    tangents, sizes = anchor(seen.angles, seen.scales, depth.float(), focal.float(), turns, present)
    distance = (centers - seen.points[:, None]).norm(dim=-1) / focal
    half = settings.patch / 2 * torch.where(present, distance, torch.inf).amin(1)
    place = LandmarkMap(
        seen.points.float(),
        half.float(),
        tangents,
        sizes,
        base,
        offset,
        basis,
        SparseVoxels.empty(1 + len(basis), GRID, max(len(rows), 1)),
        frames=posed.world_to_cam.float(),
        seen=table,
        meta={"focal": float(focal.mean()), "build": asdict(settings), **meta},
    )
    if settings.frames:
        return frames_map(place, seen)
    if not settings.volumes:
        return place
    return with_volumes(place, seen, centers.float(), codes, settings.schedule, report)


def frames_map(place: LandmarkMap, seen: Observations) -> LandmarkMap:
    """A map in which every observation is a landmark of its own picture.

    With retrieval (``QuerySettings.retrieval``) this is matching against the descriptors of the
    most alike mapping pictures, as structure-based localization is usually done.

    Args:
        place: of the same landmarks, in the same order.
        seen: their observations.
    """
    landmark, number = seen.present.nonzero().unbind(1)
    codes = (seen.descriptors[landmark, number] - place.offset) @ place.basis.T
    table = torch.zeros(len(place.frames), len(landmark), dtype=torch.bool)
    table[seen.views[landmark, number], torch.arange(len(landmark))] = True
    flat = place.without_volumes().select(landmark)
    return replace(flat, base=codes, seen=table, meta=place.meta | {"kind": "frames"})


def with_volumes(
    place: LandmarkMap,
    seen: Observations,
    centers: Tensor,
    codes: Tensor,
    schedule: Schedule,
    report: Report,
) -> LandmarkMap:
    """``place`` with a volume per landmark, trained on codes [M, V, r] seen from ``centers``."""
    views = Views(centers, place.positions[:, None] - centers, lift(place, codes), seen.present)
    density, values, loss = train_volumes(
        views,
        *place.box,
        lift(place, place.base),
        place.rank,
        schedule,
        RaySettings(near=0.0),
        report,
    )
    keep = torch.ones(len(place), values.shape[1], dtype=torch.bool)
    meta = place.meta | {"loss": round(float(loss.mean()), 6)}
    return replace(place, voxels=voxels_of(density, values, keep), meta=meta)


def lift(place: LandmarkMap, codes: Tensor) -> Tensor:
    """Codes [..., r] as [..., r + 1], of which lengths and angles are those of descriptors."""
    inside = place.basis @ place.offset
    rest = (place.offset.square().sum() - inside.square().sum()).clamp(min=0).sqrt()
    return torch.cat([codes + inside, rest.expand(*codes.shape[:-1], 1)], -1)


@dataclass(frozen=True, eq=False)
class Survey:
    """What all maps of the same pictures share.

    Attributes:
        features: of each picture.
        posed: their cameras.
        names: of the pictures.
        matches: of pairs of pictures.
        kind: what the map should say of the features.
    """

    features: list[Features]
    posed: Posed
    names: list[str]
    matches: list[Match]
    kind: dict[str, Any]

    def build(
        self,
        settings: BuildSettings = BuildSettings(),
        report: Report = lambda share, text: None,
        without: Collection[int] = (),
        **meta: Any,
    ) -> LandmarkMap:
        """A map of the pictures but for the rows ``without``; ``meta`` is what it says of itself.

        Raises:
            ValueError: nothing is seen twice.
        """
        matches = [m for m in self.matches if m[0] not in without and m[1] not in without]
        seen = observe(self.features, self.posed, matches, settings)
        about = self.kind | {"pictures": len(self.names) - len(without)}
        return make_map(seen, self.posed, settings, report, **about, **meta)


def survey(
    pictures: Iterable[tuple[str, Any, Camera]],
    count: int,
    extractor,
    report: Report = lambda share, text: None,
) -> Survey:
    """Features and matches of pictures with known cameras; see ``build_map``."""
    features, posed, names = extract_all(pictures, extractor, count, report)
    matches = match_pairs(features, posed, extractor.ratio, extractor.similarity, report)
    kind = {"features": extractor.name, "channels": extractor.channels}
    return Survey(features, posed, names, matches, kind)


def build_map(
    pictures: Iterable[tuple[str, Any, Camera]],
    count: int,
    extractor,
    settings: BuildSettings = BuildSettings(),
    report: Report = lambda share, text: None,
    **meta: Any,
) -> LandmarkMap:
    """A map of pictures with known cameras.

    Args:
        pictures: (name, uint8 [H, W, 3] rgb, camera) without lens distortion.
        count: how many they are.
        extractor: of features.
        settings: how.
        report: is told the share of the present stage that is done, and a line.
        meta: what the map should say of itself, plain data.

    Raises:
        ValueError: fewer than two pictures, poses that are no rotations, or nothing seen twice.
    """
    return survey(pictures, count, extractor, report).build(settings, report, **meta)
