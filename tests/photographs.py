"""A made place for tests: a textured floor and wall, photographed; written as data sets are."""

import json
import struct
from pathlib import Path

import cv2
import numpy as np

SIZE = (96, 72)
FOCAL = 100.0
K = np.array([[FOCAL, 0, SIZE[0] / 2], [0, FOCAL, SIZE[1] / 2], [0, 0, 1.0]])  # from the corner
FLIP = np.diag([1.0, -1.0, -1.0, 1.0])


def look_at(eye, spot) -> np.ndarray:
    """[4, 4] world to camera, y down."""
    forward = np.subtract(spot, eye) / np.linalg.norm(np.subtract(spot, eye))
    right = np.cross(forward, [0, 0, 1.0])
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, np.cross(forward, right), forward])
    pose[:3, 3] = -pose[:3, :3] @ np.asarray(eye, float)
    return pose


def poses(count: int) -> list[np.ndarray]:
    """Cameras on an arc, looking down at the floor's middle."""
    angles = np.linspace(-0.3, 0.3, count) if count > 1 else [0.0]
    return [look_at([3 * np.sin(a), -3 * np.cos(a), 2.2], [0, 0, 0.2]) for a in angles]


def texture(seed: int) -> np.ndarray:
    """uint8 [256, 256, 3]: smooth random blots of several sizes."""
    rng = np.random.default_rng(seed)
    out = np.zeros((256, 256, 3))
    for cells in (8, 24, 64):
        out += cv2.resize(rng.uniform(-1, 1, (cells, cells, 3)), (256, 256), interpolation=2)
    return np.clip(128 + 70 * out, 0, 255).astype(np.uint8)


def cast(pose: np.ndarray, size=SIZE, camera=K) -> tuple[np.ndarray, np.ndarray]:
    """The picture uint8 [H, W, 3] and the depth [H, W] seen by a camera: a floor and a wall."""
    u, v = np.meshgrid(np.arange(size[0]) + 0.5, np.arange(size[1]) + 0.5)
    rays = np.stack([u, v, np.ones_like(u)], 2) @ np.linalg.inv(camera).T
    center = -pose[:3, :3].T @ pose[:3, 3]
    ways = rays @ pose[:3, :3]
    with np.errstate(divide="ignore"):
        floor, wall = -center[2] / ways[..., 2], (1.5 - center[1]) / ways[..., 1]
    floor, wall = (np.where(d > 0, d, np.inf) for d in (floor, wall))
    depth = np.minimum(floor, wall)
    points = center + ways * np.where(np.isfinite(depth), depth, 0)[..., None]
    on_floor = floor <= wall
    a, b = points[..., 0], np.where(on_floor, points[..., 1], points[..., 2])
    u, v = (((x + 4) * 32).astype(np.float32) for x in (a, b))
    pictures = [cv2.remap(texture(s), u, v, 1, borderMode=cv2.BORDER_REFLECT) for s in (1, 2)]
    return np.where(on_floor[..., None], *pictures), depth


