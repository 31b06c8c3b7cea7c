"""DSVT on pillars, trained on the procedural world's streets: the quickstart."""

_base_ = [
    "../_base_/runtime.py",
    "../_base_/schedule_onecycle.py",
    "../_base_/world_streets.py",
]

model = dict(
    type="VoxelDetector",
    point_range={{_base_.point_range}},
    voxel_size=[0.32, 0.32, 8],
    class_names={{_base_.class_names}},
    encoder=dict(type="DynamicEncoder", channels=[64], pillar=True),
    backbone=dict(type="DSVT", channels=64, blocks=2, window=[12, 12, 1], set_size=36, heads=4),
    bev_backbone=dict(
        type="BEVBackbone",
        layer_nums=[2, 2, 2],
        strides=[2, 2, 2],
        channels=[64, 128, 128],
        up_strides=[1, 2, 4],
        up_channels=[64, 64, 64],
    ),
    head=dict(
        type="CenterHead",
        shared_channels=64,
        num_convs=2,
        box_weight=0.25,
        box_reach=1,  # twice the trucks: their middle is rarely seen
        decoding=dict(nms_threshold=[0.2] * 4, nms_pre_max=500, nms_post_max=100),
    ),
)

optim_wrapper = dict(precision="auto")
train_cfg = dict(max_epochs=6)
