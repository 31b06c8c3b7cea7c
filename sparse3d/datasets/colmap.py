"""COLMAP models, binary or text, as data of views. https://colmap.github.io/format.html"""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sparse3d.registry import DATASETS
from sparse3d.structures import SparsePoints

from .base import reading
from .views import View, ViewDataset

MODELS = {
    0: ("SIMPLE_PINHOLE", 3),
    1: ("PINHOLE", 4),
    2: ("SIMPLE_RADIAL", 4),
    3: ("RADIAL", 5),
    4: ("OPENCV", 8),
    5: ("OPENCV_FISHEYE", 8),
    6: ("FULL_OPENCV", 12),
    7: ("FOV", 5),
    8: ("SIMPLE_RADIAL_FISHEYE", 4),
    9: ("RADIAL_FISHEYE", 5),
    10: ("THIN_PRISM_FISHEYE", 12),
}
ONE_FOCAL = ("SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "SIMPLE_RADIAL_FISHEYE", "RADIAL_FISHEYE")
FISHEYE = ("OPENCV_FISHEYE", "SIMPLE_RADIAL_FISHEYE", "RADIAL_FISHEYE")
UNKNOWN = ("FOV", "THIN_PRISM_FISHEYE")
NO_POINT = 2**64 - 1
FOLDERS = ("sparse/0", "sparse", "colmap/sparse/0", ".")


class _Bytes:
    """Reads numbers one after the other.

    Raises:
        ValueError: fewer bytes are left than asked for.
    """

    def __init__(self, path: Path):
        self.data = path.read_bytes()
        self.at = 0

    def take(self, form: str) -> tuple:
        try:
            values = struct.unpack_from("<" + form, self.data, self.at)
        except struct.error:
            raise ValueError(f"it ends at byte {len(self.data)}, inside a record") from None
        self.at += struct.calcsize("<" + form)
        return values

    def array(self, kind: np.dtype, count: int) -> np.ndarray:
        if self.at + count * kind.itemsize > len(self.data):
            raise ValueError(f"it ends at byte {len(self.data)}, inside a table of {count} rows")
        values = np.frombuffer(self.data, kind, count, self.at)
        self.at += count * kind.itemsize
        return values

    def text(self) -> str:
        end = self.data.find(b"\0", self.at)
        if end < 0:
            raise ValueError("it ends inside a name")
        name = self.data[self.at : end].decode("utf-8", "replace")
        self.at = end + 1
        return name


def read_cameras(path: Path) -> dict[int, dict[str, Any]]:
    """Model, size and parameters of each camera of cameras.bin or cameras.txt."""
    cameras = {}
    with reading(path):
        for number, model, width, height, parameters in _camera_rows(path):
            cameras[number] = {"model": model, "size": (width, height), "parameters": parameters}
    return cameras


def _camera_rows(path):
    if path.suffix == ".txt":
        for words in _lines(path):
            yield int(words[0]), words[1], int(words[2]), int(words[3]), [*map(float, words[4:])]
        return
    data = _Bytes(path)
    for _ in range(data.take("Q")[0]):
        number, code, width, height = data.take("iiQQ")
        model, count = MODELS.get(code, (f"number {code}", 0))
        if not count:
            raise ValueError(f"camera {number} has the unknown model {code}")
        yield number, model, width, height, list(data.take(f"{count}d"))


def read_images(path: Path) -> dict[int, dict[str, Any]]:
    """Name, pose (world to camera, [4, 4]) and camera of each picture of images.bin or .txt."""
    images = {}
    with reading(path):
        for number, quat, shift, camera, name in _image_rows(path):
            pose = np.eye(4)
            pose[:3, :3], pose[:3, 3] = rotation(np.array(quat)), shift
            images[number] = {"name": name, "pose": pose, "camera": camera}
    return images


def _image_rows(path):
    if path.suffix == ".txt":
        rows = [line for line in path.read_text().splitlines() if not line.startswith("#")]
        for words in map(str.split, rows[::2]):  # every other row lists points in the picture
            if words:
                numbers = [*map(float, words[1:8])]
                yield int(words[0]), numbers[:4], numbers[4:], int(words[8]), " ".join(words[9:])
        return
    data = _Bytes(path)
    for _ in range(data.take("Q")[0]):
        number, *pose, camera = data.take("i7di")
        name = data.text()
        data.array(np.dtype("V24"), data.take("Q")[0])
        yield number, pose[:4], pose[4:], camera, name


def read_points3d(path: Path, names: dict[int, str]) -> SparsePoints:
    """Points of points3D.bin or .txt; ``names`` of the pictures by number."""
    xyz, rgb, views = [], [], []
    with reading(path):
        for point, color, pictures in _point_rows(path):
            xyz.append(point)
            rgb.append(color)
            views.append(sorted({names[p] for p in pictures if p in names}))
    if not xyz:
        return SparsePoints.none()
    points = SparsePoints(torch.tensor(xyz).float(), torch.tensor(rgb).float() / 255, views)
    return points.finite(path)


def _point_rows(path):
    if path.suffix == ".txt":
        for words in _lines(path):
            numbers = [*map(float, words[1:7])]
            yield numbers[:3], numbers[3:], [*map(int, words[8::2])]
        return
    data = _Bytes(path)
    for _ in range(data.take("Q")[0]):
        _, x, y, z, red, green, blue, _, length = data.take("Q3d3BdQ")
        track = data.array(np.dtype("<2i4"), length)
        yield [x, y, z], [red, green, blue], track[:, 0].tolist()


def _lines(path):
    for line in path.read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            yield line.split()


def rotation(quat: np.ndarray) -> np.ndarray:
    """[3, 3] of a quaternion [4] (w, x, y, z) of any length."""
    w, x, y, z = quat / np.linalg.norm(quat) if np.linalg.norm(quat) else quat * np.nan
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def lens(camera: dict[str, Any]) -> tuple[np.ndarray, tuple[float, ...], bool]:
    """K [3, 3] (pixels from the corner), OpenCV's distortion, and whether that is fisheye.

    Raises:
        ValueError: the camera model is not supported.
    """
    model, values = camera["model"], list(camera["parameters"])
    counts = dict(MODELS.values())
    if model in UNKNOWN or model not in counts:
        known = [name for name in counts if name not in UNKNOWN]
        raise ValueError(
            f"camera model {model} is not supported; those that are: {', '.join(known)}. "
            "COLMAP's image_undistorter makes pinhole pictures of it"
        )
    if len(values) != counts[model]:
        raise ValueError(
            f"a {model} camera has {len(values)} parameters, {counts[model]} are needed"
        )
    if model in ONE_FOCAL:
        values.insert(0, values[0])
    fx, fy, cx, cy, *bent = values
    K = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]])
    if bent:
        bent += [0.0] * (4 - len(bent))  # OpenCV takes four or more
    return K, tuple(bent), model in FISHEYE


