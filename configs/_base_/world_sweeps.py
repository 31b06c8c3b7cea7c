"""Pairs of sweeps over the procedural world's streets, with exact flow.

python tools/prepare_data.py sweeps --name sweeps --train 160 --test 20
"""

data_root = "data/world/sweeps"

train_dataloader = dict(
    batch_size=4,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(
        type="WorldSweeps",
        data_root=data_root,
        split="train",
        transforms=[
            dict(type="PairCrop", size=28),
            dict(type="GroundLeak", share=0.05),
            dict(type="RemoveGround"),
            dict(type="PairThinning", size=0.1),
            dict(type="PairTurn"),
        ],
    ),
)
test_dataloader = dict(
    batch_size=1,
    num_workers=1,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(type="WorldSweeps", data_root=data_root, split="test"),
)
test_evaluator = dict(type="FlowMetric")
