"""The world's small TSP3D asked about real scenes, in sentences made from their instances.

python tools/test.py configs/grounding/tsp3d_world_scannet.py data/weights/tsp3d_world.pth
"""

_base_ = "tsp3d_world.py"

scenes = dict(_delete_=True, type="ScanNetGenerated", data_root="data/scannet", per_scene=24)
val_dataloader = dict(dataset=scenes)
test_dataloader = dict(dataset=scenes)