def some_points(count: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Points [count, 3] of the first camera's picture and their colours uint8."""
    picture, depth = cast(poses(1)[0])
    rng = np.random.default_rng(0)
    x, y = rng.integers(5, SIZE[0] - 5, count), rng.integers(5, SIZE[1] - 5, count)
    rays = np.stack([x + 0.5, y + 0.5, np.ones(count)], 1) @ np.linalg.inv(K).T
    pose = poses(1)[0]
    return (rays * depth[y, x, None] - pose[:3, 3]) @ pose[:3, :3], picture[y, x]


def quaternion(turn: np.ndarray) -> np.ndarray:
    """(w, x, y, z) of a rotation [3, 3]."""
    w = np.sqrt(max(1 + np.trace(turn), 1e-12)) / 2
    away = [turn[2, 1] - turn[1, 2], turn[0, 2] - turn[2, 0], turn[1, 0] - turn[0, 1]]
    return np.array([w, *(np.array(away) / (4 * w))])


def write_pictures(folder: Path, count: int, ending: str = ".png") -> list[str]:
    """Pictures of all poses in ``folder``; their names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"view_{i:02d}{ending}" for i in range(count)]
    for name, pose in zip(names, poses(count)):
        cv2.imwrite(str(folder / name), cast(pose)[0][..., ::-1])
    return names


def write_colmap(
    root: Path, count: int = 5, text: bool = False, model: int = 1, extra=(), ending: str = ".png"
) -> Path:
    """A COLMAP folder of ``count`` views whose camera has number ``model`` and more parameters."""
    names = write_pictures(root / "images", count, ending)
    place = root / "sparse" / "0"
    place.mkdir(parents=True, exist_ok=True)
    one = model in (0, 2, 3, 8, 9)
    values = [FOCAL, *([] if one else [FOCAL]), SIZE[0] / 2, SIZE[1] / 2, *extra]
    points, colors = some_points()
    shots = [[*quaternion(pose[:3, :3]), *pose[:3, 3]] for pose in poses(count)]
    rows = list(zip(range(1, count + 1), shots, names))
    writer = _write_text if text else _write_binary
    writer(place, model, values, rows, points, colors)
    return root


def _write_binary(place, model, values, rows, points, colors) -> None:
    camera = struct.pack("<QiiQQ", 1, 7, model, *SIZE) + struct.pack(f"<{len(values)}d", *values)
    (place / "cameras.bin").write_bytes(camera)
    images = struct.pack("<Q", len(rows))
    for number, pose, name in rows:
        images += struct.pack("<i7di", number, *pose, 7) + name.encode() + b"\0"
        images += struct.pack("<Qddq", 1, 3.0, 4.0, 1)
    (place / "images.bin").write_bytes(images)
    cloud = struct.pack("<Q", len(points))
    for i, (point, color) in enumerate(zip(points, colors)):
        cloud += struct.pack("<Q3d3BdQ", i, *point, *color.tolist(), 0.5, len(rows))
        for number, _, _ in rows:
            cloud += struct.pack("<ii", number, 0)
    (place / "points3D.bin").write_bytes(cloud)


def _write_text(place, model, values, rows, points, colors) -> None:
    from sparse3d.datasets.colmap import MODELS

    words = " ".join(map(repr, map(float, values)))
    line = f"# a comment\n7 {MODELS[model][0]} {SIZE[0]} {SIZE[1]} {words}\n"
    (place / "cameras.txt").write_text(line)
    images = "# a comment\n"
    for number, pose, name in rows:
        images += f"{number} {' '.join(map(repr, map(float, pose)))} 7 {name}\n3.0 4.0 1\n"
    (place / "images.txt").write_text(images)
    tracks = " ".join(f"{number} 0" for number, _, _ in rows)
    cloud = "".join(
        f"{i} {p[0]!r} {p[1]!r} {p[2]!r} {c[0]} {c[1]} {c[2]} 0.5 {tracks}\n"
        for i, (p, c) in enumerate(zip(points.tolist(), colors.tolist()))
    )
    (place / "points3D.txt").write_text("# a comment\n" + cloud)


def write_transforms(root: Path, count: int = 5, name: str = "transforms.json", **values) -> Path:
    """A nerfstudio folder."""
    names = write_pictures(root / "images", count)
    frames = [
        {"file_path": f"images/{n}", "transform_matrix": (np.linalg.inv(p) @ FLIP).tolist()}
        for n, p in zip(names, poses(count))
    ]
    lens = {"fl_x": FOCAL, "fl_y": FOCAL, "cx": SIZE[0] / 2, "cy": SIZE[1] / 2}
    content = {**lens, "w": SIZE[0], "h": SIZE[1], "frames": frames, **values}
    (root / name).write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
    return root
