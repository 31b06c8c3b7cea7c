"""Photographs of one place with known cameras: what trains and judges a scene of Gaussians."""

import dataclasses
import os
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

from sparse3d.structures import Camera, Sample, SparsePoints

VIEW = "view"
"""Name of the one camera and image of a sample."""
SPLITS = ("train", "test", "all")
NAMED = 5
"""Photographs named in a warning."""


@dataclass(frozen=True, eq=False)
class View:
    """One photograph and how it was taken.

    Attributes:
        name: what the data set calls it; views are ordered by it.
        path: of the picture.
        K: [3, 3] intrinsics before undistortion, pixels counted from the corner.
        world_to_cam: [4, 4].
        size: (width, height) to which K belongs; None: that of the picture.
        distortion: OpenCV's coefficients; none: a pinhole.
        fisheye: the coefficients are of OpenCV's fisheye model.
        mask: path of a grey picture of the same shape; where it is below 128, this one does not
            count.
    """

    name: str
    path: Path
    K: np.ndarray
    world_to_cam: np.ndarray
    size: tuple[int, int] | None = None
    distortion: tuple[float, ...] = ()
    fisheye: bool = False
    mask: Path | None = None


class ViewDataset(Dataset):
    """Photographs by index, undistorted and reduced; a subclass reads cameras and points.

    A sample has one camera and one image, both named 'view', and no points; ``meta`` has sample_id,
    image_path and, where the view has a mask, mask: bool [H, W], the pixels that count in training
    and in the masked PSNR. ``points`` are the sparse points of the whole place.
    """

    name = "views"

    def __init__(
        self,
        data_root: str | Path,
        split: str = "train",
        holdout: int = 8,
        train_views: int | None = None,
        most_pixels: int | None = None,
        background: Sequence[float] = (0, 0, 0),
        cache_gb: float = 2.0,
    ):
        """Args:
            data_root: folder of the data set.
            split: 'train', 'test' or 'all'.
            holdout: every so many-th view by name, the first included, is a test view; 0: none is.
            train_views: train on so many of the training views, evenly spread (3 or 9 in the
                sparse-view protocol); None: on all.
            most_pixels: larger pictures are reduced to so many pixels; None: they stay.
            background: rgb in 0..1 behind transparent pixels.
            cache_gb: decoded pictures kept in memory, GB.

        Raises:
            FileNotFoundError: ``data_root`` is no folder, or has none of the photographs.
            ValueError: an unknown split, no view in it, or ``train_views`` below 1.
        """
        self.data_root = Path(data_root)
        if not self.data_root.is_dir():
            raise FileNotFoundError(
                f"data_root {str(data_root)!r} is no folder: put the photographs and their cameras "
                "there, or set it: --cfg-options data_root=FOLDER"
            )
        if train_views is not None and train_views < 1:
            raise ValueError(f"train_views is {train_views}; it must be 1 or more, or None for all")
        if split not in SPLITS:
            raise ValueError(f"split is {split!r}; it must be one of {', '.join(SPLITS)}")
        self.split = split
        self.holdout = holdout
        self.train_views = train_views
        self.most_pixels = most_pixels
        self.background = np.asarray(background, np.float32)
        self.cache_bytes = int(cache_gb * 1e9)
        self._cache: OrderedDict[int, Sample] = OrderedDict()
        self._cached = 0
        views, self.points = self.read()
        views = listed_once(sorted(views, key=lambda view: view.name))
        self.found = len(views)  # in all splits
        self.views = usable(self.choose(views))
        if not self.views:
            raise ValueError(
                f"{self.data_root} has no {split} view (of {len(views)}, every {holdout}-th is "
                "held out): take another split, or change holdout"
            )

    def read(self) -> tuple[list[View], SparsePoints]:
        """All views in any order, and the sparse points."""
        raise TypeError(f"{type(self).__name__} does not define read")

    def choose(self, views: list[View]) -> list[View]:
        """Those of ``views``, ordered by name, that belong to the split."""
        if self.split == "all":
            return views
        held = [bool(self.holdout) and i % self.holdout == 0 for i in range(len(views))]
        if self.split == "test":
            return [view for view, out in zip(views, held) if out]
        views = [view for view, out in zip(views, held) if not out]
        if self.train_views is None or self.train_views >= len(views):
            return views
        rows = np.linspace(0, len(views) - 1, self.train_views).round().astype(int)
        return [views[row] for row in rows]

    def contents(self) -> list[bytes]:
        """What tells these views from others: their names and where they were taken from."""
        return [
            part
            for view in self.views
            for part in (view.name.encode(), np.asarray(view.world_to_cam, np.float32).tobytes())
        ]

    @property
    def metainfo(self) -> dict[str, Any]:
        """What the engine hands to metrics and visualizers."""
        return {"dataset": self.name, "data_root": str(self.data_root)}

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, index: int) -> Sample:
        index = range(len(self))[index]
        if index in self._cache:
            self._cache.move_to_end(index)
        else:
            sample = self.load(self.views[index])
            self._cache[index] = sample
            self._cached += sample.images[VIEW].numel()
            while self._cached > self.cache_bytes and len(self._cache) > 1:
                self._cached -= self._cache.popitem(last=False)[1].images[VIEW].numel()
        sample = self._cache[index]
        return dataclasses.replace(sample, meta=dict(sample.meta))

    def load(self, view: View) -> Sample:
        """The photograph of ``view`` with its camera, both without distortion."""
        image = read_picture(view.path, self.background)
        image, camera = undistort(image, view)
        if self.most_pixels is not None and image.shape[0] * image.shape[1] > self.most_pixels:
            factor = (self.most_pixels / (image.shape[0] * image.shape[1])) ** 0.5
            size = tuple(max(int(side * factor), 1) for side in camera.size)
            image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
            camera = camera.resized(size)
        meta: dict[str, Any] = {"sample_id": view.name, "image_path": str(view.path)}
        if view.mask is not None:
            mask, _ = undistort(read_picture(view.mask, np.zeros(3, np.float32)), view)
            mask = cv2.resize(mask, camera.size, interpolation=cv2.INTER_AREA)
            meta["mask"] = torch.from_numpy(mask[..., 0] >= 128)
        picture = {VIEW: torch.from_numpy(np.ascontiguousarray(image))}
        return Sample(torch.zeros(0, 3), cameras={VIEW: camera}, images=picture, meta=meta)


