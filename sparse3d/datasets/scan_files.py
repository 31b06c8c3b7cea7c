"""A scan of rooms from whatever file it lies in."""

from pathlib import Path

import numpy as np

from .base import reading
from .grounding import Room, with_color
from .scannet_scenes import read_points, read_scene
from .world.rooms.dataset import read_room

ENDINGS = (".ply", ".npz", ".npy")


def read_scan(path: str | Path) -> Room:
    """A scan with its objects, where the file has them.

    Args:
        path: a .ply; an .npy of rows x, y, z and colour if any; an .npz of the world's rooms or of
            ScanNet; or a scene's folder of ScanNet.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or none of these.
    """
    path = Path(path)
    if path.is_dir():
        return read_scene(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no scan {str(path)!r}: give a {', '.join(ENDINGS)} file or a ScanNet folder"
        )
    if path.suffix == ".npz":
        beside = path.with_suffix(".json")
        return read_room(path, beside) if beside.is_file() else read_scene(path)
    if path.suffix == ".ply":
        return bare(read_points(path))
    if path.suffix != ".npy":
        raise ValueError(f"{path} ends in {path.suffix!r}; a scan is one of {', '.join(ENDINGS)}")
    with reading(path):
        points = np.load(path, allow_pickle=False)
        if points.ndim != 2 or points.shape[1] < 3:
            raise ValueError(f"{path} has shape {points.shape}; rows of x, y, z are needed")
    return bare(with_color(points, str(path)))


def bare(points: np.ndarray) -> Room:
    """A room of points [P, 6] without objects."""
    return Room(points, np.full(len(points), -1), np.zeros((0, 6), np.float32), [], [])
