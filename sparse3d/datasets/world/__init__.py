"""The procedural world: seeded streets, laser scanners over them, the data set of the frames."""

from .dataset import WorldStreets
from .generate import Frame, frame_seed, make_frame, make_world
from .materials import CLASS_NAMES, KINDS, SEMANTICS
from .sensors import SENSORS

__all__ = [
    "CLASS_NAMES",
    "KINDS",
    "SEMANTICS",
    "SENSORS",
    "Frame",
    "WorldStreets",
    "frame_seed",
    "make_frame",
    "make_world",
]
