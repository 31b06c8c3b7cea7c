"""DeltaFlow as published: 5 sweeps of Argoverse 2 in voxels of 0.15 m, range 38.4 m, 20 epochs.

The learning rate is the one that the published script really uses: 2e-4 at its peak, 2e-5 at last.
"""

_base_ = ["../_base_/runtime.py"]

data_root = "data/argoverse2/sensor"
model = dict(
    type="DeltaFlow",
    voxel_size=[0.15, 0.15, 0.15],
    point_range=[-38.4, -38.4, -3, 38.4, 38.4, 3],
    backbone=dict(type="SparseUNet"),
)
sweeps = dict(type="Argoverse2Pairs", history=3, flow_root="data/argoverse2/flow")
train_dataloader = dict(
    batch_size=2,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(
        **sweeps,
        data_root=data_root + "/train",
        transforms=[dict(type="PairLift"), dict(type="PairFlip")],
    ),
)
test_dataloader = dict(
    batch_size=1,
    num_workers=2,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(**sweeps, data_root=data_root + "/val"),
)
test_evaluator = dict(
    type="FlowMetric", protocols=["argoverse2", "bucketed", "opensceneflow", "ranges"]
)
test_cfg = {}
optim_wrapper = dict(
    type="CheckedOptimWrapper",
    optimizer=dict(type="Adam", lr=2e-4),
    clip_grad=dict(max_norm=5),
)
param_scheduler = [
    dict(type="LinearLR", by_epoch=True, start_factor=0.5, begin=0, end=2),
    dict(type="CosineAnnealingLR", by_epoch=True, eta_min=2e-5, begin=2, end=20),
]
train_cfg = dict(by_epoch=True, max_epochs=20)
