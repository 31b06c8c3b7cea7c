"""DSVT and its encoder against the published implementation, and their own promises."""

import itertools

import pytest
import torch

from sparse3d.engine.published import RULES, convert_state, rename
from sparse3d.models.backbones.dsvt import DSVT
from sparse3d.models.encoders import DynamicEncoder
from sparse3d.ops import backend
from sparse3d.structures import SparseVoxels, VoxelGrid
from tests import published_configs

from ..parity import FEATURES, GRADIENT, NORM, NORM_BIAS, ZERO, files_where, load, name

IMPLEMENTATIONS = ("reference", "native")


def is_dsvt(fixture) -> bool:
    """An encoder and a DSVT, by themselves."""
    return "vfe_config" in fixture and "INPUT_LAYER" in fixture["config"]


def is_dsvt_detector(fixture) -> bool:
    """A whole detector with a DSVT."""
    parts = fixture.get("config", {})
    return parts.get("backbone_3d", {}).get("NAME") == "DSVT"


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request):
    with backend.forced(request.param):
        yield request.param


def published_model(fixture) -> torch.nn.ModuleDict:
    """Encoder and DSVT with the weights of a fixture file of either kind."""
    config = fixture["config"]
    encoder_config = fixture.get("vfe_config") or {**config, **config["vfe"]}
    backbone_config = config.get("backbone_3d", config)
    grid = VoxelGrid.from_range(encoder_config["point_cloud_range"], encoder_config["voxel_size"])
    options = without_type(published_configs.dynamic_encoder(encoder_config))
    encoder = DynamicEncoder(grid, fixture["points"].shape[1] - 1, **options)
    options = without_type(published_configs.dsvt(backbone_config))
    backbone = DSVT(encoder.out_channels, grid, **options)
    model = torch.nn.ModuleDict({"vfe": encoder, "backbone_3d": backbone})
    for role, module in model.items():
        module.load_state_dict(convert_state(role, fixture["state_dict"][role], module))
    return model


def without_type(options: dict) -> dict:
    return {key: value for key, value in options.items() if key != "type"}


def ours(published: str) -> str:
    """Our name of a published parameter or buffer."""
    role, inner = published.split(".", 1)
    return f"{role}.{rename(inner, RULES[role])}"


def run(model, fixture):
    points = fixture["points"]
    voxels = model["vfe"](points[:, 1:], points[:, 0].long(), fixture["batch_size"])
    return voxels, model["backbone_3d"](voxels)


def close(actual, expected, what=""):
    torch.testing.assert_close(actual, expected, **FEATURES, msg=lambda m: f"{what}: {m}")


def to_zyx(coords):
    return coords[:, [0, 3, 2, 1]].int()


@pytest.mark.parity
@pytest.mark.parametrize("path", files_where(is_dsvt), ids=name)
def test_eval_matches_the_published_outputs(path, implementation):
    fixture = load(path)
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
    for key, tensor in expected["module_outputs"].items():
        close(outputs[key], tensor, key)
    for number, stage in enumerate(model["backbone_3d"].stages):
        check_layouts(stage, number, voxels, stages[number], expected["input_layer"])


def record_outputs(backbone) -> dict[str, torch.Tensor]:
    """Filled in a forward pass with the features behind each part, under the published names."""
    outputs = {}

    def keep(*names):
        def hook(module, inputs, result):
            for key in names:
                outputs[key] = getattr(result, "features", result)

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
        key = f"pos_embed_stage{number}_block{b}_shift{i}"
        if key in expected:
            table = block.position_embeddings[i](layout.positions, layout.counts)
            close(table[layout.index], expected[key], key)
    if stage.reduction is not None:
        key = ("pool_cells", stage.reduction.stride)
        _, cell, slot, _ = output.cache.get(key, lambda: pytest.fail("the pooling is not cached"))
        assert torch.equal(cell.int(), expected[f"pooling_mapping_index_stage{number + 1}"])
        assert torch.equal(slot.int(), expected[f"pooling_index_in_pool_stage{number + 1}"])


