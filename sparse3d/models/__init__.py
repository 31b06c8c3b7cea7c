"""Encoders, backbones, heads and task models. Importing this fills the registry MODELS."""

from . import (
    delta_flow,
    dense_start,
    detector,
    encoders,
    grounder,
    preprocessor,
    relocalizer,
    rigid_flow,
    scene_flow,
    splat_strategies,
    splatting,
    text,
)
from .backbones import bev, dsvt, mink_resnet, sparse_resnet, sparse_unet
from .heads import (
    center_head,
    object_teacher,
    sps_head,
    transfusion_head,
    tsp3d_head,
    voxelnext_head,
)

__all__ = [
    "bev",
    "center_head",
    "delta_flow",
    "dense_start",
    "detector",
    "dsvt",
    "encoders",
    "grounder",
    "mink_resnet",
    "object_teacher",
    "preprocessor",
    "relocalizer",
    "rigid_flow",
    "scene_flow",
    "sparse_resnet",
    "sparse_unet",
    "splat_strategies",
    "splatting",
    "sps_head",
    "text",
    "transfusion_head",
    "tsp3d_head",
    "voxelnext_head",
]
