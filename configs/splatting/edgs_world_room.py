"""EDGS on photographs of one of the procedural world's rooms: one to two minutes on two cores.

python tools/prepare_data.py rooms --name quickstart --pictures 1 --queries 0 --size 400 300
"""

_base_ = ["./edgs_transforms.py"]

data_root = "data/world/quickstart/pictures/train-000000"
train_dataloader = dict(dataset=dict(data_root=data_root))
val_dataloader = dict(dataset=dict(data_root=data_root))
test_dataloader = dict(dataset=dict(data_root=data_root))
model = dict(background="random")  # a room is closed all around
train_cfg = dict(max_epochs=13, val_interval=13)
