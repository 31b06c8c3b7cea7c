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

    A frame's mask_path names its mask, as in nerfstudio: pixels that are black there do not count.

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
        views = []
        for number, frame in enumerate(frames):
            try:
                views.append(self._view(path, content, frame))
            except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
                name = frame.get("file_path") if isinstance(frame, dict) else frame
                raise ValueError(f"{path}: frame {number} ({name}): {error}") from error
        cloud = content.get("ply_file_path")
        return views, _read_cloud(self.data_root / cloud) if cloud else SparsePoints.none()

    def _view(self, path: Path, content: dict, frame: dict) -> View:
        if "file_path" not in frame or "transform_matrix" not in frame:
            raise ValueError("it lacks file_path or transform_matrix")
        name = frame["file_path"]
        picture = next(
            (p for end in ENDINGS if (p := self.data_root / f"{name}{end}").is_file()),
            self.data_root / name,
        )
        try:
            pose = np.array(frame["transform_matrix"], np.float64)
        except (TypeError, ValueError):
            raise ValueError("its transform_matrix is no 4 x 4 table of numbers") from None
        if pose.shape == (3, 4):
            pose = np.concatenate([pose, [[0, 0, 0, 1.0]]])
        if pose.shape != (4, 4):
            raise ValueError(f"its transform_matrix has shape {pose.shape}; it must be 4 x 4")
        finite = np.isfinite(pose).all() and abs(np.linalg.det(pose[:3, :3])) > 1e-9
        to_camera = np.linalg.inv(pose @ FLIP) if finite else np.full((4, 4), np.nan)
        values = {**content, **frame}
        K, size = _intrinsics(values, picture)
        bent, fisheye = _distortion(values)
        mask = self.data_root / values["mask_path"] if values.get("mask_path") else None
        return View(name, picture, K, to_camera, size, bent, fisheye, mask)


def _number(values: dict, name: str, otherwise: float | None = None) -> float | None:
    """``values[name]``; ``otherwise`` where there is none.

    Raises:
        ValueError: it is no number.
    """
    value = values.get(name)
    if value is None:
        return otherwise
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} is {value!r}; it must be a number") from None


def _intrinsics(values: dict, picture: Path):
    """K [3, 3] and the (width, height) that it belongs to."""
    width, height = _number(values, "w"), _number(values, "h")
    if width is None or height is None:
        if not picture.is_file():
            return np.eye(3), None
        height, width = read_picture(picture, np.zeros(3, np.float32)).shape[:2]
    fx, fy = _number(values, "fl_x"), _number(values, "fl_y")
    across, up = _number(values, "camera_angle_x"), _number(values, "camera_angle_y")
    if fx is None and across:
        fx = width / 2 / math.tan(across / 2)
    if fx is None:
        raise ValueError("there is no focal length: fl_x or camera_angle_x is needed")
    if fy is None:
        fy = height / 2 / math.tan(up / 2) if up else fx
    cx, cy = _number(values, "cx", width / 2), _number(values, "cy", height / 2)
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]]), (int(width), int(height))


def _distortion(values: dict) -> tuple[tuple[float, ...], bool]:
    model = values.get("camera_model", "OPENCV").upper()
    if model not in LENSES:
        raise ValueError(
            f"camera_model {model} is not supported; those that are: {', '.join(LENSES)}"
        )
    fisheye = model == "OPENCV_FISHEYE" or bool(values.get("is_fisheye"))
    names = ("k1", "k2", "k3", "k4") if fisheye else ("k1", "k2", "p1", "p2", "k3")
    return tuple(_number(values, name, 0.0) for name in names), fisheye


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
    return SparsePoints(torch.from_numpy(xyz), torch.from_numpy(rgb)).finite(path)
