"""3DGS-MCMC on a COLMAP model: sparse points, moved and multiplied up to a fixed number."""

_base_ = ["../_base_/runtime.py", "../_base_/splatting.py"]

model = dict(
    type="SplattingModel",
    start=dict(type="PointStart", opacity=0.5),
    strategy=dict(type="MonteCarlo", most=300_000),
    background="mean",
    most_gaussians=2_000_000,
    memory_gb=8,
)
default_hooks = dict(checkpoint=dict(interval=5, max_keep_ckpts=2))
