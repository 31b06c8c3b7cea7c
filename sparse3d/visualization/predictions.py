"""One call that draws whatever a model found: ``write_prediction``."""

import functools
from pathlib import Path
from typing import Any

from sparse3d.structures import Detections, Rendering

from .renderings import write_rendering
from .report import write_report
from .scene import Scene


@functools.singledispatch
def write_prediction(found: Any, path: str | Path, min_score: float = 0.3) -> list[Path]:
    """Write a picture of what a model found in a sample; the files written.

    Args:
        found: a prediction of one sample.
        path: of the picture.
        min_score: least score of what is shown.

    Raises:
        ValueError: there is no picture of such a thing.
    """
    raise ValueError(f"there is no picture of a {type(found).__name__}; leave out --show-dir")


@write_prediction.register
def _(found: Detections, path: str | Path, min_score: float = 0.3) -> list[Path]:
    return write_report(Scene.from_detections(found, min_score), path)


@write_prediction.register
def _(found: Rendering, path: str | Path, min_score: float = 0.3) -> list[Path]:
    return write_rendering(found, path)
