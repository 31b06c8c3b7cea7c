"""DSVT: a transformer on sparse voxels, attention inside sets of a window's voxels.

Paper: https://arxiv.org/abs/2301.06051. Rows of all tensors are voxels; nothing is padded, because
a set is a run of rows in an order that the voxels' cache keeps.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparse3d.ops.set_attention import set_attention
from sparse3d.ops.voxelize import unique_keys
from sparse3d.ops.windows import WindowSets, window_sets
from sparse3d.registry import MODELS
from sparse3d.structures import SparseVoxels, VoxelGrid

from ..norms import RowBatchNorm
from .dsvt_pooling import POOLINGS, AttentionWeights

Triple = tuple[int, int, int]


@MODELS.register_module()
class DSVT(nn.Module):
    """Stages of blocks; between two stages voxels are pooled.

    An argument that differs between stages is given once per stage, one that does not, once.

    Args:
        in_channels: channels of the voxels; must be the first stage's.
        grid: bounded 3-D grid. One cell along z makes it the pillar variant.
        channels: width of a stage.
        blocks: blocks of a stage; each has two layers, along x and along y.
        window: (x, y, z) cells of a window.
        set_size: most voxels that attend to each other.
        strides: (x, y, z) per pooling, one fewer than stages; none for the pillar variant.
        reduction: how voxels are pooled: 'attention', 'linear' or 'maxpool'.
        hybrid_factor: every second block's windows are larger by this factor per axis.
        shift: (x, y, z) cells by which those windows are displaced; None: half the window in x, y.
        heads: attention heads.
        ffn_channels: hidden width of the feed-forward part; None: twice the stage's.
        normalize_pos: scales the positions inside a window to +-pi.
        position_by_layer: layer j of a block embeds the positions of window configuration j, not of
            the configuration it works in, as the published code and weights do; False corrects it.

    Raises:
        ValueError: values that cannot work; the message names the nearest that can.
    """

    def __init__(
        self,
        in_channels: int,
        grid: VoxelGrid,
        channels: int | Sequence[int] = 192,
        blocks: int | Sequence[int] = 4,
        window: Sequence = (12, 12, 1),
        set_size: int | Sequence[int] = 36,
        strides: Sequence[Triple] = (),
        reduction: str = "attention",
        hybrid_factor: Triple = (2, 2, 1),
        shift: Sequence | None = None,
        heads: int | Sequence[int] = 8,
        ffn_channels: int | Sequence[int] | None = None,
        normalize_pos: bool = False,
        position_by_layer: bool = True,
    ):
        super().__init__()
        count = len(strides) + 1
        widths = _per_stage("channels", channels, count)
        windows = _per_stage("window", window, count, triples=True)
        if shift is None:
            shift = [(x // 2, y // 2, 0) for x, y, _ in windows]
        shifts = _per_stage("shift", shift, count, triples=True)
        blocks = _per_stage("blocks", blocks, count)
        sizes = _per_stage("set_size", set_size, count)
        heads = _per_stage("heads", heads, count)
        hidden = _per_stage("ffn_channels", ffn_channels or [2 * w for w in widths], count)
        _check_channels(in_channels, widths, heads, reduction)
        _check_windows(windows, shifts, hybrid_factor, sizes)
        shapes = _stage_shapes(grid, strides)

        self.stages = nn.ModuleList()
        done = 0  # the window configuration alternates from block to block, across stages
        for s in range(count):
            large = tuple(w * f for w, f in zip(windows[s], hybrid_factor))
            views = (
                WindowView(windows[s], (0, 0, 0), sizes[s], normalize_pos),
                WindowView(large, shifts[s], sizes[s], normalize_pos),
            )
            stage = Stage(views, position_by_layer)
            for number in range(done, done + blocks[s]):
                layer = (widths[s], heads[s], hidden[s])
                stage.blocks.append(Block(*layer, views[0].dims, number % 2))
            if s < len(strides):
                stage.reduction = POOLINGS[reduction](tuple(strides[s]), widths[s], widths[s + 1])
            self.stages.append(stage)
            done += blocks[s]
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

        self.out_channels = widths[-1]
        self.out_shape = shapes[-1]
        self.out_stride = tuple(math.prod(s[axis] for s in strides) for axis in range(3))

    def forward(self, voxels: SparseVoxels) -> list[SparseVoxels]:
        """The output of each stage, finest first."""
        outputs = []
        for stage in self.stages:
            voxels = stage(voxels)
            outputs.append(voxels)
            if stage.reduction is not None:
                voxels = stage.reduction(voxels)
        return outputs


@dataclass(frozen=True, eq=False)
class WindowLayout:
    """Voxels in one window configuration.

    Attributes:
        sets: the partition.
        positions: [U, 2 or 3] float, the distinct positions in a window, from its middle.
        counts: [U] int64 voxels at each.
        index: [N] int64 position of each voxel.
    """

    sets: WindowSets
    positions: Tensor
    counts: Tensor
    index: Tensor


@dataclass(frozen=True)
class WindowView:
    """One window configuration of a stage: (x, y, z) cells of window and shift, voxels of a set."""

    window: Triple
    shift: Triple
    set_size: int
    normalize: bool

    @property
    def dims(self) -> int:
        """Coordinates of a position: 2 where windows are one cell high."""
        return 2 if self.window[2] == 1 else 3

    def layout(self, voxels: SparseVoxels) -> WindowLayout:
        """The layout of ``voxels``, from their cache."""
        return voxels.cache.get(self, lambda: self._layout(voxels))

    def _layout(self, voxels: SparseVoxels) -> WindowLayout:
        sets = window_sets(voxels.coords, voxels.shape, self.window, self.shift, self.set_size)
        x, y, z = sets.coords_in_window.long().unbind(1)
        keys, index = unique_keys((x * self.window[1] + y) * self.window[2] + z)
        counts = torch.zeros_like(keys).index_add(0, index, torch.ones_like(index))
        columns = keys // self.window[2]
        cells = [columns // self.window[1], columns % self.window[1], keys % self.window[2]]
        window = torch.tensor(self.window[: self.dims], device=keys.device)
        positions = torch.stack(cells[: self.dims], 1) - window / 2
        if self.normalize:
            positions = positions / window * 2 * 3.1415  # the published code's pi
        return WindowLayout(sets, positions, counts, index)


class Stage(nn.Module):
    """Blocks on the same voxels, and the pooling behind them (None in the last stage)."""

    def __init__(self, views: tuple[WindowView, WindowView], position_by_layer: bool):
        super().__init__()
        self.views = views
        self.position_by_layer = position_by_layer
        self.blocks = nn.ModuleList()
        self.reduction: nn.Module | None = None

    def forward(self, voxels: SparseVoxels) -> SparseVoxels:
        layouts = [view.layout(voxels) for view in self.views]
        features = voxels.features
        for block in self.blocks:
            here = layouts[block.configuration]
            places = layouts if self.position_by_layer else [here, here]
            features = block(features, here.sets, places)
        return voxels.replace(features)


class Block(nn.Module):
    """Two layers, y-major and x-major sets, in window configuration ``configuration`` (0 or 1)."""

    def __init__(self, channels: int, heads: int, hidden: int, dims: int, configuration: int):
        super().__init__()
        self.configuration = configuration
        self.position_embeddings = nn.ModuleList(
            PositionEmbedding(dims, channels) for _ in range(2)
        )
        self.layers = nn.ModuleList(SetLayer(channels, heads, hidden) for _ in range(2))
        self.norm = nn.LayerNorm(channels)

    def forward(self, features: Tensor, sets: WindowSets, places: list[WindowLayout]) -> Tensor:
        """Features [N, C]; ``places[j]`` says where layer j believes its voxels to be."""
        out = features
        for axis, (layer, embed) in enumerate(zip(self.layers, self.position_embeddings)):
            place = places[axis]
            position = embed(place.positions, place.counts)
            out = layer(out, position, place.index, sets.order[axis], sets.offsets)
        return self.norm(out + features)


class PositionEmbedding(nn.Sequential):
    """Linear, batch norm, ReLU, linear on positions in a window.

    Positions that many voxels share are computed once; the batch norm counts them by their voxels.
    """

    def __init__(self, dims: int, channels: int):
        super().__init__(
            nn.Linear(dims, channels),
            RowBatchNorm(channels),
            nn.ReLU(inplace=True),
            nn.Linear(channels, channels),
        )

    def forward(self, positions: Tensor, counts: Tensor) -> Tensor:
        first, norm, activation, last = self
        with torch.autocast(positions.device.type, enabled=False):
            return last(activation(norm(first(positions), counts)))


class SetLayer(nn.Module):
    """Attention inside sets and a feed-forward part, each with a norm, and a norm over both."""

    def __init__(self, channels: int, heads: int, hidden: int):
        super().__init__()
        self.heads = heads
        self.self_attn = AttentionWeights(channels)
        self.linear1 = nn.Linear(channels, hidden)
        self.linear2 = nn.Linear(hidden, channels)
        self.norm1 = nn.LayerNorm(channels)
        self.norm2 = nn.LayerNorm(channels)
        self.norm = nn.LayerNorm(channels)

    def forward(
        self, x: Tensor, position: Tensor, position_index: Tensor, order: Tensor, offsets: Tensor
    ) -> Tensor:
        """Features [N, C] of voxels whose position is ``position[position_index]`` [N, C]."""
        weights, channels = self.self_attn, x.shape[1]
        qkv = F.linear(x, weights.in_proj_weight, weights.in_proj_bias)
        placed = F.linear(position, weights.in_proj_weight[: 2 * channels])
        attended = set_attention(qkv, placed, position_index, order, offsets, self.heads)
        hidden = self.norm1(x + weights.out_proj(attended))
        hidden = self.norm2(hidden + self.linear2(F.gelu(self.linear1(hidden))))
        return self.norm(hidden + x)


def _per_stage(name: str, value, stages: int, triples: bool = False) -> list:
    """``value`` for each stage: itself where it is one, else as many as there are stages."""
    single = isinstance(value, int) or (triples and isinstance(value[0], int))
    values = [value] * stages if single else list(value)
    if len(values) != stages:
        raise ValueError(
            f"{name} is {value}: {len(values)} values for {stages} stages (one more than strides); "
            "give one value, or one per stage"
        )
    return [tuple(v) for v in values] if triples else values


def _check_channels(in_channels: int, widths: list[int], heads: list[int], reduction: str) -> None:
    if reduction not in POOLINGS:
        raise ValueError(f"reduction is {reduction!r}; it must be one of {', '.join(POOLINGS)}")
    if in_channels != widths[0]:
        raise ValueError(
            f"the voxels have {in_channels} channels but the first stage is {widths[0]} wide; give "
            f"the encoder {widths[0]} channels or set channels to {in_channels}"
        )
    for width, number in zip(widths, heads):
        if width % number:
            raise ValueError(
                f"channels {width} do not split into {number} heads; the nearest that do: "
                f"{max(round(width / number), 1) * number}"
            )
    if reduction != "linear" and len(set(widths)) > 1:
        raise ValueError(
            f"{reduction} reduction keeps the width but channels are {widths}; make them equal or "
            "use reduction='linear'"
        )


def _check_windows(
    windows: list[Triple], shifts: list[Triple], factor: Triple, sizes: list[int]
) -> None:
    for window, shift, size in zip(windows, shifts, sizes):
        if any(len(triple) != 3 for triple in (window, shift, factor)):
            raise ValueError(
                f"window {window}, shift {shift} and hybrid_factor {tuple(factor)} must have three "
                "numbers each: x, y, z"
            )
        if min(*window, *factor, size) < 1 or min(shift) < 0:
            raise ValueError(
                f"window {window}, hybrid_factor {tuple(factor)} and set_size {size} must be 1 or "
                f"more, and shift {shift} 0 or more"
            )


def _stage_shapes(grid: VoxelGrid, strides: Sequence[Triple]) -> list[Triple]:
    """Cells (x, y, z) of each stage."""
    if grid.shape is None or len(grid.shape) != 3:
        raise ValueError(
            f"grid has shape {grid.shape}; DSVT needs a bounded 3-D grid: build it with "
            "VoxelGrid.from_range(point_range, voxel_size)"
        )
    shapes = [tuple(grid.shape)]
    for number, stride in enumerate(strides):
        for axis, (cells, step) in enumerate(zip(shapes[-1], stride)):
            if step < 1 or cells % step:
                fitting = [n for n in range(1, cells + 1) if cells % n == 0]
                raise ValueError(
                    f"strides[{number}] is {tuple(stride)}, but stage {number} has {cells} cells "
                    f"along {'xyz'[axis]}, which {step} does not divide; the nearest that does: "
                    f"{min(fitting, key=lambda n: abs(n - step))}"
                )
        shapes.append(tuple(cells // step for cells, step in zip(shapes[-1], stride)))
    return shapes
