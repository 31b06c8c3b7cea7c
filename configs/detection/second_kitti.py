"""SECOND's voxels and backbones with a centre head instead of anchors, KITTI.

Range, voxels, backbones, augmentation and schedule are those published for SECOND; its anchor head
(78.6 / 53.0 / 67.2 moderate AP R11 on the validation set) is not part of sparse3d.

python tools/prepare_data.py database configs/detection/second_kitti.py
"""

_base_ = ["../_base_/runtime.py", "../_base_/schedule_onecycle.py"]

data_root = "data/kitti"
class_names = ["Car", "Pedestrian", "Cyclist"]
point_range = [0, -40, -3, 70.4, 40, 1]

model = dict(
    type="VoxelDetector",
    point_range=point_range,
    voxel_size=[0.05, 0.05, 0.1],
    class_names=class_names,
    point_channels=4,
    encoder=dict(type="MeanEncoder", max_points=5),
    backbone=dict(type="SparseResNet", channels=[16, 32, 64, 64], out_channels=128),
    bev_backbone=dict(
        type="BEVBackbone",
        layer_nums=[5, 5],
        strides=[1, 2],
        channels=[128, 256],
        up_strides=[1, 2],
        up_channels=[256, 256],
    ),
    head=dict(
        type="CenterHead",
        shared_channels=64,
        iou=True,
        diou=True,
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
