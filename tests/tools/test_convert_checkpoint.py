import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sparse3d.engine.checkpoints import load_weights, read_checkpoint
from sparse3d.engine.published import PARTS, convert_state, translate_state
from sparse3d.models.layers import SubMConv
from sparse3d.ops import backend
from sparse3d.registry import MODELS
from sparse3d.structures import Batch, Sample
from tests.models.parity import assert_detections, files_where, load, name
from tests.published_configs import detector
from tools.convert_checkpoint import convert, parse_args

ROOT = Path(__file__).resolve().parents[2]
implementations = pytest.mark.parametrize("implementation", ["reference", "native", "cuda"])
SMALL = {
    "type": "VoxelDetector",
    "point_range": [-8.0, -4.0, -2.0, 8.0, 4.0, 1.0],
    "voxel_size": [0.5, 0.5, 0.125],
    "class_names": ["car", "pedestrian"],
    "encoder": {"type": "MeanEncoder"},
    "backbone": {"type": "SparseResNet", "channels": [4, 4, 8, 6], "out_channels": 5},
    "bev_backbone": {
        "type": "BEVBackbone",
        "layer_nums": [1],
        "strides": [1],
        "channels": [8],
        "up_strides": [1],
        "up_channels": [8],
    },
    "head": {"type": "CenterHead", "shared_channels": 8},
}


def build(config=SMALL):
    torch.manual_seed(0)
    return MODELS.build(config)


def write_config(path, model=SMALL):
    path.write_text(f"model = {model!r}\n")
    return path


def spconv_kernel(weight, layout, size):
    """Our weight [K, Cin, Cout] as spconv of that version has it."""
    inputs, outputs = weight.shape[1:]
    kernel = weight.reshape(*size, inputs, outputs)
    return kernel if layout == "spconv1" else kernel.movedim(-1, 0).contiguous()


def published_state(model, layout="spconv2"):
    """What OpenPCDet would have saved of ``model``; our names below the roles are its own."""
    roles = {part: role for role, part in reversed(PARTS.items())}  # a detector's come first
    state = {}
    kernels = {
        f"{name}.weight": part.kernel_size[::-1]
        for name, part in model.named_modules()
        if hasattr(part, "kernel_size") and getattr(part, "weight", torch.zeros(0)).dim() == 3
    }
    for key, tensor in model.state_dict().items():
        part, rest = key.split(".", 1)
        if key in kernels:
            tensor = spconv_kernel(tensor, layout, kernels[key])
        state[f"{roles[part]}.{rest}"] = tensor
    return {**state, "global_step": torch.tensor([5])}


def run(tmp_path, state, *options, wrap="model_state", config=SMALL):
    source, target = tmp_path / "published.pth", tmp_path / "ours.pth"
    torch.save({wrap: state, "epoch": 12} if wrap else state, source)
    config = write_config(tmp_path / "config.py", config)
    convert(parse_args([str(source), str(target), "--config", str(config), *options]))
    return target


@pytest.mark.parametrize("layout", ["spconv1", "spconv2"])
@pytest.mark.parametrize("wrap", ["model_state", "state_dict", ""])
def test_both_layouts_are_told_apart(tmp_path, capsys, layout, wrap):
    model = build()
    target = run(tmp_path, published_state(model, layout), wrap=wrap)
    other = MODELS.build(SMALL)
    meta = load_weights(other, target)
    assert meta["config"].endswith("config.py")
    assert meta["initial"] == []
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[key]), key
    said = capsys.readouterr().out
    assert f"{len(model.state_dict())} tensors converted" in said
    assert "0 missing" in said
    assert "1 unused (no part of such a model): global_step" in said


def test_a_wrapped_model_loses_its_prefix(tmp_path):
    state = {f"module.{key}": tensor for key, tensor in published_state(build()).items()}
    converted = build()
    for value in converted.state_dict().values():
        value.zero_()
    load_weights(converted, run(tmp_path, state))
    given = build().state_dict()
    assert all(torch.equal(value, given[key]) for key, value in converted.state_dict().items())


def test_what_is_missing_is_named_and_nothing_written(tmp_path, capsys):
    state = published_state(build())
    del state["dense_head.shared_conv.1.weight"]
    with pytest.raises(ValueError, match="--partial"):
        run(tmp_path, state)
    assert "1 missing in the checkpoint: head.shared_conv.1.weight" in capsys.readouterr().out
    assert not (tmp_path / "ours.pth").exists()


def test_what_has_no_place_is_named_and_nothing_written(tmp_path, capsys):
    state = {**published_state(build()), "backbone_3d.conv1.0.0.bias": torch.zeros(4)}
    with pytest.raises(ValueError, match="--partial"):
        run(tmp_path, state)
    assert "model: backbone_3d.conv1.0.0.bias" in capsys.readouterr().out
    assert not (tmp_path / "ours.pth").exists()


