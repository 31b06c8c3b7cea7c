"""sparse3d: 3D perception and rendering on sparse voxels."""

__version__ = "0.1.0"
