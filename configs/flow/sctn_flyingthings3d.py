"""SCTN as published: 8192 points of FlyingThings3D (HPLFlowNet's preprocessing), 60 epochs.

Tested on KITTI of the same source: test_dataloader = kitti. The flow INCLUDES the camera's motion.
"""

_base_ = ["../_base_/runtime.py", "../_base_/flyingthings3d.py"]

model = dict(type="SCTN", voxel_size=0.07, backbone=dict(type="InstanceUNet"))
optim_wrapper = dict(type="CheckedOptimWrapper", optimizer=dict(type="Adam", lr=1e-3))
param_scheduler = [dict(type="MultiStepLR", by_epoch=True, milestones=[50], gamma=0.1)]
train_cfg = dict(by_epoch=True, max_epochs=60)
