"""Data sets: one file each, yielding Samples. Importing this room registers all of them."""

from . import kitti, nuscenes, sampling, transforms, world
from .base import PointDataset

__all__ = ["PointDataset", "kitti", "nuscenes", "sampling", "transforms", "world"]