def listed_once(views: list[View]) -> list[View]:
    """The first view of every picture; one warning names those that are listed again.

    Else one and the same photograph could train the scene and judge it.
    """
    first: dict[str, View] = {}
    again = []
    for view in views:
        if first.setdefault(os.path.normpath(view.path), view) is not view:
            again.append(view.name)
    if again:
        text = f"{len(again)} of {len(views)} views show a photograph that is listed before"
        warnings.warn(f"{text} ({first_few(again)}); only the first of each is taken", stacklevel=3)
    return list(first.values())


def usable(views: list[View]) -> list[View]:
    """The views whose pictures are whole and whose poses are rotations; one warning names others.

    Raises:
        FileNotFoundError: no view is left of one or more, and a picture is missing or damaged.
        ValueError: no view is left, and their cameras are why.
    """
    named = {view.name: _camera_fault(view) or _picture_fault(view) for view in views}
    faults = {name: fault for name, fault in named.items() if fault}
    if not faults:
        return views
    shown = first_few([f"{name}: {fault}" for name, fault in faults.items()], "; ")
    text = f"{len(faults)} of {len(views)} photographs cannot be used ({shown})"
    if len(faults) == len(views):
        if all(map(_camera_fault, views)):
            raise ValueError(f"{text}: correct the cameras, or have them found again")
        raise FileNotFoundError(f"{text}: correct the folder of the pictures or copy them again")
    warnings.warn(f"{text}; they are left out", stacklevel=3)
    return [view for view in views if view.name not in faults]


def first_few(names: Sequence[str], between: str = ", ") -> str:
    """The first few of ``names``, and how many more there are."""
    more = f"{between}and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return between.join(names[:NAMED]) + more


