"""Published metrics, by their published definition. Importing this room registers all of them."""

from . import kitti, nuscenes

__all__ = ["kitti", "nuscenes"]
