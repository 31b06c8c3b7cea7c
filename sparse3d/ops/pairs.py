"""The triples of a kernel map as kernels read them, made once per table and kept while it lives.

A table [K, M] has an entry for every offset and output row, and most say that there is no input.
Kernels read lists instead, the same for every layer on a table and for every gradient:

    PairLists    for each block of output rows and each offset the pairs (input row, output row)
    TileLists    groups of output rows that meet like offsets, for kernels that multiply tiles
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from . import native

LARGEST_BLOCK = 2048  # output rows: their features stay in the L2 cache, and uint16 numbers them
LEVELS = ("", "plain", "avx2", "avx512")


@dataclass(frozen=True, eq=False)
class PairLists:
    """Pairs of rows by block of outputs and kernel offset.

    Attributes:
        starts: [blocks * K + 1] int64, where the list of (block, offset) begins.
        inputs: [P] int32, input rows.
        outputs: [P] uint16, output rows counted from their block's first, ascending in each list.
        block: output rows per block.
        highest: the highest input row, -1 where there is none.
        mirrored: weight k meets list K - 1 - k.
    """

    starts: Tensor
    inputs: Tensor
    outputs: Tensor
    block: int
    highest: int
    mirrored: bool = False

    def arguments(self) -> tuple:
        """What the C functions take."""
        return self.starts, self.inputs, self.outputs, self.block, int(self.mirrored)


@dataclass(frozen=True, eq=False)
class TileLists:
    """Groups of 32 output rows by block of outputs, with a step for each offset that they meet.

    Attributes:
        blocks: [blocks + 1] int64, where the groups of a block begin.
        steps: [groups + 1] int64, where the steps of a group begin.
        outputs: [groups, 32] uint16, output rows counted from their block's first; 65535: none.
        offsets: [steps] int32, kernel offset * 4, + 1 if some of the first 16 rows meet it, + 2 if
            some of the others do.
        inputs: [steps, 32] int32, input rows, -1 where none.
        block: output rows per block.
        highest: the highest input row, -1 where there is none.
        mirrored: weight k is listed as offset K - 1 - k.
    """

    blocks: Tensor
    steps: Tensor
    outputs: Tensor
    offsets: Tensor
    inputs: Tensor
    block: int
    highest: int
    mirrored: bool = False

    def arguments(self) -> tuple:
        """What the C functions take."""
        lists = self.blocks, self.steps, self.outputs, self.offsets, self.inputs
        return *lists, self.block, int(self.mirrored)


def pair_lists(table: Tensor, reverse: Tensor | None = None) -> PairLists:
    """The pairs of ``table``, known already if those of its mirror image ``reverse`` are.

    Args:
        table: [K, M] int32 on the CPU, the input row for each offset and output row, -1 where none.
        reverse: [K, N] int32, the table of the other direction.
    """
    return _get(_known_pairs, table, reverse, _list_pairs)


def tile_lists(table: Tensor, reverse: Tensor | None = None) -> TileLists:
    """The groups of ``table``; arguments as in ``pair_lists``."""
    return _get(_known_tiles, table, reverse, _list_tiles)


def _get(known: WeakTensorKeyDictionary, table: Tensor, reverse: Tensor | None, make: Callable):
    version, lists = known.get(table, (None, None))
    if version != _version(table):
        lists = _mirror_image(known, table, reverse) or make(table)
        known[table] = (_version(table), lists)
    return lists


def _version(table: Tensor) -> int:
    """Grows with every change in place, which makes lists stale."""
    return 0 if table.is_inference() else table._version


def _mirror_image(known: WeakTensorKeyDictionary, table: Tensor, reverse: Tensor | None):
    """The lists of ``reverse`` read in mirrored order, where the two differ in that alone."""
    version, lists = (None, None) if reverse is None else known.get(reverse, (None, None))
    if lists is None or version != _version(reverse) or reverse.shape != table.shape:
        return None
    if not all(map(torch.equal, table, reverse.flip(0))):
        return None
    return replace(lists, mirrored=not lists.mirrored)


def _list_pairs(table: Tensor) -> PairLists:
    offsets, rows = table.shape
    block = min(max(-(-rows // 32), 64), LARGEST_BLOCK)
    starts = torch.empty(-(-rows // block) * offsets + 1, dtype=torch.int64)
    given = (table.contiguous(), offsets, rows, block, starts)
    threads = native.threads()
    highest = native.call("s3d_conv_pairs_count", *given, threads)
    inputs = native.empty(int(starts[-1]), dtype=torch.int32)
    outputs = native.empty(len(inputs), dtype=torch.uint16)
    native.call("s3d_conv_pairs_list", *given, inputs, outputs, cpu_level(), threads)
    return PairLists(starts, inputs, outputs, block, highest)


def _list_tiles(table: Tensor) -> TileLists:
    offsets, rows = table.shape
    block = min(max(-(-rows // 32), 64), LARGEST_BLOCK)
    sizes = torch.empty(2, dtype=torch.int64)
    given = (table.contiguous(), offsets, rows, block, sizes, native.threads())
    found = native.call("s3d_conv_tiles_find", *given)
    groups, steps = sizes.tolist()
    blocks = torch.empty(-(-rows // block) + 1, dtype=torch.int64)
    starts = torch.empty(groups + 1, dtype=torch.int64)
    outputs = torch.empty(groups, 32, dtype=torch.uint16)
    numbers, inputs = table.new_empty(steps), native.empty(steps, 32, dtype=torch.int32)
    native.call("s3d_conv_tiles_take", found, blocks, starts, outputs, numbers, inputs)
    highest = int(inputs.max()) if steps else -1
    return TileLists(blocks, starts, outputs, numbers, inputs, block, highest)


def cpu_level() -> int:
    """The instruction set that $SPARSE3D_ISA asks for, as the kernels number it; 0: the best."""
    name = native.cpu_level()
    if name not in LEVELS:
        raise ValueError(f"SPARSE3D_ISA is {name!r}; it must be one of {', '.join(LEVELS[1:])}")
    return LEVELS.index(name)


_known_pairs = WeakTensorKeyDictionary()
_known_tiles = WeakTensorKeyDictionary()