def _camera_fault(view: View) -> str | None:
    """What makes the camera of a view unusable, or None."""
    if not (np.isfinite(view.world_to_cam).all() and np.isfinite(view.K).all()):
        return "its camera holds NaN or infinity"
    turn = view.world_to_cam[:3, :3]
    if np.abs(turn @ turn.T - np.eye(3)).max() > 1e-3 or np.linalg.det(turn) < 0:
        return "its pose is no rotation"
    if not (view.K[0, 0] > 0 and view.K[1, 1] > 0):
        return f"its focal length is {view.K[0, 0]:g}"
    if view.size is not None and min(view.size) < 1:
        return f"its camera has {view.size[0]} x {view.size[1]} pixels"
    return None


def _picture_fault(view: View) -> str | None:
    """What makes the picture of a view unusable, or None."""
    if not view.path.is_file():
        return f"there is no {view.path}"
    if view.mask is not None and not view.mask.is_file():
        return f"there is no mask {view.mask}"
    return None if is_whole(view.path) else f"{view.path} is cut off"


def is_whole(path: Path) -> bool:
    """Whether a JPEG or PNG ends as such files end; OpenCV reads half a picture without a word."""
    with path.open("rb") as file:
        head = file.read(8)
        size = file.seek(0, 2)
        file.seek(max(size - 4096, 0))
        tail = file.read()
    if head[:2] == b"\xff\xd8":
        return b"\xff\xd9" in tail
    if head == b"\x89PNG\r\n\x1a\n":
        return b"IEND" in tail
    return size > 0


def read_picture(path: Path, background: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] rgb; transparent pixels show ``background`` [3] in 0..1.

    Raises:
        ValueError: the file is no picture, or only a part of one.
    """
    if path.is_file() and not is_whole(path):
        raise ValueError(f"{path} is cut off: copy it again")
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None:
        raise ValueError(f"{path} cannot be read as a picture: it is missing or damaged")
    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    if image.ndim == 2:
        image = np.repeat(image[..., None], 3, 2)
    if image.shape[2] == 4:
        alpha = image[..., 3:].astype(np.float32) / 255
        mixed = image[..., :3] * alpha + 255 * background[::-1] * (1 - alpha)
        image = mixed.round().astype(np.uint8)
    return np.ascontiguousarray(image[..., ::-1])


def undistort(image: np.ndarray, view: View) -> tuple[np.ndarray, Camera]:
    """The picture and camera of a pinhole that sees only what ``view`` saw.

    Raises:
        ValueError: the picture has not the size for which the camera was calibrated, or that size
            enlarged or reduced.
    """
    height, width = image.shape[:2]
    pose = torch.from_numpy(np.asarray(view.world_to_cam, np.float64)).float()
    calibrated = view.size or (width, height)
    stretch = np.array([width / calibrated[0], height / calibrated[1]])
    if abs(stretch[0] / stretch[1] - 1) > 0.02:
        raise ValueError(
            f"{view.path} has {width} x {height} pixels but its camera {calibrated[0]} x "
            f"{calibrated[1]}: another shape, so one of them belongs to another picture"
        )
    K = np.array(view.K, np.float64)
    K[:2] *= stretch[:, None]
    if any(view.distortion):
        K[:2, 2] -= 0.5  # OpenCV counts from the centre of the first pixel
        image, K = _remap(image, K, np.array(view.distortion), view.fisheye)
        K[:2, 2] += 0.5
    size = (image.shape[1], image.shape[0])
    return image, Camera.from_corner_K(torch.from_numpy(K).float(), pose, size)


def _remap(image, K, distortion, fisheye):
    size = (image.shape[1], image.shape[0])
    if fisheye:
        straight = cv2.fisheye.estimateNewCameraMatrixForUndistortRectify(
            K, distortion, size, np.eye(3), balance=0.0
        )
        maps = cv2.fisheye.initUndistortRectifyMap(
            K, distortion, np.eye(3), straight, size, cv2.CV_32FC1
        )
    else:
        straight, _ = cv2.getOptimalNewCameraMatrix(K, distortion, size, 0.0, size)
        maps = cv2.initUndistortRectifyMap(K, distortion, None, straight, size, cv2.CV_32FC1)
    return cv2.remap(image, *maps, cv2.INTER_LINEAR), straight
