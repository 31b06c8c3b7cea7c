"""TSP3D on ScanRefer, as published (https://arxiv.org/abs/2502.10392).

Weights of the authors load after tools/convert_checkpoint.py. Published with four GPUs of seven
sentences each; the schedule's epochs count from 1 here. RoBERTa must lie in the local cache of the
hub, or be named as a folder.
"""

_base_ = ["../_base_/runtime.py"]

scans = "data/scannet/scans"
model = dict(
    type="TextGrounder",
    voxel_size=0.01,
    text=dict(type="HuggingFaceText", name="roberta-base", width=768),
    encoder=dict(type="MeanEncoder", max_points=1),
    backbone=dict(type="MinkResNet", depth=34),
    head=dict(type="TSP3DHead", padding_in_norm=True, key_limit=None),
)

train_dataloader = dict(
    batch_size=7,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(
        type="ScanRefer",
        data_root=scans,
        ann_file="data/scanrefer/ScanRefer_filtered_train.json",
        transforms=[
            dict(
                type="RoomAugmentation",
                mirror=False,
                scale=(0.98, 1.02),
                brightness=0.02,
                noise=0.0025,
            )
        ],
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="ScanRefer",
        data_root=scans,
        ann_file="data/scanrefer/ScanRefer_filtered_val.json",
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="GroundingMetric")
test_evaluator = val_evaluator

train_cfg = dict(by_epoch=True, max_epochs=100, val_interval=3)
val_cfg = {}
test_cfg = {}
optim_wrapper = dict(
    type="CheckedOptimWrapper",
    optimizer=dict(type="AdamW", lr=5e-4, weight_decay=5e-4),
    clip_grad=dict(max_norm=0.1),
)
param_scheduler = [dict(type="MultiStepLR", by_epoch=True, milestones=[50, 75], gamma=0.1)]
