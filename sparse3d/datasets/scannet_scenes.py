"""Scenes of ScanNet v2: a mesh's vertices, the annotated objects, and the axes of the room.

A scene is a folder with SCENE_vh_clean_2.ply, .aggregation.json, _vh_clean_2.0.010000.segs.json and
SCENE.txt, or one SCENE.npz of the same content (``write_scene``; also the arrays xyz, rgb, sem,
inst that other toolkits leave). All boxes of grounding data sets live in the ALIGNED frame.
"""

import csv
import json
import os
import warnings
from functools import partial
from pathlib import Path

import numpy as np

from sparse3d.structures.ply import read_ply

from .base import read_json, reading
from .grounding import Room, with_color
from .world.generate import run_jobs

NYU40 = (
    *("unannotated", "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window"),
    *("bookshelf", "picture", "counter", "blinds", "desk", "shelves", "curtain", "dresser"),
    *("pillow", "mirror", "floor mat", "clothes", "ceiling", "books", "refrigerator", "television"),
    *("paper", "towel", "shower curtain", "box", "whiteboard", "person", "night stand", "toilet"),
    *("sink", "lamp", "bathtub", "bag", "otherstructure", "otherfurniture", "otherprop"),
)
"""Names of the NYU40 labels 0 to 40."""

BENCHMARK_CLASSES = (
    *("cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf", "picture"),
    *("counter", "desk", "curtain", "refrigerator", "shower curtain", "toilet", "sink", "bathtub"),
)
"""Classes of the ScanRefer benchmark; all further names are its eighteenth, 'others' (label -1)."""

ALIKE = {
    "couch": "sofa",
    "armchair": "chair",
    "stool": "chair",
    "fridge": "refrigerator",
    "refridgerator": "refrigerator",
    "dresser": "cabinet",
    "nightstand": "cabinet",
    "bookshelves": "bookshelf",
}
"""Common words for the benchmark's classes, where the table of labels is not at hand."""

LABEL_TABLE = "scannetv2-labels.combined.tsv"
SCENE_ID = "scene[0-9][0-9][0-9][0-9]_[0-9][0-9]"
REMEDY = "download the scene's files again (or correct data_root)"


def find_scene(root: str | Path, scene_id: str) -> Path:
    """The folder or .npz of a scene under ``root``, ``root/scans`` or ``root/scans_test``.

    Raises:
        FileNotFoundError: there is none.
    """
    root = Path(root)
    for place in (root, root / "scans", root / "scans_test", root / "scenes"):
        for path in (place / f"{scene_id}.npz", place / scene_id):
            if path.exists():
                return path
    raise FileNotFoundError(
        f"{root} holds neither {scene_id}.npz nor a folder {scene_id} (nor its folder scans): "
        "put the ScanNet scenes there, or correct data_root"
    )


def list_scenes(root: str | Path) -> list[str]:
    """Ids of the scenes under ``root``, in order."""
    root, found = Path(root), set()
    for place in (root, root / "scans", root / "scans_test", root / "scenes"):
        found |= {path.stem for path in place.glob(f"{SCENE_ID}.npz")}
        found |= {path.name for path in place.glob(SCENE_ID) if path.is_dir()}
    return sorted(found)


def read_scene(path: str | Path, aligned: bool = True) -> Room:
    """A scene with its objects.

    Args:
        path: folder or .npz.
        aligned: turn the points by the scene's axis alignment; an .npz is as it was written.

    Raises:
        FileNotFoundError: a file is missing; names it.
        ValueError: one is damaged, or they do not belong together.
    """
    path = Path(path)
    if path.suffix == ".npz":
        return _read_npz(path)
    name = path.name
    mesh = path / f"{name}_vh_clean_2.ply"
    if not mesh.is_file():
        raise FileNotFoundError(f"{mesh} is missing: {REMEDY}")
    points = read_points(mesh)
    if aligned:
        points = align(points, _alignment(path / f"{name}.txt"))
    segments = _segments(path / f"{name}_vh_clean_2.0.010000.segs.json", len(points))
    groups = _groups(path, name)
    return _room(points, [(o, label, np.isin(segments, parts)) for o, label, parts in groups])


