"""TSP3D against stored runs of the published implementation; what a folder holds, its files say."""

import json
import re
from functools import lru_cache

import numpy as np
import pytest
import torch

from sparse3d.engine.published import convert_state, our_name, translate_state
from sparse3d.models.backbones.mink_resnet import MinkResNet
from sparse3d.models.encoders import MeanEncoder
from sparse3d.models.heads.tsp3d_head import TSP3DHead
from sparse3d.models.heads.tsp3d_losses import near_boxes
from sparse3d.ops import backend
from sparse3d.structures import Boxes, VoxelGrid
from tests.conftest import fixture_files
from tests.voxel_cases import IMPLEMENTATIONS

FOLDERS = [
    path if not hasattr(path, "parent") else path.parent
    for path in fixture_files("ground*/**/arrays.npz")
]
FEATURES, BOXES, LOSSES, GRADIENTS = 1e-3, 1e-4, 1e-4, 2e-3
LEVELS = {"keep_conv.1": 2, "keep_conv.0": 1}

pytestmark = [
    pytest.mark.parity,
    pytest.mark.parametrize("implementation", IMPLEMENTATIONS),
    pytest.mark.parametrize("folder", FOLDERS, ids=lambda p: getattr(p, "name", "absent")),
]


@lru_cache(maxsize=1)
def load(folder):
    arrays = {}
    for name in ("inputs", "arrays"):
        with np.load(folder / f"{name}.npz") as data:
            arrays[name] = {key: torch.from_numpy(data[key]) for key in data.files}
    state = torch.load(folder / "state_dict_bf16.pt", weights_only=True)
    state = {k: v.float() if v.is_floating_point() else v for k, v in state.items()}
    return arrays["inputs"], arrays["arrays"], state, json.loads((folder / "meta.json").read_text())


def part(state, role):
    return {k.removeprefix(f"{role}."): v for k, v in state.items() if k.startswith(f"{role}.")}


def build(state, meta):
    """The model that the state dict and the settings describe."""
    own, size = part(state, "vision_backbone"), meta["voxel_size"]
    grid = VoxelGrid((size,) * 3, (0.0,) * 3)
    blocks = sorted({re.match(r"layer(\d)\.(\d+)\.", k).groups() for k in own if "layer" in k})
    stages = sorted({stage for stage, _ in blocks})
    depth = [sum(stage == s for stage, _ in blocks) for s in stages]
    widths = [own[f"layer{s}.0.conv1.kernel"].shape[2] for s in stages]
    columns, stem = own["conv1.kernel"].shape[1:]
    backbone = MinkResNet(columns, depth, widths, stem)
    backbone.load_state_dict(convert_state("vision_backbone", own, backbone))
    head = TSP3DHead(
        widths[-3:],
        grid,
        text_channels=8,
        dropout=0.0,
        thresholds=meta["prune_threshold"],
        completion_threshold=meta["com_threshold"],
        attended=meta["num_samples"],
        completion_limit=meta["num_samples_com"],
        keep_most=(meta["caps"]["0"], meta["caps"]["1"]),
        keep_cells=[r / 4 for r in meta["r"]],
        key_limit=None,
        padding_in_norm=True,
    )
    found = translate_state("head", part(state, "head"), head)
    missing, unexpected = head.load_state_dict(found, strict=False)
    assert not unexpected and all(name.startswith("text_projector") for name in missing)
    return MeanEncoder(grid, columns, max_points=1), backbone, head


def voxels_of(encoder, inputs):
    points = inputs["points"]
    scenes = torch.arange(len(points)).repeat_interleave(points.shape[1])
    return encoder(points.flatten(0, 1), scenes, len(points))


class Comparison:
    """Voxels and arrays against stored ones."""

    def __init__(self, arrays, prefix):
        self.arrays, self.prefix, self.count = arrays, prefix, 0

    def close(self, name, value, limit=FEATURES):
        expected = self.arrays[self.prefix + name].float()
        value = value.detach().reshape(expected.shape)
        worst = float((value - expected).abs().max()) if value.numel() else 0.0
        allowed = limit * max(1.0, float(expected.abs().max()) if expected.numel() else 1.0)
        assert worst <= allowed, f"{self.prefix}{name}: {worst} exceeds {allowed}"
        self.count += 1

    def voxels(self, name, voxels):
        coords = voxels.coords.clone()
        coords[:, 1:] *= voxels.stride[0]
        assert torch.equal(coords, self.arrays[f"{self.prefix}{name}.coords"]), name
        rows = voxels.features
        for kind, value in (("feats", rows), ("feats_c8", rows[:, :8]), ("feats_rowsum", None)):
            if f"{self.prefix}{name}.{kind}" in self.arrays:
                self.close(f"{name}.{kind}", rows.sum(1) if value is None else value)


def run(head, backbone, voxels, inputs):
    """The raw output, and what went in and out of the modules with a stored counterpart."""
    named = {
        "keep_trans.0": head.keep_encoders[0],
        "keep_trans.1": head.keep_encoders[1],
        "com_trans": head.completion,
        "up_block_1": head.up[0],
        "up_block_2": head.up[1],
        **{f"lateral_block_{i}": head.lateral[i] for i in range(3)},
        "out_block_0": head.out,
        "box": head.box,
    }
    seen = {}

    def keep(name):
        return lambda _, given, result: seen.__setitem__(name, (given, result))

    hooks = [module.register_forward_hook(keep(name)) for name, module in named.items()]
    raw = head.ground(backbone(voxels), inputs["text_feats"], inputs["text_pad_mask"])
    for hook in hooks:
        hook.remove()
    return raw, seen


