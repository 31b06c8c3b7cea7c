"""VoxelNeXt, sparse from the points to the boxes, on the procedural world's streets."""

_base_ = [
    "../_base_/runtime.py",
    "../_base_/schedule_onecycle.py",
    "../_base_/world_streets.py",
]

model = dict(
    type="VoxelDetector",
    point_range={{_base_.point_range}},
    voxel_size=[0.1, 0.1, 0.2],
    class_names={{_base_.class_names}},
    encoder=dict(type="MeanEncoder"),
    backbone=dict(type="VoxelNeXtBackbone", channels=[16, 32, 64, 64, 64], out_channels=64),
    head=dict(
        type="VoxelNeXtHead",
        kernel_size=1,
        box_weight=0.25,
        decoding=dict(nms_threshold=[0.2] * 4, nms_pre_max=500, nms_post_max=100),
    ),
)

optim_wrapper = dict(precision="auto")
train_cfg = dict(max_epochs=7)
