"""The detector of dsvt_pillar_world_kitti.py, tuned on a few labelled KITTI frames.

python tools/train.py configs/detection/dsvt_pillar_kitti_finetune.py --cfg-options \\
    load_from=data/weights/dsvt_pillar_world_kitti.pth

World objects are pasted into the real frames: a handful of frames alone shows too few.
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
        box_reach=1,
        decoding=dict(
            iou_rectifier=[0.5, 0.3, 0.3], nms_threshold=0.1, nms_pre_max=500, nms_post_max=100
        ),
    ),
)

dataset = dict(
    type="KittiDataset",
    data_root=kitti_root,
    class_names=class_names,
    class_map=dict(Car="car", Pedestrian="pedestrian", Cyclist="cyclist"),
    point_range=point_range,
)
train_dataloader = dict(
    batch_size=1,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(
        **dataset,
        transforms=[
            dict(
                type="GroundTruthSampling",
                database=world_root + "/database",
                counts=dict(car=8, pedestrian=5, cyclist=4),
                min_points=5,
            ),
            dict(type="RandomFlip", axes=["x"]),
            dict(type="RandomRotation"),
            dict(type="RandomScaling"),
        ],
    ),
)
test_dataloader = dict(
    batch_size=1,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(**dataset, load_images=True),
)
test_evaluator = dict(type="KittiMetric", summary_score=0.4)
optim_wrapper = dict(precision="auto", optimizer=dict(lr=0.001))
train_cfg = dict(max_epochs=80)
default_hooks = dict(checkpoint=dict(interval=40))
