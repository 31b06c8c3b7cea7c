"""The procedural world's streets, seen by a 64-beam scanner: data of the small experiments.

python tools/prepare_data.py world --name quickstart --sensor hdl64 --train 400 --test 60
"""

data_root = "data/world/quickstart"
class_names = ["car", "truck", "cyclist", "pedestrian"]
point_range = [-32, -32, -4, 32, 32, 4]

streets = dict(
    type="WorldStreets",
    data_root=data_root,
    class_names=class_names,
    class_map=dict(van="car"),  # as in nuScenes; without it a van would be background
    point_range=point_range,
    min_points=1,
)
thinning = dict(type="PointThinning", size=0.16)
augmentation = [
    dict(
        type="GroundTruthSampling",
        database=data_root + "/database",
        counts=dict(car=0, truck=6, cyclist=10, pedestrian=12),
        min_points=5,
        stop_epoch=5,
    ),
    dict(type="RandomFlip"),  # streets look alike: turning them costs more steps than it gains
]
train_dataloader = dict(
    batch_size=2,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(**streets, split="train", transforms=[*augmentation, thinning]),
)
test_dataloader = dict(
    batch_size=2,
    num_workers=1,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(**streets, split="test", transforms=[thinning]),
)
test_evaluator = dict(type="NuScenesMetric", max_distance=32)
