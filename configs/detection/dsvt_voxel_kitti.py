"""DSVT on voxels, KITTI: the Waymo model on KITTI's range, with SECOND's training (not published).

python tools/prepare_data.py database configs/detection/dsvt_voxel_kitti.py
"""

_base_ = ["../_base_/runtime.py", "../_base_/schedule_onecycle.py"]

data_root = "data/kitti"
class_names = ["Car", "Pedestrian", "Cyclist"]
point_range = [0, -39.68, -3, 70.4, 39.68, 1]

model = dict(
    type="VoxelDetector",
    point_range=point_range,
    voxel_size=[0.32, 0.32, 0.125],
    class_names=class_names,
    point_channels=4,
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
            iou_rectifier=[0.68, 0.71, 0.65],
            nms_threshold=[0.7, 0.6, 0.55],
        ),
    ),
)

dataset = dict(
    type="KittiDataset",
    data_root=data_root,
    class_names=class_names,
    point_range=point_range,
)
augmentation = [
    dict(
        type="GroundTruthSampling",
        database=data_root + "/database",
        counts=dict(Car=20, Pedestrian=15, Cyclist=15),
        min_points=5,
    ),
    dict(type="RandomFlip", axes=["x"]),
    dict(type="RandomRotation"),
    dict(type="RandomScaling", factor=[0.95, 1.05]),
]
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
val_evaluator = dict(type="KittiMetric")

train_cfg = dict(max_epochs=80)
optim_wrapper = dict(optimizer=dict(lr=0.003, weight_decay=0.01), clip_grad=dict(max_norm=10))
param_scheduler = [
    dict(type="OneCycle", by_epoch=False, pct_start=0.4, div_factor=10, momenta=(0.95, 0.85)),
]
