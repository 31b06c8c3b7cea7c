"""Layers on SparseVoxels. Convolutions share kernel maps through the voxels' cache."""

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparse3d.ops import kernel_map
from sparse3d.ops.conv import sparse_conv, sparse_conv_norm
from sparse3d.ops.kernel_map import KernelMap, Size, axes
from sparse3d.ops.norm import batch_norm
from sparse3d.ops.pool import global_pool, sparse_pool
from sparse3d.structures import IndexCache, SparseVoxels

from .norms import RowBatchNorm


class SubMConv(nn.Module):
    """Submanifold convolution: the output cells are the input cells.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: odd, one number or one per axis (x, y, z).
        dilation: cells between neighbouring offsets.
        bias: whether a bias is added.
        groups: channel groups that do not mix.
        dims: 3, or 2 for maps.

    Raises:
        ValueError: an even kernel size, or groups that do not divide the channels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size = 3,
        dilation: Size = 1,
        bias: bool = False,
        groups: int = 1,
        dims: int = 3,
    ):
        super().__init__()
        self.kernel_size = kernel_map.odd_axes(kernel_size, dims)
        self.dilation = axes(dilation, dims, "dilation")
        self.groups = groups
        self.weight, self.bias = _parameters(
            in_channels, out_channels, self.kernel_size, bias, groups
        )

    def forward(self, voxels: SparseVoxels, ending: "Ending | None" = None) -> SparseVoxels:
        """``ending``: what is done to the features in the same pass, in inference."""
        found = submanifold(voxels, self.kernel_size, self.dilation)
        return voxels.replace(_convolve(self, voxels.features, found, ending))

    def extra_repr(self) -> str:
        return _describe(self)


class _GeometricConv(nn.Module):
    """Parameters and geometry of a convolution between two sets of cells.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: one number or one per axis (x, y, z).
        stride: fine cells per coarse cell.
        padding: 'spconv': default 0; 'minkowski': follows from the kernel, leave it out.
        bias: whether a bias is added.
        meaning: which output cells there are, 'spconv' or 'minkowski'.
        dims: 3, or 2 for maps.
        dilation: cells between neighbouring offsets.
        groups: channel groups that do not mix.

    Raises:
        ValueError: sizes that are not positive, an unknown meaning, a padding that the meaning
            excludes, or groups that do not divide the channels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size = 3,
        stride: Size = 1,
        padding: Size | None = None,
        bias: bool = False,
        meaning: str = "spconv",
        dims: int = 3,
        dilation: Size = 1,
        groups: int = 1,
    ):
        super().__init__()
        _set_geometry(self, kernel_size, stride, padding, dilation, meaning, dims)
        self.groups = groups
        self.weight, self.bias = _parameters(
            in_channels, out_channels, self.kernel_size, bias, groups
        )

    def extra_repr(self) -> str:
        return _describe(self)


class StridedConv(_GeometricConv):
    """Convolution to coarser cells (with stride 1: to a grown set of cells).

    'spconv' makes every output cell that an input reaches, inside the output grid if there is one;
    'minkowski' exactly floor(cell / stride).
    """

    def forward(self, voxels: SparseVoxels, ending: "Ending | None" = None) -> SparseVoxels:
        """``ending``: what is done to the features in the same pass, in inference."""
        found, cache = strided(voxels, self.geometry, self.meaning)
        features = _convolve(self, voxels.features, found, ending)
        return coarser(voxels, features, found, cache, self.stride)


class InverseConv(_GeometricConv):
    """The way back up: from coarse cells onto fine cells that are known already.

    The kernel meets the triples of a StridedConv of the same geometry, reversed, with weights of
    its own: spconv's SparseInverseConv3d, and MinkowskiEngine's transposed convolution in a U-Net.
    """

    def forward(self, coarse: SparseVoxels, like: SparseVoxels) -> SparseVoxels:
        """Carries ``coarse`` to the cells of ``like``, whose cache may know the way down."""
        table, reverse = downward_tables(like, coarse, self.geometry, self.meaning)
        features = sparse_conv(coarse.features, self.weight, reverse, table, self.bias, self.groups)
        return like.replace(features)


