"""KITTI object detection: https://www.cvlibs.net/datasets/kitti, its files read as they are.

A label lies in the rectified frame of camera 0 (x right, y down, z forward) and names the centre of
the box's BOTTOM; here boxes are in the LiDAR's frame (x forward, y left, z up) by their centre.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparse3d.registry import DATASETS
from sparse3d.structures import Boxes, Camera, Sample

from .base import (
    PointDataset,
    crop,
    drop_bad_points,
    good_boxes,
    image_size,
    read_image,
    read_json,
    read_points,
    reading,
)

CLASSES = ("Car", "Pedestrian", "Cyclist")
USUAL_SIZE = (1242, 375)  # pixels, for a frame without its picture
# Numbers of the classes in mmdet3d's info files that carry no table of their own.
INFO_CLASSES = ("Pedestrian", "Cyclist", "Car", "Van", "Truck", "Person_sitting", "Tram", "Misc")
# Per difficulty easy, moderate, hard: least height of the 2-D box, most occlusion and truncation.
DIFFICULTY = ((40, 0, 0.15), (25, 1, 0.30), (25, 2, 0.50))
NEAR = 0.1  # metres before the camera at which a box is cut for its projection

Labels = dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Calibration:
    """Matrices of a frame, float64, as in its calibration file.

    Attributes:
        P2: [3, 4] rectified camera frame -> pixels of the left colour camera.
        R0_rect: [3, 3] camera 0 -> its rectified frame.
        Tr_velo_to_cam: [3, 4] LiDAR -> camera 0, metres.
    """

    P2: np.ndarray
    R0_rect: np.ndarray
    Tr_velo_to_cam: np.ndarray

    @property
    def lidar_to_camera(self) -> np.ndarray:
        """[4, 4] LiDAR -> rectified frame of camera 0."""
        out = np.eye(4)
        out[:3] = self.R0_rect @ self.Tr_velo_to_cam
        return out

    def camera(self, size: tuple[int, int]) -> Camera:
        """The left colour camera in the LiDAR's frame; ``size`` (width, height) in pixels."""
        shift = np.eye(4)
        shift[:3, 3] = np.linalg.solve(self.P2[:, :3], self.P2[:, 3])
        matrix = torch.from_numpy(shift @ self.lidar_to_camera)
        return Camera(torch.from_numpy(self.P2[:, :3].copy()), matrix, size)


def read_calibration(path: str | Path) -> Calibration:
    """Calibration of a frame from its text file.

    Raises:
        ValueError: a needed matrix is missing, has another number of values, or is singular.
    """
    rows = {}
    with reading(path):
        for line in Path(path).read_text().splitlines():
            key, _, values = line.partition(":")
            rows[key.strip()] = values.split()
    shapes = {"P2": (3, 4), "R0_rect": (3, 3), "Tr_velo_to_cam": (3, 4)}
    for key, shape in shapes.items():
        if len(rows.get(key, ())) != shape[0] * shape[1]:
            raise ValueError(
                f"{path} has {len(rows.get(key, ()))} values for {key}, {shape[0] * shape[1]} are "
                f"needed; it names {sorted(k for k in rows if k)}: take the object benchmark's "
                "calibration (not the tracking or raw one)"
            )
    with reading(path):
        matrices = [np.array(rows[k], float).reshape(s) for k, s in shapes.items()]
    for key, matrix in zip(shapes, matrices):
        if not abs(np.linalg.det(matrix[:, :3])) > 1e-9:
            raise ValueError(f"{path}: {key} is no invertible matrix: {matrix.tolist()}")
    return Calibration(*matrices)


def read_labels(path: str | Path) -> Labels:
    """Objects of a label (or result) file, DontCare regions among them.

    Returns:
        name [n]; truncated [n]; occluded [n]; alpha [n] radians; bbox [n, 4] pixels (left, top,
        right, bottom); dimensions [n, 3] metres (l, h, w); location [n, 3] metres, bottom centre in
        the rectified camera frame; rotation_y [n] radians; score [n] where the file has it.

    Raises:
        ValueError: a line has not 15 or 16 values, or one of them is no number.
    """
    rows = []
    with reading(path):
        lines = Path(path).read_text().splitlines()
    for number, line in enumerate(lines, 1):
        values = line.split()
        if not values:
            continue
        if len(values) not in (15, 16):
            raise ValueError(
                f"{path}, line {number} has {len(values)} values; 15 are needed (16 with score)"
            )
        rows.append(values)
    with reading(path):
        numbers = np.array([row[1:15] for row in rows], float).reshape(-1, 14)
        scores = np.array([row[15] for row in rows if len(row) == 16], float)
    labels = {
        "name": np.array([row[0] for row in rows], dtype=object),
        "truncated": numbers[:, 0],
        "occluded": numbers[:, 1].astype(int),
        "alpha": numbers[:, 2],
        "bbox": numbers[:, 3:7],
        "dimensions": numbers[:, [9, 7, 8]],  # the file has h, w, l
        "location": numbers[:, 10:13],
        "rotation_y": numbers[:, 13],
    }
    if rows and len(scores) == len(rows):
        labels["score"] = scores
    return labels


