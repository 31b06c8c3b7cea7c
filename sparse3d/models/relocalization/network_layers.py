"""Layers of the learned features, named as their published weights are."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class DeformableConv(nn.Module):
    """A 3 x 3 convolution whose taps move by what another one says; zero outside."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.offset_conv = nn.Conv2d(inputs, 18, 3, padding=1)
        self.regular_conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        most = max(height, width) / 4
        moved = self.offset_conv(x).clamp(-most, most).unflatten(1, (9, 2))
        y = torch.arange(height, dtype=x.dtype)[:, None]
        xs = torch.arange(width, dtype=x.dtype)[None]
        out = 0
        weight = self.regular_conv.weight
        for tap in range(9):
            rows = y + tap // 3 - 1 + moved[:, tap, 0]
            columns = xs + tap % 3 - 1 + moved[:, tap, 1]
            grid = torch.stack([columns / (width - 1), rows / (height - 1)], -1) * 2 - 1
            values = F.grid_sample(x, grid, padding_mode="zeros", align_corners=True)
            out = out + F.conv2d(values, weight[:, :, tap // 3, tap % 3, None, None])
        return out


class Block(nn.Module):
    """Two convolutions with norms, residual where ``residual``."""

    def __init__(self, inputs: int, outputs: int, activation, residual: bool, deformable: bool):
        super().__init__()

        def conv(i: int) -> nn.Module:
            if deformable:
                return DeformableConv(i, outputs)
            return nn.Conv2d(i, outputs, 3, padding=1, bias=False)

        self.conv1, self.bn1 = conv(inputs), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = conv(outputs), nn.BatchNorm2d(outputs)
        self.downsample = nn.Conv2d(inputs, outputs, 1) if residual else None
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        out = self.activation(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.activation(out if self.downsample is None else out + self.downsample(x))


class Encoder(nn.Module):
    """ALIKE's pyramid: four blocks, their maps brought to full size and joined."""

    def __init__(self, widths: tuple[int, ...], deformable: bool, extra: bool = False):
        super().__init__()
        *stages, dim = widths
        self.activation = F.selu if deformable else F.relu
        self.pool = F.avg_pool2d if deformable else F.max_pool2d
        bounds = (3, *stages)
        for number in range(4):
            late = number > 1
            block = Block(
                *bounds[number : number + 2], self.activation, number > 0, deformable and late
            )
            setattr(self, f"block{number + 1}", block)
            setattr(self, f"conv{number + 1}", nn.Conv2d(stages[number], dim // 4, 1, bias=False))
        if deformable:
            self.score_head = nn.Sequential(
                nn.Conv2d(dim, 8, 1, bias=False),
                nn.SELU(),
                nn.Conv2d(8, 4, 3, padding=1, bias=False),
                nn.SELU(),
                nn.Conv2d(4, 4, 3, padding=1, bias=False),
                nn.SELU(),
                nn.Conv2d(4, 1, 3, padding=1, bias=False),
            )
        else:
            self.convhead1 = nn.Conv2d(dim, dim, 1, bias=False) if extra else None
            self.convhead2 = nn.Conv2d(dim, dim + 1, 1, bias=False)

    def levels(self, x: Tensor) -> Tensor:
        """[B, dim, H, W] joined maps; H and W are multiples of 32."""
        maps = []
        for number, reduce in enumerate((1, 2, 4, 4)):
            x = self.pool(x, reduce, reduce) if reduce > 1 else x
            x = getattr(self, f"block{number + 1}")(x)
            level = self.activation(getattr(self, f"conv{number + 1}")(x))
            scale = (1, 2, 8, 32)[number]
            maps.append(
                F.interpolate(level, scale_factor=scale, mode="bilinear", align_corners=True)
                if scale > 1
                else level
            )
        return torch.cat(maps, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, dim + 1, H, W]: descriptors and a score before the sigmoid."""
        x = self.levels(x)
        if self.convhead1 is not None:
            x = self.activation(self.convhead1(x))
        return self.convhead2(x)


class DescriptorHead(nn.Module):
    """ALIKED's: samples of the map around a key point, each with a matrix of its own."""

    def __init__(self, dim: int, samples: int):
        super().__init__()
        self.samples = samples
        self.offset_conv = nn.Sequential(
            nn.Conv2d(dim, 2 * samples, 3), nn.SELU(), nn.Conv2d(2 * samples, 2 * samples, 1)
        )
        self.sf_conv = nn.Conv2d(dim, dim, 1, bias=False)
        self.agg_weights = nn.Parameter(torch.zeros(samples, dim, dim))

    def forward(self, dense: Tensor, points: Tensor) -> Tensor:
        """[N, C] unit descriptors of [1, C, H, W] at ``points`` [N, 2]."""
        height, width = dense.shape[2:]
        if not len(points):
            return dense.new_zeros(0, dense.shape[1])
        x, y = points.long().unbind(1)
        around = F.pad(dense[0], (1, 1, 1, 1))
        steps = torch.arange(3)
        patch = around[:, (y[:, None] + steps)[:, :, None], (x[:, None] + steps)[:, None]]
        most = max(height, width) / 4
        moved = self.offset_conv(patch.movedim(1, 0)).flatten(1).clamp(-most, most)
        moved = torch.stack(moved.split(self.samples, 1), -1)  # [N, M, 2], x first
        last = points.new_tensor([width - 1, height - 1])
        grid = ((points[:, None] + moved) / last * 2 - 1)[None]
        values = F.grid_sample(dense, grid, align_corners=True)  # [1, C, N, M]
        values = F.selu(self.sf_conv(values))[0]
        return F.normalize(torch.einsum("cnm,mcd->nd", values, self.agg_weights), dim=1)


class BasicLayer(nn.Module):
    """Convolution, norm without weights, ReLU."""

    def __init__(self, inputs: int, outputs: int, size: int = 3, stride: int = 1):
        super().__init__()
        self.layer = nn.Sequential(
            nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False),
            nn.BatchNorm2d(outputs, affine=False),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class XFeatNet(nn.Module):
    """XFeat's network."""

    def __init__(self):
        super().__init__()
        self.norm = nn.InstanceNorm2d(1)
        self.skip1 = nn.Sequential(nn.AvgPool2d(4), nn.Conv2d(1, 24, 1))
        self.block1 = _layers((1, 4, 8, 8, 24), (1, 2, 1, 2))
        self.block2 = _layers((24, 24, 24), (1, 1))
        self.block3 = _layers((24, 64, 64, 64), (2, 1, 1), last=1)
        self.block4 = _layers((64, 64, 64, 64), (2, 1, 1))
        self.block5 = _layers((64, 128, 128, 128, 64), (2, 1, 1, 1), last=1)
        self.block_fusion = nn.Sequential(
            BasicLayer(64, 64), BasicLayer(64, 64), nn.Conv2d(64, 64, 1)
        )
        self.heatmap_head = nn.Sequential(
            BasicLayer(64, 64, 1), BasicLayer(64, 64, 1), nn.Conv2d(64, 1, 1), nn.Sigmoid()
        )
        self.keypoint_head = nn.Sequential(
            BasicLayer(64, 64, 1),
            BasicLayer(64, 64, 1),
            BasicLayer(64, 64, 1),
            nn.Conv2d(64, 65, 1),
        )

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Descriptors [B, 64, h, w], key point logits [B, 65, h, w], reliability [B, 1, h, w]."""
        x = self.norm(image.mean(1, keepdim=True))
        first = self.block1(x) + self.skip1(x)
        third = self.block3(self.block2(first))
        fourth = self.block4(third)
        fifth = self.block5(fourth)
        size = third.shape[2:]
        up = [F.interpolate(m, size, mode="bilinear") for m in (fourth, fifth)]
        dense = self.block_fusion(third + up[0] + up[1])
        cells = F.pixel_unshuffle(x, 8)
        return F.normalize(dense, dim=1), self.keypoint_head(cells), self.heatmap_head(dense)


def _layers(widths: tuple[int, ...], strides: tuple[int, ...], last: int = 3) -> nn.Sequential:
    sizes = [3] * (len(strides) - 1) + [last]
    return nn.Sequential(
        *(BasicLayer(a, b, k, s) for a, b, k, s in zip(widths, widths[1:], sizes, strides))
    )
