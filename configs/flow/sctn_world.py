"""SCTN on 8192 points of the procedural world's sweeps, ego motion taken out."""

_base_ = [
    "../_base_/runtime.py",
    "../_base_/schedule_onecycle.py",
    "../_base_/world_clouds.py",
]

model = dict(
    type="SCTN",
    voxel_size=0.2,
    backbone=dict(
        type="InstanceUNet",
        channels=[16, 32, 48, 64],
        up_channels=[64, 48, 32, 32],
        out_channels=32,
        kernel_size=5,
    ),
)
optim_wrapper = dict(optimizer=dict(lr=0.002))
train_cfg = dict(max_epochs=4)