def difficulty(labels: Labels) -> np.ndarray:
    """[n] int: 0 easy, 1 moderate, 2 hard, -1 none of them."""
    height = labels["bbox"][:, 3] - labels["bbox"][:, 1]
    out = np.full(len(height), -1)
    for level in (2, 1, 0):
        least, occluded, truncated = DIFFICULTY[level]
        fits = (height > least) & (labels["occluded"] <= occluded)
        out[fits & (labels["truncated"] <= truncated) & (labels["name"] != "DontCare")] = level
    return out


def boxes_from_camera(labels: Labels, calibration: Calibration) -> Tensor:
    """Boxes [n, 7] float64 in the LiDAR's frame, of every label (DontCare gives nonsense).

    Args:
        labels: dimensions [n, 3] (l, h, w), location [n, 3] and rotation_y [n], as ``read_labels``.
        calibration: of the frame.
    """
    to_camera = calibration.lidar_to_camera
    length, height, width = labels["dimensions"].T
    centers = np.linalg.solve(to_camera[:3, :3], (labels["location"] - to_camera[:3, 3]).T).T
    centers[:, 2] += height / 2
    yaw = _wrap(-(labels["rotation_y"] + np.pi / 2))
    return torch.from_numpy(np.column_stack([centers, length, width, height, yaw]))


def boxes_to_camera(
    boxes: Tensor, calibration: Calibration, size: tuple[int, int] | None = None
) -> Labels:
    """What a KITTI label says of boxes: the way back of ``boxes_from_camera``.

    Args:
        boxes: [n, >=7] in the LiDAR's frame.
        calibration: of the frame.
        size: (width, height) of the picture in pixels, to which 2-D boxes are cut; None: uncut.

    Returns:
        dimensions [n, 3] (l, h, w), location [n, 3], rotation_y [n], alpha [n] and bbox [n, 4]; a
        box wholly behind the camera has a bbox of zeros.
    """
    values = boxes[:, :7].detach().cpu().double().numpy()
    to_camera = calibration.lidar_to_camera
    bottom = values[:, :3] - np.array([0, 0, 0.5]) * values[:, 5:6]
    location = bottom @ to_camera[:3, :3].T + to_camera[:3, 3]
    rotation_y = _wrap(-values[:, 6] - np.pi / 2)
    labels = {
        "dimensions": values[:, [3, 5, 4]],
        "location": location,
        "rotation_y": rotation_y,
        "alpha": _wrap(rotation_y - np.arctan2(location[:, 0], location[:, 2])),
    }
    labels["bbox"] = project_labels(labels, calibration.P2, size)
    return labels


def project_labels(
    labels: Labels, P2: np.ndarray, size: tuple[int, int] | None = None
) -> np.ndarray:
    """Upright rectangles [n, 4] (left, top, right, bottom) pixels around the projected 3-D boxes.

    Args:
        labels: dimensions, location and rotation_y, as ``read_labels``.
        P2: [3, 4] rectified camera frame -> pixels.
        size: (width, height) to which they are cut; None: uncut.
    """
    corners = _camera_corners(labels)
    # Edges are cut at the near plane: a corner behind the camera projects to the wrong side.
    start = corners[:, [0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3]]
    end = corners[:, [1, 2, 3, 0, 5, 6, 7, 4, 4, 5, 6, 7]]
    points = np.concatenate([_cut(start, end), _cut(end, start)], 1)
    visible = points[..., 2] >= NEAR - 1e-9
    image = points @ P2[:, :3].T + P2[:, 3]
    pixel = image[..., :2] / np.where(visible, image[..., 2], 1.0)[..., None]
    low = np.where(visible[..., None], pixel, np.inf).min(1, initial=np.inf)
    high = np.where(visible[..., None], pixel, -np.inf).max(1, initial=-np.inf)
    out = np.concatenate([low, high], 1)
    out[~visible.any(1)] = 0
    if size is not None:
        out = out.clip(0, np.tile(np.array(size) - 1, 2))
    return out


