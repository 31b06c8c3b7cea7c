"""Sparse convolution in torch, one kernel offset at a time. The definition of ``ops.conv``."""

import torch
from torch import Tensor


def sparse_conv(
    features: Tensor, weight: Tensor, bias: Tensor | None, table: Tensor, groups: int
) -> Tensor:
    """[M, Cout]: the sum over offsets of features[table[k]] @ weight[k] where there is an input."""
    out = features.new_zeros(table.shape[1], weight.shape[2])
    for rows, kernel in zip(table, weight):
        outputs = (rows >= 0).nonzero().squeeze(1)
        gathered = features.index_select(0, rows[outputs].long())
        out.index_add_(0, outputs, _grouped_mm(gathered, kernel, groups))
    return out if bias is None else out + bias


def weight_grad(features: Tensor, grad: Tensor, table: Tensor, groups: int) -> Tensor:
    """[K, Cin / groups, Cout]: per offset, the sum of input rows times output gradient rows."""
    result = []
    for rows in table:
        outputs = (rows >= 0).nonzero().squeeze(1)
        inputs = features.index_select(0, rows[outputs].long())
        result.append(_grouped_outer(inputs, grad.index_select(0, outputs), groups))
    return torch.stack(result)


def _grouped_mm(rows: Tensor, kernel: Tensor, groups: int) -> Tensor:
    """[N, Cout] of rows [N, Cin] and kernel [Cin / groups, Cout]."""
    if groups == 1:
        return rows @ kernel
    parts = zip(rows.chunk(groups, 1), kernel.chunk(groups, 1))
    return torch.cat([part @ own for part, own in parts], 1)


def _grouped_outer(rows: Tensor, grad: Tensor, groups: int) -> Tensor:
    """[Cin / groups, Cout] of rows [N, Cin] and grad [N, Cout]."""
    parts = zip(rows.chunk(groups, 1), grad.chunk(groups, 1))
    return torch.cat([part.t() @ own for part, own in parts], 1)
