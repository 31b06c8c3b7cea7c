"""Data sets: one file each, yielding Samples. Importing this room registers all of them."""

from . import (
    colmap,
    flow,
    flow_benchmarks,
    flow_transforms,
    kitti,
    nuscenes,
    relocalization,
    room_groups,
    sampling,
    scannet,
    spare,
    transforms,
    transforms_json,
    world,
)
from .base import PointDataset
from .world import rooms

__all__ = [
    "PointDataset",
    "colmap",
    "flow",
    "flow_benchmarks",
    "flow_transforms",
    "kitti",
    "nuscenes",
    "relocalization",
    "room_groups",
    "rooms",
    "sampling",
    "scannet",
    "spare",
    "transforms",
    "transforms_json",
    "world",
]
