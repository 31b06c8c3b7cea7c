"""Our kernel maps as spconv takes them; spconv itself is imported when it is called."""

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary


def convolve(features: Tensor, weight: Tensor, table: Tensor, groups: int) -> Tensor:
    """[M, Cout] of ``features`` [N, Cin], ``weight`` [K, Cin / groups, Cout], ``table`` [K, M].

    No bias, and at least one pair: spconv refuses both here. Runs on any device of spconv's.
    """
    from spconv.core import ConvAlgo
    from spconv.pytorch import functional

    pairs, counts = pairs_of(table)
    filters = weight.permute(2, 0, 1)[:, :, None, None, :]  # [Cout, offsets, 1, 1, Cin]
    parts = zip(features.chunk(groups, 1), filters.chunk(groups))
    rows = table.shape[1]
    out = [
        functional.indice_conv(
            part.contiguous(), own.contiguous(), pairs, counts, rows, ConvAlgo.Native
        )
        for part, own in parts
    ]
    return out[0] if groups == 1 else torch.cat(out, 1)


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


def pairs_of(table: Tensor) -> tuple[Tensor, Tensor]:
    """The pairs of a table, kept as long as the table lives: layers share tables."""
    if table not in _known_pairs:
        _known_pairs[table] = pair_rows(table)
    return _known_pairs[table]


_known_pairs = WeakTensorKeyDictionary()