class TransposedConv(_GeometricConv):
    """Generative transposed convolution: every finer cell that an input reaches comes to exist.

    'spconv' keeps the outputs inside the output grid if there is one, 'minkowski' is unbounded.
    """

    def forward(self, voxels: SparseVoxels) -> SparseVoxels:
        """Raises ValueError where ``stride`` does not divide the stride of ``voxels``."""
        found, cache = self._map(voxels)
        return self._finer(voxels, _convolve(self, voxels.features, found), found, cache)

    def cells(self, voxels: SparseVoxels) -> SparseVoxels:
        """The cells that ``forward`` makes, without features; raises the same."""
        found, cache = self._map(voxels)
        return self._finer(
            voxels, voxels.features.new_zeros(len(found.out_coords), 0), found, cache
        )

    def onto(self, voxels: SparseVoxels, some: SparseVoxels) -> SparseVoxels:
        """What ``forward`` computes, for ``some`` of its cells alone."""
        table = kernel_map.offset_table(some.coords, voxels.coords, *self.geometry)
        reverse = kernel_map.reverse_table(table, len(some))
        features = sparse_conv(voxels.features, self.weight, reverse, table, self.bias, self.groups)
        return some.replace(features)

    def _map(self, voxels: SparseVoxels) -> tuple[KernelMap, IndexCache]:
        if any(have % by for have, by in zip(voxels.stride, self.stride)):
            raise ValueError(
                f"voxels have stride {voxels.stride}, which {self.stride} does not divide: there "
                "are no finer cells of whole base cells"
            )
        return voxels.cache.get(
            ("generative", self.geometry, self.meaning),
            lambda: (
                kernel_map.generative_map(
                    voxels.coords, *self.geometry, voxels.shape, self.meaning
                ),
                IndexCache(),
            ),
        )

    def _finer(
        self, voxels: SparseVoxels, features: Tensor, found: KernelMap, cache: IndexCache
    ) -> SparseVoxels:
        return SparseVoxels(
            features,
            found.out_coords,
            voxels.grid,
            voxels.batch_size,
            tuple(have // by for have, by in zip(voxels.stride, self.stride)),
            found.out_shape,
            cache,
        )


class VoxelPool(nn.Module):
    """Pooling to coarser cells over the cells that are present.

    Args:
        reduce: 'max', 'mean' (divided by the number of present cells) or 'sum'.
        kernel_size, stride, padding, meaning, dims: as in ``StridedConv``.
    """

    def __init__(
        self,
        reduce: str,
        kernel_size: Size = 2,
        stride: Size = 2,
        padding: Size | None = None,
        meaning: str = "minkowski",
        dims: int = 3,
    ):
        super().__init__()
        _set_geometry(self, kernel_size, stride, padding, 1, meaning, dims)
        self.reduce = reduce

    def forward(self, voxels: SparseVoxels) -> SparseVoxels:
        found, cache = strided(voxels, self.geometry, self.meaning)
        features = sparse_pool(voxels.features, found.table, found.reverse, self.reduce)
        return coarser(voxels, features, found, cache, self.stride)


class VoxelUnpool(nn.Module):
    """Gives every known fine cell the sum of the coarse cells that it reached when pooled.

    With a kernel as large as the stride that is the value of its one coarse cell. Arguments as in
    ``VoxelPool``.
    """

    def __init__(
        self,
        kernel_size: Size = 2,
        stride: Size = 2,
        padding: Size | None = None,
        meaning: str = "minkowski",
        dims: int = 3,
    ):
        super().__init__()
        _set_geometry(self, kernel_size, stride, padding, 1, meaning, dims)

    def forward(self, coarse: SparseVoxels, like: SparseVoxels) -> SparseVoxels:
        table, reverse = downward_tables(like, coarse, self.geometry, self.meaning)
        return like.replace(sparse_pool(coarse.features, reverse, table, "sum"))


class GlobalPool(nn.Module):
    """[B, C] over the voxels of each sample: 'max', 'mean' or 'sum'; 0 for an empty sample."""

    def __init__(self, reduce: str):
        super().__init__()
        self.reduce = reduce

    def forward(self, voxels: SparseVoxels) -> Tensor:
        return global_pool(voxels.features, voxels.batch_index, voxels.batch_size, self.reduce)


class VoxelBatchNorm(RowBatchNorm):
    """Batch norm over all voxels of a batch. State-dict names of ``nn.BatchNorm1d``.

    A training batch of one voxel has no variance: it is normalised by the running statistics and
    leaves them alone, and so does an empty one.
    """

    def __init__(self, channels: int, eps: float = 1e-5, momentum: float = 0.1):
        super().__init__(channels, eps=eps, momentum=momentum)

    def forward(self, voxels: SparseVoxels, relu: bool = False) -> SparseVoxels:
        """Normalised voxels; ``relu``: followed by a ReLU, which then costs next to nothing."""
        return voxels.replace(super().forward(voxels.features, relu=relu))


class VoxelInstanceNorm(nn.Module):
    """Instance norm per sample and channel: biased variance, no running statistics.

    MinkowskiEngine's definition; ``weight`` and ``bias`` are [1, C] as in its state dicts. A sample
    of one voxel gives exactly ``bias``.
    """

    def __init__(self, channels: int, eps: float = 1e-8):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(1, channels))
        self.bias = nn.Parameter(torch.zeros(1, channels))

    def forward(self, voxels: SparseVoxels) -> SparseVoxels:
        sample, samples = voxels.batch_index, voxels.batch_size
        if samples == 1 and len(voxels.features):  # then it is a batch norm, in one pass
            weight, bias = self.weight[0], self.bias[0]
            return voxels.replace(batch_norm(voxels.features, weight, bias, self.eps)[0])
        mean = global_pool(voxels.features, sample, samples, "mean")
        centred = voxels.features - mean[sample]
        variance = global_pool(centred.square(), sample, samples, "mean")
        scaled = centred * torch.rsqrt(variance + self.eps)[sample]
        return voxels.replace(scaled * self.weight + self.bias)


