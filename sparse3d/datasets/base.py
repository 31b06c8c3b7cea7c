"""What every data set of points shares: classes, seeding, transforms and care for bad files."""

import json
import struct
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from sparse3d.registry import TRANSFORMS
from sparse3d.structures import Sample

Transform = Callable[[Sample, np.random.Generator], Sample]


class PointDataset(Dataset):
    """Samples by index; a subclass says how many there are and loads one.

    The random numbers of a sample come from (seed, epoch, index) alone, so that a resumed training
    and any number of loader workers see the same. The engine calls ``set_epoch`` before each epoch.

    A subclass defines ``__len__`` and ``load``, and the class attributes ``name`` and ``columns``.
    """

    name = "points"
    columns: tuple[str, ...] = ("x", "y", "z", "intensity")

    def __init__(
        self,
        data_root: str | Path,
        class_names: Sequence[str],
        point_range: Sequence[float] | None = None,
        transforms: Sequence[dict | Transform] = (),
        seed: int = 0,
        class_map: dict[str, str] | None = None,
        keep_ignored: bool = False,
    ):
        """Args:
            data_root: folder of the data set.
            class_names: classes in the order of the labels.
            point_range: (x0, y0, z0, x1, y1, z1) metres; after the transforms, points outside and
                boxes with their centre outside (seen from above) are dropped. None: all stay.
            transforms: applied in this order; configs or callables of (sample, generator).
            seed: of every random number drawn for a sample.
            class_map: class name of the files -> one of ``class_names``, where they differ.
            keep_ignored: keep boxes of other classes with label -1 instead of dropping them.

        Raises:
            FileNotFoundError: ``data_root`` is no folder.
            ValueError: ``class_names`` is empty or repeats a name, ``seed`` is negative, or a
                transform is none.
        """
        self.data_root = Path(data_root)
        if not self.data_root.is_dir():
            raise FileNotFoundError(
                f"data_root {str(data_root)!r} is no folder: put the {self.name} data there "
                "('python tools/prepare_data.py world' makes the procedural world's), or correct "
                "data_root in the config"
            )
        if not class_names or len(set(class_names)) < len(class_names):
            raise ValueError(f"class_names is {list(class_names)}; at least one, each once")
        if seed < 0:
            raise ValueError(f"seed is {seed}; it must be 0 or more")
        self.class_names = list(class_names)
        self.point_range = None if point_range is None else tuple(map(float, point_range))
        self.seed = seed
        self.class_map = class_map or {}
        self.keep_ignored = keep_ignored
        self.transforms = [TRANSFORMS.build(t) if isinstance(t, dict) else t for t in transforms]
        for transform in self.transforms:
            if not callable(transform):
                raise ValueError(f"transforms holds {transform!r}, no config and not callable")
        # In shared memory: loader workers that live through several epochs see a new value too.
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()

    @property
    def metainfo(self) -> dict[str, Any]:
        """What the engine hands to metrics and visualizers."""
        return {"dataset": self.name, "class_names": self.class_names, "columns": self.columns}

    @property
    def epoch(self) -> int:
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Choose the random numbers of ``epoch``, and the transforms that still run in it."""
        self._epoch.fill_(epoch)

    def load(self, index: int, generator: np.random.Generator) -> Sample:
        """Sample ``index`` as its files have it, with ``names``; labels are set afterwards."""
        raise TypeError(f"{type(self).__name__} does not define load")

    def contents(self) -> list[bytes]:
        """What tells these data from others: the points of the first sample.

        Names would not: of most data sets the first frame is 000000.
        """
        if not len(self):
            return []
        return [self.load(0, np.random.default_rng(0)).points.numpy().tobytes()]

    def __getitem__(self, index: int) -> Sample:
        index = range(len(self))[index]
        generator = np.random.default_rng((self.seed, self.epoch, index))
        sample = self.label(drop_bad_boxes(drop_bad_points(self.load(index, generator))))
        for transform in self.transforms:
            stop = getattr(transform, "stop_epoch", None)
            if stop is None or self.epoch < stop:
                sample = transform(sample, generator)
        return self.finish(sample)

    def class_of(self, name: str) -> int:
        """Label of a class name of the files, -1 for a class that is not asked for."""
        name = self.class_map.get(name, name)
        return self.class_names.index(name) if name in self.class_names else -1

    def names_in_labels(self) -> Iterable[str] | None:
        """Class names of the files' labels, for ``check_classes``; None where that is slow."""
        return None

    def check_classes(self, training: bool = True) -> None:
        """Warns of classes that no label has: they would cost time, and mean nothing.

        Raises:
            ValueError: no label has any of the classes, and the data are for training.
        """
        names = self.names_in_labels()
        if names is None:
            return
        missing, found = dict.fromkeys(self.class_names), set()
        for name in names:
            found.add(name)
            missing.pop(self.class_map.get(name, name), None)
            if not missing:
                return
        text = (
            f"class_names {list(missing)} are in no label of {self.data_root}, whose names are "
            f"{sorted(found)}: spell them so, give class_map (file's name -> class), or leave them "
            "out"
        )
        if training and len(missing) == len(self.class_names):
            raise ValueError(text)
        if found:
            warnings.warn(text, stacklevel=2)

    def label(self, sample: Sample) -> Sample:
        """The sample with labels from its names; ``meta`` says what columns and labels mean."""
        meta = {**sample.meta, "columns": list(self.columns), "class_names": self.class_names}
        if sample.names is None:
            return replace(sample, meta=meta)
        labels = torch.tensor([self.class_of(name) for name in sample.names], dtype=torch.int64)
        return replace(sample, labels=labels, meta=meta)

    def finish(self, sample: Sample) -> Sample:
        """What lies in range and belongs to a class."""
        if sample.labels is not None and not self.keep_ignored:
            sample = select_boxes(sample, sample.labels >= 0)
        if self.point_range is None:
            return sample
        inside = in_range(sample.points, self.point_range)
        sample = crop(sample, inside, f"point_range {list(self.point_range)}")
        if sample.boxes is not None:
            sample = select_boxes(sample, above_range(sample.boxes.centers, self.point_range))
        return sample


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Names the file where what is read inside turns out to be damaged.

    Raises:
        ValueError: in place of whatever error the damage causes; a missing file stays one.
    """
    try:
        yield
    except (ValueError, LookupError, TypeError, EOFError, BadZipFile, zlib.error) as error:
        if str(path) in str(error):
            raise
        raise ValueError(
            f"{path} cannot be read ({type(error).__name__}: {error}): it is cut off, damaged or "
            "of another format; copy or make it again"
        ) from error


def read_json(path: str | Path) -> Any:
    """Content of a JSON file.

    Raises:
        ValueError: it is none.
    """
    with reading(path):
        return json.loads(Path(path).read_text())


def read_points(path: str | Path, columns: int) -> np.ndarray:
    """Points [P, columns] float32 of a headerless binary file (.bin, .pcd.bin).

    An empty file is an empty cloud, with a warning.

    Raises:
        ValueError: the size is no whole number of rows: a truncated file or another point width.
    """
    size = Path(path).stat().st_size
    width = 4 * columns
    if size % width:
        raise ValueError(
            f"{path} has {size} bytes, no whole number of rows of {columns} float32 ({width} B):"
            " the file is truncated (copy it again) or its points have another width"
        )
    if size == 0:
        warnings.warn(f"{path} holds no points", stacklevel=2)
    return np.fromfile(path, np.float32).reshape(-1, columns)


def in_range(positions: Tensor, point_range: Sequence[float]) -> Tensor:
    """Mask [N] of ``positions`` [N, >=3] in (x0, y0, z0, x1, y1, z1): low end in, high end out."""
    low, high = positions.new_tensor(point_range[:3]), positions.new_tensor(point_range[3:])
    return ((positions[:, :3] >= low) & (positions[:, :3] < high)).all(1)


def above_range(positions: Tensor, point_range: Sequence[float]) -> Tensor:
    """Mask [N] of ``positions`` [N, >=2] that lie in the range's x and y, at whatever height."""
    low, high = positions.new_tensor(point_range[:2]), positions.new_tensor(point_range[3:5])
    return ((positions[:, :2] >= low) & (positions[:, :2] < high)).all(1)


