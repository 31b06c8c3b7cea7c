"""Encoders, backbones, heads and task models. Importing this fills the registry MODELS."""

from . import detector, encoders, grounder, preprocessor, scene_flow, text
from .backbones import bev, dsvt, mink_resnet, sparse_resnet, sparse_unet
from .heads import center_head, transfusion_head, tsp3d_head, voxelnext_head

__all__ = [
    "bev",
    "center_head",
    "detector",
    "dsvt",
    "encoders",
    "grounder",
    "mink_resnet",
    "preprocessor",
    "scene_flow",
    "sparse_resnet",
    "sparse_unet",
    "text",
    "transfusion_head",
    "tsp3d_head",
    "voxelnext_head",
]
