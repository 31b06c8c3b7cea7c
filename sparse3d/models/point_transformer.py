"""Attention among all points of a cloud."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .norms import RowBatchNorm


class PointTransformer(nn.Module):
    """One head of attention over a cloud; a small network on xyz tells where a point is.

    Args:
        channels: of the features; the positions' hidden layer has half as many.

    Source: SCTN, https://arxiv.org/abs/2105.04447. No residual, no feed-forward network, no layer
    norm; parts are named as in its published state dicts.
    """

    def __init__(self, channels: int):
        super().__init__()
        half = channels // 2
        self.point_net = nn.Sequential(
            nn.Linear(3, half),
            RowBatchNorm(half),
            nn.ReLU(),
            nn.Linear(half, channels),
            RowBatchNorm(channels),
            nn.ReLU(),
        )
        self.w_qs = nn.Linear(channels, channels, bias=False)
        self.w_ks = nn.Linear(channels, channels, bias=False)
        self.w_vs = nn.Linear(channels, channels, bias=False)

    def forward(self, points: Tensor, features: Tensor, counts: list[int]) -> Tensor:
        """[P, C] what each point gathers from its cloud.

        Args:
            points: [P, 3] metres, cloud after cloud.
            features: [P, C].
            counts: points of each cloud.
        """
        hidden = features + self.point_net(points)
        parts = []
        for cloud in hidden.split(counts):
            q, k, v = (layer(cloud)[None, None] for layer in (self.w_qs, self.w_ks, self.w_vs))
            parts.append(F.scaled_dot_product_attention(q, k, v)[0, 0] if len(cloud) else cloud)
        return torch.cat(parts)
