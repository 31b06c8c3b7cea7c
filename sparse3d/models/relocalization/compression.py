"""Smaller maps: fewer landmarks, fewer numbers per descriptor, fewer modes per volume."""

from dataclasses import replace

import torch

from .builder import cover
from .landmarks import LandmarkMap, voxels_of


def prune(place: LandmarkMap, landmarks: int) -> LandmarkMap:
    """The ``landmarks`` that serve the mapping pictures best; the first ones of a map without them.

    Raises:
        ValueError: there are not so many, or none is asked for.
    """
    if not 0 < landmarks <= len(place):
        raise ValueError(f"landmarks is {landmarks}; the map has {len(place)}")
    rows = torch.arange(landmarks) if place.seen is None else cover(place.seen, landmarks)
    return place.select(rows.sort().values)


def shorten(place: LandmarkMap, rank: int) -> LandmarkMap:
    """Descriptors of ``rank`` numbers: the rows of the basis are ordered by what they explain.

    Raises:
        ValueError: the map has fewer already, or none is asked for.
    """
    if not 0 < rank <= place.rank:
        raise ValueError(f"rank is {rank}; the map's descriptors have {place.rank} numbers")
    voxels, codes = place.voxels, place.codes
    if codes is not None:
        codes = codes[..., :rank]
    else:
        voxels = voxels.replace(voxels.features[:, : 1 + rank])
    return replace(
        place, base=place.base[:, :rank], basis=place.basis[:rank], voxels=voxels, codes=codes
    )


def reduce_modes(place: LandmarkMap, modes: int) -> LandmarkMap:
    """Volumes whose nodes hold ``modes`` numbers each, which codes of the landmark multiply.

    The best such form of each landmark's nodes by itself (singular value decomposition). 0 leaves
    no volumes.

    Raises:
        ValueError: ``modes`` is negative or the map was reduced before.
    """
    if modes < 0:
        raise ValueError(f"modes is {modes}; 0 (no volumes) or more are possible")
    if place.codes is not None and modes:
        raise ValueError("the map's volumes were reduced before; reduce the full map instead")
    if modes == 0 or not place.renders:
        return place.without_volumes()
    density, mask, values = place.dense
    left, size, right = torch.linalg.svd(values, full_matrices=False)
    left, size, right = left[..., :modes], size[:, :modes], right[:, :modes]
    top = left.abs().amax(1, keepdim=True).clamp(min=1e-12)  # node numbers in -1..1
    codes = right * size[..., None] * top.mT
    voxels = voxels_of(density, left / top, mask.flatten(1))
    return replace(place, voxels=voxels, codes=codes)


def flatten_density(place: LandmarkMap) -> LandmarkMap:
    """The map with each node's density replaced by the mean of all: it packs to nothing."""
    features = place.voxels.features.clone()
    if len(features):
        features[:, 0] = features[:, 0].mean()
    return replace(place, voxels=place.voxels.replace(features))


def drop_frames(place: LandmarkMap) -> LandmarkMap:
    """The map without poses of its pictures: no retrieval, no later pruning by them."""
    return replace(place, frames=torch.zeros(0, 4, 4), seen=None)
