"""nuScenes' JSON tables, and mmdet3d's JSON info files, read into one description of a frame.

Tables: https://www.nuscenes.org/nuscenes#data-format. Everything is resolved when the data set is
built, and the tables are let go: loader workers then share small arrays, not gigabytes of records.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .base import read_json, reading

# Categories of the detection benchmark; what is not named here is no class of it.
DETECTION_CLASSES = {
    "movable_object.barrier": "barrier",
    "movable_object.trafficcone": "traffic_cone",
    "vehicle.bicycle": "bicycle",
    "vehicle.bus.bendy": "bus",
    "vehicle.bus.rigid": "bus",
    "vehicle.car": "car",
    "vehicle.construction": "construction_vehicle",
    "vehicle.motorcycle": "motorcycle",
    "human.pedestrian.adult": "pedestrian",
    "human.pedestrian.child": "pedestrian",
    "human.pedestrian.construction_worker": "pedestrian",
    "human.pedestrian.police_officer": "pedestrian",
    "vehicle.trailer": "trailer",
    "vehicle.truck": "truck",
}
MINI_SCENES = {
    "mini_train": (61, 553, 655, 757, 796, 1077, 1094, 1100),
    "mini_val": (103, 916),
}
LIDAR = "LIDAR_TOP"
LONGEST_GAP = (
    1.5  # seconds between neighbouring annotations over which a velocity still means something
)


@dataclass(frozen=True, eq=False)
class Sweep:
    """A past sweep: its file, seconds before the key frame, [4, 4] into the key frame's LiDAR."""

    path: str
    lag: float
    to_key: np.ndarray


@dataclass(frozen=True, eq=False)
class View:
    """A camera's picture: its file, K [3, 3], [4, 4] from the key frame's LiDAR, size in pixels."""

    path: str
    K: np.ndarray
    lidar_to_camera: np.ndarray
    size: tuple[int, int] | None


@dataclass(frozen=True, eq=False)
class Frame:
    """A key frame in its LiDAR's frame.

    Attributes:
        token: its name in the tables.
        path: of the points.
        timestamp: seconds.
        lidar_to_ego, ego_to_global: [4, 4].
        sweeps: past sweeps, the latest first.
        views: by camera name.
        objects: None without labels; else boxes [n, 9] float64 (x, y, z, dx, dy, dz, yaw, vx, vy;
            an unknown velocity is NaN), name [n], attribute [n] ('' unknown), num_lidar_points [n]
            and num_radar_points [n].
    """

    token: str
    path: str
    timestamp: float
    lidar_to_ego: np.ndarray
    ego_to_global: np.ndarray
    sweeps: list[Sweep] = field(default_factory=list)
    views: dict[str, View] = field(default_factory=dict)
    objects: dict[str, np.ndarray] | None = None


def read_tables(folder: Path, scenes: set[str] | None, history: int) -> list[Frame]:
    """Key frames of the named scenes, by scene and time.

    Args:
        folder: such as v1.0-mini, with the JSON tables.
        scenes: their names; None: all.
        history: past sweeps to look up for each.

    Raises:
        FileNotFoundError: a table is missing.
        ValueError: a scene is not in the tables.
    """
    return _Tables(folder).frames(scenes, history)


