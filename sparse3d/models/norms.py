"""Batch norm over plain rows: points of a batch, or distinct values that occur several times."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparse3d.ops.norm import batch_norm


class RowBatchNorm(nn.BatchNorm1d):
    """Batch norm over the rows of a batch, by running statistics where there are fewer than two.

    Rows that occur often may be given once, with their counts: the statistics are those of all
    occurrences. State-dict names of ``nn.BatchNorm1d``.
    """

    def forward(self, rows: Tensor, counts: Tensor | None = None, relu: bool = False) -> Tensor:
        """Normalised ``rows`` [U, C]; ``counts`` [U] occurrences of each, one where None.

        ``relu``: negative results become 0, in the same pass where there is one.
        """
        rows = rows.float() if rows.dtype == torch.bfloat16 else rows  # statistics need the digits
        total = rows.shape[0] if counts is None else counts.sum()
        if not self.training or total < 2:
            out = self._by_running_statistics(rows)
            return F.relu(out) if relu else out
        if counts is None:
            out, mean, variance = batch_norm(rows, self.weight, self.bias, self.eps, relu)
        else:
            shares = (counts / total).to(rows.dtype)[:, None]
            mean = (shares * rows).sum(0)
            centred = rows - mean
            variance = (shares * centred.square()).sum(0)
            out = centred * (self.weight * (variance + self.eps).rsqrt()) + self.bias
            out = F.relu(out) if relu else out
        self._track(mean, variance * (total / (total - 1)))
        return out

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)

    def _by_running_statistics(self, rows: Tensor) -> Tensor:
        if torch.compiler.is_compiling():  # torch's op asks for the number of rows, then unknown
            scale = self.weight * (self.running_var + self.eps).rsqrt()
            return torch.addcmul(self.bias - self.running_mean * scale, rows, scale)
        statistics = (self.running_mean, self.running_var)
        return F.batch_norm(rows, *statistics, self.weight, self.bias, False, 0.0, self.eps)
