"""AdamW under one cycle of learning rate and momentum (OpenPCDet's adam_onecycle)."""

train_cfg = dict(by_epoch=True, max_epochs=12, val_interval=1)
val_cfg = {}
test_cfg = {}
optim_wrapper = dict(
    type="CheckedOptimWrapper",
    optimizer=dict(type="AdamW", lr=0.003, betas=(0.95, 0.99), weight_decay=0.05, fused=True),
    clip_grad=dict(max_norm=10),
)
param_scheduler = [
    dict(type="OneCycle", by_epoch=False, pct_start=0.1, div_factor=100, momenta=(0.95, 0.85)),
]