class VoxelSequential(nn.Sequential):
    """Runs layers in order; torch's own layers (ReLU, Linear, ...) act on the features.

    A batch norm and the ReLU after it run as one, in inference with the convolution before them.
    """

    def forward(self, voxels: SparseVoxels) -> SparseVoxels:
        layers = list(self)
        while layers:
            layer = layers.pop(0)
            norm = layers[0] if layers and type(layers[0]) is VoxelBatchNorm else None
            if type(layer) in (SubMConv, StridedConv) and norm is not None:
                layers.pop(0)
                voxels = conv_norm(layer, norm, voxels, relu=_take_relu(layers))
            elif type(layer) is VoxelBatchNorm:
                voxels = layer(voxels, relu=_take_relu(layers))
            elif type(layer).__module__.startswith("torch.nn."):
                voxels = voxels.replace(layer(voxels.features))
            else:
                voxels = layer(voxels)
        return voxels


def _take_relu(layers: list[nn.Module]) -> bool:
    """Whether a ReLU comes next, which is then taken off."""
    if len(layers) == 0 or type(layers[0]) is not nn.ReLU:
        return False
    layers.pop(0)
    return True


@dataclass(frozen=True, eq=False)
class Ending:
    """What follows a convolution in inference: * scale + shift, + residual, ReLU.

    Attributes:
        scale: [C] float32.
        shift: [C] float32.
        residual: [M, C] or None.
        relu: whether negative results become 0.
    """

    scale: Tensor
    shift: Tensor
    residual: Tensor | None
    relu: bool


def conv_norm(
    conv: SubMConv | StridedConv,
    norm: VoxelBatchNorm,
    voxels: SparseVoxels,
    relu: bool = False,
    residual: Tensor | None = None,
) -> SparseVoxels:
    """norm(conv(voxels)) + residual, and a ReLU: in one pass where no gradient is wanted.

    Args:
        conv: the convolution.
        norm: the batch norm; when training it runs by itself.
        voxels: the convolution's input.
        relu: whether a ReLU comes last.
        residual: [M, C], rows of the convolution's output cells.
    """
    hooked = conv._forward_hooks or norm._forward_hooks
    if torch.is_grad_enabled() or norm.training or hooked:
        normed = norm(conv(voxels), relu=relu and residual is None)
        if residual is None:
            return normed
        features = residual + normed.features
        return normed.replace(F.relu(features) if relu else features)
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    centre = norm.running_mean if conv.bias is None else norm.running_mean - conv.bias
    return conv(voxels, Ending(scale, norm.bias - centre * scale, residual, relu))


def voxel_relu(voxels: SparseVoxels) -> SparseVoxels:
    """ReLU of the features."""
    return voxels.replace(F.relu(voxels.features))


# ---------------------------------------------------------------------- maps, kept in the cache


def submanifold(voxels: SparseVoxels, kernel_size: Size, dilation: Size) -> KernelMap:
    """The voxels' submanifold map of this kernel, computed once per topology."""
    return voxels.cache.get(
        ("submanifold", kernel_size, dilation),
        lambda: kernel_map.submanifold_map(voxels.coords, kernel_size, dilation, voxels.shape),
    )


