"""A textured corner of a room to photograph: floor and two walls, ray cast."""

import functools

import cv2
import numpy as np
import torch

from sparse3d.models.relocalization.lens import Intrinsics
from sparse3d.structures import Camera

SIZE = (320, 240)
K = np.array([[280.0, 0, 159.5], [0, 280, 119.5], [0, 0, 1]])
METRES = 4.0


@functools.cache
def texture(seed: int) -> np.ndarray:
    """uint8 [1024, 1024] of blobs of many sizes."""
    random = np.random.default_rng(seed)
    total = np.zeros((1024, 1024), np.float32)
    for cells in (16, 32, 64, 128):
        noise = random.normal(size=(cells, cells)).astype(np.float32)
        total += cv2.resize(noise, (1024, 1024), interpolation=cv2.INTER_CUBIC)
    low, high = np.percentile(total, (1, 99))
    return ((total - low) / (high - low) * 255).clip(0, 255).astype(np.uint8)


def pose(x: float, y: float, roll: float = 0.0) -> np.ndarray:
    """World to camera at (x, y, 1.2) metres, looking at the corner (0, 0, 0.5)."""
    center = np.array([x, y, 1.2])
    forward = np.array([0.3, 0.3, 0.5]) - center
    forward /= np.linalg.norm(forward)
    right = np.cross(forward, [0, 0, 1.0])
    right /= np.linalg.norm(right)
    down = np.cross(forward, right)
    c, s = np.cos(roll), np.sin(roll)
    matrix = np.eye(4)
    matrix[:3, :3] = [c * right + s * down, c * down - s * right, forward]
    matrix[:3, 3] = -matrix[:3, :3] @ center
    return matrix


def photograph(
    world_to_cam: np.ndarray,
    seed: int = 0,
    scale: float = 1.0,
    radial: float = 0.0,
) -> np.ndarray:
    """uint8 [H, W, 3] of the corner whose surfaces are painted by ``seed``."""
    width, height = (round(side * scale) for side in SIZE)
    sharp = K.copy()
    sharp[:2] *= scale
    sharp[:2, 2] += (scale - 1) / 2
    u, v = np.meshgrid(np.arange(width), np.arange(height))
    pixels = torch.from_numpy(np.stack([u, v], -1).reshape(-1, 2).astype(np.float64))
    flat = Intrinsics(sharp, (radial,)).straighten(pixels).numpy()
    flat = (flat - sharp[:2, 2]) / sharp[0, 0]
    rays = np.concatenate([flat, np.ones((len(flat), 1))], 1) @ world_to_cam[:3, :3]
    center = -world_to_cam[:3, :3].T @ world_to_cam[:3, 3]
    image, nearest = np.zeros(len(rays), np.uint8), np.full(len(rays), np.inf)
    for axis in range(3):
        along = -center[axis] / np.where(np.abs(rays[:, axis]) < 1e-9, 1e-9, rays[:, axis])
        places = center + along[:, None] * rays
        a, b = (places[:, k] for k in range(3) if k != axis)
        hit = (along > 0) & (along < nearest) & (a >= 0) & (b >= 0) & (a < METRES) & (b < METRES)
        where = [(p * 1023 / METRES).astype(np.float32).reshape(u.shape) for p in (a, b)]
        painted = cv2.remap(texture(seed * 3 + axis), *where, cv2.INTER_LINEAR).ravel()
        image, nearest = np.where(hit, painted, image), np.where(hit, along, nearest)
    return np.repeat(image.reshape(height, width, 1), 3, 2).astype(np.uint8)


@functools.cache
def pictures(count: int = 8) -> list:
    """(name, image, camera) from places along an arc."""
    angles = [0.35 + 0.85 * number / max(count - 1, 1) for number in range(count)]
    poses = [pose(2.4 * np.cos(angle), 2.4 * np.sin(angle)) for angle in angles]
    return [(f"{i}.png", photograph(matrix), camera(matrix)) for i, matrix in enumerate(poses)]


def camera(matrix: np.ndarray) -> Camera:
    return Camera(torch.from_numpy(K), torch.from_numpy(matrix), SIZE)
