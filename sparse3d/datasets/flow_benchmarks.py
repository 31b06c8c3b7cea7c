"""FlyingThings3D and KITTI scene flow, in the two published preparations of them.

The flow INCLUDES the camera's motion; metres, in the camera's frame (x right, y up, z towards the
viewer for FlyingThings3D as HPLFlowNet turns it; y up for KITTI).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sparse3d.registry import DATASETS
from sparse3d.structures import SweepPair

from .base import reading
from .flow import SweepDataset

PREPARATIONS = ("hplflownet", "flownet3d")
VALIDATION = 2000
"""Training folders, evenly spaced, that HPLFlowNet's preparation holds back."""


class _PreparedPairs(SweepDataset):
    """Pairs of points that somebody prepared: folders with pc1.npy and pc2.npy, or npz files."""

    def __init__(self, data_root: str | Path, preparation: str, **options: Any):
        super().__init__(data_root, **options)
        if preparation not in PREPARATIONS:
            raise ValueError(f"preparation is {preparation!r}; it must be one of {PREPARATIONS}")
        self.preparation = preparation
        self.items: list[Path] = []

    def __len__(self) -> int:
        return len(self.items)

    def _need(self, items: Sequence[Path], what: str) -> list[Path]:
        if not items:
            raise FileNotFoundError(f"{self.data_root} holds no {what}")
        return list(items)

    def _folders(self, root: Path) -> list[Path]:
        return sorted(path.parent for path in root.glob("*/pc1.npy"))

    def _aligned(self, folder: Path) -> tuple[np.ndarray, np.ndarray]:
        """Points before and after, row by row the same.

        Raises:
            ValueError: a file is damaged, or they have different numbers of rows.
        """
        clouds = []
        for name in ("pc1.npy", "pc2.npy"):
            with reading(folder / name):
                clouds.append(np.load(folder / name, allow_pickle=False).astype(np.float32))
        if clouds[0].shape != clouds[1].shape:
            raise ValueError(f"{folder}: pc1 has shape {clouds[0].shape}, pc2 {clouds[1].shape}")
        return clouds[0], clouds[1]

    def _pair(self, item: Path, source, target, flow, valid=None) -> SweepPair:
        return SweepPair(
            torch.from_numpy(np.ascontiguousarray(source, np.float32)),
            torch.from_numpy(np.ascontiguousarray(target, np.float32)),
            flow=torch.from_numpy(np.ascontiguousarray(flow, np.float32)),
            valid=None if valid is None else torch.from_numpy(valid.astype(bool).reshape(-1)),
            meta={"sample_id": item.stem, "lidar_path": str(item)},
        )


@DATASETS.register_module()
class FlyingThings3D(_PreparedPairs):
    """FlyingThings3D.

    Args:
        data_root: HPLFlowNet's folder (train/ and val/ with a folder each) or FlowNet3D's
            (TRAIN*.npz and TEST*.npz).
        split: 'train', 'val' (2,000 of the training folders) or 'test' (HPLFlowNet's val/).
        preparation: 'hplflownet': without occlusions, every point has a partner; 'flownet3d': with
            occlusions and a mask.
        options: of SweepDataset.
    """

    name = "FlyingThings3D"

    def __init__(
        self,
        data_root: str | Path,
        split: str = "train",
        preparation: str = "hplflownet",
        **options: Any,
    ):
        super().__init__(data_root, preparation, **options)
        if split not in ("train", "val", "test"):
            raise ValueError(f"split is {split!r}; it must be 'train', 'val' or 'test'")
        if preparation == "flownet3d":
            prefix = "TEST" if split == "test" else "TRAIN"
            found = sorted(self.data_root.glob(f"**/{prefix}*.npz"))
            self.items = self._need(found, f"{prefix}*.npz")
            return
        folders = self._folders(self.data_root / ("val" if split == "test" else "train"))
        if split != "test":
            held = np.linspace(0, len(folders) - 1, min(VALIDATION, len(folders))).astype(int)
            mask = np.zeros(len(folders), bool)
            if len(folders) > VALIDATION:
                mask[held] = True
            folders = [f for f, h in zip(folders, mask) if h == (split == "val")]
        self.items = self._need(folders, f"folders with pc1.npy and pc2.npy of the {split} split")

    def load(self, index: int, generator: np.random.Generator) -> SweepPair:
        item = self.items[index]
        if self.preparation == "flownet3d":
            with reading(item), np.load(item) as data:
                arrays = [data[key] for key in ("points1", "points2", "flow", "valid_mask1")]
            return self._pair(item, *arrays)
        first, second = self._aligned(item)
        turned = np.array([-1, 1, -1], np.float32)
        return self._pair(item, first * turned, second * turned, (second - first) * turned)


@DATASETS.register_module()
class KITTISceneFlow(_PreparedPairs):
    """KITTI scene flow 2015 as points.

    Args:
        data_root: HPLFlowNet's folders 000000 .. 000199, or FlowNet3D's npz files.
        preparation: 'hplflownet': 142 frames, the ground (y < -1.4 in both clouds) and what is 35 m
            or farther in either removed; 'flownet3d': 150 frames as they are.
        mapping: file whose non-empty lines say which of the 200 frames count (KITTI_mapping.txt);
            data_root/KITTI_mapping.txt if that is there and None is given; else all frames.
        options: of SweepDataset.
    """

    name = "KITTI scene flow"

    def __init__(
        self,
        data_root: str | Path,
        preparation: str = "hplflownet",
        mapping: str | Path | None = None,
        **options: Any,
    ):
        super().__init__(data_root, preparation, **options)
        if preparation == "flownet3d":
            self.items = self._need(sorted(self.data_root.glob("*.npz")), "*.npz")
            return
        folders = self._folders(self.data_root)
        beside = self.data_root / "KITTI_mapping.txt"
        path = Path(mapping) if mapping is not None else beside
        if mapping is not None or beside.is_file():
            lines = path.read_text().splitlines()
            used = {number for number, line in enumerate(lines) if line.strip()}
            folders = [folder for folder in folders if int(folder.name) in used]
        self.items = self._need(folders, "folders with pc1.npy and pc2.npy")

    def load(self, index: int, generator: np.random.Generator) -> SweepPair:
        item = self.items[index]
        if self.preparation == "flownet3d":
            with reading(item), np.load(item) as data:
                first, second, flow = (data[key] for key in ("pos1", "pos2", "gt"))
            return self._pair(item, first, second, flow)
        first, second = self._aligned(item)
        ground = (first[:, 1] < -1.4) & (second[:, 1] < -1.4)
        kept = ~ground & (first[:, 2] < 35) & (second[:, 2] < 35)
        first, second = first[kept], second[kept]
        return self._pair(item, first, second, second - first)
