"""8192 points of either sweep of the procedural world, ground and ego motion taken out.

The protocol of the point benchmarks on the world's streets: the flow that is learnt and judged is
WITHOUT ego motion (RemoveEgoMotion), within 35 m of the sensor.
"""

data_root = "data/world/sweeps"
clouds = [
    dict(type="RemoveGround"),
    dict(type="RemoveEgoMotion"),
    dict(type="PointSampling", count=8192, radius=35.0),
]
train_dataloader = dict(
    batch_size=1,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(type="WorldSweeps", data_root=data_root, split="train", transforms=clouds),
)
test_dataloader = dict(
    batch_size=1,
    num_workers=1,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(type="WorldSweeps", data_root=data_root, split="test", transforms=clouds),
)
test_evaluator = dict(type="FlowMetric", protocols=["points"])
