"""Published weights: from the reference implementations' parameter names and layouts to ours.

A reference model is made of roles: vfe, backbone_3d, backbone_2d, dense_head of a detector;
vision_backbone, text_projector, head of TSP3D; scene_flow is the whole of FLOT or SCTN. Each role
has a table of rules here; the first rule whose pattern matches a whole name renames it, and a name
that no rule matches stays. Kernels of sparse convolutions change their layout by their shape.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

Rules = list[tuple[str, str]]

# DynamicPillarVFE and its voxel variant -> DynamicEncoder.
_DYNAMIC_ENCODER: Rules = [(r"pfn_layers\.(.*)", r"layers.\1")]

# DSVT -> DSVT.
_DSVT: Rules = [
    (
        r"input_layer\.posembed_layers\.(\d+)\.(\d+)\.(\d+)\.position_embedding_head\.(.*)",
        r"stages.\1.blocks.\2.position_embeddings.\3.\4",
    ),
    (
        r"stage_(\d+)\.(\d+)\.encoder_list\.(\d+)\.(?:win_attn\.)?(.*)",
        r"stages.\1.blocks.\2.layers.\3.\4",
    ),
    (r"residual_norm_stage_(\d+)\.(\d+)\.(.*)", r"stages.\1.blocks.\2.norm.\3"),
    (r"stage_(\d+)_reduction\.(.*)", r"stages.\1.reduction.\2"),
]

# TransFusionHead -> TransFusionHead. CenterHead and the BEV backbones keep their names.
_TRANSFUSION: Rules = [
    (r"heatmap_head\.0\.conv\.(.*)", r"heatmap_head.0.0.\1"),
    (r"heatmap_head\.0\.bn\.(.*)", r"heatmap_head.0.1.\1"),
    (r"decoder\.(\w+_posembed)\.position_embedding_head\.(.*)", r"decoder.\1.\2"),
]

# TSP3D's head -> TSP3DHead.
_FUSION: Rules = [
    (rf"{theirs}\.layers\.(\d)\.{part}\.(.*)", rf"{ours}.layers.\2.{block}.\3")
    for theirs, ours in ((r"keep_trans\.(\d)", r"keep_encoders.\1"), ("com_trans()", "completion"))
    for part, block in (
        (r"self_attention_visual\.self_attn", "voxels_self.attention"),
        (r"self_attention_visual\.norm1", "voxels_self.norm"),
        (r"self_attention_lang\.self_attn", "words_self.attention"),
        (r"self_attention_lang\.norm1", "words_self.norm"),
        (r"cross_layer\.cross_lv", "words_cross.attention"),
        (r"cross_layer\.norm_lv", "words_cross.norm"),
        (r"cross_layer\.ffn_lv", "words_forward.layers"),
        (r"cross_layer\.norm_lv2", "words_forward.norm"),
        (r"cross_layer\.cross_vl", "voxels_cross.attention"),
        (r"cross_layer\.norm_vl", "voxels_cross.norm"),
        (r"cross_layer\.ffn_vl", "voxels_forward.layers"),
        (r"cross_layer\.norm_vl2", "voxels_forward.norm"),
    )
]
_TSP3D_HEAD: Rules = [
    *_FUSION,
    (r"pos_embed\.position_embedding_head\.0\.(.*)", r"positions.inner.\1"),
    (r"pos_embed\.position_embedding_head\.1\.(.*)", r"positions.norm.\1"),
    (r"pos_embed\.position_embedding_head\.3\.(.*)", r"positions.outer.\1"),
    (r"keep_conv\.(.*)", r"keep_logits.\1"),
    (r"com_cls\.(.*)", r"completion_logit.\1"),
    (r"up_block_1\.(.*)", r"up.0.\1"),
    (r"up_block_2\.(.*)", r"up.1.\1"),
    (r"lateral_block_(\d)\.(.*)", r"lateral.\1.\2"),
    (r"out_block_0\.(.*)", r"out.\1"),
    (r"fuse\.conv\.(.*)", r"fuse.\1"),
    (r"fuse\.norm\.(.*)", r"fuse_norm.\1"),
    (r"bbox_conv\.(.*)", r"box.\1"),
    (r"cls_conv\.(.*)", r"score.\1"),
]

# FLOT -> FLOT, which keeps its names, and SCTN -> SCTN.
_SCENE_FLOW: Rules = [
    (r"minkowski_extractor\.(.*)", r"backbone.\1"),
    (r"pct\.(.*)", r"attention.\1"),
]

PARTS = {
    "vfe": "encoder",
    "backbone_3d": "backbone",
    "backbone_2d": "bev_backbone",
    "dense_head": "head",
    "vision_backbone": "backbone",
    "text_projector": "head.text_projector",
    "head": "head",
}
"""Where a VoxelDetector or a TextGrounder has the module of each role."""

MINKOWSKI = ("vision_backbone", "head", "scene_flow")
"""Roles whose reference is written with MinkowskiEngine, whose modules wrap their parameters."""

LAYOUTS = ("spconv1", "spconv2")

RULES: dict[str, Rules] = {
    "vfe": [*_DYNAMIC_ENCODER],
    "backbone_3d": [*_DSVT],
    "backbone_2d": [],
    "dense_head": [*_TRANSFUSION],
    "vision_backbone": [],
    "text_projector": [],
    "head": [*_TSP3D_HEAD],
    "scene_flow": [*_SCENE_FLOW],
}


@dataclass(frozen=True, eq=False)
class Conversion:
    """What came of the weights of a whole reference model.

    Attributes:
        state: tensors under our names, for ``load_state_dict``.
        missing: our names that the reference has nothing for.
        leftover: reference names of roles that our model has, but with no place in it.
        foreign: reference names of anything else (a second stage, counters).
    """

    state: dict[str, Tensor]
    missing: list[str]
    leftover: list[str]
    foreign: list[str]


def convert_detector(
    state: Mapping[str, Tensor], model: nn.Module, layout: str = "auto"
) -> Conversion:
    """The weights of a VoxelDetector from those of a whole reference model.

    Args:
        state: tensors under reference names with their role ('backbone_3d.conv1.0.0.weight').
        model: ours; it says which names and shapes are wanted.
        layout: of sparse kernels, as in ``convert_state``.

    Raises:
        ValueError: tensors of another shape than the model's, or an unclear layout.
    """
    whole = getattr(model, "published_role", None)
    if whole is not None:
        return _convert_whole(whole, state, model, layout)
    wanted, found, leftover = model.state_dict(), {}, []
    for role, part in PARTS.items():
        own = {n[len(role) + 1 :]: t for n, t in state.items() if n.startswith(f"{role}.")}
        module = _inner(model, part)
        if module is None:
            leftover += [f"{role}.{name}" for name in own]
            continue
        translated = translate_state(role, own, module, layout)
        for name in own:
            ours = our_name(role, name)
            if f"{part}.{ours}" in wanted:
                found[f"{part}.{ours}"] = translated[ours]
            else:
                leftover.append(f"{role}.{name}")
    _refuse("the checkpoint", _misshapen(found, wanted))
    foreign = [name for name in state if name.split(".")[0] not in PARTS]
    missing = [name for name in wanted if name not in found]
    return Conversion(found, missing, leftover, foreign)


def _convert_whole(
    role: str, state: Mapping[str, Tensor], model: nn.Module, layout: str
) -> Conversion:
    """As ``convert_detector`` for a model that is one role: names have no prefix."""
    wanted = model.state_dict()
    found = {n: t for n, t in translate_state(role, state, model, layout).items() if n in wanted}
    _refuse("the checkpoint", _misshapen(found, wanted))
    leftover = [name for name in state if our_name(role, name) not in wanted]
    return Conversion(found, [name for name in wanted if name not in found], leftover, [])


def convert_state(
    role: str, state: Mapping[str, Tensor], module: nn.Module, layout: str = "auto"
) -> dict[str, Tensor]:
    """The state dict that ``module`` loads, from a reference ``state`` of one role.

    Args:
        role: one of ``RULES``.
        state: tensors under the reference names, without the role's prefix.
        module: ours; it says which names and shapes are wanted.
        layout: of sparse kernels, 'spconv1', 'spconv2' or 'auto': the one whose shapes fit.

    Raises:
        ValueError: the role or layout is unknown, both layouts fit, or names or shapes do not fit;
            the message lists them.
    """
    converted = translate_state(role, state, module, layout)
    _check(role, converted, module.state_dict())
    return converted


def translate_state(
    role: str, state: Mapping[str, Tensor], module: nn.Module, layout: str = "auto"
) -> dict[str, Tensor]:
    """As ``convert_state``, without asking whether the result is all that ``module`` needs."""
    if role not in RULES:
        raise ValueError(f"role is {role!r}; it must be one of {', '.join(RULES)}")
    wanted = module.state_dict()
    renamed = {}
    for name, tensor in state.items():
        ours = our_name(role, name)
        linear = ours in wanted and wanted[ours].dim() < 3
        renamed[ours] = _linear(name, tensor) if linear else tensor
    kernels = {
        name: tensor
        for name, tensor in renamed.items()
        if name in wanted and wanted[name].dim() == 3 and tensor.dim() in (4, 5)
    }
    layout = _choose_layout(kernels, wanted, layout)
    renamed.update({name: _kernel(tensor, layout) for name, tensor in kernels.items()})
    return {name: _like(tensor, wanted.get(name)) for name, tensor in renamed.items()}


def our_name(role: str, name: str) -> str:
    """The name that a tensor of a role has in our module."""
    if role in MINKOWSKI:
        name = re.sub(r"\.kernel$", ".weight", name).replace(".bn.", ".")
    return rename(name, RULES[role])


def rename(name: str, rules: Rules) -> str:
    """``name`` by the first rule that matches it whole; itself where none does."""
    for pattern, replacement in rules:
        if re.fullmatch(pattern, name):
            return re.sub(pattern, replacement, name, count=1)
    return name


def _linear(name: str, tensor: Tensor) -> Tensor:
    """A 1x1 convolution's parameter as that of a linear layer; others as they are.

    MinkowskiEngine's are (Cin, Cout) with a bias (1, Cout), torch's Conv1d (Cout, Cin, 1).
    """
    if name.endswith(".kernel"):
        return tensor.t()
    if name.endswith(".bias"):
        return tensor.reshape(-1)
    return tensor.squeeze(-1) if tensor.dim() == 3 else tensor


def _like(tensor: Tensor, wanted: Tensor | None) -> Tensor:
    """``tensor`` with the axes of length one that ``wanted`` has, where that is all they differ in.

    A 1x1 convolution is declared (Cout, Cin, 1, 1) or (Cin, Cout), a scalar [1] or [].
    """
    if wanted is None or tensor.shape == wanted.shape:
        return tensor
    theirs, ours = ([n for n in t.shape if n != 1] for t in (tensor, wanted))
    return tensor.reshape(wanted.shape) if theirs == ours else tensor


def _inner(model: nn.Module, path: str) -> nn.Module | None:
    """The module at a dotted ``path``, None where there is none."""
    for name in path.split("."):
        model = getattr(model, name, None)
    return model


def _choose_layout(kernels: Mapping[str, Tensor], wanted: Mapping[str, Tensor], layout: str) -> str:
    """``layout``, or for 'auto' the one that gives all ``kernels`` their wanted shape."""
    if layout not in ("auto", *LAYOUTS):
        raise ValueError(f"layout is {layout!r}; it must be one of auto, {', '.join(LAYOUTS)}")
    if layout != "auto" or not kernels:
        return layout
    fitting = [
        option
        for option in LAYOUTS
        if all(
            _kernel(kernel, option).shape == wanted[name].shape for name, kernel in kernels.items()
        )
    ]
    if len(fitting) > 1:
        name, kernel = next(iter(kernels.items()))
        raise ValueError(
            f"sparse kernels such as {name} {tuple(kernel.shape)} fit the layouts of spconv 1 "
            "(kz, ky, kx, in, out) and of spconv 2 (out, kz, ky, kx, in): say which by "
            "layout='spconv1' or layout='spconv2'"
        )
    return fitting[0] if fitting else "spconv2"


def _kernel(kernel: Tensor, layout: str) -> Tensor:
    """A sparse ``kernel`` of spconv as ours, [K, Cin, Cout].

    spconv 1 has (kz, ky, kx, Cin, Cout), spconv 2 (Cout, kz, ky, kx, Cin); both x fastest.
    """
    if layout == "spconv1":
        return kernel.reshape(-1, *kernel.shape[-2:])
    outputs, inputs = kernel.shape[0], kernel.shape[-1]
    if all(size == 1 for size in kernel.shape[1:-1]):
        # spconv declares a 1x1 kernel (Cout, 1, .., Cin) but reads its memory as (Cin, Cout)
        return kernel.reshape(1, inputs, outputs)
    return kernel.movedim(0, -1).reshape(-1, inputs, outputs)


def _check(role: str, converted: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    problems = [f"unknown {name}" for name in converted.keys() - wanted.keys()]
    problems += [f"missing {name}" for name in wanted.keys() - converted.keys()]
    _refuse(role, problems + _misshapen(converted, wanted))


def _misshapen(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    return [
        f"{name} has shape {tuple(found[name].shape)}, not {tuple(wanted[name].shape)}"
        for name in found.keys() & wanted.keys()
        if found[name].shape != wanted[name].shape
    ]


def _refuse(what: str, problems: list[str]) -> None:
    if problems:
        shown = "\n  ".join(sorted(problems)[:20])
        raise ValueError(
            f"{len(problems)} tensors of {what} do not fit the model (its configuration differs "
            f"from the one the weights belong to?):\n  {shown}"
        )
