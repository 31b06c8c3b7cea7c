"""VoxelNeXt, nuScenes, ten sweeps: sparse from the points to the boxes (CVPR 2023).

Published: 60.5 mAP, 66.6 NDS on the validation set.

python tools/prepare_data.py database configs/detection/voxelnext_nuscenes.py
"""

_base_ = ["../_base_/runtime.py", "../_base_/schedule_onecycle.py"]

data_root = "data/nuscenes"
class_names = [
    "car",
    "truck",
    "construction_vehicle",
    "bus",
    "trailer",
    "barrier",
    "motorcycle",
    "bicycle",
    "pedestrian",
    "traffic_cone",
]
point_range = [-54, -54, -5, 54, 54, 3]

model = dict(
    type="VoxelDetector",
    point_range=point_range,
    voxel_size=[0.075, 0.075, 0.2],
    class_names=class_names,
    point_channels=5,
    encoder=dict(type="MeanEncoder", max_points=10),
    backbone=dict(type="VoxelNeXtBackbone", channels=[16, 32, 64, 128, 128], out_channels=128),
    head=dict(
        type="VoxelNeXtHead",
        groups=[
            ["car"],
            ["truck", "construction_vehicle"],
            ["bus", "trailer"],
            ["barrier"],
            ["motorcycle", "bicycle"],
            ["pedestrian", "traffic_cone"],
        ],
        velocity=True,
        kernel_size=1,
        box_weight=0.25,
        code_weights=[1, 1, 1, 1, 1, 1, 0.2, 0.2, 1, 1],
        decoding=dict(
            score_threshold=0.1,
            max_objects=500,
            center_limit=[-61.2, -61.2, -10, 61.2, 61.2, 10],
            nms_threshold=0.2,
            nms_pre_max=1000,
            nms_post_max=83,
        ),
    ),
)

dataset = dict(
    type="NuScenesDataset",
    data_root=data_root,
    class_names=class_names,
    point_range=point_range,
    intensity="raw",
)
augmentation = [
    dict(
        type="GroundTruthSampling",
        database=data_root + "/database",
        counts=dict(
            car=2,
            truck=3,
            construction_vehicle=7,
            bus=4,
            trailer=6,
            barrier=2,
            motorcycle=6,
            bicycle=6,
            pedestrian=2,
            traffic_cone=2,
        ),
        min_points=5,
    ),
    dict(type="RandomFlip"),
    dict(type="RandomRotation"),
    dict(type="RandomScaling", factor=[0.9, 1.1]),
    dict(type="RandomTranslation", std=[0.5, 0.5, 0.5]),
]
# 16 samples per step: 4 processes with 4 each.
train_dataloader = dict(
    batch_size=4,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(**dataset, split="train", transforms=augmentation),
)
val_dataloader = dict(
    batch_size=4,
    num_workers=4,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(**dataset, split="val"),
)
val_evaluator = dict(type="NuScenesMetric", max_distance="official")

train_cfg = dict(max_epochs=20)
optim_wrapper = dict(optimizer=dict(lr=0.001, weight_decay=0.01), clip_grad=dict(max_norm=10))
param_scheduler = [
    dict(type="OneCycle", by_epoch=False, pct_start=0.4, div_factor=10, momenta=(0.95, 0.85)),
]
