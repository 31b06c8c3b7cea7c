"""SCTN on 8192 points of the procedural world's sweeps, ground and ego motion taken out.

Not the published network: its attention among all points and its transport, which match points by
what each sweep alone shows, slide along smooth sides of vehicles. Here neighbours gather votes for
displacements instead (DisplacementVotes), voxels know where their points lie within them instead
of in the scene, batch norms take the place of instance norms, refinement sees the features too,
and the flow before refinement is part of the loss. All of it is small. Groups have the last word,
as behind DeltaFlow; model.groups=None leaves it to the network. Buses and trucks are rare: it
trains on more streets than most experiments.

python tools/prepare_data.py sweeps --name sweeps --train 160 --test 20
python tools/prepare_data.py sweeps --name sweeps_many --train 480
"""

_base_ = [
    "../_base_/runtime.py",
    "../_base_/schedule_onecycle.py",
    "../_base_/world_clouds.py",
]

model = dict(
    type="SCTN",
    voxel_size=0.2,
    absolute=False,
    backbone=dict(type="SparseUNet", channels=[16, 32, 64, 64], up_channels=[64, 32, 32], blocks=1),
    voxel_neighbors=3,
    votes=dict(cell=0.3, steps=6, pool=96, rounds=3),
    neighbors=8,
    channels=[16, 32, 64],
    transport_weight=1.0,
    groups=dict(type="RigidFlow"),
)
train_dataloader = dict(
    dataset=dict(
        data_root="data/world/sweeps_many",
        transforms=[
            dict(type="RemoveGround"),
            dict(type="RemoveEgoMotion"),
            dict(type="PointSampling", count=8192, radius=35.0),
            dict(type="PairTurn"),
            dict(type="PairFlip"),
        ],
    )
)
optim_wrapper = dict(optimizer=dict(lr=0.004, weight_decay=0.01))
train_cfg = dict(max_epochs=4)
