"""A small 3D-SPS over a sparse U-Net, trained from nothing on the procedural world's rooms."""

_base_ = [
    "../_base_/runtime.py",
    "../_base_/schedule_onecycle.py",
    "../_base_/world_rooms.py",
]

model = dict(
    type="TextGrounder",
    voxel_size=0.08,
    text=dict(type="HashedWords", channels=64),
    encoder=dict(type="PlacedEncoder"),
    backbone=dict(type="SparseUNet", channels=(32, 64, 96), up_channels=(64, 64), blocks=1),
    head=dict(
        type="SPSHead",
        class_names={{_base_.class_names}},
        channels=96,
        hidden=192,
        dropout=0.0,
        layers=4,
        keypoints=(384, 192),
    ),
    teacher=dict(type="ObjectTeacher", class_names={{_base_.class_names}}, levels=1),
)

train_cfg = dict(max_epochs=12, val_interval=4)
optim_wrapper = dict(
    optimizer=dict(type="AdamW", lr=0.001, weight_decay=0.01), clip_grad=dict(max_norm=10)
)
