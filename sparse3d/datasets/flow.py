"""Data sets of sweep pairs. In all of them the flow INCLUDES the ego motion (structures.sweeps)."""

import warnings
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from sparse3d.registry import DATASETS, TRANSFORMS
from sparse3d.structures import SweepPair

from .base import read_json, reading

CATEGORY_OF_KIND = {"car": 19, "van": 19, "truck": 25, "bus": 7, "cyclist": 4, "pedestrian": 17}
"""Argoverse 2's category of each kind of the procedural world's objects."""

PairTransform = Callable[[SweepPair, np.random.Generator], SweepPair]


class SweepDataset(Dataset):
    """Pairs by index; a subclass says how many there are and loads one.

    The random numbers of a pair come from (seed, epoch, index) alone. A subclass defines
    ``__len__``, ``load`` and the class attribute ``name``.
    """

    name = "sweeps"

    def __init__(
        self,
        data_root: str | Path,
        transforms: Sequence[dict | PairTransform] = (),
        seed: int = 0,
    ):
        """Args:
            data_root: folder of the data set.
            transforms: applied in this order; configs or callables of (pair, generator).
            seed: of every random number drawn for a pair.

        Raises:
            FileNotFoundError: ``data_root`` does not exist.
        """
        self.data_root = Path(data_root)
        if not self.data_root.exists():
            raise FileNotFoundError(
                f"data_root {str(data_root)!r} does not exist: put the {self.name} data there "
                "('python tools/prepare_data.py sweeps' makes the procedural world's), or correct "
                "data_root in the config"
            )
        self.seed = seed
        self.transforms = [TRANSFORMS.build(t) if isinstance(t, dict) else t for t in transforms]
        # In shared memory: loader workers that live through several epochs see a new value too.
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()

    @property
    def metainfo(self) -> dict[str, Any]:
        """What the engine hands to metrics and visualizers."""
        return {"dataset": self.name}

    @property
    def epoch(self) -> int:
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Choose the random numbers of ``epoch``."""
        self._epoch.fill_(epoch)

    def load(self, index: int, generator: np.random.Generator) -> SweepPair:
        """Pair ``index`` as its files have it."""
        raise TypeError(f"{type(self).__name__} does not define load")

    def contents(self) -> list[bytes]:
        """What tells these data from others: the points of the first pair."""
        if not len(self):
            return []
        return [self.load(0, np.random.default_rng(0)).source.numpy().tobytes()]

    def __getitem__(self, index: int) -> SweepPair:
        index = range(len(self))[index]
        generator = np.random.default_rng((self.seed, self.epoch, index))
        pair = drop_bad_points(self.load(index, generator))
        for transform in self.transforms:
            pair = transform(pair, generator)
        return pair


def drop_bad_points(pair: SweepPair) -> SweepPair:
    """Without points that have a NaN or infinite coordinate or flow; one warning says how many."""
    looked_at = [pair.source, pair.target] + ([] if pair.flow is None else [pair.flow])
    if all(rows.sum().isfinite() for rows in looked_at):
        return pair
    source = pair.source[:, :3].isfinite().all(1)
    if pair.flow is not None:
        source &= pair.flow.isfinite().all(1)
    target = pair.target[:, :3].isfinite().all(1)
    if source.all() and target.all():
        return pair
    warnings.warn(
        f"{pair.sample_id}: {int((~source).sum())} of {len(source)} points of the source and "
        f"{int((~target).sum())} of {len(target)} of the target are NaN or infinite: dropped",
        stacklevel=2,
    )
    return pair.select(source, target)


@DATASETS.register_module()
class WorldSweeps(SweepDataset):
    """Sequences of the procedural world's streets (``make_sequences``), with exact flow.

    ``category`` is Argoverse 2's (1 + place in the alphabet of its classes), 0 for what has no box.
    """

    name = "world sweeps"

    def __init__(
        self,
        data_root: str | Path,
        split: str = "train",
        sweeps: int = 2,
        limit: int | None = None,
        **options: Any,
    ):
        """Args:
            data_root: the folder, with ``info.json``.
            split: 'train', 'val' or 'test'.
            sweeps: how many of each sequence are used; more than two give history.
            limit: use only this many sequences.
            options: of SweepDataset.

        Raises:
            FileNotFoundError: the folder holds no sequences of the split.
            ValueError: the sequences have fewer sweeps.
        """
        super().__init__(data_root, **options)
        self.files = sorted((self.data_root / split).glob("[0-9]*.npz"))[:limit]
        info = self.data_root / "info.json"
        if not self.files or not info.is_file():
            raise FileNotFoundError(
                f"{self.data_root / split} holds no sequences (or {info} is missing); make them "
                "with `python tools/prepare_data.py sweeps`"
            )
        with reading(info):
            noted = read_json(info)
            self.present = int(noted["sweeps"])
            self.categories = np.array([*(CATEGORY_OF_KIND[k] for k in noted["kinds"]), 0])
        if not 2 <= sweeps <= self.present:
            raise ValueError(
                f"{sweeps} sweeps are asked for; the sequences in {data_root} have {self.present}"
            )
        self.split = split
        self.sweeps = sweeps

    def __len__(self) -> int:
        return len(self.files)

    def load(self, index: int, generator: np.random.Generator) -> SweepPair:
        path = self.files[index]
        with reading(path), np.load(path) as data:
            points = [torch.from_numpy(data[f"points{i}"]) for i in range(self.sweeps)]
            owners = [data[f"instance{i}"] for i in range(self.sweeps)]
            poses = [torch.from_numpy(data[f"ego{i}"]) for i in range(self.sweeps)]
            motion, kinds, interval = data["motion1"], data["kinds"], float(data["interval"])
        flow = rigid_flow(points[1][:, :3].numpy(), owners[1], motion, poses[1].numpy())
        kinds = np.where(kinds < len(self.categories) - 1, kinds, len(self.categories) - 1)
        category = np.append(self.categories[kinds], 0)[owners[1]]
        return SweepPair(
            points[1],
            points[0],
            flow=torch.from_numpy(flow),
            ego_motion=poses[1],
            source_ground=torch.from_numpy(owners[1] < 0),
            target_ground=torch.from_numpy(owners[0] < 0),
            history=list(zip(points[2:], poses[2:])),
            category=torch.from_numpy(category.astype(np.int64)),
            instance=torch.from_numpy(owners[1].astype(np.int64)),
            interval=interval,
            meta={"sample_id": f"{self.split}/{path.stem}", "lidar_path": str(path)},
        )


def rigid_flow(
    points: np.ndarray, owner: np.ndarray, motion: np.ndarray, ego: np.ndarray
) -> np.ndarray:
    """[P, 3] float32 flow of ``points`` [P, 3] whose ``owner`` [P] (-1: the ground) is moved."""
    wide = points.astype(np.float64)
    moved = wide @ ego[:3, :3].T + ego[:3, 3]
    goes = np.abs(motion - ego).max((1, 2), initial=0) > 1e-9
    for thing in np.intersect1d(goes.nonzero()[0], owner):
        rows = owner == thing
        moved[rows] = wide[rows] @ motion[thing, :3, :3].T + motion[thing, :3, 3]
    return (moved - wide).astype(np.float32)


@DATASETS.register_module()
class Argoverse2Pairs(SweepDataset):
    """Successive LiDAR sweeps of Argoverse 2 logs, read from the feather files as they are shipped.

    Expects ``<log>/sensors/lidar/<timestamp>.feather``, ``<log>/city_SE3_egovehicle.feather`` and,
    for true flow, ``<timestamp>.feather`` under ``flow_root/<log>`` with flow_tx_m, flow_ty_m,
    flow_tz_m, classes (or category_indices), is_valid and is_ground_0 where there. Frame: the ego
    vehicle's, x forward, y left, z up. Also reads single ``.npz`` pairs (keys pc0, pc1, flow, ...).
    """

    name = "Argoverse 2"

    def __init__(
        self,
        data_root: str | Path,
        flow_root: str | Path | None = None,
        history: int = 0,
        **options: Any,
    ):
        """Args:
            data_root: a folder of logs, one log, or npz files of pairs.
            flow_root: where files of true flow lie; None: there are none.
            history: sweeps before the source that come along, fewer where a log begins.
            options: of SweepDataset.

        Raises:
            FileNotFoundError: no sweeps are found.
        """
        super().__init__(data_root, **options)
        self.flow_root = None if flow_root is None else Path(flow_root)
        root = self.data_root
        self.history = history
        self.pairs: list[tuple[Path, Path | None]] = []
        self.older: list[list[Path]] = []
        if root.suffix == ".npz":
            self.pairs = [(root, None)]
        else:
            self.pairs = [(path, None) for path in sorted(root.glob("*.npz")) if _is_pair(path)]
            self.older = [[] for _ in self.pairs]
            for folder in sorted(root.glob("**/sensors/lidar")):
                sweeps = sorted(folder.glob("*.feather"), key=lambda path: int(path.stem))
                self.pairs += list(pairwise(sweeps))
                self.older += [
                    sweeps[max(i - history, 0) : i][::-1] for i in range(len(sweeps) - 1)
                ]
        if not self.pairs:
            raise FileNotFoundError(
                f"{root} holds neither <log>/sensors/lidar/*.feather (two or more) nor pairs in npz"
            )

    def __len__(self) -> int:
        return len(self.pairs)

    def load(self, index: int, generator: np.random.Generator) -> SweepPair:
        first, second = self.pairs[index]
        if second is None:
            return read_npz_pair(first)
        poses = read_poses(first.parents[2] / "city_SE3_egovehicle.feather")
        older = self.older[index]
        times = [int(path.stem) for path in (first, second, *older)]
        missing = [time for time in times if time not in poses]
        if missing:
            raise ValueError(f"city_SE3_egovehicle.feather of {first} has no pose at {missing[0]}")
        last = np.linalg.inv(poses[times[1]])
        ego = last @ poses[times[0]]
        past = [
            (torch.from_numpy(read_sweep(path)), torch.from_numpy(last @ poses[int(path.stem)]))
            for path in older
        ]
        source, target = (torch.from_numpy(read_sweep(path)) for path in (first, second))
        truth = {}
        if self.flow_root is not None:
            truth = _read_flow(self.flow_root / first.parents[2].name / first.name, len(source))
        return SweepPair(
            source,
            target,
            ego_motion=torch.from_numpy(ego),
            history=past,
            interval=(times[1] - times[0]) * 1e-9,
            meta={"sample_id": f"{first.parents[2].name}/{first.stem}", "lidar_path": str(first)},
            **truth,
        )


def _is_pair(path: Path) -> bool:
    with reading(path), np.load(path) as data:
        return {"pc0", "pc1"} <= set(data.files)


def read_feather(path: str | Path) -> Any:
    """The table of a feather file.

    Raises:
        ImportError: pyarrow is not installed.
        ValueError: the file is damaged.
    """
    try:
        from pyarrow import ArrowInvalid, feather
    except ImportError as error:
        raise ImportError(
            f"{path} is a feather file, which pyarrow reads: pip install pyarrow"
        ) from error
    with reading(path):
        try:
            return feather.read_table(str(path), memory_map=False)
        except (ArrowInvalid, OSError) as error:
            if not Path(path).is_file():
                raise
            raise ValueError(str(error)) from error


def _columns(table: Any, path: str | Path, names: Sequence[str]) -> list[np.ndarray]:
    missing = [name for name in names if name not in table.column_names]
    if missing:
        raise ValueError(f"{path} has the columns {table.column_names}; {missing} are missing")
    return [table[name].to_numpy() for name in names]


def read_sweep(path: str | Path) -> np.ndarray:
    """[P, 4] float32 x, y, z in metres, intensity in 0..1, of an Argoverse 2 sweep."""
    x, y, z, intensity = _columns(read_feather(path), path, ("x", "y", "z", "intensity"))
    return np.stack([x, y, z, intensity / 255.0], 1).astype(np.float32)


def read_poses(path: str | Path) -> dict[int, np.ndarray]:
    """[4, 4] ego -> city by time stamp in nanoseconds."""
    names = ("timestamp_ns", "qw", "qx", "qy", "qz", "tx_m", "ty_m", "tz_m")
    time, *rest = _columns(read_feather(path), path, names)
    return {int(t): pose_of(row[:4], row[4:]) for t, row in zip(time, np.stack(rest, 1))}


def pose_of(quaternion: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """[4, 4] of a quaternion (w, x, y, z) and a shift."""
    w, x, y, z = quaternion / np.linalg.norm(quaternion)
    pose = np.eye(4)
    pose[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    pose[:3, 3] = shift
    return pose


def _read_flow(path: Path, count: int) -> dict[str, Tensor]:
    """True flow of one sweep; nothing where there is no file."""
    if not path.is_file():
        return {}
    table = read_feather(path)
    flow = np.stack(_columns(table, path, ("flow_tx_m", "flow_ty_m", "flow_tz_m")), 1)
    if len(flow) != count:
        raise ValueError(f"{path} has {len(flow)} rows for a sweep of {count} points")
    truth = {"flow": torch.from_numpy(flow.astype(np.float32))}
    for ours, names in (
        ("valid", ("is_valid",)),
        ("category", ("classes", "category_indices")),
        ("source_ground", ("is_ground_0", "is_ground")),
    ):
        for name in names:
            if name in table.column_names:
                values = table[name].to_numpy(zero_copy_only=False)
                truth[ours] = torch.from_numpy(
                    values.astype(np.int64 if ours == "category" else bool)
                )
    return truth


def read_npz_pair(path: str | Path) -> SweepPair:
    """A pair in one npz file: pc0, pc1, and where known flow, category, is_ground0, is_valid,
    ego1_SE3_ego0 (ego motion INCLUDED in the flow).
    """
    with reading(path), np.load(path) as data:
        have = {key: data[key] for key in data.files}
        source, target = have["pc0"], have["pc1"]

    def tensor(key: str, dtype: type) -> Tensor | None:
        return torch.from_numpy(have[key].astype(dtype)) if key in have else None

    return SweepPair(
        torch.from_numpy(source.astype(np.float32)),
        torch.from_numpy(target.astype(np.float32)),
        flow=tensor("flow", np.float32),
        valid=tensor("is_valid", bool),
        ego_motion=tensor("ego1_SE3_ego0", np.float64),
        source_ground=tensor("is_ground0", bool),
        target_ground=tensor("is_ground1", bool),
        category=tensor("category", np.int64),
        meta={"sample_id": Path(path).stem, "lidar_path": str(path)},
    )
