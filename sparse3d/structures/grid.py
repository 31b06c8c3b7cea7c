"""The regular grid that voxels lie on, and what is remembered about one set of its cells."""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

MOST_CELLS = 2**31 - 1  # along an axis: coordinates are int32


@dataclass(frozen=True)
class VoxelGrid:
    """A regular grid in the world. x first.

    Attributes:
        voxel_size: edge lengths of a cell, metres.
        origin: lower corner of cell (0, 0, 0), metres.
        shape: number of cells along x, y, z, or None: unbounded, negative cells are legal.
    """

    voxel_size: tuple[float, ...]
    origin: tuple[float, ...]
    shape: tuple[int, ...] | None = None

    def __post_init__(self):
        if any(not 0 < size < math.inf for size in self.voxel_size):
            raise ValueError(f"voxel_size is {self.voxel_size}; every edge must be positive")
        if not all(map(math.isfinite, self.origin)):
            raise ValueError(f"origin is {self.origin}; finite metres are needed")
        cells = (1,) * len(self.voxel_size) if self.shape is None else self.shape
        if not len(self.voxel_size) == len(self.origin) == len(cells) or min(cells) < 1:
            raise ValueError(
                f"voxel_size {self.voxel_size}, origin {self.origin} and shape {self.shape} must "
                "have one number per axis, and a shape at least one cell"
            )
        if max(cells) > MOST_CELLS:
            raise ValueError(
                f"the grid has {max(cells)} cells along an axis, {MOST_CELLS} are possible; use a "
                "smaller range or larger voxels"
            )

    @classmethod
    def from_range(cls, point_range: Sequence[float], voxel_size: Sequence[float]) -> "VoxelGrid":
        """The grid that fills ``point_range`` (x0, y0, z0, x1, y1, z1) in metres.

        Raises:
            ValueError: a side is empty or no whole number of voxels; names the nearest that is.
        """
        dims = len(voxel_size)
        low, high = point_range[:dims], point_range[dims:]
        if len(point_range) != 2 * dims or not all(map(math.isfinite, (*point_range, *voxel_size))):
            raise ValueError(
                f"point_range is {list(point_range)} and voxel_size {list(voxel_size)}; low and "
                "high end of each axis (x0, y0, z0, x1, y1, z1) and as many edges are needed"
            )
        shape, suggestion = [], list(point_range)
        for axis, (least, most, size) in enumerate(zip(low, high, voxel_size)):
            if not size > 0 or not most > least:
                raise ValueError(
                    f"point_range {list(point_range)} and voxel_size {list(voxel_size)}: every "
                    "high end must lie above its low end, and every edge be positive"
                )
            cells = (most - least) / size
            whole = max(round(cells), 1)
            suggestion[dims + axis] = round(least + whole * size, 6)
            shape.append(whole if abs(cells - whole) < 1e-3 else 0)
        if not all(shape):
            raise ValueError(
                f"point_range {list(point_range)} is no whole number of voxels of "
                f"{list(voxel_size)} m; the nearest range that is: {suggestion}"
            )
        return cls(tuple(map(float, voxel_size)), tuple(map(float, low)), tuple(shape))

    @property
    def point_range(self) -> tuple[float, ...] | None:
        """(x0, y0, z0, x1, y1, z1) in metres; None when unbounded."""
        if self.shape is None:
            return None
        high = (o + n * s for o, n, s in zip(self.origin, self.shape, self.voxel_size))
        return (*self.origin, *high)


class IndexCache:
    """What has been computed for one set of coordinates: kernel maps, window sets, cells.

    Write-once: ``get`` computes a missing entry and never changes one that is there. Every tensor
    with the same coordinates shares the cache, so a layer pays only once per topology.
    """

    def __init__(self):
        self._entries: dict[Hashable, Any] = {}

    def get(self, key: Hashable, compute: Callable[[], Any]) -> Any:
        if key not in self._entries:
            self._entries[key] = compute()
        return self._entries[key]

    def __contains__(self, key: Hashable) -> bool:
        return key in self._entries
