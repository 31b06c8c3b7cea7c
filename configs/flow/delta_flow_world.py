"""Differences of voxel features through a small sparse U-Net, on the procedural world's sweeps.

Ego motion is taken out before and put back after: the flow that is found includes it. Voxels and
their own offsets only, no absolute coordinates: it does not mind where a sensor's origin lies.
Buses and trucks are rare: it trains on as many streets as sctn_world.

python tools/prepare_data.py sweeps --name sweeps --train 160 --test 20
python tools/prepare_data.py sweeps --name sweeps_many --train 480
"""

_base_ = [
    "../_base_/runtime.py",
    "../_base_/schedule_onecycle.py",
    "../_base_/world_sweeps.py",
]

model = dict(
    type="DeltaFlow",
    voxel_size=[0.2, 0.2, 0.4],
    channels=16,
    absolute=False,
    still=0.5,
    refine=dict(type="RigidFlow"),
    backbone=dict(
        type="SparseUNet", channels=[16, 32, 64, 64, 64], up_channels=[64, 64, 32, 16], blocks=1
    ),
)
train_dataloader = dict(dataset=dict(data_root="data/world/sweeps_many"))
train_cfg = dict(max_epochs=24)
optim_wrapper = dict(optimizer=dict(lr=0.004))
