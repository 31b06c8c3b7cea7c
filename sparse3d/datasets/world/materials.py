"""What surfaces are made of, as a laser sees them; what points are, as a labeller names them."""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np


class Material(IntEnum):
    ASPHALT = 0
    PAVING = 1
    GRASS = 2
    MARKING = 3
    WALL = 4
    WINDOW = 5
    LEAVES = 6
    BARK = 7
    METAL = 8
    SIGN = 9
    PAINT = 10
    GLASS = 11
    RUBBER = 12
    RIM = 13
    LAMP = 14
    CLOTH = 15
    SKIN = 16
    PLASTIC = 17
    LATTICE = 18
    INTERIOR = 19


@dataclass(frozen=True)
class Surface:
    """How a laser meets a material.

    Attributes:
        reflectance: mean intensity, 0..1.
        spread: standard deviation of the reflectance from object to object.
        noise: standard deviation of the intensity from point to point.
        through: share of the rays that pass, half to one and a half times that by object.
        lost: share of the rays that are mirrored away, likewise.
        glancing: how much more is lost at a glancing angle, 0..1.
        rough: depth of the surface, metres (standard deviation of the range along the ray).
        gloss: share of the intensity that a glancing ray loses.
    """

    reflectance: float
    spread: float = 0.06
    noise: float = 0.05
    through: float = 0.0
    lost: float = 0.004
    glancing: float = 0.0
    rough: float = 0.0
    gloss: float = 0.2


# Means follow what is published for 905 nm scanners; spreads are wide on purpose, so that a
# detector does not learn to trust the intensity.
SURFACES = {
    Material.ASPHALT: Surface(0.24, 0.07, 0.07, glancing=0.03),
    Material.PAVING: Surface(0.30, 0.06, 0.06, glancing=0.02),
    Material.GRASS: Surface(0.32, 0.06, 0.09, rough=0.02),
    Material.MARKING: Surface(0.45, 0.1, 0.12),
    Material.WALL: Surface(0.42, 0.12, 0.07),
    Material.WINDOW: Surface(0.15, 0.08, 0.1, lost=0.6),
    Material.LEAVES: Surface(0.33, 0.06, 0.11, lost=0.01, rough=0.03),
    Material.BARK: Surface(0.30, 0.08, 0.12),
    Material.METAL: Surface(0.22, 0.12, 0.14, lost=0.03),
    Material.SIGN: Surface(0.55, 0.2, 0.25, lost=0.02),
    Material.PAINT: Surface(0.17, 0.14, 0.07, lost=0.015, glancing=0.85, gloss=0.8),
    Material.GLASS: Surface(0.05, 0.03, 0.05, through=0.55, lost=0.8, glancing=0.5),
    Material.RUBBER: Surface(0.06, 0.04, 0.05, lost=0.10),
    Material.RIM: Surface(0.3, 0.15, 0.2, lost=0.15),
    Material.LAMP: Surface(0.7, 0.2, 0.3, lost=0.1),
    Material.CLOTH: Surface(0.25, 0.15, 0.10, lost=0.01, rough=0.01),
    Material.SKIN: Surface(0.35, 0.08, 0.10, lost=0.01),
    Material.PLASTIC: Surface(0.28, 0.15, 0.08, lost=0.01),
    Material.LATTICE: Surface(0.25, 0.1, 0.15, through=0.5, lost=0.03),
    Material.INTERIOR: Surface(0.10, 0.06, 0.06, lost=0.35),
}


def table(name: str) -> np.ndarray:
    """[number of materials] one column of ``SURFACES``."""
    return np.array([getattr(SURFACES[material], name) for material in Material])


SEMANTICS = (
    "nothing",
    "road",
    "sidewalk",
    "terrain",
    "building",
    "fence",
    "vegetation",
    "trunk",
    "pole",
    "sign",
    "clutter",
    "car",
    "truck",
    "cyclist",
    "pedestrian",
    "van",
    "bus",
)
"""Meaning of a point's ``semantic`` label."""

CLASS_NAMES = ("car", "truck", "cyclist", "pedestrian")
"""Classes of the world's boxes; ``labels`` are indices into it, -1 for kinds to ignore."""

KINDS = ("car", "truck", "cyclist", "pedestrian", "van", "bus")
"""Kinds of boxes. A van is ignored (label -1), as KITTI does for cars; a bus counts as a truck."""

LABEL_OF_KIND = {"car": 0, "truck": 1, "cyclist": 2, "pedestrian": 3, "van": -1, "bus": 1}