@pytest.mark.parity
@pytest.mark.parametrize("path", files_where(is_dsvt), ids=name)
def test_training_matches_the_published_gradients(path, implementation):
    fixture = load(path)
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
    unused = {n for n, p in parameters.items() if p.grad is None}
    assert unused == {ours(n) for n in expected["params_without_grad"]}
    for key, gradient in expected["param_grads"].items():
        same_gradient(parameters[ours(key)].grad, gradient, key)
    for key, norm in expected["param_grad_norms"].items():
        bias_of_norm = key.endswith("bias") and "norm" in key
        limit = ZERO if norm < ZERO else (NORM_BIAS if bias_of_norm else NORM) * norm
        assert parameters[ours(key)].grad.norm().item() == pytest.approx(norm, abs=limit), key
    buffers = dict(model.named_buffers())
    for key, tensor in expected["buffers_after"].items():
        close(buffers[ours(key)], tensor, key)


def same_gradient(found, expected, what):
    largest = expected.abs().max().item()
    limit = ZERO if largest < ZERO else GRADIENT * largest
    torch.testing.assert_close(found, expected, rtol=0, atol=limit, msg=lambda m: f"{what}: {m}")


@pytest.mark.parity
@pytest.mark.parametrize("path", files_where(is_dsvt_detector), ids=name)
def test_eval_matches_inside_a_published_detector(path, implementation):
    fixture = load(path)
    with torch.no_grad():
        _, stages = run(published_model(fixture).eval(), fixture)
    close(stages[-1].features, fixture["eval"]["pillar_features"], "output")
    assert torch.equal(to_zyx(stages[-1].coords), fixture["eval"]["voxel_coords"].int())


# ---------------------------------------------------------------------- its own promises

PILLARS = VoxelGrid.from_range((-8, -8, -2, 8, 8, 2), (0.5, 0.5, 4))
VOXELS = VoxelGrid.from_range((-8, -8, -2, 8, 8, 2), (0.5, 0.5, 0.5))
KINDS = ("pillar", "attention", "linear", "maxpool")


def small_model(kind: str, **options) -> DSVT:
    torch.manual_seed(0)
    options = {"window": (6, 6, 1), "set_size": 9, "heads": 4, "blocks": 2, **options}
    if kind == "pillar":
        return DSVT(16, PILLARS, 16, **options)
    options |= {"window": [(6, 6, 8), (6, 6, 2)], "reduction": kind, "strides": [(2, 1, 4)]}
    return DSVT(16, VOXELS, [16, 32] if kind == "linear" else 16, **options)


def random_voxels(kind: str, count: int, seed: int = 0, batch_size: int = 3) -> SparseVoxels:
    """Up to ``count`` voxels; sample 1 is empty."""
    random = torch.Generator().manual_seed(seed)
    grid = PILLARS if kind == "pillar" else VOXELS
    columns = [torch.randint(0, n, (count,), generator=random) for n in (2, *grid.shape)]
    coords = torch.stack(columns, 1) * torch.tensor([2, 1, 1, 1])
    coords = torch.unique(coords, dim=0).int()
    features = torch.randn(len(coords), 16, generator=random)
    return SparseVoxels(features, coords, grid, batch_size, shape=grid.shape)


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_have_the_promised_shapes(kind, implementation):
    model = small_model(kind).eval()
    stages = model(random_voxels(kind, 200))
    assert len(stages) == (1 if kind == "pillar" else 2)
    last = stages[-1]
    assert last.channels == model.out_channels
    assert last.stride == model.out_stride == ((1, 1, 1) if kind == "pillar" else (2, 1, 4))
    assert last.shape == model.out_shape == ((32, 32, 1) if kind == "pillar" else (16, 32, 2))
    assert last.coords[:, 1:].lt(torch.tensor(last.shape)).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.parametrize("training", [True, False])
def test_few_voxels(kind, count, training, implementation):
    model = small_model(kind).train(training)
    out = model(random_voxels(kind, count))[-1].features
    assert out.shape[1] == model.out_channels and torch.isfinite(out).all()
    out.sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key


@pytest.mark.parametrize("kind", KINDS)
def test_samples_do_not_see_each_other(kind, implementation):
    model = small_model(kind).eval()
    voxels = random_voxels(kind, 300)
    with torch.no_grad():
        together = model(voxels)[-1].split()
        alone = [model(part)[-1] for part in voxels.split()]
    for mine, other in zip(together, alone):
        assert torch.equal(mine.coords, other.coords)
        torch.testing.assert_close(mine.features, other.features)


