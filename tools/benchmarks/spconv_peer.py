"""spconv on CPU tensors, for comparison: its own maps, its own gradients, its own layers.

Cells are (batch, z, y, x) there. Rows keep the order that they are given in; the cells of strided
layers come in spconv's own order. ``available()`` tells whether it is installed.
"""

import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor, nn


def available() -> bool:
    return importlib.util.find_spec("spconv") is not None


class Pairs:
    """spconv's pairs of a kernel of 3, submanifold or of stride 2 with padding 1.

    Args:
        coords: [N, 4] int32 (batch, x, y, z).
        shape: cells along x, y, z.
        strided: whether the output cells are coarser.
    """

    def __init__(self, coords: Tensor, shape: tuple[int, ...], strided: bool):
        self.indices = coords[:, [0, 3, 2, 1]].contiguous()
        self.shape = list(shape[::-1])
        self.strided = strided
        self.cells, self.pairs, self.counts = self.build()

    def build(self) -> tuple[Tensor, Tensor, Tensor]:
        """Output cells, pairs and their counts; one sample."""
        from spconv.core import ConvAlgo
        from spconv.pytorch import ops

        step = [2] * 3 if self.strided else [1] * 3
        geometry = [3] * 3, step, [1] * 3, [1] * 3, [0] * 3
        return ops.get_indice_pairs(
            self.indices, 1, self.shape, ConvAlgo.Native, *geometry, subm=not self.strided
        )

    def convolution(self, inverse: bool = False) -> Callable[[Tensor, Tensor], Tensor]:
        """(features, filters) -> features; ``inverse``: from coarse to fine cells."""
        from spconv.core import ConvAlgo
        from spconv.pytorch import functional

        if inverse:
            function, rows = functional.indice_inverse_conv, len(self.indices)
        elif self.strided:
            function, rows = functional.indice_conv, len(self.cells)
        else:
            function, rows = functional.indice_subm_conv, len(self.indices)

        def call(features: Tensor, filters: Tensor) -> Tensor:
            return function(features, filters, self.pairs, self.counts, rows, ConvAlgo.Native)

        return call


def filters(weight: Tensor) -> Tensor:
    """Our weight [27, Cin, Cout] as spconv keeps it: a leaf [Cout, 3, 3, 3, Cin]."""
    _, inputs, outputs = weight.shape
    turned = weight.detach().permute(2, 0, 1).reshape(outputs, 3, 3, 3, inputs)
    return turned.contiguous().requires_grad_()


class ResBackbone(nn.Module):
    """VoxelResBackBone8x of spconv layers, as OpenPCDet defines it."""

    def __init__(self, in_channels: int, channels: tuple[int, ...], out_channels: int):
        super().__init__()
        import spconv.pytorch as sp
        from spconv.core import ConvAlgo

        self.native = {"algo": ConvAlgo.Native, "bias": False}
        self.sp = sp
        self.conv_input = self._block(self._same(in_channels, channels[0], "0"), channels[0])
        stages = [nn.ModuleList(_residual(self, channels[0], "1"))]
        for number, padding in enumerate((1, 1, (0, 1, 1)), start=1):
            narrow, wide = channels[number - 1 : number + 1]
            down = sp.SparseConv3d(narrow, wide, 3, 2, padding, **self.native)
            begin = self._block(down, wide)
            stages.append(nn.ModuleList([begin, *_residual(self, wide, str(number + 1))]))
        self.stages = nn.ModuleList(stages)
        thin = sp.SparseConv3d(channels[3], out_channels, (3, 1, 1), (2, 1, 1), 0, **self.native)
        self.conv_out = self._block(thin, out_channels)

    def _same(self, inputs: int, outputs: int, key: str) -> nn.Module:
        return self.sp.SubMConv3d(inputs, outputs, 3, indice_key=key, **self.native)

    def _block(self, conv: nn.Module, width: int) -> nn.Module:
        return self.sp.SparseSequential(conv, nn.BatchNorm1d(width, 1e-3, 0.01), nn.ReLU())

    def forward(self, features: Tensor, indices: Tensor, shape: list[int]) -> Tensor:
        """Features of the last cells, of ``indices`` [N, 4] (batch, z, y, x), one sample."""
        voxels = self.conv_input(self.sp.SparseConvTensor(features, indices, shape, 1))
        for stage in self.stages:
            for layer in stage:
                voxels = layer(voxels)
        return self.conv_out(voxels).features


class _Residual(nn.Module):
    """relu(x + bn(conv(relu(bn(conv x)))))."""

    def __init__(self, net: ResBackbone, width: int, key: str):
        super().__init__()
        self.first = net._block(net._same(width, width, key), width)
        self.second = net.sp.SparseSequential(
            net._same(width, width, key), nn.BatchNorm1d(width, 1e-3, 0.01)
        )

    def forward(self, voxels):
        hidden = self.second(self.first(voxels))
        return voxels.replace_feature(torch.relu(voxels.features + hidden.features))


def _residual(net: ResBackbone, width: int, key: str) -> list[nn.Module]:
    return [_Residual(net, width, key) for _ in range(2)]
