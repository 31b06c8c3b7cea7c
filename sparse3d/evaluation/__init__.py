"""Published metrics, by their published definition. Importing this room registers all of them."""

from . import flow, flow_metric, grounding, images, kitti, nuscenes

__all__ = ["flow", "flow_metric", "grounding", "images", "kitti", "nuscenes"]
