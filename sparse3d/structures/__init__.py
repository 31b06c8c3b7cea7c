"""What flows through the toolkit: data with named fields, no learning."""

from .boxes import Boxes, wrap_angle
from .cameras import Camera
from .gaussians import Gaussians, Rendering
from .grid import IndexCache, VoxelGrid
from .sample import Batch, Detections, Sample, collate
from .sparse_points import SparsePoints
from .sweeps import Flow, SweepPair
from .voxels import SparseVoxels

__all__ = [
    "Batch",
    "Boxes",
    "Camera",
    "Detections",
    "Flow",
    "Gaussians",
    "IndexCache",
    "Rendering",
    "Sample",
    "SparsePoints",
    "SparseVoxels",
    "SweepPair",
    "VoxelGrid",
    "collate",
    "wrap_angle",
]
