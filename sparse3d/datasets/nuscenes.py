"""nuScenes key frames with their past sweeps, from its own tables, without its devkit.

Points and boxes are in the key frame's LiDAR frame as it is: x to the RIGHT, y forward, z up. The
published networks are trained in it; yaw stays counter-clockwise from +x.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sparse3d.registry import DATASETS
from sparse3d.structures import Boxes, Camera, Sample

from .base import PointDataset, good_boxes, image_size, read_image, read_points
from .nuscenes_tables import LIDAR, Frame, View, read_infos, read_tables, scenes_of_split

CLASSES = (
    "car",
    "truck",
    "construction_vehicle",
    "bus",
    "trailer",
    "barrier",
    "motorcycle",
    "bicycle",
    "pedestrian",
    "traffic_cone",
)
FILE_COLUMNS = 5  # x, y, z, intensity 0..255, ring
BRIGHTEST = 255.0
OWN_CAR = 1.0  # metres: returns of past sweeps this near in x and y are from the vehicle itself


@DATASETS.register_module()
class NuScenesDataset(PointDataset):
    """nuScenes key frames.

    From a folder with a version's tables (v1.0-mini, v1.0-trainval, v1.0-test), 'samples' and
    'sweeps'; or from a JSON info file of mmdet3d. A frame without labels has ``boxes`` None.

    ``meta`` has timestamp (seconds), lidar_to_ego and ego_to_global [4, 4], image_paths, and
    'nuscenes': every labelled object, whatever class or number of points: boxes [n, 9] (velocity
    NaN where unknown), name, attribute, num_lidar_points, num_radar_points.
    """

    name = "nuscenes"
    columns = ("x", "y", "z", "intensity", "time")

    def __init__(
        self,
        data_root: str | Path,
        class_names: Sequence[str] = CLASSES,
        split: str = "all",
        version: str | None = None,
        ann_file: str | None = None,
        sweeps: int = 10,
        history: int | None = None,
        intensity: str = "unit",
        min_points: int = 1,
        load_images: bool = False,
        **options: Any,
    ):
        """Args:
            data_root: folder of the data set.
            class_names: classes in the order of the labels.
            split: 'all', 'mini_train', 'mini_val', or a list of scenes in ``data_root``/splits.
            version: folder of the tables; None: the only one there is.
            ann_file: info file below ``data_root`` instead of tables; None: where there are no
                tables, the only JSON file there is.
            sweeps: sweeps in a cloud, the key frame's among them.
            history: past sweeps of which ``sweeps`` - 1 are drawn (seeded); None: the nearest ones.
            intensity: 'unit', 0..1; or 'raw', 0..255, what published weights expect.
            min_points: boxes with fewer LiDAR points in the key frame are dropped.
            load_images: read the pictures too.
            options: of PointDataset.

        Raises:
            ValueError: ``sweeps``, ``history`` or ``intensity`` cannot be, or no frame is found.
        """
        super().__init__(data_root, class_names, **options)
        history = sweeps - 1 if history is None else history
        if sweeps < 1 or history < sweeps - 1:
            raise ValueError(
                f"sweeps is {sweeps} and history {history}; at least 1 sweep and a history of at "
                "least sweeps - 1 are needed"
            )
        if intensity not in ("unit", "raw"):
            raise ValueError(f"intensity is {intensity!r}; it must be 'unit' or 'raw'")
        self.past = sweeps - 1
        self.intensity = intensity
        self.min_points = min_points
        self.load_images = load_images
        tables = self._tables(version, ann_file)
        if tables is not None:
            self.frames = read_tables(tables, scenes_of_split(split, self.data_root), history)
        else:
            self.frames = read_infos(self._info_file(ann_file))
        if not self.frames:
            raise ValueError(
                f"split {split!r} of {self.data_root} has no frame with {LIDAR} points"
            )

    def __len__(self) -> int:
        return len(self.frames)

    def load(self, index: int, generator: np.random.Generator) -> Sample:
        frame = self.frames[index]
        path = self.find(frame.path)
        meta = {
            "sample_id": frame.token,
            "lidar_path": str(path),
            "timestamp": frame.timestamp,
            "lidar_to_ego": frame.lidar_to_ego,
            "ego_to_global": frame.ego_to_global,
            "image_paths": {name: str(self.find(v.path, name)) for name, v in frame.views.items()},
        }
        sample = Sample(torch.from_numpy(self._cloud(frame, generator)), meta=meta)
        for name, view in frame.views.items():
            sample.cameras[name] = self._camera(view, meta["image_paths"][name])
            if self.load_images:
                sample.images[name] = read_image(meta["image_paths"][name])
        if frame.objects is not None:
            self._add_objects(sample, frame.objects)
        return sample

    def _cloud(self, frame: Frame, generator: np.random.Generator) -> np.ndarray:
        """[P, 5] float32 x, y, z, intensity, seconds before the key frame, of all chosen sweeps."""
        clouds = [self._points(frame.path, 0.0)]
        chosen = np.arange(len(frame.sweeps))
        if len(chosen) > self.past:
            chosen = np.sort(generator.choice(chosen, self.past, replace=False))
        for sweep in (frame.sweeps[i] for i in chosen):
            points = self._points(sweep.path, sweep.lag)
            points = points[(np.abs(points[:, :2]) >= OWN_CAR).any(1)]
            moved = points[:, :3].astype(np.float64) @ sweep.to_key[:3, :3].T + sweep.to_key[:3, 3]
            points[:, :3] = moved
            clouds.append(points)
        return np.concatenate(clouds)

    def _points(self, path: str, lag: float) -> np.ndarray:
        points = read_points(self.find(path), FILE_COLUMNS)
        if self.intensity == "unit":
            points[:, 3] /= BRIGHTEST
        points[:, 4] = lag  # takes the place of the ring
        return points

    def _camera(self, view: View, path: str) -> Camera:
        size = view.size or image_size(path)
        return Camera(torch.from_numpy(view.K), torch.from_numpy(view.lidar_to_camera), size)

    def _add_objects(self, sample: Sample, objects: dict[str, np.ndarray]) -> None:
        numbers = torch.from_numpy(objects["boxes"][:, :7])  # an unknown velocity is NaN
        good = good_boxes(numbers, f"labels of {sample.meta['lidar_path']}").numpy()
        objects = {key: values[good] for key, values in objects.items()}
        sample.meta["nuscenes"] = objects
        enough = objects["num_lidar_points"] >= self.min_points
        boxes = objects["boxes"][enough].astype(np.float32)
        boxes[:, 7:] = np.nan_to_num(boxes[:, 7:])
        sample.boxes = Boxes(torch.from_numpy(boxes))
        sample.names = objects["name"][enough].tolist()

    # ------------------------------------------------------------------ files

    def names_in_labels(self) -> Iterator[str]:
        for frame in self.frames:
            yield from () if frame.objects is None else frame.objects["name"]

    def find(self, name: str, channel: str = LIDAR) -> Path:
        """The file of a table's or info file's entry; the latter leave the folder out."""
        places = ("", f"samples/{channel}", f"sweeps/{channel}")
        paths = [self.data_root / place / name for place in places]
        return next((path for path in paths if path.is_file()), paths[0])

    def _tables(self, version: str | None, ann_file: str | None) -> Path | None:
        if ann_file is not None:
            return None
        found = sorted(p.parent.name for p in self.data_root.glob("*/sample_data.json"))
        if version is None and len(found) > 1:
            raise ValueError(f"{self.data_root} has {found}: say which version is meant")
        if version is not None and version not in found:
            raise ValueError(f"version is {version!r}; {self.data_root} has {found or 'no tables'}")
        return self.data_root / (version or found[0]) if found else None

    def _info_file(self, ann_file: str | None) -> Path:
        if ann_file is not None:
            return self.data_root / ann_file
        found = sorted(self.data_root.glob("*.json"))
        if len(found) != 1:
            raise ValueError(
                f"{self.data_root} has no tables (v1.0-*/*.json) and {len(found)} JSON files: "
                "give version or ann_file"
            )
        return found[0]
