"""What every experiment shares: checkpoints, logs, seed."""

default_scope = "sparse3d"
randomness = dict(seed=0)
default_hooks = dict(
    runtime_info=None,
    timer=None,
    logger=None,
    sampler_seed=dict(type="DistSamplerSeedHook"),
    dataset_epoch=dict(type="DatasetEpochHook"),
    param_scheduler=dict(type="ParamSchedulerHook"),
    log=dict(type="JsonLogHook", interval=50),
    checkpoint=dict(type="CheckpointHook", interval=1, iterations=0, max_keep_ckpts=3),
    progress=dict(type="ProgressHook", seconds=30),
)
env_cfg = dict(mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0))