def strided(voxels: SparseVoxels, geometry: tuple, meaning: str) -> tuple[KernelMap, IndexCache]:
    """The voxels' map down and the cache of the coarse cells, computed once per topology.

    Args:
        voxels: the fine cells.
        geometry: (kernel_size, stride, padding, dilation) per axis.
        meaning: 'spconv' or 'minkowski'.
    """

    def compute():
        cells = None
        if meaning == "minkowski":  # they depend on the stride alone: a shortcut has them, too
            make = partial(kernel_map.coarse_cells, voxels.coords, geometry[1])
            cells = voxels.cache.get(("coarse cells", geometry[1]), make)
        given = (*geometry, voxels.shape, meaning, cells)
        return kernel_map.strided_map(voxels.coords, *given), IndexCache()

    return voxels.cache.get(("strided", geometry, meaning), compute)


def downward_tables(
    fine: SparseVoxels, coarse: SparseVoxels, geometry: tuple, meaning: str
) -> tuple[Tensor, Tensor]:
    """(table, reverse) of the triples that lead from ``fine`` down to ``coarse``.

    The cached map serves when it leads to these very cells; other coarse cells (pruned ones, say)
    get a table of their own.

    Raises:
        ValueError: the strides of the two do not differ by the geometry's.
    """
    stride = geometry[1]
    if coarse.stride != tuple(have * by for have, by in zip(fine.stride, stride)):
        raise ValueError(
            f"coarse voxels have stride {coarse.stride} and fine ones {fine.stride}; a layer of "
            f"stride {stride} does not join them"
        )
    found, cache = strided(fine, geometry, meaning)
    same = coarse.cache is cache or torch.equal(coarse.coords, found.out_coords)
    if same:
        return found.table, found.reverse
    table = kernel_map.offset_table(fine.coords, coarse.coords, *geometry)
    return table, kernel_map.reverse_table(table, len(fine))


def coarser(
    voxels: SparseVoxels, features: Tensor, found: KernelMap, cache: IndexCache, stride: tuple
) -> SparseVoxels:
    """Voxels on the output cells of a strided map."""
    return SparseVoxels(
        features,
        found.out_coords,
        voxels.grid,
        voxels.batch_size,
        tuple(have * by for have, by in zip(voxels.stride, stride)),
        found.out_shape,
        cache,
    )


# ---------------------------------------------------------------------- what the layers share


def _set_geometry(layer, kernel_size, stride, padding, dilation, meaning, dims) -> None:
    geometry = kernel_map.geometry(dims, kernel_size, stride, padding, dilation, meaning)
    layer.kernel_size, layer.stride, layer.padding, layer.dilation = geometry
    layer.geometry = geometry
    layer.meaning = meaning


def _parameters(
    in_channels: int, out_channels: int, kernel_size: tuple[int, ...], bias: bool, groups: int
) -> tuple[nn.Parameter, nn.Parameter | None]:
    """Weight [K, Cin / groups, Cout] and bias [Cout], drawn like torch's dense convolutions."""
    if in_channels % groups or out_channels % groups:
        raise ValueError(
            f"groups is {groups}; it must divide {in_channels} and {out_channels} channels"
        )
    shape = (math.prod(kernel_size), in_channels // groups, out_channels)
    bound = 1 / math.sqrt(max(shape[0] * shape[1], 1))
    weight = nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
    offset = nn.Parameter(torch.empty(out_channels).uniform_(-bound, bound)) if bias else None
    return weight, offset


def _convolve(
    layer: nn.Module, features: Tensor, found: KernelMap, ending: Ending | None = None
) -> Tensor:
    if ending is not None:
        last = (ending.scale, ending.shift, ending.residual, ending.relu)
        return sparse_conv_norm(features, layer.weight, found.table, *last, layer.groups)
    reverse = found.reverse if torch.is_grad_enabled() else None
    return sparse_conv(features, layer.weight, found.table, reverse, layer.bias, layer.groups)


def _describe(layer: nn.Module) -> str:
    _, inputs, outputs = layer.weight.shape
    parts = [f"{inputs * layer.groups}, {outputs}, kernel_size={layer.kernel_size}"]
    parts += [
        f"{name}={getattr(layer, name)}"
        for name in ("stride", "padding", "dilation", "groups", "meaning")
        if hasattr(layer, name)
    ]
    return ", ".join(parts) + f", bias={layer.bias is not None}"
