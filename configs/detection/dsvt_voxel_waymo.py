"""DSVT on voxels: four stages that pool the height away (CVPR 2023).

Published: 80.3 / 78.2 mAP / mAPH at level 1 and 74.0 / 72.1 at level 2 of Waymo's validation set,
one sweep. Data as in dsvt_pillar_waymo.py.
"""

_base_ = ["../_base_/runtime.py", "../_base_/schedule_onecycle.py"]

class_names = ["Vehicle", "Pedestrian", "Cyclist"]

model = dict(
    type="VoxelDetector",
    point_range=[-74.88, -74.88, -2, 74.88, 74.88, 4],
    voxel_size=[0.32, 0.32, 0.1875],
    class_names=class_names,
    point_channels=5,
    encoder=dict(type="DynamicEncoder", channels=[192, 192], pillar=False),
    backbone=dict(
        type="DSVT",
        channels=192,
        blocks=1,
        window=[[12, 12, 32], [12, 12, 8], [12, 12, 2], [12, 12, 1]],
        set_size=48,
        strides=[[1, 1, 4], [1, 1, 4], [1, 1, 2]],
        reduction="attention",
        hybrid_factor=[2, 2, 1],
        shift=[6, 6, 0],
        heads=8,
        ffn_channels=384,
    ),
    bev_backbone=dict(
        type="BEVBackbone",
        layer_nums=[1, 2, 2],
        strides=[1, 2, 2],
        channels=[128, 128, 256],
        up_strides=[1, 2, 4],
        up_channels=[128, 128, 128],
        residual=True,
    ),
    head=dict(
        type="CenterHead",
        shared_channels=64,
        iou=True,
        diou=True,
        bn_eps=1e-3,
        bn_momentum=0.01,
        box_weight=2.0,
        decoding=dict(
            score_threshold=0.1,
            max_objects=500,
            center_limit=[-80, -80, -10, 80, 80, 10],
            iou_rectifier=[0.68, 0.71, 0.65],
            nms_threshold=[0.7, 0.6, 0.55],
            nms_pre_max=4096,
            nms_post_max=500,
        ),
    ),
)

# 24 images per step: 8 processes with 3 each.
train_cfg = dict(max_epochs=24)
optim_wrapper = dict(optimizer=dict(lr=0.003, weight_decay=0.05), clip_grad=dict(max_norm=10))
