"""The sparse-view protocol of SpaRe (AIM 2024): 3 or 9 given views of a scene, others judged.

Sparse Neural Rendering: arXiv 2409.15041.
"""

import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from sparse3d.registry import DATASETS
from sparse3d.structures import SparsePoints

from .base import read_json, reading
from .views import View, ViewDataset

ALL_LIGHTS = 3
"""The lighting with every lamp on, which is judged."""
PATTERNS = {"DTU": "rect_{camera:03d}_{light}_r5000", "SpaRe": "cam_{camera:03d}_{light}_0000"}


@DATASETS.register_module()
class SpareViews(ViewDataset):
    """One scene of a split file; view i of the file is camera i + 1.

    Pictures are looked for below ``data_root`` in folders of the scene's name, projection matrices
    (3x4, rows of numbers, as in RegNeRF's layout of DTU) as ``pos_NNN.txt`` in the scene's folder
    or in ``Calibration/cal18``. Masks of the object, by which the other views are judged beside
    whole pictures, are NNN.png (counted from 0, as the split file counts) in the scene's folder
    below ``masks``; training is on whole pictures.

    Args:
        data_root: folder of the data set.
        split_file: Track1_split_development.json or such, below ``data_root``.
        scene: a name in that file; None: its first one.
        light: of the pictures, 0 to 6.
        masks: folder below ``data_root`` (RegNeRF's is idrmasks); None: no masks.
        options: of ViewDataset; ``holdout`` means nothing, the file says what is held out.
    """

    name = "spare"

    def __init__(
        self,
        data_root: str | Path,
        split_file: str,
        scene: str | None = None,
        light: int = ALL_LIGHTS,
        masks: str | None = None,
        **options: Any,
    ):
        self.split_file = split_file
        self.scene = scene
        self.light = light
        self.masks = masks
        super().__init__(data_root, **options)

    def read(self) -> tuple[list[View], SparsePoints]:
        """As the split file has them; there are no sparse points.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: the file has no such scene, or a camera is no projection matrix.
        """
        path = self.data_root / self.split_file
        scenes = read_json(path)
        name = self.scene or next(iter(scenes))
        if name not in scenes:
            raise ValueError(f"{path} has no scene {name!r}; it has {list(scenes)[:10]}")
        entry = scenes[name]
        kind = entry.get("dataset", "SpaRe")
        if kind not in PATTERNS:
            raise ValueError(f"{path}: {name} is of {kind!r}; it must be one of {list(PATTERNS)}")
        self.holdout = 0
        wanted = {"train": ["input_views"], "test": ["test_views"]}.get(self.split)
        wanted = wanted or ["input_views", "test_views"]
        numbers = sorted({int(view) + 1 for key in wanted for view in entry[key]})
        return [self._view(name, kind, number) for number in numbers], SparsePoints.none()

    def choose(self, views: list[View]) -> list[View]:
        """All: ``read`` gave those of the split alone."""
        return views

    def _view(self, scene: str, kind: str, camera: int) -> View:
        stem = PATTERNS[kind].format(camera=camera, light=self.light)
        found = sorted(self.data_root.rglob(f"{scene}/**/{stem}.*"))
        picture = found[0] if found else self.data_root / scene / f"{stem}.png"
        K, pose = decompose(self._matrix(scene, camera))
        return View(f"{camera:03d}", picture, K, pose, mask=self._mask(scene, camera - 1))

    def _mask(self, scene: str, view: int) -> Path | None:
        if self.masks is None or self.split == "train":
            return None
        folder = self.data_root / self.masks / scene
        found = sorted(folder.rglob(f"{view:03d}.png"))
        if not found:
            raise FileNotFoundError(
                f"{folder} has no mask {view:03d}.png: copy the masks there, or leave masks out"
            )
        return found[0]

    def _matrix(self, scene: str, camera: int) -> np.ndarray:
        name = f"pos_{camera:03d}.txt"
        places = [
            *self.data_root.rglob(f"{scene}/**/{name}"),
            *self.data_root.rglob(f"cal18/{name}"),
        ]
        if not places:
            raise FileNotFoundError(
                f"{self.data_root} has no {name} in {scene} or Calibration/cal18: the projection "
                "matrix of that camera is needed"
            )
        with reading(places[0]):
            numbers = [float(word) for word in re.split(r"\s+", places[0].read_text().strip())]
            return np.array(numbers).reshape(3, 4)


def decompose(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """K [3, 3] and world to camera [4, 4] of a projection matrix [3, 4] of any scale.

    Raises:
        ValueError: the matrix is of no camera.
    """
    if not abs(np.linalg.det(matrix[:, :3])) > 1e-12:
        raise ValueError(f"{matrix.tolist()} is no projection matrix: its left part is singular")
    matrix = matrix * np.sign(np.linalg.det(matrix[:, :3]))
    K, turn, center, *_ = cv2.decomposeProjectionMatrix(matrix)
    pose = np.eye(4)
    pose[:3, :3] = turn
    pose[:3, 3] = -turn @ (center[:3, 0] / center[3, 0])
    K = K / K[2, 2]
    K[0, 1] = 0  # pixels are not skewed
    return K, pose