def test_a_part_of_a_model_is_taken_when_asked_for(tmp_path):
    model, state = build(), published_state(build())
    state = {key: t + 1 for key, t in state.items() if key.startswith("backbone_3d")}
    target = run(tmp_path, state, "--partial")
    other = build()
    initial = load_weights(other, target)["initial"]
    assert initial == [k for k in model.state_dict() if not k.startswith("backbone.")]
    difference = other.backbone.conv_input[0].weight - model.backbone.conv_input[0].weight
    torch.testing.assert_close(difference, torch.ones_like(difference))
    assert torch.equal(other.head.shared_conv[0].weight, model.head.shared_conv[0].weight)


@pytest.mark.parametrize("options", [[], ["--partial"]])
def test_nothing_that_fits_is_an_error_even_in_part(tmp_path, options):
    with pytest.raises(ValueError, match="nothing was written"):
        run(tmp_path, {"encoder.layer.0.weight": torch.zeros(3)}, *options)


def test_other_shapes_are_refused_even_in_part(tmp_path):
    state = published_state(build())
    state["backbone_3d.conv_input.1.weight"] = torch.zeros(16)
    with pytest.raises(ValueError, match=r"conv_input\.1\.weight has shape \(16,\), not \(4,\)"):
        run(tmp_path, state, "--partial")


def test_an_unclear_layout_is_asked_for():
    conv = SubMConv(3, 3, 3)
    kernel = torch.arange(243.0).reshape(3, 3, 3, 3, 3)
    with pytest.raises(ValueError, match="layout='spconv1'"):
        convert_state("backbone_3d", {"weight": kernel}, conv)
    first = convert_state("backbone_3d", {"weight": kernel}, conv, "spconv1")["weight"]
    second = convert_state("backbone_3d", {"weight": kernel}, conv, "spconv2")["weight"]
    assert torch.equal(first, kernel.reshape(27, 3, 3))
    assert torch.equal(second, kernel.permute(1, 2, 3, 4, 0).reshape(27, 3, 3))
    with pytest.raises(ValueError, match="layout is 'spconv3'"):
        convert_state("backbone_3d", {"weight": kernel}, conv, "spconv3")


def test_a_kernel_of_one_cell_is_read_as_its_memory_lies():
    conv = SubMConv(4, 2, 1, dims=2)
    kernel = torch.arange(8.0).reshape(2, 1, 1, 4)
    for layout in ("auto", "spconv2"):
        found = translate_state("dense_head", {"weight": kernel}, conv, layout)["weight"]
        assert torch.equal(found, kernel.reshape(1, 4, 2))
    first = kernel.reshape(1, 1, 4, 2)
    found = translate_state("dense_head", {"weight": first}, conv)["weight"]
    assert torch.equal(found, kernel.reshape(1, 4, 2))


def test_the_command_says_what_is_wrong_in_one_line(tmp_path):
    config = write_config(tmp_path / "config.py")
    command = [sys.executable, str(ROOT / "tools" / "convert_checkpoint.py"), "none.pth", "out.pth"]
    ran = subprocess.run(
        [*command, "--config", str(config)], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 1
    assert ran.stderr.strip().splitlines()[-1].startswith("error: checkpoint none.pth does not")
    assert "Traceback" not in ran.stderr


# ---------------------------------------------------------------- published detectors


def holds_detector(stored):
    parts = {"points", "eval", "state_dict"} <= stored.keys()
    return parts and "dense_head" in stored["config"] and "final_box_dicts" in stored["eval"]


@pytest.mark.parity
@pytest.mark.parametrize("path", files_where(holds_detector), ids=name)
@implementations
def test_published_weights_give_the_published_boxes(path, implementation, tmp_path):
    """A published file, through the tool, into the model of a config file: points to boxes."""
    stored = load(path)
    columns = stored["points"].shape[1] - 1
    config = {**detector(stored["config"]), "point_channels": columns}
    state = {
        f"{role}.{key}": tensor
        for role, tensors in stored["state_dict"].items()
        for key, tensor in tensors.items()
    }
    target = run(tmp_path, state, config=config)
    assert read_checkpoint(target)["meta"]["epoch"] == 12
    model = MODELS.build(config).eval()
    load_weights(model, target)
    index = stored["points"][:, 0]
    samples = [Sample(stored["points"][index == b, 1:]) for b in range(stored["batch_size"])]
    with backend.forced(implementation):
        found = model(Batch(samples), mode="predict")
    assert_detections(found, stored["eval"]["final_box_dicts"])
