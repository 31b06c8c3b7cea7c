"""From photographs with known cameras to Gaussians everywhere, before any training."""

from . import matchers, start

__all__ = ["matchers", "start"]
