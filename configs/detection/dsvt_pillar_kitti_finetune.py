"""The detector of dsvt_pillar_world_kitti.py, tuned on a few labelled KITTI frames.

python tools/train.py configs/detection/dsvt_pillar_kitti_finetune.py --cfg-options \\
    load_from=work_dirs/dsvt_pillar_world_kitti/final.pth

World objects are pasted into the real frames: a handful of frames alone shows too few.
"""

_base_ = ["./dsvt_pillar_world_kitti.py"]

world_root = "data/world/kitti_like"
kitti_root = "data/kitti"
class_names = ["car", "pedestrian", "cyclist"]
point_range = [0, -38.4, -4, 57.6, 38.4, 2]

train_dataloader = dict(
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        _delete_=True,
        type="KittiDataset",
        data_root=kitti_root,
        class_names=class_names,
        point_range=point_range,
        transforms=[
            dict(
                type="GroundTruthSampling",
                database=world_root + "/database",
                counts=dict(car=8, pedestrian=5, cyclist=4),
                min_points=5,
            ),
            dict(type="RandomFlip", axes=["x"]),
            dict(type="RandomRotation"),
            dict(type="RandomScaling"),
        ],
    ),
)
optim_wrapper = dict(optimizer=dict(lr=0.0003))
train_cfg = dict(max_epochs=40)
default_hooks = dict(checkpoint=dict(interval=10))
