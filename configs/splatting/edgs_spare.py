"""EDGS on one scene of SpaRe's sparse-view protocol: 3 or 9 given views, others judged.

Track 1 has 3 views, track 2 has 9; the scene is the first of the split file, and object masks are
left out, unless a config of your own says otherwise:

_base_ = ["PATH/edgs_spare.py"]
scene = dict(split_file="Track2_split_development.json", scene="scan8", masks="idrmasks")
train_dataloader = dict(dataset=scene)
val_dataloader = dict(dataset=scene)
test_dataloader = dict(dataset=scene)
"""

_base_ = ["./edgs_colmap.py"]

spare = dict(type="SpareViews", split_file="Track1_split_development.json")
train_dataloader = dict(dataset=spare)
val_dataloader = dict(dataset=spare)
test_dataloader = dict(dataset=spare)