@pytest.mark.parametrize("kind", KINDS)
def test_implementations_agree(kind):
    results = []
    for implementation in IMPLEMENTATIONS:
        model, voxels = small_model(kind).train(), random_voxels(kind, 300)
        features = voxels.features.clone().requires_grad_()
        with backend.forced(implementation):
            out = model(voxels.replace(features))[-1].features
            out.backward(torch.linspace(-1, 1, out.numel()).view_as(out))
        results.append((out, features.grad, *(p.grad for p in model.parameters())))
    for mine, other in zip(*results):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=2e-4)


def test_max_pooling_takes_the_maximum_over_all_slots(implementation):
    voxels = random_voxels("maxpool", 300)
    pooled = small_model("maxpool").stages[0].reduction(voxels)
    dense = voxels.dense()  # [B, C, Z, Y, X], zero where there is no voxel
    expected = torch.nn.functional.max_pool3d(dense, (4, 1, 2))
    batch, x, y, z = pooled.coords.long().unbind(1)
    assert torch.equal(pooled.features, expected[batch, :, z, y, x])
    assert (pooled.features == 0).any()


def test_the_partition_is_computed_once_for_equal_voxels(implementation):
    model, voxels = small_model("attention").eval(), random_voxels("attention", 100)
    model(voxels)
    layouts = [view.layout(voxels) for view in model.stages[0].views]
    model(voxels.replace(voxels.features + 1))
    assert all(a is b for a, b in zip(layouts, (v.layout(voxels) for v in model.stages[0].views)))


def test_the_position_flag_corrects_the_published_choice(implementation):
    voxels = random_voxels("pillar", 200)
    published, corrected = (
        small_model("pillar", position_by_layer=flag).eval() for flag in (True, False)
    )
    assert published.state_dict().keys() == corrected.state_dict().keys()
    assert not torch.allclose(published(voxels)[-1].features, corrected(voxels)[-1].features)
    # with equal windows the two configurations are one, and so are the two choices
    same = {"hybrid_factor": (1, 1, 1), "shift": (0, 0, 0)}
    published, corrected = (
        small_model("pillar", position_by_layer=flag, **same).eval() for flag in (True, False)
    )
    assert torch.equal(published(voxels)[-1].features, corrected(voxels)[-1].features)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"strides": [(1, 1, 3)]}, r"strides\[0\].*8 cells along z.*nearest that does: [24]"),
        ({"heads": 3}, r"16 do not split into 3 heads.*: 15"),
        ({"channels": [16, 32]}, r"attention reduction keeps the width"),
        ({"channels": [32, 32]}, r"have 16 channels but the first stage is 32"),
        ({"channels": [16, 16, 16]}, r"3 values for 2 stages"),
        ({"reduction": "mean"}, r"must be one of attention, linear, maxpool"),
        ({"in_channels": 20, "channels": 20, "heads": 4}, r"8 heads of the attention.*: (16|24)"),
        ({"window": (0, 4, 4)}, r"window.*1 or more"),
        ({"set_size": 0}, r"set_size.*1 or more"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_values_that_cannot_work_are_refused(options, message):
    defaults = {"in_channels": 16, "channels": 16, "strides": [(1, 1, 4)], "window": (6, 6, 4)}
    with pytest.raises(ValueError, match=message):
        DSVT(grid=VOXELS, **{**defaults, **options})


def test_an_unbounded_grid_is_refused():
    with pytest.raises(ValueError, match="bounded 3-D grid"):
        DSVT(16, VoxelGrid((0.5,) * 3, (0.0,) * 3), 16)


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_stays_near_single_precision(kind, implementation):
    model, voxels = small_model(kind).train(), random_voxels(kind, 300)
    exact = model(voxels)[-1].features
    with torch.autocast("cpu", torch.bfloat16):
        half = model(voxels)[-1].features
    half.float().square().sum().backward()
    torch.testing.assert_close(half.float(), exact, rtol=0.1, atol=0.1)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
