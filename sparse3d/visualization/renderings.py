"""Pictures and videos of a scene of Gaussians."""

from collections.abc import Callable, Iterable
from pathlib import Path

import cv2
import numpy as np
import torch
from scipy.interpolate import CubicSpline, make_interp_spline
from scipy.spatial.transform import Rotation, Slerp
from torch import Tensor

from sparse3d.structures import Camera, Rendering

from .report import write_image

LABELS = ("photograph", "rendering", "depth")


def to_bytes(image: Tensor) -> np.ndarray:
    """uint8 [H, W, 3] of an image in 0..1."""
    return (image.detach().cpu().clamp(0, 1) * 255).round().byte().numpy()


def depth_picture(rendering: Rendering) -> np.ndarray:
    """uint8 [H, W, 3]: near is bright, far is dark, black where nothing is."""
    depth, there = rendering.depth.cpu().numpy(), rendering.alpha.cpu().numpy() > 0.3
    near = np.where(there, 1 / np.maximum(depth, 1e-9), 0)
    if there.any():
        low, high = np.percentile(near[there], [2, 98])
        near = np.clip((near - low) / max(high - low, 1e-12), 0, 1)
    colors = cv2.applyColorMap((near * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
    return np.where(there[..., None], colors, 0).astype(np.uint8)


def side_by_side(rendering: Rendering) -> np.ndarray:
    """uint8 [H, 3W, 3]: the photograph (where there is one), the rendering, its depth."""
    pictures = [to_bytes(rendering.image), depth_picture(rendering)]
    names = list(LABELS[1:])
    if rendering.sample is not None and rendering.sample.images:
        truth = next(iter(rendering.sample.images.values()))
        pictures.insert(0, np.asarray(truth.cpu(), np.uint8))
        names.insert(0, LABELS[0])
    for name, picture in zip(names, pictures):
        spot = (8, picture.shape[0] - 8)
        for color, width in (((0, 0, 0), 3), ((255, 255, 255), 1)):
            cv2.putText(picture, name, spot, cv2.FONT_HERSHEY_SIMPLEX, 0.45, color, width, 16)
    return np.concatenate(pictures, 1)


def write_rendering(rendering: Rendering, path: str | Path) -> list[Path]:
    """Write ``side_by_side`` to ``path``; the files written."""
    write_image(path, side_by_side(rendering))
    return [Path(path)]


def camera_path(cameras: list[Camera], frames: int) -> list[Camera]:
    """A smooth flight of ``frames`` cameras through ``cameras``, at even pace.

    Raises:
        ValueError: no camera, or fewer than two frames.
    """
    if not cameras or frames < 2:
        raise ValueError(
            f"a flight of {frames} frames through {len(cameras)} cameras is none; two frames and "
            "one camera at least are needed"
        )
    if len(cameras) == 1:
        return cameras * frames
    poses = np.stack([camera.world_to_cam.cpu().double().numpy() for camera in cameras])
    centers = np.stack([camera.center.cpu().double().numpy() for camera in cameras])
    turns = Rotation.from_matrix(poses[:, :3, :3])
    steps = np.linalg.norm(np.diff(centers, axis=0), axis=1)
    steps = steps + (turns[1:] * turns[:-1].inv()).magnitude() * max(steps.mean(), 1e-9)
    time = np.concatenate([[0], np.cumsum(np.maximum(steps, 1e-9))])
    moments = np.linspace(0, time[-1], frames)
    curve = CubicSpline if len(cameras) > 2 else lambda t, x: make_interp_spline(t, x, k=1)
    places, views = curve(time, centers)(moments), Slerp(time, turns)(moments).as_matrix()
    flight = []
    for place, view in zip(places, views):
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = view, -view @ place
        flight.append(Camera(cameras[0].K, torch.from_numpy(pose).float(), cameras[0].size))
    return flight


def write_video(
    path: str | Path,
    cameras: Iterable[Camera],
    render: Callable[[Camera], Rendering],
    rate: int = 24,
    depth: bool = False,
) -> int:
    """Write what ``render`` makes of each camera to an .mp4 or .avi; the number of frames.

    Args:
        path: of the video.
        cameras: of the frames, all of one size.
        render: makes a rendering of a camera.
        rate: frames per second.
        depth: put the depth beside the colours.

    Raises:
        ValueError: another ending.
        OSError: OpenCV has no encoder, or the file cannot be written.
    """
    path = Path(path)
    codes = {".mp4": "mp4v", ".avi": "MJPG"}
    if path.suffix.lower() not in codes:
        raise ValueError(f"a video cannot be written to {str(path)!r}: end it in .mp4 or .avi")
    path.parent.mkdir(parents=True, exist_ok=True)
    writer, count = None, 0
    for camera in cameras:
        rendering = render(camera)
        picture = to_bytes(rendering.image)
        if depth:
            picture = np.concatenate([picture, depth_picture(rendering)], 1)
        # Encoders want sides of even length.
        picture = picture[: picture.shape[0] // 2 * 2, : picture.shape[1] // 2 * 2, ::-1]
        if writer is None:
            code = cv2.VideoWriter_fourcc(*codes[path.suffix.lower()])
            writer = cv2.VideoWriter(str(path), code, rate, picture.shape[1::-1])
            if not writer.isOpened():
                raise OSError(f"cannot write {path}: OpenCV has no encoder for it; try .avi")
        writer.write(np.ascontiguousarray(picture))
        count += 1
    if writer is not None:
        writer.release()
    return count