class _Tables:
    """The records of one version by token, while frames are made of them."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.sensors = self.by_token("sensor")
        self.rigs = self.by_token("calibrated_sensor")
        self.poses = self.by_token("ego_pose")
        self.samples = self.by_token("sample")
        self.data = self.by_token("sample_data")
        annotations = folder / "sample_annotation.json"
        self.annotations = self.by_token("sample_annotation") if annotations.is_file() else {}
        self.instances = self.by_token("instance") if self.annotations else {}
        self.categories = self.by_token("category") if self.annotations else {}
        self.attributes = self.by_token("attribute") if self.annotations else {}

    def by_token(self, table: str) -> dict[str, dict[str, Any]]:
        path = self.folder / f"{table}.json"
        if not path.is_file():
            raise FileNotFoundError(
                f"there is no {path}: unpack the metadata archive of nuScenes beside 'samples' and "
                "'sweeps'"
            )
        with reading(path):
            return {record["token"]: record for record in read_json(path)}

    def frames(self, scenes: set[str] | None, history: int) -> list[Frame]:
        known = {s["name"]: s["token"] for s in self.by_token("scene").values()}
        missing = sorted((scenes or set()) - set(known))
        if missing:
            raise ValueError(
                f"{len(missing)} scenes of the split are not in {self.folder.name}, {missing[0]} "
                f"for one; it has {len(known)} scenes: choose the version and split that fit"
            )
        name_of = {known[name]: name for name in (known if scenes is None else scenes)}
        keys: dict[str, dict[str, dict]] = defaultdict(dict)
        for record in self.data.values():
            if record["is_key_frame"]:
                keys[record["sample_token"]][self.channel(record)] = record
        objects: dict[str, list[dict]] = defaultdict(list)
        for record in self.annotations.values():
            objects[record["sample_token"]].append(record)
        samples = [s for s in self.samples.values() if s["scene_token"] in name_of]
        samples.sort(key=lambda s: (name_of[s["scene_token"]], s["timestamp"]))
        return [
            self.frame(s, keys[s["token"]], objects[s["token"]], history)
            for s in samples
            if LIDAR in keys[s["token"]]
        ]

    def frame(self, sample: dict, keys: dict, objects: list[dict], history: int) -> Frame:
        lidar = keys[LIDAR]
        ego_to_global = pose(self.poses[lidar["ego_pose_token"]])
        lidar_to_ego = pose(self.rigs[lidar["calibrated_sensor_token"]])
        from_global = np.linalg.inv(ego_to_global @ lidar_to_ego)
        return Frame(
            sample["token"],
            lidar["filename"],
            1e-6 * lidar["timestamp"],
            lidar_to_ego,
            ego_to_global,
            self.sweeps(lidar, from_global, history),
            {name: self.view(r, from_global) for name, r in keys.items() if "CAM" in name},
            self.objects(objects, from_global) if self.annotations else None,
        )

    def channel(self, record: dict) -> str:
        return self.sensors[self.rigs[record["calibrated_sensor_token"]]["sensor_token"]]["channel"]

    def to_global(self, record: dict) -> np.ndarray:
        """[4, 4] sensor -> global at the moment of ``record``."""
        rig = pose(self.rigs[record["calibrated_sensor_token"]])
        return pose(self.poses[record["ego_pose_token"]]) @ rig

    def sweeps(self, key: dict, from_global: np.ndarray, history: int) -> list[Sweep]:
        sweeps, record = [], key
        while record["prev"] and len(sweeps) < history:
            record = self.data[record["prev"]]
            lag = 1e-6 * (key["timestamp"] - record["timestamp"])
            sweeps.append(Sweep(record["filename"], lag, from_global @ self.to_global(record)))
        return sweeps

    def view(self, record: dict, from_global: np.ndarray) -> View:
        rig = self.rigs[record["calibrated_sensor_token"]]
        # The camera fires at its own time: through the global frame with its own ego pose.
        lidar_to_camera = np.linalg.inv(from_global @ self.to_global(record))
        size = (record["width"], record["height"])
        return View(record["filename"], np.array(rig["camera_intrinsic"]), lidar_to_camera, size)

    def objects(self, records: list[dict], from_global: np.ndarray) -> dict[str, np.ndarray]:
        centers = _column(records, "translation", 3) @ from_global[:3, :3].T + from_global[:3, 3]
        sizes = _column(records, "size", 3)[:, [1, 0, 2]]  # the table has w, l, h
        heading = from_global[:3, :3] @ rotation(_column(records, "rotation", 4))[:, :, 0, None]
        yaw = np.arctan2(heading[:, 1], heading[:, 0])
        velocity = np.array([self.velocity(r) for r in records]).reshape(-1, 3)
        velocity = velocity @ from_global[:3, :3].T
        return {
            "boxes": np.column_stack([centers, sizes, yaw, velocity[:, :2]]),
            "name": np.array([self.class_name(r) for r in records], dtype=object),
            "attribute": np.array([self.attribute(r) for r in records], dtype=object),
            "num_lidar_points": _column(records, "num_lidar_pts", 1)[:, 0].astype(int),
            "num_radar_points": _column(records, "num_radar_pts", 1)[:, 0].astype(int),
        }

    def class_name(self, record: dict) -> str:
        category = self.categories[self.instances[record["instance_token"]]["category_token"]]
        return DETECTION_CLASSES.get(category["name"], category["name"])

    def attribute(self, record: dict) -> str:
        tokens = record["attribute_tokens"]
        return self.attributes[tokens[0]]["name"] if tokens else ""

    def velocity(self, record: dict) -> np.ndarray:
        """[3] m/s in the global frame from the annotations before and after; NaN: unknown."""
        first = self.annotations[record["prev"]] if record["prev"] else record
        last = self.annotations[record["next"]] if record["next"] else record
        times = [self.samples[r["sample_token"]]["timestamp"] for r in (first, last)]
        elapsed = 1e-6 * (times[1] - times[0])
        both = bool(record["prev"] and record["next"])
        if first is last or elapsed > LONGEST_GAP * (2 if both else 1):
            return np.full(3, np.nan)
        return (np.array(last["translation"]) - np.array(first["translation"])) / elapsed


def read_infos(path: Path) -> list[Frame]:
    """Key frames of a JSON info file of mmdet3d (version 1.1).

    Raises:
        ValueError: the file is no such list.
    """
    content = read_json(path)
    if not isinstance(content, dict) or "data_list" not in content:
        raise ValueError(f"{path} has no 'data_list': it is no info file of mmdet3d, version 1.1")
    categories = content.get("metainfo", {}).get("categories", {})
    table = {number: name for name, number in categories.items()}
    with reading(path):
        return [_frame_of_info(entry, table) for entry in content["data_list"]]


def _frame_of_info(entry: dict, table: dict[int, str]) -> Frame:
    lidar = entry["lidar_points"]
    lidar_to_ego = np.array(lidar["lidar2ego"], float)
    ego_to_global = np.array(entry["ego2global"], float)
    from_global = np.linalg.inv(ego_to_global @ lidar_to_ego)
    sweeps = []
    for sweep in entry.get("lidar_sweeps") or ():
        rig = np.array(sweep["lidar_points"]["lidar2ego"], float)
        to_key = from_global @ np.array(sweep["ego2global"], float) @ rig
        lag = entry["timestamp"] - sweep["timestamp"]
        sweeps.append(Sweep(sweep["lidar_points"]["lidar_path"], lag, to_key))
    views = {
        name: View(
            image["img_path"],
            np.array(image["cam2img"], float)[:3, :3],
            np.array(image["lidar2cam"], float),
            (image["width"], image["height"]) if "width" in image else None,
        )
        for name, image in entry.get("images", {}).items()
    }
    return Frame(
        str(entry.get("token", entry.get("sample_idx"))),
        lidar["lidar_path"],
        entry["timestamp"],
        lidar_to_ego,
        ego_to_global,
        sweeps,
        views,
        _objects_of_info(entry["instances"], table) if "instances" in entry else None,
    )


def _objects_of_info(records: list[dict], table: dict[int, str]) -> dict[str, np.ndarray]:
    numbers = [r["bbox_label_3d"] for r in records]
    return {
        "boxes": np.column_stack([_column(records, "bbox_3d", 7), _column(records, "velocity", 2)]),
        "name": np.array([table.get(n, "ignored") for n in numbers], dtype=object),
        "attribute": np.array([""] * len(records), dtype=object),
        "num_lidar_points": _column(records, "num_lidar_pts", 1)[:, 0].astype(int),
        "num_radar_points": _column(records, "num_radar_pts", 1)[:, 0].astype(int),
    }


def _column(records: list[dict], key: str, width: int) -> np.ndarray:
    return np.array([r[key] for r in records], float).reshape(len(records), width)


def rotation(quaternion: np.ndarray) -> np.ndarray:
    """Matrices [..., 3, 3] of quaternions [..., 4] (w, x, y, z) of any length but 0."""
    w, x, y, z = np.moveaxis(quaternion / np.linalg.norm(quaternion, axis=-1, keepdims=True), -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, -1) for row in rows], -2)


def pose(record: dict) -> np.ndarray:
    """[4, 4] of a record with 'translation' (metres) and 'rotation' (a quaternion)."""
    out = np.eye(4)
    out[:3, :3] = rotation(np.array(record["rotation"], float))
    out[:3, 3] = record["translation"]
    return out


def scenes_of_split(split: str, data_root: Path) -> set[str] | None:
    """Names of the scenes of a split; None: all.

    'all', 'mini_train' and 'mini_val' are known; any other is read from
    ``data_root``/splits/<split>.txt, one scene name a line, or asked of nuscenes-devkit where that
    is installed.

    Raises:
        ValueError: none of these knows the split.
    """
    if split == "all":
        return None
    if split in MINI_SCENES:
        return {f"scene-{number:04d}" for number in MINI_SCENES[split]}
    listed = data_root / "splits" / f"{split}.txt"
    if listed.is_file():
        return set(listed.read_text().split())
    try:
        from nuscenes.utils.splits import create_splits_scenes
    except ImportError:
        splits = {}
    else:
        splits = create_splits_scenes()
    if split in splits:
        return set(splits[split])
    raise ValueError(
        f"split is {split!r}, which is neither 'all', 'mini_train' nor 'mini_val', and there is no "
        f"{listed}: write that file with one scene name a line (nuscenes-devkit, once installed, "
        "gives the official 'train' and 'val')"
    )
