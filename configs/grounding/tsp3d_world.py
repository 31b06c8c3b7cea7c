"""A small TSP3D, trained from nothing on the procedural world's rooms."""

_base_ = [
    "../_base_/runtime.py",
    "../_base_/schedule_onecycle.py",
    "../_base_/world_rooms.py",
]

model = dict(
    type="TextGrounder",
    voxel_size=0.04,
    guiding=2,
    text=dict(type="HashedWords", channels=64),
    encoder=dict(type="PlacedEncoder"),
    backbone=dict(
        type="MinkResNet",
        depth=[1, 2, 2, 2],
        channels=[32, 64, 64, 64],
        stem_channels=16,
        stem_stride=1,
        pool=False,
    ),
    head=dict(
        type="TSP3DHead",
        heads=2,
        hidden=128,
        dropout=0.0,
        attended=(400, 320),
        completion_limit=400,
        keep_most=(500, 400),
        keep_limits=(50, 50),
        cut_first=True,
        dense_boxes=True,
        matching=True,
        decision=dict(candidates=48, classes=len(_base_.class_names)),
    ),
    teacher=dict(type="ObjectTeacher", class_names={{_base_.class_names}}),
)

train_dataloader = dict(dataset=dict(per_room=12))  # all the sentences of a room
train_cfg = dict(max_epochs=12, val_interval=12)
optim_wrapper = dict(
    optimizer=dict(type="AdamW", lr=0.002, weight_decay=0.01), clip_grad=dict(max_norm=5)
)
