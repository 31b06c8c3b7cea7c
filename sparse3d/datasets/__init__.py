"""Data sets: one file each, yielding Samples. Importing this room registers all of them."""

from . import kitti, nuscenes, sampling, transforms, world
from .base import PointDataset
from .world import rooms

__all__ = ["PointDataset", "kitti", "nuscenes", "rooms", "sampling", "transforms", "world"]
