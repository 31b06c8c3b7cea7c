"""Posed photographs for relocalization: 7-Scenes and Cambridge Landmarks, as they are published."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from sparse3d.registry import DATASETS
from sparse3d.structures import SparsePoints

from .base import reading
from .views import View, ViewDataset

SPLIT_FILES = {"train": "TrainSplit.txt", "test": "TestSplit.txt"}


class PublishedSplits(ViewDataset):
    """Views whose data set says which are mapping pictures ('train') and which queries ('test').

    A subclass defines ``read_split``. ``ground_truth`` names where the poses come from.
    """

    ground_truth = ""

    def choose(self, views: list[View]) -> list[View]:
        count = self.train_views
        if self.split == "train" and count is not None and count < len(views):
            rows = np.linspace(0, len(views) - 1, count).round().astype(int)
            return [views[row] for row in rows]
        return views

    def read(self) -> tuple[list[View], SparsePoints]:
        splits = ("train", "test") if self.split == "all" else (self.split,)
        views = [view for split in splits for view in self.read_split(split)]
        return views, SparsePoints.none()

    def read_split(self, split: str) -> list[View]:
        raise TypeError(f"{type(self).__name__} does not define read_split")


@DATASETS.register_module()
class SevenScenesViews(PublishedSplits):
    """A scene of 7-Scenes, by its colour camera.

    With ``pgt_sfm_train.txt`` and ``pgt_sfm_test.txt`` in the folder, poses are those of the colour
    camera by structure from motion (Brachmann et al., 2021); a line is
    ``path qw qx qy qz tx ty tz f``, world to camera. Otherwise they are ``frame-*.pose.txt``:
    camera to world of the DEPTH camera, centimetres off for the colour picture. ``ground_truth``
    says which. ``intrinsics.json``, where it is there, gives the colour camera ('color': w, h, fx,
    cx, cy from the corner) and may say what the poses are ('poses').

    Args:
        data_root: folder of the scene.
        focal: pixels of 640 x 480 pictures, where no file gives it.
        options: of ViewDataset.
    """

    name = "7scenes"

    def __init__(self, data_root: str | Path, focal: float = 525.0, **options: Any):
        self.lens = {"w": 640, "h": 480, "fx": focal, "cx": 320.0, "cy": 240.0}
        self.poses = "pose.txt (depth camera, KinectFusion)"
        path = Path(data_root) / "intrinsics.json"
        if path.is_file():
            with reading(path):
                table = json.loads(path.read_text())
                self.lens |= {key: table["color"][key] for key in self.lens}
            self.poses = table.get("poses", self.poses)
        super().__init__(data_root, **options)

    def read_split(self, split: str) -> list[View]:
        path = self.data_root / f"pgt_sfm_{split}.txt"
        if path.is_file():
            self.ground_truth = "pgt_sfm (colour camera, structure from motion)"
            with reading(path):
                return [self._line(line) for line in path.read_text().splitlines() if line.strip()]
        self.ground_truth = self.poses
        return self._depth_poses(split)

    def _line(self, line: str) -> View:
        name, *numbers = line.split()
        values = np.array(numbers, np.float64)
        if len(values) != 8:
            raise ValueError(f"{line!r} has not the form: path qw qx qy qz tx ty tz f")
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = quaternion(values[:4]), values[4:7]
        return self._view(name, pose, values[7])

    def _depth_poses(self, split: str) -> list[View]:
        path = self.data_root / SPLIT_FILES[split]
        if not path.is_file():
            raise FileNotFoundError(f"{self.data_root} has neither pgt_sfm_{split}.txt nor {path}")
        views = []
        for line in path.read_text().split():
            folder = f"seq-{int(line.removeprefix('sequence').removeprefix('seq-')):02d}"
            for file in sorted((self.data_root / folder).glob("frame-*.pose.txt")):
                with reading(file):
                    pose = np.linalg.inv(np.loadtxt(file).reshape(4, 4))
                stem = file.name.removesuffix(".pose.txt")
                picture = next(file.parent.glob(f"{stem}.color.*"), file.with_name(f"{stem}.png"))
                views.append(self._view(f"{folder}/{picture.name}", pose, self.lens["fx"]))
        return views

    def _view(self, name: str, pose: np.ndarray, focal: float) -> View:
        K = np.array([[focal, 0, self.lens["cx"]], [0, focal, self.lens["cy"]], [0, 0, 1]])
        return View(name, self.data_root / name, K, pose, (self.lens["w"], self.lens["h"]))

    def categories(self) -> list[str] | None:
        """Kind of each query, where ``query_category.json`` gives it: near, far, wide."""
        path = self.data_root / "query_category.json"
        if not path.is_file():
            return None
        with reading(path):
            table = json.loads(path.read_text())
        return [table.get(_number(view.name), "other") for view in self.views]


@DATASETS.register_module()
class CambridgeViews(PublishedSplits):
    """A scene of Cambridge Landmarks: ``dataset_train.txt`` and ``dataset_test.txt``.

    A line is ``path x y z qw qx qy qz``: the camera's CENTRE, and the rotation world to camera.

    Args:
        data_root: folder of the scene.
        focal: pixels of the full pictures; the files do not give it (reconstruction.nvm does).
        radial: k1 of the lens, in OpenCV's sense.
        options: of ViewDataset.
    """

    name = "cambridge"
    ground_truth = "dataset_*.txt (VisualSFM)"

    def __init__(
        self, data_root: str | Path, focal: float = 1670.0, radial: float = 0.0, **options: Any
    ):
        self.focal = focal
        self.radial = radial
        super().__init__(data_root, **options)

    def read_split(self, split: str) -> list[View]:
        path = self.data_root / f"dataset_{split}.txt"
        views = []
        with reading(path):
            for line in path.read_text().splitlines():
                words = line.split()
                if len(words) != 8 or "/" not in words[0]:
                    continue  # three lines of heading
                views.append(self._view(words[0], np.array(words[1:], np.float64)))
        return views

    def _view(self, name: str, values: np.ndarray) -> View:
        pose = np.eye(4)
        pose[:3, :3] = quaternion(values[3:])
        pose[:3, 3] = -pose[:3, :3] @ values[:3]
        K = np.array([[self.focal, 0, 960.0], [0, self.focal, 540.0], [0, 0, 1]])
        lens = (self.radial, 0.0, 0.0, 0.0) if self.radial else ()
        return View(name, self.data_root / name, K, pose, (1920, 1080), lens)


def quaternion(values: np.ndarray) -> np.ndarray:
    """[3, 3] rotation of (w, x, y, z), of any length but zero.

    Raises:
        ValueError: it has none.
    """
    length = np.linalg.norm(values)
    if not 1e-6 < length < np.inf:
        raise ValueError(f"the quaternion {values.tolist()} is no rotation")
    w, x, y, z = values / length
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def _number(name: str) -> str:
    return "".join(c for c in Path(name).name.split(".")[0] if c.isdigit())
