"""Gaussians on disk: 3DGS's ply, SuperSplat's compressed ply, and splat; told apart by content."""

from pathlib import Path

import numpy as np
import torch

from .gaussians import SH0, Gaussians
from .ply import read_ply, write_ply

CHUNK = 256
"""Gaussians of a compressed ply that share their bounds."""
MOST_LOG_SCALE = 20.0
SPLAT = np.dtype([("mean", "<f4", 3), ("scale", "<f4", 3), ("rgba", "u1", 4), ("quat", "u1", 4)])
CORE = ("x", "y", "z", "f_dc_0", "f_dc_1", "f_dc_2", "opacity")
CORE += ("scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3")


def read_gaussians(path: str | Path) -> Gaussians:
    """Read what ``write_gaussians`` writes, and such files of other programs.

    Raises:
        ValueError: the file is cut off, or no Gaussians.
    """
    path = Path(path)
    if path.suffix.lower() == ".splat":
        return _read_splat(path)
    tables = read_ply(path)
    if "chunk" in tables and "packed_position" in (tables["vertex"].dtype.names or ()):
        return _read_compressed(tables)
    return _read_plain(path, tables)


def write_gaussians(gaussians: Gaussians, path: str | Path) -> int:
    """Write .ply, .compressed.ply or .splat by the name's ending; the number written.

    Raises:
        ValueError: another ending.
    """
    path = Path(path)
    endings = {".compressed.ply": _write_compressed, ".splat": _write_splat, ".ply": _write_plain}
    writer = next((w for end, w in endings.items() if path.name.lower().endswith(end)), None)
    if writer is None:
        raise ValueError(
            f"Gaussians cannot be written to {str(path)!r}: end it in {', '.join(endings)}"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    good = gaussians.finite()
    gaussians = Gaussians(*(t.detach().cpu().float() for t in gaussians.tensors().values()))
    return writer(gaussians[good.cpu()], path)


def morton_order(points: np.ndarray) -> np.ndarray:
    """Rows of ``points`` [N, 3] along a z-curve of 10 bits an axis, so that neighbours are near."""
    if not len(points):
        return np.zeros(0, np.int64)
    low, span = points.min(0), np.maximum(np.ptp(points, axis=0), 1e-12)
    cells = ((points - low) / span * 1023).astype(np.uint64)
    keys = np.zeros(len(points), np.uint64)
    for bit in range(10):
        for axis in range(3):
            digit = (cells[:, axis] >> np.uint64(bit)) & np.uint64(1)
            keys |= digit << np.uint64(3 * bit + axis)
    return np.argsort(keys, kind="stable")


# ---------------------------------------------------------------------- 3DGS's ply


def _write_plain(gaussians: Gaussians, path: Path) -> int:
    rest = gaussians.shN.permute(0, 2, 1).flatten(1)  # all of red first
    columns = {
        **dict(zip("xyz", gaussians.means.T)),
        **{name: torch.zeros(len(gaussians)) for name in ("nx", "ny", "nz")},
        **{f"f_dc_{i}": gaussians.sh0[:, 0, i] for i in range(3)},
        **{f"f_rest_{i}": column for i, column in enumerate(rest.T)},
        "opacity": gaussians.opacities,
        **{f"scale_{i}": gaussians.scales[:, i] for i in range(3)},
        **{f"rot_{i}": gaussians.quats[:, i] for i in range(4)},
    }
    table = np.empty(len(gaussians), [(name, "f4") for name in columns])
    for name, column in columns.items():
        table[name] = column.numpy()
    write_ply(path, {"vertex": table})
    return len(gaussians)


def _read_plain(path: Path, tables: dict[str, np.ndarray]) -> Gaussians:
    table = tables.get("vertex")
    names = () if table is None else table.dtype.names
    missing = [name for name in CORE if name not in names]
    if missing:
        raise ValueError(
            f"{path} holds no Gaussians: its vertices lack {', '.join(missing)}; a file of 3DGS, "
            "gsplat or this toolkit is needed"
        )
    rest = sum(name.startswith("f_rest_") for name in names)

    def stack(*columns: str) -> torch.Tensor:
        rows = [table[name].astype(np.float32) for name in columns]
        return torch.from_numpy(np.stack(rows, 1) if rows else np.zeros((len(table), 0), "f4"))

    harmonics = stack(*(f"f_rest_{i}" for i in range(rest))).reshape(len(table), 3, rest // 3)
    return Gaussians(
        stack("x", "y", "z"),
        stack("scale_0", "scale_1", "scale_2"),
        stack("rot_0", "rot_1", "rot_2", "rot_3"),
        stack("opacity")[:, 0],
        stack("f_dc_0", "f_dc_1", "f_dc_2")[:, None],
        harmonics.permute(0, 2, 1).contiguous(),
    )


# ---------------------------------------------------------------------- splat


def _write_splat(gaussians: Gaussians, path: Path) -> int:
    gaussians = gaussians[torch.from_numpy(morton_order(gaussians.means.numpy()))]
    table = np.empty(len(gaussians), SPLAT)
    color = torch.cat([gaussians.rgb, gaussians.opacities.sigmoid()[:, None]], 1)
    quats = gaussians.quats / gaussians.quats.norm(dim=1, keepdim=True)
    table["mean"], table["scale"] = gaussians.means.numpy(), gaussians.scales.exp().numpy()
    table["rgba"] = (color * 255).clamp(0, 255).byte().numpy()
    table["quat"] = (quats * 128 + 128).clamp(0, 255).byte().numpy()
    path.write_bytes(table.tobytes())
    return len(gaussians)


def _read_splat(path: Path) -> Gaussians:
    data = path.read_bytes()
    if len(data) % SPLAT.itemsize:
        raise ValueError(
            f"{path} has {len(data)} bytes, no whole number of Gaussians of {SPLAT.itemsize}: it "
            "is cut off or no splat file"
        )
    table = np.frombuffer(data, SPLAT)
    rgba = torch.from_numpy(table["rgba"].astype(np.float32)) / 255
    return Gaussians(
        torch.from_numpy(table["mean"].astype(np.float32)),
        torch.from_numpy(table["scale"].astype(np.float32)).clamp(min=1e-12).log(),
        (torch.from_numpy(table["quat"].astype(np.float32)) - 128) / 128,
        torch.logit(rgba[:, 3], eps=1 / 512),
        ((rgba[:, :3] - 0.5) / SH0)[:, None],
        torch.zeros(len(table), 0, 3),
    )


# ---------------------------------------------------------------------- compressed ply


def _write_compressed(gaussians: Gaussians, path: Path) -> int:
    gaussians = gaussians[gaussians.opacities.sigmoid() > 1 / 255]
    gaussians = gaussians[torch.from_numpy(morton_order(gaussians.means.numpy()))]
    count = len(gaussians)
    scales = gaussians.scales.clamp(-MOST_LOG_SCALE, MOST_LOG_SCALE)
    parts = [gaussians.means.numpy(), scales.numpy(), gaussians.rgb.numpy()]
    bounds = [_bounds(part) for part in parts]
    names = [("x", "y", "z"), ("scale_x", "scale_y", "scale_z"), ("r", "g", "b")]
    fields = [f"{end}_{name}" for group in names for end in ("min", "max") for name in group]
    chunks = np.empty(len(bounds[0][0]), [(field, "f4") for field in fields])
    for group, limits in zip(names, bounds):
        for end, limit in zip(("min", "max"), limits):
            for axis, name in enumerate(group):
                chunks[f"{end}_{name}"] = limit[:, axis]
    unit = [_normalise(part, *limits) for part, limits in zip(parts, bounds)]
    opacity = gaussians.opacities.sigmoid()[:, None].numpy()
    table = np.empty(count, [(f"packed_{n}", "u4") for n in PACKED])
    table["packed_position"] = _pack(unit[0], (11, 10, 11))
    table["packed_rotation"] = _pack_rotation(gaussians.quats.numpy())
    table["packed_scale"] = _pack(unit[1], (11, 10, 11))
    table["packed_color"] = _pack(np.concatenate([unit[2], opacity], 1), (8, 8, 8, 8))
    tables = {"chunk": chunks, "vertex": table}
    if gaussians.shN.shape[1]:
        rest = gaussians.shN.permute(0, 2, 1).flatten(1).numpy()
        packed = np.clip(np.trunc((rest / 8 + 0.5) * 256), 0, 255).astype(np.uint8)
        kind = np.dtype([(f"f_rest_{i}", "u1") for i in range(rest.shape[1])])
        tables["sh"] = np.ascontiguousarray(packed).view(kind)[:, 0]
    write_ply(path, tables)
    return count


PACKED = ("position", "rotation", "scale", "color")


def _read_compressed(tables: dict[str, np.ndarray]) -> Gaussians:
    chunks, table = tables["chunk"], tables["vertex"]
    row = np.arange(len(table)) // CHUNK

    def limits(names: str | tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
        ends = [np.stack([chunks[f"{end}_{n}"] for n in names], 1) for end in ("min", "max")]
        return ends[0][row], ends[1][row]

    def spread(unit: np.ndarray, names) -> torch.Tensor:
        low, high = limits(names)
        return torch.from_numpy((low + unit * (high - low)).astype(np.float32))

    color = _unpack(table["packed_color"], (8, 8, 8, 8))
    rgb = spread(color[:, :3], "rgb") if "min_r" in chunks.dtype.names else color[:, :3]
    rest = np.zeros((len(table), 0), np.float32)
    if "sh" in tables:
        rest = np.stack([tables["sh"][n] for n in tables["sh"].dtype.names], 1)
        rest = ((rest.astype(np.float32) + 0.5) / 256 - 0.5) * 8
    harmonics = torch.from_numpy(rest).reshape(len(table), 3, rest.shape[1] // 3)
    return Gaussians(
        spread(_unpack(table["packed_position"], (11, 10, 11)), "xyz"),
        spread(_unpack(table["packed_scale"], (11, 10, 11)), ("scale_x", "scale_y", "scale_z")),
        torch.from_numpy(_unpack_rotation(table["packed_rotation"])),
        torch.logit(torch.from_numpy(color[:, 3].astype(np.float32)), eps=1 / 512),
        ((torch.as_tensor(rgb, dtype=torch.float32) - 0.5) / SH0)[:, None],
        harmonics.permute(0, 2, 1).contiguous(),
    )


def _bounds(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least and greatest of each chunk [chunks, 3]."""
    starts = np.arange(0, len(values), CHUNK)
    if not len(values):
        return np.zeros((0, 3), "f4"), np.zeros((0, 3), "f4")
    return np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)


def _normalise(values: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    row = np.arange(len(values)) // CHUNK
    return (values - low[row]) / np.maximum(high - low, 1e-12)[row]


def _pack(unit: np.ndarray, bits: tuple[int, ...]) -> np.ndarray:
    """[N] uint32 of numbers [N, len(bits)] in 0..1, the first in the highest bits."""
    word = np.zeros(len(unit), np.uint32)
    for column, width in enumerate(bits):
        most = (1 << width) - 1
        digits = np.clip(np.floor(unit[:, column] * most + 0.5), 0, most).astype(np.uint32)
        word = (word << np.uint32(width)) | digits
    return word


def _unpack(word: np.ndarray, bits: tuple[int, ...]) -> np.ndarray:
    columns = []
    for width in reversed(bits):
        most = (1 << width) - 1
        columns.append((word & np.uint32(most)) / most)
        word = word >> np.uint32(width)
    return np.stack(columns[::-1], 1)


def _pack_rotation(quats: np.ndarray) -> np.ndarray:
    """Index of the largest component (2 bits), then the three others (10 bits each)."""
    quats = quats / np.linalg.norm(quats, axis=1, keepdims=True)
    largest = np.abs(quats).argmax(1)
    rows = np.arange(len(quats))
    quats = quats * np.where(quats[rows, largest] < 0, -1, 1)[:, None]
    others = quats[np.arange(4) != largest[:, None]].reshape(-1, 3)
    word = _pack(others * np.sqrt(0.5) + 0.5, (10, 10, 10))
    return word | (largest.astype(np.uint32) << np.uint32(30))


def _unpack_rotation(word: np.ndarray) -> np.ndarray:
    others = (_unpack(word & np.uint32((1 << 30) - 1), (10, 10, 10)) - 0.5) * np.sqrt(2)
    largest = word >> np.uint32(30)
    quats = np.empty((len(word), 4), np.float32)
    quats[np.arange(4) != largest[:, None]] = others.astype(np.float32).ravel()
    quats[np.arange(len(word)), largest] = np.sqrt(np.maximum(1 - (others**2).sum(1), 0))
    return quats
