"""Importing this registers every operator of torch that an exported program may hold."""

from . import (  # noqa: F401
    conv,
    kernel_map,
    keys,
    norm,
    pool,
    set_attention,
    voxelize,
    windows,
)
