"""The procedural world's rooms with sentences: data of the small grounding experiments.

python tools/prepare_data.py rooms --train 400 --val 60
"""

data_root = "data/world/rooms"
class_names = [
    *("chair", "stool", "armchair", "sofa", "table", "desk", "cabinet", "nightstand"),
    *("bookshelf", "bed", "pillow", "lamp", "monitor", "plant", "bin", "box", "picture"),
    *("window", "door"),
]

rooms = dict(type="WorldRooms", data_root=data_root, class_names=class_names)
train_dataloader = dict(
    batch_size=1,  # rooms
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    collate_fn=dict(type="collate_groups"),
    dataset=dict(
        type="SentenceGroups",
        per_room=4,
        dataset=dict(**rooms, split="train", transforms=[dict(type="RoomAugmentation")]),
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=1,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(**rooms, split="val"),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="GroundingMetric")
test_evaluator = val_evaluator
