"""The triples of a kernel map as lists of pairs, made once per table and kept as long as it lives.

A table [K, M] has an entry for every offset and output row, and most say that there is no input.
Kernels read lists instead: for each block of output rows and each offset the pairs (input row,
output row). Every layer on a table, and every gradient, reads the same lists.
"""

from dataclasses import dataclass

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


def pair_lists(table: Tensor, reverse: Tensor | None = None) -> PairLists:
    """The lists of ``table``, known already if those of its mirror image ``reverse`` are.

    Args:
        table: [K, M] int32 on the CPU, the input row for each offset and output row, -1 where none.
        reverse: [K, N] int32, the table of the other direction.
    """
    known = _known_lists(table)
    if known is None:
        known = _mirror_image(table, reverse) or _list(table)
        _known[table] = (_version(table), known)
    return known


def _mirror_image(table: Tensor, reverse: Tensor | None) -> PairLists | None:
    """Lists of ``reverse`` read in mirrored order, where the two differ in that alone."""
    own = None if reverse is None else _known_lists(reverse)
    if own is None or reverse.shape != table.shape:
        return None
    if not all(map(torch.equal, table, reverse.flip(0))):
        return None
    return PairLists(own.starts, own.inputs, own.outputs, own.block, own.highest, not own.mirrored)


def _known_lists(table: Tensor) -> PairLists | None:
    version, lists = _known.get(table, (None, None))
    return lists if version == _version(table) else None


def _version(table: Tensor) -> int:
    """Grows with every change in place, which makes lists stale."""
    return 0 if table.is_inference() else table._version


def _list(table: Tensor) -> PairLists:
    offsets, rows = table.shape
    block = min(max(-(-rows // 32), 64), LARGEST_BLOCK)
    starts = torch.empty(-(-rows // block) * offsets + 1, dtype=torch.int64)
    given = (table.contiguous(), offsets, rows, block, starts)
    threads = native.threads()
    highest = native.call("s3d_conv_pairs_count", *given, threads)
    inputs = table.new_empty(int(starts[-1]))
    outputs = torch.empty(len(inputs), dtype=torch.uint16)
    native.call("s3d_conv_pairs_list", *given, inputs, outputs, cpu_level(), threads)
    return PairLists(starts, inputs, outputs, block, highest)


def cpu_level() -> int:
    """The instruction set that $SPARSE3D_ISA asks for, as the kernels number it; 0: the best."""
    name = native.cpu_level()
    if name not in LEVELS:
        raise ValueError(f"SPARSE3D_ISA is {name!r}; it must be one of {', '.join(LEVELS[1:])}")
    return LEVELS.index(name)


_known = WeakTensorKeyDictionary()
