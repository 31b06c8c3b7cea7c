"""transforms.json of nerfstudio and instant-ngp, and Blender's transforms_SPLIT.json."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sparse3d.registry import DATASETS
from sparse3d.structures import SparsePoints
from sparse3d.structures.ply import read_ply

from .base import read_json
from .views import View, ViewDataset, read_picture

ENDINGS = ("", ".png", ".jpg", ".jpeg", ".PNG", ".JPG")
FLIP = np.diag([1.0, -1.0, -1.0, 1.0])
"""OpenGL's camera (y up, looking along -z) from ours."""
LENSES = ("OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "OPENCV_FISHEYE", "PERSPECTIVE")


@DATASETS.register_module()
class TransformsViews(ViewDataset):
    """One transforms.json, split by ``holdout``; or a file for each split, as Blender's scenes.

    Args:
        data_root: the folder of the file or files.
        options: of ViewDataset.
    """

    name = "transforms"

    def __init__(self, data_root: str | Path, **options: Any):
        super().__init__(data_root, **options)

    def read(self) -> tuple[list[View], SparsePoints]:
        """As the file has them.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is damaged, or lacks the focal length.
        """
        path = self.data_root / "transforms.json"
        if not path.is_file():
            path = self.data_root / f"transforms_{self.split}.json"
            self.holdout = 0 if self.split == "train" else 1  # the files are the split
        if not path.is_file():
            raise FileNotFoundError(
                f"{self.data_root} has neither transforms.json nor {path.name}; a folder of "
                "photographs gets cameras by: python tools/prepare_data.py poses FOLDER"
            )
        content = read_json(path)
        frames = content.get("frames") if isinstance(content, dict) else None
        if not frames:
            raise ValueError(f"{path} lists no frames")
        views = [self._view(path, content, frame) for frame in frames]
        cloud = content.get("ply_file_path")
        return views, _read_cloud(self.data_root / cloud) if cloud else SparsePoints.none()

    def _view(self, path: Path, content: dict, frame: dict) -> View:
        if "file_path" not in frame or "transform_matrix" not in frame:
            raise ValueError(f"{path}: a frame lacks file_path or transform_matrix: {frame}")
        name = frame["file_path"]
        picture = next(
            (p for end in ENDINGS if (p := self.data_root / f"{name}{end}").is_file()),
            self.data_root / name,
        )
        pose = np.array(frame["transform_matrix"], np.float64)
        if pose.shape == (3, 4):
            pose = np.concatenate([pose, [[0, 0, 0, 1.0]]])
        if pose.shape != (4, 4):
            raise ValueError(f"{path}: transform_matrix of {name} has shape {pose.shape}")
        finite = np.isfinite(pose).all() and abs(np.linalg.det(pose[:3, :3])) > 1e-9
        to_camera = np.linalg.inv(pose @ FLIP) if finite else np.full((4, 4), np.nan)
        values = {**content, **frame}
        K, size = _intrinsics(path, values, picture)
        bent, fisheye = _distortion(path, values)
        return View(name, picture, K, to_camera, size, bent, fisheye)


def _intrinsics(path: Path, values: dict, picture: Path):
    """K [3, 3] and the (width, height) that it belongs to."""
    size = (int(values["w"]), int(values["h"])) if "w" in values and "h" in values else None
    if size is None:
        if not picture.is_file():
            return np.eye(3), None
        height, width = read_picture(picture, np.zeros(3, np.float32)).shape[:2]
        size = (width, height)
    fx = values.get("fl_x")
    if fx is None and "camera_angle_x" in values:
        fx = size[0] / 2 / math.tan(values["camera_angle_x"] / 2)
    if fx is None:
        raise ValueError(f"{path} gives no focal length: fl_x or camera_angle_x is needed")
    fy = values.get("fl_y")
    if fy is None:
        angle = values.get("camera_angle_y")
        fy = fx if angle is None else size[1] / 2 / math.tan(angle / 2)
    cx, cy = values.get("cx", size[0] / 2), values.get("cy", size[1] / 2)
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]]), size


def _distortion(path: Path, values: dict) -> tuple[tuple[float, ...], bool]:
    model = values.get("camera_model", "OPENCV").upper()
    if model not in LENSES:
        raise ValueError(
            f"{path} has the camera_model {model}, which is not supported; those that are: "
            f"{', '.join(LENSES)}"
        )
    fisheye = model == "OPENCV_FISHEYE" or bool(values.get("is_fisheye"))
    names = ("k1", "k2", "k3", "k4") if fisheye else ("k1", "k2", "p1", "p2", "k3")
    return tuple(float(values.get(name) or 0) for name in names), fisheye


def _read_cloud(path: Path) -> SparsePoints:
    if not path.is_file():
        return SparsePoints.none()
    table = read_ply(path).get("vertex")
    names = table.dtype.names if table is not None else ()
    if not {"x", "y", "z"} <= set(names):
        raise ValueError(f"{path} has no points x, y, z; it has {names}")
    xyz = np.stack([table[axis] for axis in "xyz"], 1).astype(np.float32)
    rgb = np.full_like(xyz, 0.5)
    if {"red", "green", "blue"} <= set(names):
        rgb = np.stack([table[c] for c in ("red", "green", "blue")], 1).astype(np.float32) / 255
    good = np.isfinite(xyz).all(1)
    return SparsePoints(torch.from_numpy(xyz[good]), torch.from_numpy(rgb[good]))
