"""DSVT on pillars for KITTI, trained on the procedural world alone: no real frame is seen.

python tools/prepare_data.py world --name kitti_like --sensor hdl64_front --train 1200 --test 60 \\
    --seed 1

The world's scanner is KITTI's (64 beams, the camera's field of view); the test reads KITTI frames.
Intensity is not used: a real scanner's differs from any model of it.
"""

_base_ = ["../_base_/runtime.py", "../_base_/schedule_onecycle.py"]

world_root = "data/world/kitti_like"
kitti_root = "data/kitti"
class_names = ["car", "pedestrian", "cyclist"]
point_range = [0, -38.4, -4, 57.6, 38.4, 2]

model = dict(
    type="VoxelDetector",
    point_range=point_range,
    voxel_size=[0.24, 0.24, 6],
    point_channels=3,
    class_names=class_names,
    encoder=dict(type="DynamicEncoder", channels=[64, 64], pillar=True),
    backbone=dict(type="DSVT", channels=64, blocks=2, window=[16, 16, 1], set_size=36, heads=4),
    bev_backbone=dict(
        type="BEVBackbone",
        layer_nums=[3, 4],
        strides=[2, 2],
        channels=[64, 128],
        up_strides=[1, 2],
        up_channels=[64, 64],
    ),
    head=dict(
        type="CenterHead",
        shared_channels=64,
        iou=True,
        box_weight=1.0,
        decoding=dict(
            iou_rectifier=[0.5, 0.3, 0.3], nms_threshold=0.1, nms_pre_max=500, nms_post_max=100
        ),
    ),
)

train_dataloader = dict(
    batch_size=2,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(
        type="WorldStreets",
        data_root=world_root,
        split="train",
        class_names=class_names,
        point_range=point_range,
        fov_deg=[81.0, 13.0, 15.6],  # what KITTI's camera sees, across, up and down
        min_points=4,
        transforms=[
            dict(
                type="GroundTruthSampling",
                database=world_root + "/database",
                counts=dict(car=8, pedestrian=5, cyclist=4),
                min_points=5,
                stop_epoch=4,
            ),
            dict(type="RandomFlip", axes=["x"]),
            dict(type="RandomRotation"),
            dict(type="RandomScaling", factor=[0.92, 1.08]),
            dict(type="RandomTranslation", std=[0.2, 0.2, 0.15]),
        ],
    ),
)
test_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="KittiDataset",
        data_root=kitti_root,
        class_names=class_names,
        class_map=dict(Car="car", Pedestrian="pedestrian", Cyclist="cyclist"),
        point_range=point_range,
        load_images=True,
    ),
)
test_evaluator = dict(type="KittiMetric", summary_score=0.4)
optim_wrapper = dict(precision="auto")
train_cfg = dict(max_epochs=5)
