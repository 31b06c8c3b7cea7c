"""DSVT on voxels, nuScenes, ten sweeps: Waymo's voxel model on its range (not published).

python tools/prepare_data.py database configs/detection/dsvt_voxel_nuscenes.py
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
    voxel_size=[0.3, 0.3, 0.25],
    class_names=class_names,
    point_channels=5,
    encoder=dict(type="DynamicEncoder", channels=[128, 128], pillar=False),
    backbone=dict(
        type="DSVT",
        channels=128,
        blocks=1,
        window=[[12, 12, 32], [12, 12, 8], [12, 12, 2], [12, 12, 1]],
        set_size=48,
        strides=[[1, 1, 4], [1, 1, 4], [1, 1, 2]],
        reduction="attention",
        hybrid_factor=[2, 2, 1],
        shift=[6, 6, 0],
        heads=8,
        ffn_channels=256,
    ),
    bev_backbone=dict(
        type="BEVBackbone",
        layer_nums=[1, 2, 2],
        strides=[1, 2, 2],
        channels=[128, 128, 256],
        up_strides=[0.5, 1, 2],
        up_channels=[128, 128, 128],
        residual=True,
    ),
    head=dict(
        type="TransFusionHead",
        channels=128,
        queries=200,
        heads=8,
        ffn_channels=256,
        window=41,
        iou=True,
        bias_before_norm=True,
        point_classes=["pedestrian", "traffic_cone"],
        losses=dict(code_weights=[1, 1, 1, 1, 1, 1, 1, 1, 0.2, 0.2]),
        decoding=dict(
            center_limit=[-61.2, -61.2, -10, 61.2, 61.2, 10],
            nms_threshold=[None] * 8 + [0.175, 0.175],
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
        stop_epoch=16,
    ),
    dict(type="RandomFlip"),
    dict(type="RandomRotation"),
    dict(type="RandomScaling", factor=[0.9, 1.1]),
    dict(type="RandomTranslation", std=[0.5, 0.5, 0.5]),
]
# 32 samples per step: 8 processes with 4 each.
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
optim_wrapper = dict(optimizer=dict(lr=0.005, weight_decay=0.05), clip_grad=dict(max_norm=35))
param_scheduler = [
    dict(type="OneCycle", by_epoch=False, pct_start=0.4, div_factor=10, momenta=(0.95, 0.85)),
]
