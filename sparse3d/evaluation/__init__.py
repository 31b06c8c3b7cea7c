"""Published metrics, by their published definition. Importing this room registers all of them."""

from . import grounding, kitti, nuscenes

__all__ = ["grounding", "kitti", "nuscenes"]
