"""DSVT and its encoder against the published implementation, and their own promises."""

import itertools

import pytest
import torch

from sparse3d.engine.published import RULES, convert_state, rename
from sparse3d.models.backbones.dsvt import DSVT
from sparse3d.models.encoders import DynamicEncoder
from sparse3d.ops import backend
from sparse3d.structures import SparseVoxels, VoxelGrid  # noqa: F401
from tests import published_configs
from tests.conftest import fixture_files

IMPLEMENTATIONS = ("reference", "native")


def is_dsvt(fixture) -> bool:
    return "vfe_config" in fixture and "INPUT_LAYER" in fixture["config"]


def dsvt_files() -> list:
    """Fixture files that hold an encoder and a DSVT."""
    files = fixture_files("detect/*.pt")
    if not hasattr(files[0], "suffix"):
        return files
    return [path for path in files if is_dsvt(torch.load(path, weights_only=True))]


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request):
    with backend.forced(request.param):
        yield request.param


def published_model(fixture) -> torch.nn.ModuleDict:
    encoder_config = fixture["vfe_config"]
    grid = VoxelGrid.from_range(encoder_config["point_cloud_range"], encoder_config["voxel_size"])
    options = published_configs.dynamic_encoder(encoder_config)
    encoder = DynamicEncoder(grid, encoder_config["num_point_features"], **without_type(options))
    options = published_configs.dsvt(fixture["config"])
    backbone = DSVT(encoder.out_channels, grid, **without_type(options))
    model = torch.nn.ModuleDict({"vfe": encoder, "backbone_3d": backbone})
    for role, module in model.items():
        module.load_state_dict(convert_state(role, fixture["state_dict"][role], module))
    return model


def without_type(options: dict) -> dict:
    return {key: value for key, value in options.items() if key != "type"}


def ours(name: str) -> str:
    """Our name of a published parameter or buffer."""
    role, inner = name.split(".", 1)
    return f"{role}.{rename(inner, RULES[role])}"


def run(model, fixture):
    points = fixture["points"]
    voxels = model["vfe"](points[:, 1:], points[:, 0].long(), fixture["batch_size"])
    return voxels, model["backbone_3d"](voxels)


def close(actual, expected, what=""):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4, msg=lambda m: f"{what}: {m}")


def to_zyx(coords):
    return coords[:, [0, 3, 2, 1]].int()


@pytest.mark.parity
@pytest.mark.parametrize("path", dsvt_files(), ids=lambda p: p.stem)
def test_eval_matches_the_published_outputs(path, implementation):
    fixture = torch.load(path, weights_only=True)
    model = published_model(fixture).eval()
    outputs = record_outputs(model["backbone_3d"])
    with torch.no_grad():
        voxels, stages = run(model, fixture)
    expected = fixture["eval"]

    close(voxels.features, expected["voxel_features"], "voxel features")
    assert torch.equal(to_zyx(voxels.coords), expected["voxel_coords"].int())
    close(stages[-1].features, expected["out_features"], "output")
    assert torch.equal(to_zyx(stages[-1].coords), expected["out_coords"].int())
    assert stages[-1].shape == model["backbone_3d"].out_shape
    assert set(expected["module_outputs"]) <= set(outputs)
    for name, tensor in expected["module_outputs"].items():
        close(outputs[name], tensor, name)
    for number, stage in enumerate(model["backbone_3d"].stages):
        check_layouts(stage, number, voxels, stages[number], expected["input_layer"])


def record_outputs(backbone) -> dict[str, torch.Tensor]:
    """Filled in a forward pass with the features behind each part, under the published names."""
    outputs = {}

    def keep(*names):
        def hook(module, inputs, result):
            for name in names:
                outputs[name] = getattr(result, "features", result)

        return hook

    for s, stage in enumerate(backbone.stages):
        for b, block in enumerate(stage.blocks):
            first, second = block.layers
            first.register_forward_hook(keep(f"stage_{s}.{b}.encoder_list.0"))
            second.register_forward_hook(keep(f"stage_{s}.{b}.encoder_list.1", f"stage_{s}.{b}"))
            block.register_forward_hook(keep(f"residual_norm_stage_{s}.{b}"))
        if stage.reduction is not None:
            stage.reduction.register_forward_hook(keep(f"stage_{s}_reduction"))
    return outputs


def check_layouts(stage, number, voxels, output, expected):
    """Partition, position embeddings and pooling of one stage."""
    assert torch.equal(to_zyx(output.coords), expected[f"voxel_coors_stage{number}"])
    layouts = [view.layout(output) for view in stage.views]
    for i, layout in enumerate(layouts):
        suffix = f"stage{number}_shift{i}"
        sets = layout.sets
        assert torch.equal(sets.window_index.int(), expected[f"batch_win_inds_{suffix}"])
        assert torch.equal(sets.coords_in_window.flip(1), expected[f"coors_in_win_{suffix}"])
        assert torch.equal(sets.set_inds.int(), expected[f"set_voxel_inds_{suffix}"])
        assert torch.equal(sets.set_mask, expected[f"set_voxel_mask_{suffix}"])
    for (b, block), (i, layout) in itertools.product(enumerate(stage.blocks), enumerate(layouts)):
        name = f"pos_embed_stage{number}_block{b}_shift{i}"
        if name in expected:
            table = block.position_embeddings[i](layout.positions, layout.counts)
            close(table[layout.index], expected[name], name)
    if stage.reduction is not None:
        key = ("pool_cells", stage.reduction.stride)
        _, cell, slot, _ = output.cache.get(key, lambda: pytest.fail("the pooling is not cached"))
        assert torch.equal(cell.int(), expected[f"pooling_mapping_index_stage{number + 1}"])
        assert torch.equal(slot.int(), expected[f"pooling_index_in_pool_stage{number + 1}"])


@pytest.mark.parity
@pytest.mark.parametrize("path", dsvt_files(), ids=lambda p: p.stem)
def test_training_matches_the_published_gradients(path, implementation):
    fixture = torch.load(path, weights_only=True)
    model = published_model(fixture).train()
    expected = fixture["train"]
    voxels, stages = run(model, fixture)
    voxels.features.retain_grad()
    out = stages[-1].features
    loss = (out * expected["cotangent"]).sum() / out.numel() ** 0.5
    loss.backward()

    close(voxels.features, expected["voxel_features"], "voxel features")
    close(out, expected["out_features"], "output")
    assert loss.item() == pytest.approx(expected["loss"], rel=1e-4, abs=1e-4)
    same_gradient(voxels.features.grad, expected["grad_voxel_features"], "voxel features")

    parameters = dict(model.named_parameters())
    assert not expected["params_without_grad"]
    for name, gradient in expected["param_grads"].items():
        same_gradient(parameters[ours(name)].grad, gradient, name)
    for name, norm in expected["param_grad_norms"].items():
        found = parameters[ours(name)].grad.norm().item()
        assert found == pytest.approx(norm, rel=2e-3, abs=1e-4), name
    buffers = dict(model.named_buffers())
    for name, tensor in expected["buffers_after"].items():
        close(buffers[ours(name)], tensor, name)


def same_gradient(found, expected, name):
    """Within 2e-3 of the largest value; 1e-4 in all where the true gradient is zero."""
    tolerance = max(2e-3 * expected.abs().max().item(), 1e-4)
    torch.testing.assert_close(
        found, expected, rtol=0, atol=tolerance, msg=lambda m: f"{name}: {m}"
    )
