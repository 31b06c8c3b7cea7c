"""Batch norm over plain rows: points of a batch, or distinct values that occur several times."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class RowBatchNorm(nn.BatchNorm1d):
    """Batch norm over the rows of a batch, by running statistics where there are fewer than two.

    Rows that occur often may be given once, with their counts: the statistics are those of all
    occurrences. State-dict names of ``nn.BatchNorm1d``.
    """

    def forward(self, rows: Tensor, counts: Tensor | None = None) -> Tensor:
        """Normalised ``rows`` [U, C]; ``counts`` [U] occurrences of each, one where None."""
        rows = rows.float() if rows.dtype == torch.bfloat16 else rows  # statistics need the digits
        if not self.training:
            return self._normalize(rows, False)
        if counts is None:
            return self._normalize(rows, False) if len(rows) < 2 else super().forward(rows)
        total = counts.sum()
        if total < 2:
            return self._normalize(rows, False)
        shares = (counts / total).to(rows.dtype)[:, None]
        mean = (shares * rows).sum(0)
        centred = rows - mean
        variance = (shares * centred.square()).sum(0)
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (total / (total - 1)), self.momentum)
        return centred * (self.weight * (variance + self.eps).rsqrt()) + self.bias

    def _normalize(self, rows: Tensor, training: bool) -> Tensor:
        statistics = (self.running_mean, self.running_var)
        return F.batch_norm(rows, *statistics, self.weight, self.bias, training, 0.0, self.eps)
