import pytest
import torch

from sparse3d.engine.published import convert_state
from sparse3d.models.backbones.bev import BEVBackbone, to_bev
from sparse3d.registry import MODELS
from sparse3d.structures import SparseVoxels, VoxelGrid
from tests.models.parity import FEATURES, files_where, load, name
from tests.published_configs import bev_backbone


def test_height_folds_into_channels_channel_major():
    grid = VoxelGrid((1.0,) * 3, (0.0,) * 3, (4, 3, 2))
    coords = torch.tensor([[0, 1, 2, 0], [1, 3, 0, 1]], dtype=torch.int32)
    features = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    voxels, _ = SparseVoxels.from_coords(coords, features, grid, 2)
    bev = to_bev(voxels)
    assert bev.shape == (2, 4, 3, 4)
    assert bev[0, :, 2, 1].tolist() == [1, 0, 2, 0]
    assert bev[1, :, 0, 3].tolist() == [0, 3, 0, 4]
    assert bev.count_nonzero() == 4


def test_a_flat_map_stays_as_it_is():
    grid = VoxelGrid((1.0,) * 2, (0.0,) * 2, (4, 3))
    coords = torch.tensor([[0, 1, 2]], dtype=torch.int32)
    voxels, _ = SparseVoxels.from_coords(coords, torch.tensor([[5.0, 6.0]]), grid, 1)
    bev = to_bev(voxels)
    assert bev.shape == (1, 2, 3, 4)
    assert bev[0, :, 2, 1].tolist() == [5, 6]


@pytest.mark.parametrize("strides", [(96, 1, 96, 6), (1, 1, 96, 6), (768, 128, 16, 1)])
def test_a_single_map_reaches_convolutions_with_strides_that_span_it(strides):
    seen = []
    model = BEVBackbone(6, (1,), (1,), (8,), (1,), (4,), residual=True).eval()
    model.blocks[0][0].conv1.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    x = torch.empty_strided((1, 6, 8, 16), strides).normal_()
    model(x)
    assert seen[0].stride() == (768, 1, 96, 6) and torch.equal(seen[0], x)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(
    ("strides", "up_strides", "stride"),
    [((1, 2), (1, 2), 1), ((1, 2, 2), (0.5, 1, 2), 2), ((2, 2), (1, 2), 2), ((2, 2), (0.5, 1), 4)],
)
def test_output_has_the_announced_size(residual, strides, up_strides, stride):
    levels = len(strides)
    model = BEVBackbone(3, [1] * levels, strides, [4] * levels, up_strides, [5] * levels, residual)
    out = model(torch.randn(2, 3, 24, 16))
    assert model.out_stride == stride
    assert out.shape == (2, model.out_channels, *model.out_shape((24, 16)))
    assert model.out_shape((24, 16)) == (24 // stride, 16 // stride)


def test_levels_that_do_not_meet_are_refused():
    with pytest.raises(ValueError, match=r"up_strides \[1.0, 2.0\] would fit"):
        BEVBackbone(3, (1, 1), (1, 2), (4, 4), (1, 1), (4, 4))
    with pytest.raises(ValueError, match="one entry per level"):
        BEVBackbone(3, (1,), (1, 2), (4, 4), (1, 2), (4, 4))


def test_a_map_that_does_not_fit_is_refused_with_one_that_does():
    model = BEVBackbone(3, (1, 1), (1, 2), (4, 4), (1, 2), (4, 4))
    with pytest.raises(ValueError, match="such as 44"):
        model.out_shape((45, 40))
    assert model.out_shape((44, 40)) == (44, 40)


def holds_map(stored):
    return "backbone_2d" in stored["state_dict"] and "spatial_features" in stored["eval"]


@pytest.mark.parity
@pytest.mark.parametrize("path", files_where(holds_map), ids=name)
def test_published_map(path):
    stored = load(path)
    x = stored["eval"]["spatial_features"]
    config = bev_backbone(stored["config"]["backbone_2d"])
    model = MODELS.build({**config, "in_channels": x.shape[1]}).eval()
    state = stored["state_dict"]["backbone_2d"]
    model.load_state_dict(convert_state("backbone_2d", state, model))
    with torch.no_grad():
        torch.testing.assert_close(model(x), stored["eval"]["spatial_features_2d"], **FEATURES)
