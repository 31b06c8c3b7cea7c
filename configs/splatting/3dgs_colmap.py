"""3DGS on a COLMAP model: sparse points, densified. The baseline of EDGS."""

_base_ = ["../_base_/runtime.py", "../_base_/splatting.py"]

model = dict(
    type="SplattingModel",
    start=dict(type="PointStart"),
    strategy=dict(type="Densification"),
    background="mean",
    most_gaussians=2_000_000,
    memory_gb=8,
)
default_hooks = dict(checkpoint=dict(interval=5, max_keep_ckpts=2))
