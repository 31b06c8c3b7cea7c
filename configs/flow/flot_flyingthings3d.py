"""FLOT as published for 8192 points of FlyingThings3D without occlusions, 60 epochs.

The released weights: python tools/convert_checkpoint.py model_8192.tar flot.pth --config THIS
"""

_base_ = ["../_base_/runtime.py", "../_base_/flyingthings3d.py"]

model = dict(type="FLOT", iterations=1)
optim_wrapper = dict(type="CheckedOptimWrapper", optimizer=dict(type="Adam", lr=1e-3))
param_scheduler = [dict(type="MultiStepLR", by_epoch=True, milestones=[50], gamma=0.1)]
train_cfg = dict(by_epoch=True, max_epochs=60)
