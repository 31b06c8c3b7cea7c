"""Weighted sums of chosen rows: the torch definition."""

import torch
from torch import Tensor


def weighted_rows(values: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """[Q, C]: the sum over k of weights[q, k] values[index[q, k]]; an index of -1 adds nothing."""
    out = values.new_zeros(len(index), values.shape[1])
    for k in range(index.shape[1]):  # one neighbour after the other: memory stays linear
        present = index[:, k] >= 0
        rows = values[index[present, k]]
        out[present] += weights[present, k, None] * rows
    return out


def weighted_rows_backward(
    grad: Tensor, values: Tensor, index: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients [N, C] by the values and [Q, K] by the weights."""
    d_values, d_weights = torch.zeros_like(values), torch.zeros_like(weights)
    for k in range(index.shape[1]):
        present = index[:, k] >= 0
        rows = index[present, k]
        d_values.index_add_(0, rows, weights[present, k, None] * grad[present])
        d_weights[present, k] = (grad[present] * values[rows]).sum(1)
    return d_values, d_weights