def find_model(folder: Path) -> Path:
    """The folder in or below ``folder`` that holds cameras, images and points3D.

    Raises:
        FileNotFoundError: there is none.
    """
    for inner in FOLDERS:
        if any((folder / inner / f"cameras.{end}").is_file() for end in ("bin", "txt")):
            return folder / inner
    raise FileNotFoundError(
        f"{folder} holds no COLMAP model (cameras.bin or cameras.txt in {', '.join(FOLDERS)}): for "
        "photographs without cameras: python tools/prepare_data.py poses FOLDER"
    )


@DATASETS.register_module()
class ColmapViews(ViewDataset):
    """A folder of ``images`` and a COLMAP model in ``sparse/0``.

    Args:
        data_root: the folder.
        images: folder of the pictures below it; a reduced copy (images_4) is as good.
        masks: folder of their masks below it, named as COLMAP does (picture.jpg.png; picture.png
            will do): pixels that are black there do not count, and a picture without one counts
            whole. None: no masks.
        options: of ViewDataset.
    """

    name = "colmap"

    def __init__(
        self,
        data_root: str | Path,
        images: str = "images",
        masks: str | None = None,
        **options: Any,
    ):
        self.images = images
        self.masks = masks
        super().__init__(data_root, **options)

    def read(self) -> tuple[list[View], SparsePoints]:
        """As the model's files have them.

        Raises:
            FileNotFoundError: there is no model, or no mask though masks are asked for.
            ValueError: a file of it is damaged, or a camera model not supported.
        """
        folder = find_model(self.data_root)
        end = "bin" if (folder / "cameras.bin").is_file() else "txt"
        cameras = read_cameras(folder / f"cameras.{end}")
        images = read_images(folder / f"images.{end}")
        path = folder / f"points3D.{end}"
        names = {number: image["name"] for number, image in images.items()}
        points = read_points3d(path, names) if path.is_file() else SparsePoints.none()
        views = []
        for image in images.values():
            if image["camera"] not in cameras:
                raise ValueError(
                    f"{folder}: {image['name']} has the unknown camera {image['camera']}"
                )
            camera = cameras[image["camera"]]
            K, distortion, fisheye = lens(camera)
            picture = self.data_root / self.images / image["name"]
            options = (camera["size"], distortion, fisheye, self._mask(image["name"]))
            views.append(View(image["name"], picture, K, image["pose"], *options))
        if self.masks is not None and not any(view.mask for view in views):
            raise FileNotFoundError(
                f"{self.data_root / self.masks} holds no mask of any of the {len(views)} pictures: "
                f"that of {views[0].name} would be {views[0].name}.png"
            )
        return views, points

    def _mask(self, name: str) -> Path | None:
        if self.masks is None:
            return None
        path = self.data_root / self.masks / name
        places = [path.with_name(path.name + ".png"), path.with_suffix(".png"), path]
        return next((place for place in places if place.is_file()), None)
