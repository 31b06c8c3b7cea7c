"""FlyingThings3D without occlusions and KITTI, as HPLFlowNet prepares them; 8192 points of each.

The flow INCLUDES the camera's motion.
"""

points = dict(type="PointSampling", count=8192)
train_dataloader = dict(
    batch_size=4,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(
        type="FlyingThings3D",
        data_root="data/flyingthings3d",
        split="train",
        transforms=[points],
    ),
)
val_dataloader = dict(
    batch_size=4,
    num_workers=4,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="FlyingThings3D", data_root="data/flyingthings3d", split="val", transforms=[points]
    ),
)
test_dataloader = dict(
    batch_size=4,
    num_workers=4,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(type="KITTISceneFlow", data_root="data/kitti_scene_flow", transforms=[points]),
)
val_evaluator = test_evaluator = dict(type="FlowMetric", protocols=["points"])
val_cfg = {}
test_cfg = {}
