"""Published metrics, by their published definition. Importing this room registers all of them."""

from . import grounding, images, kitti, nuscenes

__all__ = ["grounding", "images", "kitti", "nuscenes"]
