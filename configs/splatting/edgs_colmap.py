"""EDGS on a COLMAP model: a dense start, no densification.

python tools/train.py configs/splatting/edgs_colmap.py --cfg-options data_root=FOLDER
"""

_base_ = ["../_base_/runtime.py", "../_base_/splatting.py"]

model = dict(
    type="SplattingModel",
    start=dict(
        type="DenseStart",
        depth=dict(type="SweptDepth"),
        matches=15000,
    ),
    strategy=dict(type="Pruning"),
    background="mean",
    most_gaussians=2_000_000,
    memory_gb=8,
)
default_hooks = dict(checkpoint=dict(interval=5, max_keep_ckpts=2))
