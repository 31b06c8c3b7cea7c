"""Definition in torch of ``ops/set_attention.py``."""

import torch
from torch import Tensor
from torch.nn import functional as F


def set_attention(
    qkv: Tensor,
    position: Tensor,
    position_index: Tensor,
    order: Tensor,
    offsets: Tensor,
    heads: int,
) -> Tensor:
    rows, channels = len(qkv), qkv.shape[1] // 3
    placed = qkv[:, : 2 * channels] + position[position_index]
    if not rows:
        return placed[:, :channels]
    counts = offsets.diff()
    slots = torch.arange(int(counts.max()), device=qkv.device)
    filled = slots < counts[:, None]  # [S, slots]
    index = order[(offsets[:-1, None] + slots).clamp(max=rows - 1)]

    def split(values: Tensor) -> Tensor:  # [N, C] -> [S, heads, slots, C / heads]
        return values[index].unflatten(2, (heads, -1)).transpose(1, 2)

    out = F.scaled_dot_product_attention(
        split(placed[:, :channels]),
        split(placed[:, channels:]),
        split(qkv[:, 2 * channels :]),
        attn_mask=filled[:, None, None, :],
    )
    place = torch.empty_like(order)
    place[order] = filled.flatten().nonzero().squeeze(1)
    return out.transpose(1, 2).flatten(2).flatten(0, 1)[place]
