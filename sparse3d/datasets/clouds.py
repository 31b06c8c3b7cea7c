"""A cloud of points from whatever file it lies in."""

from pathlib import Path

import numpy as np

from sparse3d.structures.ply import read_ply

from .base import reading
from .flow import read_sweep

ENDINGS = (".ply", ".pcd", ".bin", ".npy", ".npz", ".feather")
NPZ_KEYS = ("points", "xyz", "pc", "pc1", "arr_0")
PAIR_KEYS = ("pc0", "pc1")
"""Names of both clouds of a pair in one .npz."""
MOST_RINGS = 256
"""A laser scanner has fewer rings."""
PCD_TYPES = {"F": "f", "I": "i", "U": "u"}


def read_cloud(path: str | Path, columns: int | None = None, key: str | None = None) -> np.ndarray:
    """[P, 3] float32 x, y, z, as the file has them; points that are none are still there.

    Args:
        path: .ply; .pcd (ascii or binary); .bin of float32 rows (KITTI's 4 columns, or nuScenes' 5
            in .pcd.bin); .npy or .npz of rows; .feather with x, y, z.
        columns: of a .bin file's rows, where they are others.
        key: of the cloud in an .npz of several; None: the one of ``NPZ_KEYS`` that is there.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is cut off, damaged, or none of these; a pair of which no ``key`` names
            one; or rows that have another width, as far as that can be seen.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no cloud {str(path)!r}: give {', '.join(ENDINGS)}")
    if path.suffix not in ENDINGS:
        raise ValueError(f"{path} ends in {path.suffix!r}; a cloud is one of {', '.join(ENDINGS)}")
    with reading(path):
        if path.suffix == ".feather":
            points = read_sweep(path)
        elif path.suffix == ".ply":
            points = _of_ply(path)
        elif path.suffix == ".pcd":
            points = read_pcd(path)
        elif path.suffix == ".bin":
            points = _of_bin(path, columns)
        else:
            points = _of_numpy(path, key)
        if points.ndim != 2 or points.shape[1] < 3:
            raise ValueError(f"{path} has shape {points.shape}; rows of x, y, z are needed")
    return np.ascontiguousarray(points[:, :3], np.float32)


def _of_ply(path: Path) -> np.ndarray:
    table = read_ply(path).get("vertex")
    names = () if table is None else table.dtype.names
    if not {"x", "y", "z"} <= set(names):
        raise ValueError(f"{path} has no vertices with x, y, z; it has {list(names)}")
    return np.stack([table[axis].astype(np.float32) for axis in "xyz"], 1)


def holds_pair(path: str | Path) -> bool:
    """Whether a file is an .npz with both clouds of a pair, pc0 and pc1."""
    path = Path(path)
    if path.suffix != ".npz" or not path.is_file():
        return False
    with reading(path), np.load(path, allow_pickle=False) as data:
        return set(PAIR_KEYS) <= set(data.files)


def _of_bin(path: Path, columns: int | None) -> np.ndarray:
    guess = columns is None
    if columns is None:
        columns = 5 if path.name.endswith(".pcd.bin") else 4
    size, width = path.stat().st_size, 4 * columns
    if columns < 3 or size % width:
        raise ValueError(
            f"{path} has {size} bytes, no whole number of rows of {columns} float32 ({width} B): "
            "it is truncated (copy it again) or its points have another width (say which: "
            "--columns, 3 or more)"
        )
    values = np.fromfile(path, np.float32)
    if guess and columns != 5 and _has_rings(values):
        raise ValueError(
            f"{path} looks like rows of 5 columns, the last a ring's number, as nuScenes has them, "
            f"not of {columns}: say --columns 5, or --columns {columns} if it is right all the same"
        )
    return values.reshape(-1, columns)


def _has_rings(values: np.ndarray) -> bool:
    """Whether every fifth of ``values`` is a small whole number, and not all are one."""
    if not len(values) or len(values) % 5:
        return False
    last = values[4::5]
    whole = (last >= 0) & (last < MOST_RINGS) & (last == np.floor(last))
    return bool(whole.all() and last.min() < last.max())


def _of_numpy(path: Path, key: str | None) -> np.ndarray:
    data = np.load(path, allow_pickle=False)
    if path.suffix == ".npy":
        return data
    with data:
        if key is None and set(PAIR_KEYS) <= set(data.files):
            raise ValueError(
                f"{path} holds both clouds of a pair, {' and '.join(PAIR_KEYS)}: give the file as "
                "A and as B, or save the cloud that is meant as an .npy"
            )
        found = [name for name in ([key] if key else NPZ_KEYS) if name in data.files]
        if not found:
            raise ValueError(f"{path} has {data.files}; one of {NPZ_KEYS} is needed")
        return data[found[0]]


def read_pcd(path: str | Path) -> np.ndarray:
    """[P, 3] x, y, z of a PCD file.

    Raises:
        ValueError: it is cut off, compressed, or has no x, y, z.
    """
    data = Path(path).read_bytes()
    mark = data.find(b"\nDATA ")
    if mark < 0:
        raise ValueError(f"{path} has no line DATA: it is no PCD file, or cut off in its header")
    end = data.find(b"\n", mark + 1)
    head = dict(
        line.split(None, 1)
        for line in data[:end].decode("ascii", "replace").splitlines()
        if " " in line and not line.startswith("#")
    )
    names, kind = head["FIELDS"].split(), head["DATA"].strip()
    if not {"x", "y", "z"} <= set(names):
        raise ValueError(f"{path} has the fields {names}; x, y and z are needed")
    counts = [int(n) for n in head.get("COUNT", " ".join("1" * len(names))).split()]
    count, body = int(head["POINTS"]), data[end + 1 :]
    if kind == "ascii":
        rows = np.array(body.split(), float).reshape(count, sum(counts))
        starts = np.cumsum([0, *counts])
        return np.stack([rows[:, starts[names.index(axis)]] for axis in "xyz"], 1)
    if kind != "binary":
        raise ValueError(f"{path} is {kind}; save it as binary or ascii PCD, or as PLY")
    types = [PCD_TYPES[t] + s for t, s in zip(head["TYPE"].split(), head["SIZE"].split())]
    fields = [
        (name if name in "xyz" else f"{name}.{i}", f"<{kind}", (n,))
        for i, (name, kind, n) in enumerate(zip(names, types, counts))
    ]
    layout = np.dtype(fields)
    if len(body) < count * layout.itemsize:
        raise ValueError(
            f"{path} holds {len(body)} bytes of {count} points of {layout.itemsize} B: cut off"
        )
    table = np.frombuffer(body, layout, count)
    return np.stack([table[axis][:, 0].astype(np.float64) for axis in "xyz"], 1)


def read_matrices(path: str | Path) -> np.ndarray:
    """[N, 4, 4] poses of a text file (12 or 16 numbers a pose) or an .npy.

    Raises:
        ValueError: other numbers of numbers.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file of poses {str(path)!r}")
    with reading(path):
        if path.suffix == ".npy":
            numbers = np.load(path, allow_pickle=False).astype(np.float64).ravel()
        else:
            text = path.read_text().translate(str.maketrans("[],;", "    "))
            numbers = np.array(text.split(), np.float64)
    for width in (16, 12):
        if len(numbers) and len(numbers) % width == 0 and len(numbers) // width <= 2:
            rows = numbers.reshape(-1, width // 4, 4)
            last = np.broadcast_to([[[0.0, 0, 0, 1]]], (len(rows), 1, 4))
            return rows if width == 16 else np.concatenate([rows, last], 1)
    raise ValueError(
        f"{path} holds {len(numbers)} numbers; poses are 16 (or 12, without the last row) each: "
        "two of sensor to world, first A's and then B's, or one of A's frame to B's"
    )
