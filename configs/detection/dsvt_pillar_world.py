"""DSVT on pillars, trained on the procedural world's streets: the quickstart.

python tools/prepare_data.py world --name quickstart --sensor hdl32 --train 500 --test 80
"""

_base_ = ["../_base_/runtime.py", "../_base_/schedule_onecycle.py"]

data_root = "data/world/quickstart"
class_names = ["car", "truck", "cyclist", "pedestrian"]
point_range = [-38.4, -38.4, -4, 38.4, 38.4, 4]

model = dict(
    type="VoxelDetector",
    point_range=point_range,
    voxel_size=[0.4, 0.4, 8],
    class_names=class_names,
    encoder=dict(type="DynamicEncoder", channels=[64, 64], pillar=True),
    backbone=dict(type="DSVT", channels=64, blocks=2, window=[12, 12, 1], set_size=36, heads=4),
    bev_backbone=dict(
        type="BEVBackbone",
        layer_nums=[2, 3],
        strides=[2, 2],
        channels=[64, 128],
        up_strides=[1, 2],
        up_channels=[64, 64],
    ),
    head=dict(
        type="CenterHead",
        shared_channels=64,
        num_convs=2,
        box_weight=0.25,
        decoding=dict(nms_threshold=0.2, nms_pre_max=500, nms_post_max=100),
    ),
)

dataset = dict(
    type="WorldStreets",
    data_root=data_root,
    class_names=class_names,
    point_range=point_range,
    min_points=1,
)
augmentation = [
    dict(
        type="GroundTruthSampling",
        database=data_root + "/database",
        counts=dict(car=0, truck=6, cyclist=10, pedestrian=12),
        min_points=5,
        stop_epoch=9,
    ),
    dict(type="RandomFlip"),
    dict(type="RandomRotation"),
    dict(type="RandomScaling"),
]
train_dataloader = dict(
    batch_size=2,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(**dataset, split="train", transforms=augmentation),
)
test_dataloader = dict(
    batch_size=2,
    num_workers=1,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(**dataset, split="test"),
)
test_evaluator = dict(type="NuScenesMetric", max_distance=38.4)
optim_wrapper = dict(precision="bfloat16")
train_cfg = dict(max_epochs=10)