def compare_stages(check, raw, seen):
    for name, level in LEVELS.items():
        judged = raw.kept[level]
        check.voxels(f"{name}.in", judged.voxels)
        check.voxels(f"{name}.out", judged.voxels.replace(judged.logits[:, None]))
    for name in ("keep_trans.1", "keep_trans.0", "com_trans"):
        given, result = seen[name]
        check.close(f"{name}.text_in", given[2])
        check.close(f"{name}.text_out", result[1])
    for name in ("lateral_block_2", "up_block_2", "lateral_block_1", "up_block_1"):
        check.voxels(f"{name}.out", seen[name][1])
    check.voxels("prune0.out", raw.remaining[2].replace(raw.remaining[2].features[:, :0]))
    check.voxels("prune1.out", raw.remaining[1].replace(raw.remaining[1].features[:, :0]))
    check.voxels("lateral_block_0.in", seen["lateral_block_0"][0][0])
    check.voxels("lateral_block_0.out", seen["lateral_block_0"][1])
    check.voxels("out_block_0.out", seen["out_block_0"][1])
    check.voxels("fuse.out", raw.voxels)
    stored = check.arrays[f"{check.prefix}com_logits_padded"]
    for scene in range(raw.voxels.batch_size):
        logits = raw.completion.logits[raw.completion.voxels.batch_index == scene].detach()
        expected = stored[scene, 0, : len(logits)]
        assert (logits.sort()[0] - expected.sort()[0]).abs().max() <= FEATURES


def test_inference_is_the_published_one(folder, implementation):
    inputs, arrays, state, meta = load(folder)
    encoder, backbone, head = build(state, meta)
    backbone.eval(), head.eval()
    with backend.forced(implementation), torch.no_grad():
        voxels = voxels_of(encoder, inputs)
        Comparison(arrays, "").voxels("input", voxels)
        for number, stage in enumerate(backbone(voxels)):
            Comparison(arrays, "").voxels(f"backbone.{number}", stage)
        raw, seen = run(head, backbone, voxels, inputs)
        found = head.predict(raw)
    check = Comparison(arrays, "eval.")
    compare_stages(check, raw, seen)
    assert check.count > 20
    places, offsets = head.points(raw.voxels), seen["box"][1]
    boxes = torch.cat([offsets[:, :3], offsets[:, 3:].exp()], 1)
    for scene, one in enumerate(found):
        rows = raw.voxels.batch_index == scene
        check.close(f"head.{scene}.points", places[rows], 1e-6)
        check.close(f"head.{scene}.bbox_raw", boxes[rows])
        check.close(f"head.{scene}.cls_logit", raw.logits[rows])
        stored = arrays[f"eval.result.{scene}.box"]
        assert (one.boxes.tensor[:, :6] - stored).abs().max() <= BOXES
        assert (one.scores - arrays[f"eval.result.{scene}.scores"]).abs().max() <= BOXES


def truth(inputs, scenes):
    boxes, targets, anchors = [], [], []
    for scene in range(scenes):
        known, target, beside = (inputs[f"{k}.{scene}"] for k in ("all_boxes", "gt_box", "aux_box"))
        rows = torch.cat([known, target, beside])
        boxes.append(Boxes(torch.cat([rows, torch.zeros(len(rows), 1)], 1)))
        targets.append(len(known))
        anchors.append(list(range(len(known) + len(target), len(rows))))
    return boxes, targets, anchors


def test_training_is_the_published_one(folder, implementation):
    inputs, arrays, state, meta = load(folder)
    encoder, backbone, head = build(state, meta)
    backbone.train(), head.train()
    with backend.forced(implementation):
        raw, seen = run(head, backbone, voxels_of(encoder, inputs), inputs)
        boxes, targets, anchors = truth(inputs, raw.voxels.batch_size)
        losses = head.loss(raw, boxes, targets, anchors)
        sum(losses.values()).backward()
    compare_stages(Comparison(arrays, "train."), raw, seen)
    for ours, theirs in {
        "box": "bbox",
        "class": "cls",
        "keep": "keep",
        "completion": "com",
    }.items():
        stored = float(arrays[f"train.loss.{theirs}_loss"])
        assert float(losses[f"loss_{ours}"].detach()) == pytest.approx(stored, abs=LOSSES)
    compare_keep_masks(arrays, head, raw, boxes, targets, anchors)
    modules = {"vision_backbone": backbone, "head": head}
    norms = json.loads((folder / "grad_norms.json").read_text())
    assert norms
    for name, norm in norms.items():
        role, own = name.split(".", 1)
        grad = modules[role].get_parameter(our_name(role, own)).grad
        # a bias before a batch norm has no gradient but rounding
        assert abs(float(grad.norm()) - norm) <= GRADIENTS * max(norm, 1e-3), name
        stored = arrays.get(f"train.grad.{name}")
        if stored is not None:
            grad = grad.t() if own.endswith(".kernel") and stored.dim() == 2 else grad
            # rounding that flips a ReLU changes single entries, not the direction
            away = float((grad.reshape(stored.shape) - stored).norm())
            assert away <= 1e-2 * float(stored.norm()), name


def compare_keep_masks(arrays, head, raw, boxes, targets, anchors):
    for level, judged in raw.kept.items():
        side = head.keep_cells[level - 1] * judged.voxels.stride[0] * head.grid.voxel_size[0]
        for scene, rows in enumerate(boxes):
            mine = judged.voxels.batch_index == scene
            wanted = rows.centers if level == 2 else rows.centers[[targets[scene], *anchors[scene]]]
            near = near_boxes(head.points(judged.voxels)[mine], wanted, side)
            assert int(mine.sum()) == int(arrays[f"train.keep.{level - 1}.{scene}.n"])
            assert int(near.sum()) == int(arrays[f"train.keep.{level - 1}.{scene}.n_pos_gt"])
