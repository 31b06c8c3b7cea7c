"""EDGS on transforms.json of nerfstudio, instant-ngp or Blender's scenes."""

_base_ = ["./edgs_colmap.py"]

train_dataloader = dict(dataset=dict(type="TransformsViews"))
val_dataloader = dict(dataset=dict(type="TransformsViews"))
test_dataloader = dict(dataset=dict(type="TransformsViews"))