def select_points(sample: Sample, keep: Tensor) -> Sample:
    """The sample with the points (their flow and instances) at ``keep``: a mask [P] or rows."""
    flow = None if sample.flow is None else sample.flow[keep]
    instance = None if sample.instance is None else sample.instance[keep]
    return replace(sample, points=sample.points[keep], flow=flow, instance=instance)


def crop(sample: Sample, inside: Tensor, place: str) -> Sample:
    """``select_points`` of those ``inside`` [P] a place; warns where that leaves none."""
    if len(inside) and not inside.any():
        warnings.warn(
            f"{_origin(sample)}: none of its {len(inside)} points lies in {place}; row 0 is "
            f"{sample.points[0].tolist()}",
            stacklevel=2,
        )
    return select_points(sample, inside)


def select_boxes(sample: Sample, keep: Tensor) -> Sample:
    """The sample with the boxes, labels and names where ``keep`` [N] bool is true."""
    names, instance = sample.names, sample.instance
    if instance is not None:
        rows = torch.where(keep, keep.cumsum(0) - 1, -1)
        instance = torch.cat([rows, rows.new_tensor([-1])])[instance]
    return replace(
        sample,
        instance=instance,
        boxes=sample.boxes[keep],
        labels=None if sample.labels is None else sample.labels[keep],
        names=None if names is None else [n for n, k in zip(names, keep.tolist()) if k],
    )


