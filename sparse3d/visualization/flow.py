"""Pictures and files of a flow."""

from pathlib import Path

import cv2
import numpy as np

from sparse3d.structures import Flow
from sparse3d.structures.ply import write_ply

from .report import write_image

BACKGROUND = (18, 18, 22)
STILL = np.array([95, 95, 105])


def flow_colors(flow: np.ndarray, fastest: float) -> np.ndarray:
    """[P, 3] uint8 RGB: hue is the direction in the plane, paleness stillness.

    Args:
        flow: [P, 3] metres.
        fastest: metres that have the full colour.
    """
    angle = np.arctan2(flow[:, 1], flow[:, 0])
    strength = np.clip(np.linalg.norm(flow[:, :2], axis=1) / fastest, 0, 1)
    hue = ((angle / (2 * np.pi)) % 1.0 * 180).astype(np.uint8)
    full = np.stack([hue, np.full_like(hue, 255), np.full_like(hue, 255)], 1)[:, None]
    bright = cv2.cvtColor(full, cv2.COLOR_HSV2RGB)[:, 0] if len(flow) else np.zeros((0, 3))
    share = np.sqrt(strength)[:, None]
    return (STILL * (1 - share) + bright * share).astype(np.uint8)


def flow_picture(flow: Flow, residual: bool = True, width: int = 1000) -> np.ndarray:
    """[H, W, 3] uint8: the source from above (x to the right, y up), coloured by its flow.

    Args:
        flow: what to show.
        residual: without the ego motion; else with it.
        width: pixels.
    """
    points = flow.pair.source[:, :3].cpu().numpy()
    motion = (flow.residual if residual else flow.flow).cpu().numpy()
    image = np.full((width, width, 3), BACKGROUND, np.uint8)
    reach = float(np.percentile(np.abs(points[:, :2]), 98)) + 1 if len(points) else 1.0
    length = np.linalg.norm(motion[:, :2], axis=1)
    moving = length[length > 0.05]
    fastest = float(np.percentile(moving, 95)) if len(moving) else 0.1
    order = np.argsort(length, kind="stable")  # what moves lies on top
    scale = width / (2 * reach)
    pixels = np.stack([(points[:, 0] + reach) * scale, (reach - points[:, 1]) * scale], 1)
    pixels, colors = pixels[order].astype(int), flow_colors(motion[order], fastest)
    inside = ((pixels >= 0) & (pixels < width - 1)).all(1)
    pixels, colors, big = pixels[inside], colors[inside], length[order][inside] > 0.05
    image[pixels[:, 1], pixels[:, 0]] = colors
    for dx, dy in ((1, 0), (0, 1), (1, 1)):
        image[pixels[big, 1] + dy, pixels[big, 0] + dx] = colors[big]
    _wheel(image, fastest, flow.pair.interval)
    kind = "without ego motion" if residual else "with ego motion"
    text = f"flow {kind}, seen from above, {2 * reach:.0f} m across"
    cv2.putText(
        image, text, (12, 22), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (220, 220, 220), 1, cv2.LINE_AA
    )
    return image


def _wheel(image: np.ndarray, fastest: float, interval: float, radius: int = 60) -> None:
    """The key of the colours, in the lower right corner."""
    y, x = np.mgrid[radius : -radius - 1 : -1, -radius : radius + 1]
    disc = np.stack([x, y, 0 * x], -1).reshape(-1, 3) * (fastest / radius)
    colors = flow_colors(disc, fastest).reshape(2 * radius + 1, -1, 3)
    place = image[-2 * radius - 31 : -30, -2 * radius - 21 : -20]
    inside = x**2 + y**2 <= radius**2
    place[inside] = colors[inside]
    text = f"rim: {fastest / interval:.1f} m/s"
    spot = (image.shape[1] - 2 * radius - 20, len(image) - 10)
    cv2.putText(image, text, spot, cv2.FONT_HERSHEY_SIMPLEX, 0.45, (220, 220, 220), 1, cv2.LINE_AA)


def write_flow(flow: Flow, folder: str | Path, rows: int | None = None) -> list[Path]:
    """Writes flow.npy, flow.ply and two pictures; returns what was written.

    flow.npy: [rows, 6] float32, flow with ego motion and without, NaN for points that were dropped.
    flow.ply: the points with both and their colours.

    Args:
        flow: what was found.
        folder: is made where it does not exist.
        rows: points of the file the source came from; those of the pair if None.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    both = np.concatenate([flow.flow.cpu().numpy(), flow.residual.cpu().numpy()], 1)
    kept = flow.pair.meta.get("kept", np.arange(len(both)))
    table = np.full((len(both) if rows is None else rows, 6), np.nan, np.float32)
    table[kept] = both
    np.save(folder / "flow.npy", table)
    names = [*"xyz", "flow_x", "flow_y", "flow_z", "residual_x", "residual_y", "residual_z"]
    records = np.zeros(
        len(both), [(name, "<f4") for name in names] + [(c, "u1") for c in ("red", "green", "blue")]
    )
    points = flow.pair.source[:, :3].cpu().numpy()
    for name, column in zip(names, np.concatenate([points, both], 1).T):
        records[name] = column
    colors = flow_colors(both[:, 3:], max(float(np.abs(both[:, 3:]).max(initial=0)), 0.1))
    for name, column in zip(("red", "green", "blue"), colors.T):
        records[name] = column
    write_ply(folder / "flow.ply", {"vertex": records})
    pictures = {"residual.png": True, "flow.png": False}
    for name, residual in pictures.items():
        write_image(folder / name, flow_picture(flow, residual))
    return [folder / name for name in ("flow.npy", "flow.ply", *pictures)]
