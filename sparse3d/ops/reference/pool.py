"""Pooling over kernel maps in torch. The definition of ``ops.pool``."""

import torch
from torch import Tensor


def pool_sum(features: Tensor, table: Tensor) -> Tensor:
    """[M, C]: the sum of the rows that the table names; 0 where it names none."""
    out = features.new_zeros(table.shape[1], features.shape[1])
    for rows in table:
        outputs = (rows >= 0).nonzero().squeeze(1)
        out.index_add_(0, outputs, features.index_select(0, rows[outputs].long()))
    return out


def pool_max(features: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """Maxima [M, C] and the rows [M, C] int32 that hold them; 0 and -1 where the table names none.

    Of equal values the smallest row wins: rows are in the order of coordinates.
    """
    best = features.new_zeros(table.shape[1], features.shape[1])
    holder = torch.full(best.shape, -1, dtype=torch.int32, device=features.device)
    for rows in table:
        outputs = (rows >= 0).nonzero().squeeze(1)
        inputs = rows[outputs, None]
        value, old, owner = features[inputs.squeeze(1).long()], best[outputs], holder[outputs]
        wins = (owner < 0) | (value > old) | ((value == old) & (inputs < owner))
        best[outputs] = torch.where(wins, value, old)
        holder[outputs] = torch.where(wins, inputs, owner)
    return best, holder


def pool_max_grad(grad: Tensor, holder: Tensor, reverse: Tensor) -> Tensor:
    """[N, C]: each output's gradient goes to the row that held its maximum."""
    rows = torch.arange(reverse.shape[1], dtype=torch.int32, device=grad.device)
    out = grad.new_zeros(reverse.shape[1], grad.shape[1])
    for outputs in reverse:
        inputs = (outputs >= 0).nonzero().squeeze(1)
        source = outputs[inputs].long()
        out[inputs] += torch.where(holder[source] == rows[inputs, None], grad[source], 0)
    return out
