_base_ = ["../../configs/_base_/runtime.py", "../../configs/_base_/schedule_onecycle.py"]
custom_imports = dict(imports=["tests.engine.toy"])

model = dict(type="ToyModel")
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    dataset=dict(type="ToyDataset"),
    sampler=dict(type="DefaultSampler", shuffle=True),
)
val_dataloader = dict(
    batch_size=2,
    num_workers=0,
    dataset=dict(type="ToyDataset", size=7),
    sampler=dict(type="DefaultSampler", shuffle=False),
)
val_evaluator = dict(type="ToyMetric")
train_cfg = dict(max_epochs=3)
default_hooks = dict(log=dict(interval=2), checkpoint=dict(iterations=2, save_best="mAP"))