def drop_bad_points(sample: Sample) -> Sample:
    """Without points that have a NaN or infinite column; one warning says how many."""
    good = sample.points.isfinite().all(1)
    if good.all():
        return sample
    bad = int((~good).sum())
    warnings.warn(
        f"{_origin(sample)}: {bad} of {len(good)} points are NaN or infinite: dropped", stacklevel=2
    )
    return select_points(sample, good)


def drop_bad_boxes(sample: Sample) -> Sample:
    """Without boxes of a size that is not positive or not finite; one warning says how many."""
    if sample.boxes is None:
        return sample
    good = good_boxes(sample.boxes.tensor, _origin(sample))
    return sample if good.all() else select_boxes(sample, good)


def good_boxes(boxes: Tensor, origin: str) -> Tensor:
    """Mask [N] of ``boxes`` [N, >=7] that are finite and have a positive size; warns of others."""
    good = boxes.isfinite().all(1) & (boxes[:, 3:6] > 0).all(1)
    if not good.all():
        warnings.warn(
            f"{origin}: {int((~good).sum())} of {len(good)} boxes have a size that is not positive "
            "or a number that is not finite: dropped",
            stacklevel=2,
        )
    return good


def _origin(sample: Sample) -> str:
    return str(sample.meta.get("lidar_path", sample.sample_id))


def read_image(path: str | Path) -> Tensor:
    """Picture [H, W, 3] uint8, RGB.

    Raises:
        ValueError: the file is missing or no picture.
    """
    import cv2

    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError(f"{path} cannot be read as a picture: it is missing or damaged")
    return torch.from_numpy(np.ascontiguousarray(image[..., ::-1]))


def image_size(path: str | Path) -> tuple[int, int]:
    """(width, height) of a picture in pixels; of a PNG without decoding it."""
    with open(path, "rb") as file:
        head = file.read(24)
    if head[:8] == b"\x89PNG\r\n\x1a\n":
        return struct.unpack(">II", head[16:24])
    height, width = read_image(path).shape[:2]
    return width, height
