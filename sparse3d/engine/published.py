"""Published weights: from the reference implementations' parameter names and layouts to ours.

A reference model is made of roles: vfe, backbone_3d, backbone_2d, dense_head. Each role has a table
of rules here; the first rule whose pattern matches a whole name renames it, and a name that no rule
matches stays. Kernels of sparse convolutions change their layout by their shape.
"""

import re
from collections.abc import Mapping

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

RULES: dict[str, Rules] = {
    "vfe": [*_DYNAMIC_ENCODER],
    "backbone_3d": [*_DSVT],
    "backbone_2d": [],
    "dense_head": [],
}


def convert_state(role: str, state: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """The state dict that ``module`` loads, from a reference ``state`` of one role.

    Args:
        role: 'vfe', 'backbone_3d', 'backbone_2d' or 'dense_head'.
        state: tensors under the reference names, without the role's prefix.
        module: ours; it says which names and shapes are wanted.

    Raises:
        ValueError: the role is unknown, or names or shapes do not fit; the message lists them.
    """
    if role not in RULES:
        raise ValueError(f"role is {role!r}; it must be one of {', '.join(RULES)}")
    wanted = module.state_dict()
    converted = {}
    for name, tensor in state.items():
        ours = rename(name, RULES[role])
        converted[ours] = _layout(tensor, wanted[ours]) if ours in wanted else tensor
    _check(role, converted, wanted)
    return converted


def rename(name: str, rules: Rules) -> str:
    """``name`` by the first rule that matches it whole; itself where none does."""
    for pattern, replacement in rules:
        if re.fullmatch(pattern, name):
            return re.sub(pattern, replacement, name, count=1)
    return name


def _layout(tensor: Tensor, wanted: Tensor) -> Tensor:
    """``tensor``; a sparse kernel [Cout, (kz,) ky, kx, Cin] as [K, Cin, Cout] where that is wanted."""
    if wanted.dim() != 3 or tensor.dim() not in (4, 5):
        return tensor
    if all(size == 1 for size in tensor.shape[1:-1]):
        # spconv declares a 1x1 kernel (Cout, 1, .., Cin) but reads its memory as (Cin, Cout)
        return tensor.reshape(1, tensor.shape[-1], tensor.shape[0])
    return tensor.movedim(0, -1).reshape(-1, tensor.shape[-1], tensor.shape[0])


def _check(role: str, converted: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    problems = [f"unknown {name}" for name in converted.keys() - wanted.keys()]
    problems += [f"missing {name}" for name in wanted.keys() - converted.keys()]
    problems += [
        f"{name} has shape {tuple(converted[name].shape)}, not {tuple(wanted[name].shape)}"
        for name in converted.keys() & wanted.keys()
        if converted[name].shape != wanted[name].shape
    ]
    if problems:
        shown = "\n  ".join(sorted(problems)[:20])
        raise ValueError(
            f"{len(problems)} tensors of {role} do not fit the model (its configuration differs "
            f"from the one the weights belong to?):\n  {shown}"
        )
