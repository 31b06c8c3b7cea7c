"""The data set over a folder of the procedural world's frames."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sparse3d.datasets.base import PointDataset, read_json, reading
from sparse3d.registry import DATASETS
from sparse3d.structures import Boxes, Sample

from .materials import CLASS_NAMES

KITTI_VIEW = (81.0, 13.0, 15.6)


@DATASETS.register_module()
class WorldStreets(PointDataset):
    """Streets made by ``make_world``.

    ``names`` are 'car', 'truck', 'cyclist', 'pedestrian' and 'van'. A van gets no label unless
    asked for by name (KITTI does not count vans as cars either); a bus is named 'truck' unless
    'bus' is among the classes.
    """

    name = "world"

    def __init__(
        self,
        data_root: str | Path,
        split: str = "train",
        class_names: Sequence[str] = CLASS_NAMES,
        fov_deg: float | Sequence[float] | None = None,
        min_points: int = 1,
        velocity: bool = False,
        limit: int | None = None,
        **options: Any,
    ):
        """Args:
            data_root: the world's folder, with ``info.json``.
            split: 'train', 'val' or 'test'.
            class_names: classes in the order of the labels.
            fov_deg: keep only points within this angle about +x; or (across, up, down), degrees:
                those that fall into a camera's picture, as cropped files hold (``KITTI_VIEW``).
            min_points: boxes with fewer points left on them are dropped.
            velocity: whether boxes keep their velocity columns.
            limit: use only this many frames.
            options: of PointDataset.

        Raises:
            FileNotFoundError: the folder holds no frames of the split.
            ValueError: an unknown class name.
        """
        super().__init__(data_root, class_names, **options)
        self.files = sorted((self.data_root / split).glob("[0-9]*.npz"))[:limit]
        info = self.data_root / "info.json"
        if not self.files or not info.is_file():
            raise FileNotFoundError(
                f"{self.data_root / split} holds no frames (or {info} is missing); make them with "
                "`python tools/prepare_data.py world`"
            )
        with reading(info):
            self.kinds = read_json(info)["kinds"]
        unknown = set(self.class_names) - set(self.kinds)
        if unknown:
            raise ValueError(f"class names {sorted(unknown)} are none of the world's {self.kinds}")
        self.split = split
        self.fov_deg = fov_deg
        self.min_points = min_points
        self.columns_of_boxes = 9 if velocity else 7

    def __len__(self) -> int:
        return len(self.files)

    def load(self, index: int, generator: np.random.Generator) -> Sample:
        path = self.files[index]
        with reading(path), np.load(path) as data:
            frame = {key: data[key] for key in ("points", "boxes", "kinds", "instance")}
        seen = in_view(frame["points"], self.fov_deg)
        instance = frame["instance"][seen]
        counts = np.bincount(instance[instance >= 0], minlength=len(frame["boxes"]))
        kept = counts >= self.min_points
        boxes = frame["boxes"][kept][:, : self.columns_of_boxes]
        meta = {
            "sample_id": f"{self.split}/{self.files[index].stem}",
            "lidar_path": str(self.files[index]),
        }
        return Sample(
            points=torch.from_numpy(frame["points"][seen]),
            boxes=Boxes(torch.from_numpy(np.ascontiguousarray(boxes))),
            names=[self._name(self.kinds[kind]) for kind in frame["kinds"][kept]],
            meta=meta,
        )

    def _name(self, kind: str) -> str:
        return "truck" if kind == "bus" and "bus" not in self.class_names else kind


def in_view(points: np.ndarray, fov_deg: float | Sequence[float] | None) -> np.ndarray:
    """Mask [P] of ``points`` [P, >=3] (x forward) within an angle or a picture, see WorldStreets.

    Raises:
        ValueError: a picture of a half circle or more.
    """
    if fov_deg is None:
        return np.ones(len(points), bool)
    x, y, z = points[:, 0], points[:, 1], points[:, 2]
    if np.isscalar(fov_deg):
        return np.abs(np.arctan2(y, x)) <= np.radians(fov_deg / 2)
    across, up, down = fov_deg
    if not 0 < across < 180:
        raise ValueError(f"fov_deg is {fov_deg}; a picture spans less than 180 degrees across")
    aside, above, below = np.tan(np.radians([across / 2, up, down]))
    return (x > 0) & (np.abs(y) <= x * aside) & (z <= x * above) & (z >= -x * below)
