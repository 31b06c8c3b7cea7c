"""tools/export.py: programs that run without config and model."""

import pytest
import torch

from tools.export import compare, main

SECOND = """
model = dict(
    type="VoxelDetector",
    point_range=(-6.4, -6.4, -2.0, 6.4, 6.4, 2.8),
    voxel_size=(0.2, 0.2, 0.2),
    class_names=("car", "pedestrian"),
    encoder=dict(type="MeanEncoder"),
    backbone=dict(type="SparseResNet", channels=(4, 4, 8, 8), out_channels=8),
    bev_backbone=dict(
        type="BEVBackbone", layer_nums=(1,), strides=(1,), channels=(8,), up_strides=(1,),
        up_channels=(8,),
    ),
    head=dict(type="CenterHead", shared_channels=8),
)
"""


def test_an_exported_detector_answers_as_the_detector_for_any_number_of_points(tmp_path):
    config, out = tmp_path / "config.py", tmp_path / "model.pt2"
    config.write_text(SECOND)
    main([str(config), "--out", str(out)])  # compares, on two numbers of points
    program = torch.export.load(out).module()
    generator = torch.Generator().manual_seed(1)
    for count in (50, 333):
        found = program(torch.randn(count, 4, generator=generator))
        assert all(tensor.isfinite().all() for tensor in torch.utils._pytree.tree_leaves(found))
    assert [path.name for path in tmp_path.glob("*.pt2")] == ["model.pt2"]


def test_a_program_that_answers_otherwise_is_refused():
    compare("program", {"a": torch.ones(3)}, {"a": torch.ones(3)})
    for other in ({"a": torch.ones(3) + 1}, {"a": torch.ones(2)}, {}):
        with pytest.raises(ValueError, match="program"):
            compare("program", other, {"a": torch.ones(3)})
