"""The scenes that the benchmarks measure on: made here, the same on every machine."""

import numpy as np
import torch
from torch import Tensor

from sparse3d.structures import SparseVoxels, VoxelGrid

LIDAR_VOXEL, INDOOR_VOXEL = (0.05, 0.05, 0.1), (0.02, 0.02, 0.02)
MOST = {"lidar": 60_000, "indoor": 150_000}  # voxels


def lidar_scan(seed: int = 0, beams: int = 64, columns: int = 2600) -> Tensor:
    """[P, 4] float32 points of a spinning sensor among boxes on a plane: x, y, z, intensity."""
    rng = np.random.default_rng(seed)
    elevation, azimuth = np.meshgrid(
        np.deg2rad(np.linspace(-24.8, 2.0, beams)),
        np.linspace(-np.pi, np.pi, columns, endpoint=False),
        indexing="ij",
    )
    flat = np.cos(elevation)
    rays = np.stack([flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(elevation)], -1)
    rays = rays.reshape(-1, 3)
    with np.errstate(divide="ignore", invalid="ignore"):
        depth = np.where(rays[:, 2] < 0, -1.73 / rays[:, 2], np.inf)
        for centre, half in zip(*_boxes_around(rng)):
            near, far = (centre - half) / rays, (centre + half) / rays
            enter = np.minimum(near, far).max(1)
            hit = (np.maximum(near, far).min(1) >= enter) & (enter > 0)
            depth = np.where(hit, np.minimum(depth, enter), depth)
    seen = depth < 75
    points = rays[seen] * depth[seen, None] + rng.normal(0, 0.02, (seen.sum(), 3))
    intensity = rng.random((len(points), 1))
    return torch.from_numpy(np.concatenate([points, intensity], 1)).float()


def scan_boxes(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Centres and half sizes [B, 3] of what ``lidar_scan`` of this seed sees."""
    return _boxes_around(np.random.default_rng(seed))


def _boxes_around(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Centres and half sizes of cars, poles and two walls, none over the sensor."""
    place = rng.uniform(-55, 55, (120, 2))
    place = place[np.hypot(*place.T) > 5]
    half = rng.uniform((0.3, 0.3, 0.7), (2.5, 1.0, 0.9), (len(place), 3))
    centre = np.column_stack([place, np.full(len(place), -0.9)])
    walls = np.array([[0, 42, 0], [0, -38, 0]]), np.array([[70, 0.3, 3], [70, 0.3, 3]])
    return np.concatenate([centre, walls[0]]), np.concatenate([half, walls[1]])


def indoor_scan(seed: int = 0, density: float = 20000.0) -> Tensor:
    """[P, 3] float32 points on the surfaces of a furnished room, ``density`` per square metre."""
    rng = np.random.default_rng(seed)
    room = np.array([5.2, 4.4, 2.6])
    boxes = [(np.zeros(3), room)]
    for _ in range(14):
        size = rng.uniform((0.3, 0.3, 0.3), (1.3, 1.0, 1.1))
        boxes.append((np.append(rng.uniform(0.2, room[:2] - size[:2] - 0.2), 0), size))
    parts = []
    for corner, size in boxes:
        for axis in range(3):
            u, v = (a for a in range(3) if a != axis)
            for side in (0.0, 1.0):
                count = int(density * size[u] * size[v])
                points = rng.random((count, 3)) * size
                points[:, axis] = side * size[axis]
                parts.append(corner + points)
    points = np.concatenate(parts)
    return torch.from_numpy(points + rng.normal(0, 0.0025, points.shape) + 0.011).float()


def scene_voxels(name: str, scale: float) -> SparseVoxels:
    """Voxels of scene 'lidar' or 'indoor'; ``scale`` of the full number of points.

    What is too many is cut away by a line through the scene, so that the density stays.
    """
    if name == "lidar":
        points, size = lidar_scan(columns=int(2600 * scale)), LIDAR_VOXEL
        half = (70.4, 70.4)
        grid = VoxelGrid.from_range((-half[0], -half[1], -3, half[0], half[1], 1), size)
    else:
        points, size = indoor_scan(), INDOOR_VOXEL
        points = points[points[:, 0] < 5.2 * scale]
        grid = VoxelGrid((*size,), (-1.0,) * 3, (384, 320, 256))
    batch = torch.zeros(len(points), dtype=torch.int64)
    voxels = SparseVoxels.from_points(points, batch, grid, 1)[0]
    return voxels.prune(_nearest_side(voxels.coords, MOST[name]))


def _nearest_side(coords: Tensor, most: int) -> Tensor:
    """Mask [N] of the first ``most`` cells along a slanted direction."""
    place = coords[:, 1].double() + 0.01 * coords[:, 2] + 1e-6 * coords[:, 3]
    kept = torch.zeros(len(coords), dtype=torch.bool)
    kept[place.argsort(stable=True)[:most]] = True
    return kept


def tiled_room(count: int) -> SparseVoxels:
    """``count`` voxels of 2 cm of equal rooms in a row: the density does not change with size."""
    room = scene_voxels("indoor", 1.0).coords
    length = int(room[:, 1].max()) + 3
    copies = [
        room + room.new_tensor([0, number * length, 0, 0])
        for number in range(-(-count // len(room)))
    ]
    coords = torch.cat(copies)[:count].contiguous()  # x is the slowest axis: rows stay sorted
    grid = VoxelGrid((*INDOOR_VOXEL,), (-1.0,) * 3, (length * len(copies), 320, 256))
    return SparseVoxels(torch.zeros(count, 1), coords, grid, 1, (1,) * 3, grid.shape)
