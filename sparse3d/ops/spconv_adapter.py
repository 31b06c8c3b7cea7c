"""Our kernel maps as spconv takes them; spconv itself is imported when it is called."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

MASK_BITS = 32
"""Offsets that spconv's fused kernels can tell apart."""
GATHERED = 2**26
"""Numbers that one step of a weight's gradient gathers."""
MOST_ENTRIES = 2**31
"""Entries of a tensor that spconv's 32-bit places can reach."""


@dataclass(frozen=True)
class Pairs:
    """What a table pairs, offset by offset.

    Attributes:
        rows: [2, K, P] int32 input rows and output rows, -1 past the end.
        counts: [K] int32 pairs of each offset.
        known_counts: the same, where nobody waits for a GPU to tell them.
    """

    rows: Tensor
    counts: Tensor
    known_counts: list[int]


def convolve(features: Tensor, weight: Tensor, table: Tensor, groups: int) -> Tensor | None:
    """[M, Cout] of ``features`` [N, Cin], ``weight`` [K, Cin / groups, Cout], ``table`` [K, M].

    Runs on any device of spconv's. None where spconv refuses or would give wrong answers: float64,
    tensors too large for its places, nothing to convolve.
    """
    from spconv.core import ConvAlgo
    from spconv.pytorch import functional

    rows = table.shape[1]
    widest = max(features.numel(), rows * weight.shape[2], table.numel())
    if features.dtype == torch.float64 or widest >= MOST_ENTRIES or not len(features) or not rows:
        return None
    filters = weight.permute(2, 0, 1)[:, :, None, None, :]  # [Cout, offsets, 1, 1, Cin]
    parts = zip(features.chunk(groups, 1), filters.chunk(groups))
    parts = ((part.contiguous(), own.contiguous()) for part, own in parts)
    if features.is_cuda and len(table) <= MASK_BITS:
        mask, order = _masks_of(table)
        lists = (table.contiguous(), None, [mask], [], [order], [])
        every = [np.array([2**MASK_BITS - 1], np.uint32)]
        out = [functional.implicit_gemm(*part, *lists, rows, every, False, False) for part in parts]
    else:
        pairs = pairs_of(table)
        if not any(pairs.known_counts):
            return None
        given = (pairs.rows, pairs.counts, rows, ConvAlgo.Native)
        out = [functional.indice_conv(*part, *given) for part in parts]
    return out[0] if groups == 1 else torch.cat(out, 1)


def weight_grad(features: Tensor, grad: Tensor, table: Tensor, groups: int) -> Tensor:
    """[K, Cin / groups, Cout], as ``ops.conv`` defines it, from the pairs that are known."""
    pairs, (inputs, outputs) = pairs_of(table), (features.shape[1] // groups, grad.shape[1])
    result = grad.new_empty(len(table), inputs, outputs)
    counts, width = pairs.known_counts, outputs // groups
    # many offsets are gathered at once: a GPU waits for every call
    most = GATHERED // (features.shape[1] + outputs)
    for first, last in _runs(counts, most):
        chosen = [side[first:last][side[first:last] >= 0] for side in pairs.rows]
        parts = [x.index_select(0, rows) for x, rows in zip((features, grad), chosen)]
        parts = [part.split(counts[first:last]) for part in parts]
        for offset, (x, y) in enumerate(zip(*parts), first):
            for group in range(groups):
                left = x[:, group * inputs : (group + 1) * inputs]
                own = slice(group * width, (group + 1) * width)
                torch.mm(left.t(), y[:, own], out=result[offset][:, own])
    return result


def _runs(counts: list[int], most: int) -> Iterator[tuple[int, int]]:
    """First and past the last of consecutive ``counts`` that sum to ``most``, or of single ones."""
    first, total = 0, 0
    for place, count in enumerate(counts):
        if place > first and total + count > most:
            yield first, place
            first, total = place, 0
        total += count
    if counts:
        yield first, len(counts)


def offset_masks(table: Tensor) -> tuple[Tensor, Tensor]:
    """What spconv's fused kernels skip by: bits [M, 1] int32 ascending, and the rows in that order.

    Bit k of a row is set where offset k of ``table`` [K, M], K at most 32, has an input.
    """
    bits = 1 << torch.arange(len(table), device=table.device)
    masks = ((table >= 0) * bits[:, None]).sum(0)
    masks = torch.where(masks >= 2**31, masks - 2**32, masks).int()
    masks, order = masks.sort(stable=True)
    return masks[:, None], order.int()


def _masks_of(table: Tensor) -> tuple[Tensor, Tensor]:
    if table not in _known_masks:
        _known_masks[table] = offset_masks(table)
    return _known_masks[table]


def pair_rows(table: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs [2, K, P] int32 (input rows, output rows; -1 past the end) and their counts [K] int32.

    Args:
        table: [K, M] int32, the input row for each offset and output row, -1 where none.
    """
    offset, output = (table >= 0).nonzero(as_tuple=True)
    counts = torch.bincount(offset, minlength=len(table))
    place = torch.arange(len(offset), device=table.device) - (counts.cumsum(0) - counts)[offset]
    pairs = table.new_full((2, len(table), int(counts.max())), -1)
    pairs[0, offset, place] = table[offset, output]
    pairs[1, offset, place] = output.int()
    return pairs, counts.int()


def pairs_of(table: Tensor) -> Pairs:
    """The pairs of a table, kept as long as the table lives: layers share tables."""
    if table not in _known_pairs:
        rows, counts = pair_rows(table)
        _known_pairs[table] = Pairs(rows, counts, counts.tolist())
    return _known_pairs[table]


_known_pairs = WeakTensorKeyDictionary()
_known_masks = WeakTensorKeyDictionary()
