"""One picture of an answer: the scan with the box, what each pruning kept, what words counted."""

from collections.abc import Sequence

import cv2
import numpy as np

from .report import BACKGROUND, EDGES, FONT, INK, SUB
from .scene import TRUTH, class_color

FOUND = class_color(0)
WIDTH, HEIGHT = 940, 640  # of the view of the scan, pixels
SIDE = 320  # of the other pictures
LINE = 30  # height of a line of words
CEILING = 2.25  # metres over the lowest point; what is higher is not drawn


def draw_answer(
    points: np.ndarray,
    found: np.ndarray,
    score: float | None,
    kept: Sequence[np.ndarray],
    words: Sequence[tuple[str, float]],
    truth: np.ndarray | None = None,
) -> np.ndarray:
    """The scan from a corner and from above, the voxels that each pruning kept, and the words.

    Args:
        points: [P, 6] metres and colours in 0..1.
        found: [8, 3] corners of the answer (as ``Boxes.corners``); [0, 3] for none.
        score: of the answer, in 0..1, or None.
        kept: [N, 3] metres, centres of the voxels that stayed, coarse to fine.
        words: each word and its share.
        truth: [8, 3] corners of the true box, if known.

    Returns:
        uint8 [H, W, 3] RGB.
    """
    boxes = [(box, color) for box, color in ((truth, TRUTH), (found, FOUND)) if _there(box)]
    points = points[np.isfinite(points[:, :3]).all(1)]
    view = _corner_view(points, boxes, found)
    label = "nothing found" if not _there(found) else f"score {score or 0:.2f}"
    _write(view, f"{label}, {len(points)} points", (12, 24), FOUND)
    if truth is not None:
        _write(view, "true box", (12, 46), TRUTH)
    plans = [_plan(points[:, :3], points, boxes, "from above")]
    for stage, centers in enumerate(kept):
        title = f"kept {stage + 1}: {len(centers)} voxels"
        plans.append(_plan(centers, points, boxes, title))
    rows = -(-len(plans) // 2)
    side = np.full((max(HEIGHT, rows * SIDE), 2 * SIDE, 3), BACKGROUND, np.uint8)
    for number, plan in enumerate(plans):
        y, x = number // 2 * SIDE, number % 2 * SIDE
        side[y : y + SIDE, x : x + SIDE] = plan
    full = np.full((len(side), WIDTH, 3), BACKGROUND, np.uint8)
    full[:HEIGHT] = view
    picture = np.concatenate([full, side], 1)
    return np.concatenate([picture, _sentence(words, picture.shape[1])])


def _there(box: np.ndarray | None) -> bool:
    return box is not None and len(box) == 8


def _corner_view(points: np.ndarray, boxes, found: np.ndarray) -> np.ndarray:
    """Seen from above the corner next to the answer, the walls on that side left out."""
    image = np.full((HEIGHT, WIDTH, 3), BACKGROUND, np.uint8)
    if not len(points):
        return image
    low, high = np.percentile(points[:, :3], [0.5, 99.5], axis=0)
    middle, half = (low + high) / 2, np.maximum((high - low) / 2, 0.5)
    aim = found.mean(0) if _there(found) else middle - half
    side = np.where(aim[:2] < middle[:2], -1.0, 1.0)
    beyond = ((points[:, :2] - middle[:2]) * side > half[:2] - 0.12).any(1)
    shown = points[~beyond & (points[:, 2] < low[2] + CEILING)]
    eye = np.array([*(middle[:2] + side * half[:2].max() * 2.1), low[2] + half[:2].max() * 3.0])
    project = _camera(eye, np.array([*middle[:2], low[2] + 0.8]), half)
    pixels, depth = project(shown[:, :3])
    _splat(image, pixels, depth, shown[:, 3:6], 3)
    for box, color in boxes:
        corners, _ = project(box)
        for a, b in EDGES:
            _line(image, corners[[a, b]], color, 2)
    return image


def _camera(eye: np.ndarray, spot: np.ndarray, half: np.ndarray):
    """A function from metres [N, 3] to pixels [N, 2] and depths [N]."""
    forward = (spot - eye) / np.linalg.norm(spot - eye)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    down = np.cross(forward, right)
    reach = np.linalg.norm(half[:2]) + 0.4
    focal = min(0.47 * WIDTH, 0.56 * HEIGHT) / reach * np.linalg.norm(spot - eye)

    def project(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        local = np.asarray(points, float) - eye
        depth = np.maximum(local @ forward, 0.1)
        u, v = local @ right / depth * focal, local @ down / depth * focal
        return np.stack([u + WIDTH / 2, v + HEIGHT / 2], 1), depth

    return project


def _plan(centers: np.ndarray, points: np.ndarray, boxes, title: str) -> np.ndarray:
    """``centers`` [N, 3] from above, in the colour of the nearest height, and the boxes."""
    image = np.full((SIDE, SIDE, 3), BACKGROUND, np.uint8)
    if len(points):
        low, high = np.percentile(points[:, :2], [0.5, 99.5], axis=0)
        middle, scale = (low + high) / 2, (SIDE - 50) / max((high - low).max(), 1.0)

        def pixel(xy: np.ndarray) -> np.ndarray:
            return (xy - middle) * [scale, -scale] + [SIDE / 2, SIDE / 2 + 8]

        spots = np.asarray(centers, float)
        floor = np.percentile(points[:, 2], 0.5)
        if centers.shape[0] == len(points) and points.shape[1] >= 6:
            colors = points[:, 3:6]
            shown = spots[:, 2] < floor + CEILING
            _splat(image, pixel(spots[shown, :2]), -spots[shown, 2], colors[shown], 2)
        else:
            height = np.clip((spots[:, 2] - floor) / CEILING, 0, 1)[:, None]
            colors = np.array([0.25, 0.45, 0.9]) * (1 - height) + np.array([1, 0.85, 0.4]) * height
            dot = 2 if len(spots) > 1500 else 4
            _splat(image, pixel(spots[:, :2]), -spots[:, 2], colors, dot)
        for box, color in boxes:
            _line(image, pixel(box[[0, 1, 2, 3, 0], :2]), color, 2)
    _write(image, title, (8, 16), INK, 0.42)
    return image


def _splat(image: np.ndarray, pixels: np.ndarray, depth: np.ndarray, colors, size: int) -> None:
    """Squares of ``size`` pixels, the nearest over the others."""
    order = np.argsort(-depth, kind="stable")
    spots = np.round(pixels[order]).astype(np.int64) - size // 2
    shades = np.round(255 * np.clip(colors[order], 0, 1)).astype(np.uint8)
    for dx in range(size):
        for dy in range(size):
            x, y = spots[:, 0] + dx, spots[:, 1] + dy
            seen = (x >= 0) & (x < image.shape[1]) & (y >= 0) & (y < image.shape[0])
            image[y[seen], x[seen]] = shades[seen]


def _sentence(words: Sequence[tuple[str, float]], width: int) -> np.ndarray:
    """The words in a row, the brighter the more they counted, their shares below."""
    most = max((share for _, share in words), default=1.0) or 1.0
    lines, x = [[]], 12
    for word, share in words:
        size = cv2.getTextSize(word, FONT, 0.55, 1)[0][0] + 16
        if x + size > width - 12 and lines[-1]:
            lines.append([])
            x = 12
        lines[-1].append((x, size, word, share))
        x += size + 6
    lines = lines[:8]
    image = np.full((len(lines) * (LINE + 22) + 12, width, 3), BACKGROUND, np.uint8)
    for row, line in enumerate(lines):
        y = 8 + row * (LINE + 22)
        for x, size, word, share in line:
            part = share / most
            shade = np.array(BACKGROUND) * (1 - part) + np.array((170, 80, 10)) * part
            cv2.rectangle(image, (x, y), (x + size, y + LINE), shade.astype(int).tolist(), -1)
            cv2.rectangle(image, (x, y), (x + size, y + LINE), (70, 70, 76), 1)
            _write(image, word, (x + 8, y + 20), INK, 0.55)
            _write(image, f"{share:.2f}", (x + 8, y + LINE + 14), (150, 150, 150), 0.36)
    return image


def _write(image: np.ndarray, text: str, spot: tuple[int, int], color, size: float = 0.5) -> None:
    plain = text.encode("ascii", "replace").decode()
    cv2.putText(image, plain, spot, FONT, size, tuple(int(c) for c in color), 1, cv2.LINE_AA)


def _line(image: np.ndarray, pixels: np.ndarray, color, width: int) -> None:
    fixed = np.round(np.clip(pixels, -1e5, 1e5) * 2**SUB).astype(np.int32)
    cv2.polylines(image, [fixed], False, color, width, cv2.LINE_AA, SUB)
