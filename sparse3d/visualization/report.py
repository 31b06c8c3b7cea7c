"""Pictures as files: the scene from above, and its boxes in the cameras' images; by OpenCV."""

from pathlib import Path

import cv2
import numpy as np

from sparse3d.datasets.base import read_image
from sparse3d.structures import Camera

from .scene import TRUTH, BoxToShow, Scene, class_color

BACKGROUND = (18, 20, 26)
INK = (235, 235, 235)
FONT = cv2.FONT_HERSHEY_SIMPLEX
EDGES = [(i, (i + 1) % 4) for i in range(4)]
EDGES += [(a + 4, b + 4) for a, b in EDGES] + [(i, i + 4) for i in range(4)]
NEAR = 0.1  # metres in front of a camera where lines are cut
SUB = 4  # fractional bits of drawn coordinates


def birds_eye(scene: Scene, width: int = 1000) -> np.ndarray:
    """The scene from above, x to the right and y up: points by height, boxes with their noses.

    True boxes are green, predictions have the colour of their class and their score beside them.

    Args:
        scene: what to show.
        width: of the picture, pixels.

    Returns:
        uint8 [H, W, 3] RGB.
    """
    low, high = scene.extent()
    scale = width / (high[0] - low[0])
    height = int(np.clip((high[1] - low[1]) * scale, width // 4, width * 2))
    scale = min(scale, height / (high[1] - low[1]))
    middle, half = (low + high) / 2, np.array([width, height]) / 2

    def pixel(xy: np.ndarray) -> np.ndarray:
        """Pixels [..., 2] of metres [..., 2]."""
        return (xy - middle) * [scale, -scale] + half

    image = np.full((height, width, 3), BACKGROUND, np.uint8)
    _draw_points(image, pixel(scene.points[:, :2]), scene.shade)
    for box in scene.boxes:
        _draw_lines(image, pixel(box.corners[:4, :2]), box.color, closed=True)
        _draw_lines(image, pixel(box.nose[:, :2]), box.color)
        if box.score is not None:
            spot = pixel(box.corners[:4, :2]).min(0) - [0, 3]
            _text(image, f"{box.score:.2f}", spot, box.color, 0.36)
    _draw_scale_bar(image, scale)
    _draw_legend(image, scene)
    return image


def camera_view(scene: Scene, name: str) -> np.ndarray:
    """The image of camera ``name`` with every box as 12 edges and the front crossed.

    Returns:
        uint8 [H, W, 3] RGB.

    Raises:
        KeyError: no such image; names those there are.
    """
    if name not in scene.images or name not in scene.cameras:
        there = sorted(set(scene.images) & set(scene.cameras))
        raise KeyError(f"no image and camera {name!r} in the scene; there are: {there}")
    image = scene.images[name]
    if isinstance(image, (str, Path)):
        image = read_image(image)
    image = np.ascontiguousarray(np.asarray(image, dtype=np.uint8)).copy()
    for box in scene.boxes:
        _draw_projected(image, scene.cameras[name], box)
    return image


def write_report(scene: Scene, path: str | Path) -> list[Path]:
    """Write the scene from above to ``path`` and each camera's view beside it.

    Returns:
        The files written: NAME.png, NAME_CAMERA.png.

    Raises:
        ValueError: ``path`` does not end in .png or .jpg.
        OSError: a file cannot be written.
    """
    path = Path(path)
    pictures = {path: birds_eye(scene)}
    for name in scene.images:
        if name in scene.cameras:
            pictures[path.with_name(f"{path.stem}_{name}{path.suffix}")] = camera_view(scene, name)
    for file, image in pictures.items():
        write_image(file, image)
    return list(pictures)


def write_image(path: str | Path, image: np.ndarray) -> None:
    """Write uint8 [H, W, 3] RGB to a .png or .jpg; missing folders are made.

    Raises:
        ValueError: another ending.
        OSError: it cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise ValueError(f"a picture cannot be written to {str(path)!r}: end it in .png or .jpg")
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), image[..., ::-1]):
        raise OSError(f"cannot write {path}: is the folder writable and the disk not full?")


def _draw_points(image: np.ndarray, pixels: np.ndarray, shade: np.ndarray) -> None:
    spots = np.round(pixels).astype(np.int64)
    inside = ((spots >= 0) & (spots < [image.shape[1], image.shape[0]])).all(1)
    order = np.argsort(shade[inside], kind="stable")  # the highest point of a pixel is seen
    spots, levels = spots[inside][order], shade[inside][order]
    colors = cv2.applyColorMap((90 + 165 * levels).astype(np.uint8)[:, None], cv2.COLORMAP_BONE)
    if len(spots):
        image[spots[:, 1], spots[:, 0]] = colors[:, 0, ::-1]


def _draw_lines(image, pixels: np.ndarray, color, closed: bool = False, width: int = 1) -> None:
    fixed = np.round(np.clip(pixels, -1e5, 1e5) * 2**SUB).astype(np.int32)
    cv2.polylines(image, [fixed], closed, color, width, cv2.LINE_AA, SUB)


def _text(image, text: str, spot, color, size: float = 0.45) -> None:
    spot = (
        int(np.clip(spot[0], 2, image.shape[1] - 40)),
        int(np.clip(spot[1], 12, len(image) - 4)),
    )
    shadow = (spot[0] + 1, spot[1] + 1)
    cv2.putText(image, text, shadow, FONT, size, BACKGROUND, 1, cv2.LINE_AA)
    cv2.putText(image, text, spot, FONT, size, color, 1, cv2.LINE_AA)


def _draw_scale_bar(image: np.ndarray, scale: float) -> None:
    metres = next((m for m in (1, 2, 5, 10, 20, 50, 100, 200) if m * scale > 60), 500)
    height = len(image)
    line = np.array([[12, height - 12], [12 + metres * scale, height - 12]])
    _draw_lines(image, line, INK, width=2)
    _text(image, f"{metres} m", (12, height - 18), INK)


def _draw_legend(image: np.ndarray, scene: Scene) -> None:
    rows = [(f"{scene.title}: {len(scene.points)} points", INK)]
    if scene.truth:
        rows.append((f"true boxes {len(scene.truth)}", TRUTH))
    for label in sorted({box.label for box in scene.predictions}):
        found = [box for box in scene.predictions if box.label == label]
        rows.append((f"{found[0].name} {len(found)}", class_color(label)))
    for row, (text, color) in enumerate(rows):
        _text(image, text, (10, 20 + 18 * row), color)


def _draw_projected(image: np.ndarray, camera: Camera, box: BoxToShow) -> None:
    matrix = np.asarray(camera.world_to_cam, dtype=np.float64)
    intrinsics = np.asarray(camera.K, dtype=np.float64)
    local = box.corners @ matrix[:3, :3].T + matrix[:3, 3]
    front = [(0, 7), (3, 4)]
    width = 2 if box.score is not None else 1
    seen = []
    for a, b in EDGES + front:
        line = _cut(local[a], local[b])
        if line is not None:
            pixels = line @ intrinsics.T
            pixels = pixels[:, :2] / pixels[:, 2:]
            seen.append(pixels)
            _draw_lines(image, pixels, box.color, width=1 if (a, b) in front else width)
    if seen and box.score is not None:
        _label_in_view(image, np.concatenate(seen), box)


def _label_in_view(image: np.ndarray, pixels: np.ndarray, box: BoxToShow) -> None:
    low, high = pixels.min(0), pixels.max(0)
    if (high > 0).all() and (low < [image.shape[1], image.shape[0]]).all():
        _text(image, f"{box.name} {box.score:.2f}", low - [0, 4], box.color)


def _cut(start: np.ndarray, end: np.ndarray) -> np.ndarray | None:
    """The part [2, 3] of a line in front of the camera, or None."""
    if start[2] < NEAR and end[2] < NEAR:
        return None
    if start[2] > end[2]:
        start, end = end, start
    if start[2] < NEAR:
        start = start + (end - start) * (NEAR - start[2]) / (end[2] - start[2])
    return np.stack([start, end])