def read_points(path: str | Path) -> np.ndarray:
    """[P, 6] vertices and colours (0..1) of a ply file; grey, with a warning, where it has none.

    Raises:
        ValueError: it is cut off or has no coordinates.
    """
    with reading(path):
        table = read_ply(path).get("vertex")
        names = table.dtype.names if table is not None else ()
        if not {"x", "y", "z"} <= set(names):
            raise ValueError(f"{path} has no vertices with x, y, z; it has {list(names)}")
        columns = ["x", "y", "z"]
        if {"red", "green", "blue"} <= set(names):
            columns += ["red", "green", "blue"]
        points = np.stack([table[column].astype(np.float32) for column in columns], 1)
        if len(columns) == 6 and table["red"].dtype.kind in "iu":
            points[:, 3:] /= np.iinfo(table["red"].dtype).max
    return with_color(points, str(path))


def align(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """``points`` [P, >=3] with coordinates moved by ``matrix`` [4, 4]."""
    moved = points[:, :3].astype(np.float64) @ matrix[:3, :3].T + matrix[:3, 3]
    return np.concatenate([moved.astype(np.float32), points[:, 3:]], 1)


def _alignment(path: Path) -> np.ndarray:
    """[4, 4] of the line 'axisAlignment = ...'; the identity, with a warning, without it."""
    if path.is_file():
        for line in path.read_text().splitlines():
            key, _, value = line.partition("=")
            if key.strip() == "axisAlignment":
                with reading(path):
                    return np.array([float(v) for v in value.split()]).reshape(4, 4)
    warnings.warn(
        f"{path} is missing or has no axisAlignment: points stay in the sensor's frame, where the "
        "boxes and directions of ScanRefer, Nr3D and Sr3D are not right",
        stacklevel=2,
    )
    return np.eye(4)


def _segments(path: Path, count: int) -> np.ndarray:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {REMEDY}")
    with reading(path):
        segments = np.asarray(read_json(path)["segIndices"], np.int64)
    if len(segments) != count:
        raise ValueError(
            f"{path} has {len(segments)} segments for {count} vertices: the files belong to "
            f"different meshes; {REMEDY}"
        )
    return segments


def _groups(path: Path, name: str) -> list[tuple[int, str, list[int]]]:
    """Number, label and segments of each annotated object."""
    files = [path / f"{name}{end}" for end in (".aggregation.json", "_vh_clean.aggregation.json")]
    file = next((f for f in files if f.is_file()), None)
    if file is None:
        raise FileNotFoundError(
            f"{files[0]} is missing: without it no object is known. {REMEDY.capitalize()}; test "
            "scenes have none, tools/ground.py takes their .ply alone"
        )
    with reading(file):
        groups = read_json(file)["segGroups"]
        return [(int(g["objectId"]), str(g["label"]), list(g["segments"])) for g in groups]


def _room(points: np.ndarray, objects: list[tuple[int, str, np.ndarray]]) -> Room:
    """A room of objects given as (number, name, mask of its points); empty ones are left out."""
    instance = np.full(len(points), -1, np.int64)
    boxes, names, ids = [], [], []
    for number, name, mask in objects:
        mine = points[mask, :3]
        if not len(mine):
            continue
        low, high = mine.min(0), mine.max(0)
        boxes.append(np.concatenate([(low + high) / 2, np.maximum(high - low, 0.01)]))
        instance[mask] = len(ids)
        names.append(name)
        ids.append(number)
    boxes = np.array(boxes, np.float32).reshape(-1, 6)
    return Room(points, instance, boxes, names, ids)


def _read_npz(path: Path) -> Room:
    with reading(path), np.load(path) as data:
        keys = set(data.files)
        if "xyz" not in keys or not keys & {"inst", "instance"}:
            raise ValueError(f"{path} holds {sorted(keys)}; xyz, rgb and inst are needed")
        xyz = data["xyz"].astype(np.float32)
        points = np.concatenate([xyz, data["rgb"]], 1) if "rgb" in keys else xyz
        points = with_color(points, str(path))
        if "objects" in keys:
            objects = json.loads(bytes(data["objects"]))
            instance = data["instance"].astype(np.int64)
            rows = ((o["id"], o["name"], instance == row) for row, o in enumerate(objects))
            return _room(points, list(rows))
        inst, sem = data["inst"].astype(np.int64), data["sem"].astype(np.int64)
    objects = []
    for number in np.unique(inst[inst > 0]).tolist():
        mask = inst == number
        label = int(np.bincount(sem[mask]).argmax())
        name = NYU40[label] if label < len(NYU40) else f"label {label}"
        objects.append((number - 1, name, mask))
    return _room(points, objects)


def write_scene(scene_id: str, root: str | Path, out: str | Path) -> Path:
    """Writes a scene as ``out/SCENE.npz``, aligned, unless it is there: it then loads fast."""
    path = Path(out) / f"{scene_id}.npz"
    if not path.exists():
        room = read_scene(find_scene(root, scene_id))
        objects = [{"id": i, "name": n} for i, n in zip(room.ids, room.names)]
        part = path.with_name(f".{scene_id}.{os.getpid()}.npz")
        np.savez(
            part,
            xyz=room.points[:, :3],
            rgb=np.round(255 * room.points[:, 3:]).astype(np.uint8),
            instance=room.instance.astype(np.int16),
            objects=np.frombuffer(json.dumps(objects).encode(), np.uint8),
        )
        part.replace(path)
    return path


def prepare_scenes(root: Path, out: Path, workers: int = 1) -> int:
    """``write_scene`` for all scenes under ``root``, and the table of labels; their number.

    Raises:
        FileNotFoundError: there are none.
    """
    scenes = list_scenes(root)
    if not scenes:
        raise FileNotFoundError(f"{root} holds no folders scene*_*: give the folder of the scenes")
    out.mkdir(parents=True, exist_ok=True)
    for place in (root, root.parent):
        if (place / LABEL_TABLE).is_file():
            (out / LABEL_TABLE).write_bytes((place / LABEL_TABLE).read_bytes())
            break
    missing = [scene for scene in scenes if not (out / f"{scene}.npz").exists()]
    run_jobs(partial(write_scene, root=root, out=out), missing, workers)
    return len(scenes)


def benchmark_names(root: str | Path) -> dict[str, str]:
    """Name in the annotation -> benchmark class, from ScanNet's table of labels.

    Looked for in ``root`` and the folder above; empty where it is not.
    """
    for place in (Path(root), Path(root).parent):
        if (place / LABEL_TABLE).is_file():
            with reading(place / LABEL_TABLE), (place / LABEL_TABLE).open(newline="") as file:
                rows = list(csv.DictReader(file, delimiter="\t"))
                pairs = [(row["raw_category"], NYU40[int(row["nyu40id"] or 0)]) for row in rows]
            return {raw: name for raw, name in pairs if name in BENCHMARK_CLASSES}
    return {}


def benchmark_class(name: str, table: dict[str, str]) -> str:
    """The benchmark's class of an object's name, or 'others'.

    Args:
        name: as annotated, with blanks or underscores.
        table: of ``benchmark_names``; without it the last word decides ('office chair': chair).
    """
    name = name.replace("_", " ").strip().lower()
    if table:
        return table.get(name, "others")
    for words in (name, name.split(" ")[-1] if name else ""):
        words = ALIKE.get(words, words)
        if words in BENCHMARK_CLASSES:
            return words
    return "others"
