"""Encoders, backbones, heads and task models. Importing this fills the registry MODELS."""

from . import detector, encoders, preprocessor
from .backbones import bev, dsvt, sparse_resnet
from .heads import center_head, transfusion_head, voxelnext_head

__all__ = [
    "bev",
    "center_head",
    "detector",
    "dsvt",
    "encoders",
    "preprocessor",
    "sparse_resnet",
    "transfusion_head",
    "voxelnext_head",
]
