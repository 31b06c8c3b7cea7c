"""From photographs with known cameras to Gaussians everywhere, before any training."""

from . import matched, matchers, start, swept

__all__ = ["matched", "matchers", "start", "swept"]
