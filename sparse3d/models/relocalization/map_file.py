"""The map as a file: an npz archive of plain arrays, checked when read, never half written."""

import json
import os
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sparse3d.structures import SparseVoxels

from .landmarks import GRID, LandmarkMap, voxels_of

FORMAT, VERSION = "sparse3d landmark map", 1
STORAGE = ("float32", "float16", "int8")


def save_map(place: LandmarkMap, path: str | Path, storage: str = "float32") -> int:
    """Writes ``place``: a crash leaves the old file or the new one. Returns its bytes.

    Args:
        place: the map.
        path: ends in .npz by custom.
        storage: 'float32'; 'float16'; or 'int8': bytes with a scale per column, and positions as
            16-bit shares of the map's extent.

    Raises:
        ValueError: an unknown storage.
    """
    if storage not in STORAGE:
        raise ValueError(f"storage is {storage!r}; it must be one of {', '.join(STORAGE)}")
    arrays = _pack(place, storage)
    sums = {name: zlib.crc32(np.ascontiguousarray(a).tobytes()) for name, a in arrays.items()}
    header = {"format": FORMAT, "version": VERSION, "crc32": sums}
    header |= {"meta": place.meta | {"storage": storage}, "landmarks": len(place)}
    text = np.frombuffer(json.dumps(header).encode(), np.uint8)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with beside.open("wb") as file:
            np.savez_compressed(file, header=text, **arrays)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    return path.stat().st_size


def load_map(path: str | Path) -> LandmarkMap:
    """Reads a map; nothing in the file is run.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is cut off, changed, of another format or of a later version.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"map {path} does not exist; build it: relocalize.py build")
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("it is no npz archive, or its end is missing")
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        header = json.loads(arrays.pop("header").tobytes())
        if not isinstance(header, dict) or header.get("format") != FORMAT:
            raise ValueError(f"it is no {FORMAT}")
        if header["version"] != VERSION:
            raise ValueError(f"it has version {header['version']}; {VERSION} can be read")
        for name, crc in header["crc32"].items():
            if zlib.crc32(np.ascontiguousarray(arrays[name]).tobytes()) != crc:
                raise ValueError(f"its part {name} was changed")
        return _unpack(arrays, header)
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"map {path} ({path.stat().st_size} bytes) cannot be read: {error}; it is cut off, "
            "damaged or no map; copy or build it again"
        ) from error


def _pack(place: LandmarkMap, storage: str) -> dict[str, np.ndarray]:
    arrays = {}

    def put(name: str, values: Tensor, kind: str = storage) -> None:
        values = values.float()
        if kind == "int8":
            scale = values.abs().flatten(0, -2).amax(0) if values.numel() else values.new_zeros(1)
            scale = scale.clamp(min=1e-12).half().float().clamp(min=6e-8) / 127
            arrays[f"{name}.scale"] = scale.numpy().astype(np.float32)
            arrays[name] = (values / scale).round().clamp(-127, 127).numpy().astype(np.int8)
        else:
            arrays[name] = values.numpy().astype(kind)

    half = "float32" if storage == "float32" else "float16"
    _put_positions(arrays, place.positions, storage)
    put("half", place.half, half)
    put("sizes", place.sizes, half)
    put("tangents", place.tangents)
    put("base", place.base)
    put("offset", place.offset, half)
    put("basis", place.basis, half)
    if place.renders:
        mask = torch.zeros(len(place), 27, dtype=torch.bool)
        x, y, z = place.voxels.coords.long().T[1:]
        mask[place.voxels.batch_index, (x * 3 + y) * 3 + z] = True
        arrays["nodes"] = np.packbits(mask.numpy(), axis=1)
        put("density", place.voxels.features[:, :1])
        put("values", place.voxels.features[:, 1:])
        if place.codes is not None:
            put("codes", place.codes)
    if place.seen is not None:
        arrays["frames"] = place.frames.numpy().astype(np.float32)
        arrays["seen"] = np.packbits(place.seen.numpy(), axis=1)
    return arrays


def _put_positions(arrays: dict, positions: Tensor, storage: str) -> None:
    if storage != "int8" or not len(positions):
        arrays["positions"] = positions.numpy().astype(np.float32)
        return
    values = positions.double().numpy()
    low, high = values.min(0), values.max(0)
    extent = np.maximum(high - low, 1e-6)
    arrays["positions"] = np.round((values - low) / extent * 65535).astype(np.uint16)
    arrays["positions.range"] = np.stack([low, extent])


def _unpack(arrays: dict, header: dict) -> LandmarkMap:
    count = header["landmarks"]

    def get(name: str) -> Tensor:
        values = torch.from_numpy(arrays[name].astype(np.float32))
        scale = arrays.get(f"{name}.scale")
        return values if scale is None else values * torch.from_numpy(scale)

    positions = arrays["positions"].astype(np.float64)
    if "positions.range" in arrays:
        low, extent = arrays["positions.range"]
        positions = positions / 65535 * extent + low
    base, basis = get("base"), get("basis")
    voxels, codes = SparseVoxels.empty(1 + base.shape[1], GRID, max(count, 1)), None
    if "nodes" in arrays:
        mask = np.unpackbits(arrays["nodes"], axis=1)[:, :27].astype(bool)
        mask = torch.from_numpy(mask)
        values = get("values")
        table = torch.zeros(count, 27, 1 + values.shape[1])
        table[mask] = torch.cat([get("density"), values], 1)
        voxels = voxels_of(table[..., 0].view(-1, 3, 3, 3), table[..., 1:], mask)
        codes = get("codes") if "codes" in arrays else None
    seen, frames = None, torch.zeros(0, 4, 4)
    if "seen" in arrays:
        frames = get("frames")
        seen = np.unpackbits(arrays["seen"], axis=1)[:, :count].astype(bool)
        seen = torch.from_numpy(seen)
    sized = (get("half"), get("tangents"), get("sizes"))
    if any(len(part) != count for part in (positions, base, *sized)) or base.shape[1] != len(basis):
        raise ValueError("its parts do not belong together")
    return LandmarkMap(
        torch.from_numpy(positions).float(),
        *sized,
        base,
        get("offset"),
        basis,
        voxels,
        codes,
        frames,
        seen,
        header["meta"],
    )