def _camera_corners(labels: Labels) -> np.ndarray:
    """[n, 8, 3] corners in the rectified camera frame: the bottom around, then the top."""
    length, height, width = labels["dimensions"].T[:, :, None]
    along = np.array([1, 1, -1, -1] * 2) / 2 * length
    aside = np.array([1, -1, -1, 1] * 2) / 2 * width
    up = np.array([0] * 4 + [1] * 4) * height
    cos, sin = np.cos(labels["rotation_y"])[:, None], np.sin(labels["rotation_y"])[:, None]
    turned = np.stack([cos * along + sin * aside, -up, cos * aside - sin * along], -1)
    return turned + labels["location"][:, None]


def _cut(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """``start`` [..., 3], moved along the edge to the near plane where it lies behind it."""
    run = end[..., 2] - start[..., 2]
    share = np.where(run > 0, (NEAR - start[..., 2]) / np.where(run > 0, run, 1.0), 0.0)
    return start + (end - start) * share.clip(0, 1)[..., None]


def _wrap(angle: np.ndarray) -> np.ndarray:
    return np.remainder(angle + np.pi, 2 * np.pi) - np.pi


@DATASETS.register_module()
class KittiDataset(PointDataset):
    """KITTI object frames: the official folders, or a bare folder of the same parts.

    Official: ``training`` and ``testing``, each with velodyne, calib, image_2 and (training)
    label_2, and ImageSets with a list of frames per split. Bare: those parts in ``data_root``
    itself; points may also be cropped to the picture (velodyne_fov), and calibration and labels
    may come from a JSON info file of mmdet3d. A frame without labels has ``boxes`` None; one
    without calibration only points.

    ``meta`` has P2, R0_rect, Tr_velo_to_cam, image_size (width, height), image_path (or None) and
    'kitti': the labels as ``read_labels`` gives them, DontCare included, with their 'difficulty'.
    """

    name = "kitti"

    def __init__(
        self,
        data_root: str | Path,
        class_names: Sequence[str] = CLASSES,
        split: str = "all",
        ann_file: str | None = None,
        fov_only: bool = True,
        load_images: bool = False,
        **options: Any,
    ):
        """Args:
            data_root: folder of the data set.
            class_names: classes in the order of the labels.
            split: a list of frames in ImageSets; 'all': every frame with points; 'test': the
                testing folder.
            ann_file: info file below ``data_root``; None: any JSON info file found there.
            fov_only: keep only points that project into the picture, where KITTI has labels.
            load_images: read the pictures too.
            options: of PointDataset.

        Raises:
            ValueError: there is no such split, or no frame.
        """
        super().__init__(data_root, class_names, **options)
        self.fov_only = fov_only
        self.load_images = load_images
        official = (self.data_root / "training").is_dir()
        part = "testing" if split == "test" else "training"
        self.folder = self.data_root / part if official else self.data_root
        self.infos = self._read_infos(ann_file)
        self.frames = self._frames(split, official)

    def __len__(self) -> int:
        return len(self.frames)

    def load(self, index: int, generator: np.random.Generator) -> Sample:
        frame = self.frames[index]
        path = self._points_path(frame)
        points = torch.from_numpy(read_points(path, len(self.columns)))
        meta = {"sample_id": frame, "lidar_path": str(path), "image_path": self._image_path(frame)}
        sample = drop_bad_points(Sample(points, meta=meta))  # before a camera seems not to see them
        calibration, labels = self._calibration(frame), self._labels(frame)
        if calibration is not None:
            self._add_camera(sample, calibration)
            if self.fov_only:
                seen = sample.cameras["image_2"].sees(sample.points[:, :3])
                sample = crop(sample, seen, "the picture (fov_only)")
        if labels is not None:
            self._add_labels(sample, labels, calibration)
        return sample

    def _add_camera(self, sample: Sample, calibration: Calibration) -> None:
        path = sample.meta["image_path"]
        size = USUAL_SIZE if path is None else image_size(path)
        sample.cameras["image_2"] = calibration.camera(size)
        sample.meta.update(vars(calibration), image_size=size)
        if self.load_images and path is not None:
            sample.images["image_2"] = read_image(path)

    def _add_labels(self, sample: Sample, labels: Labels, calibration: Calibration | None) -> None:
        if calibration is None:
            raise FileNotFoundError(
                f"frame {sample.sample_id} of {self.folder} has labels but no calibration, so its "
                "boxes cannot be placed: add its calib file or remove its labels"
            )
        objects = labels["name"] != "DontCare"
        boxes = boxes_from_camera({k: v[objects] for k, v in labels.items()}, calibration)
        good = good_boxes(boxes, f"labels of {sample.meta['lidar_path']}")
        kept = ~objects
        kept[objects] = good.numpy()
        labels = {key: values[kept] for key, values in labels.items()}
        sample.meta["kitti"] = {**labels, "difficulty": difficulty(labels)}
        sample.boxes = Boxes(boxes[good].float())
        sample.names = [name for name in labels["name"] if name != "DontCare"]

    # ------------------------------------------------------------------ files

    def names_in_labels(self) -> Iterator[str]:
        for frame in self.frames:
            labels = self._labels(frame)
            yield from () if labels is None else (n for n in labels["name"] if n != "DontCare")

    def _frames(self, split: str, official: bool) -> list[str]:
        listed = self.data_root / "ImageSets" / f"{split}.txt"
        if listed.is_file():
            frames = listed.read_text().split()
        elif split == "all" or (split == "test" and official):
            found = [*self.folder.glob("velodyne/*.bin"), *self.folder.glob("velodyne_fov/*.bin")]
            frames = sorted({path.stem for path in found})
        else:
            known = sorted(path.stem for path in listed.parent.glob("*.txt"))
            raise ValueError(
                f"split is {split!r} but there is no {listed}; listed there: {known or 'none'}. "
                "Write that file (one frame number a line), or say split='all'"
            )
        if not frames:
            raise ValueError(
                f"no frame for split {split!r} in {self.folder}: it needs velodyne/*.bin "
                "(or velodyne_fov/*.bin), calib/*.txt and label_2/*.txt"
            )
        return frames

    def _points_path(self, frame: str) -> Path:
        for part in ("velodyne", "velodyne_fov"):
            path = self.folder / part / f"{frame}.bin"
            if path.is_file():
                return path
        raise FileNotFoundError(
            f"frame {frame} has no points: no {self.folder}/velodyne/{frame}.bin"
        )

    def _image_path(self, frame: str) -> str | None:
        found = sorted(self.folder.glob(f"image_2/{frame}.*"))
        return str(found[0]) if found else None

    def _calibration(self, frame: str) -> Calibration | None:
        path = self.folder / "calib" / f"{frame}.txt"
        if path.is_file():
            return read_calibration(path)
        return calibration_of_info(self.infos[frame][0]) if frame in self.infos else None

    def _labels(self, frame: str) -> Labels | None:
        path = self.folder / "label_2" / f"{frame}.txt"
        if path.is_file():
            return read_labels(path)
        return labels_of_info(*self.infos[frame]) if frame in self.infos else None

    def _read_infos(self, ann_file: str | None) -> dict[str, tuple[dict, list[str]]]:
        """Entry and class table of each frame in the JSON info files."""
        paths = sorted(self.data_root.glob("*.json"))
        infos = {}
        for path in [self.data_root / ann_file] if ann_file else paths:
            content = read_json(path)
            if not isinstance(content, dict) or "data_list" not in content:
                continue
            categories = content.get("metainfo", {}).get("categories")
            table = sorted(categories, key=categories.get) if categories else list(INFO_CLASSES)
            for entry in content["data_list"]:
                infos[Path(entry["lidar_points"]["lidar_path"]).stem] = (entry, table)
        return infos


def calibration_of_info(entry: dict) -> Calibration:
    """Calibration of a frame in an info file of mmdet3d (version 1.1)."""
    P2 = np.array(entry["images"]["CAM2"]["cam2img"], float)[:3, :4]
    R0_rect = np.array(entry["images"]["R0_rect"], float)[:3, :3]
    return Calibration(
        P2, R0_rect, np.array(entry["lidar_points"]["Tr_velo_to_cam"], float)[:3, :4]
    )


def labels_of_info(entry: dict, table: list[str]) -> Labels | None:
    """Labels of a frame in an info file of mmdet3d; its class -1 is DontCare. None: it has none."""
    if "instances" not in entry:
        return None
    objects = entry["instances"]

    def column(key: str, width: int) -> np.ndarray:
        return np.array([o[key] for o in objects], float).reshape(len(objects), width)

    names = [table[o["bbox_label_3d"]] if o["bbox_label_3d"] >= 0 else "DontCare" for o in objects]
    boxes = column("bbox_3d", 7)  # location, then l, h, w and rotation_y
    return {
        "name": np.array(names, dtype=object),
        "truncated": column("truncated", 1)[:, 0],
        "occluded": column("occluded", 1)[:, 0].astype(int),
        "alpha": column("alpha", 1)[:, 0],
        "bbox": column("bbox", 4),
        "dimensions": boxes[:, 3:6],
        "location": boxes[:, :3],
        "rotation_y": boxes[:, 6],
    }
