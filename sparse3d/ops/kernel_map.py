"""Kernel maps: which input row meets which kernel weight at which output row.

Two published meanings of a strided convolution differ in the set of output cells alone:

    'spconv'      every cell that some input reaches, inside the output grid (if there is one)
    'minkowski'   exactly floor(input / stride), centred odd kernels; even kernels reach forward

Coordinates are int32 [N, 1+D], (batch, x, y, z) or (batch, x, y), rows ascending and distinct.
Sizes are given per axis, x first, or as one number for all axes.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from . import backend, native
from .reference import kernel_map as reference

MEANINGS = ("spconv", "minkowski")
Size = int | Sequence[int]


@dataclass(frozen=True, eq=False)
class KernelMap:
    """The triples (input row, kernel offset, output row) of one convolution.

    Attributes:
        table: [K, M] int32, the input row for each kernel offset and output row, -1 where none.
            Offset number kx + Kx * (ky + Ky * kz).
        out_coords: [M, 1+D] int32, the output cells, ascending.
        out_shape: number of output cells per axis; None when unbounded.
        in_rows: N, the number of input cells.
        mirrored: input and output cells are the same and opposite offsets mirror each other.
    """

    table: Tensor
    out_coords: Tensor
    out_shape: tuple[int, ...] | None
    in_rows: int
    mirrored: bool = False
    _known: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    @property
    def reverse(self) -> Tensor:
        """[K, N] int32, the output row for each kernel offset and input row; computed once."""
        if "reverse" not in self._known:
            self._known["reverse"] = (
                self.table.flip(0) if self.mirrored else reverse_table(self.table, self.in_rows)
            )
        return self._known["reverse"]


def submanifold_map(
    coords: Tensor, kernel_size: Size, dilation: Size = 1, shape: tuple[int, ...] | None = None
) -> KernelMap:
    """The map of a convolution whose output cells are its input cells.

    Args:
        coords: [N, 1+D] int32, ascending, distinct.
        kernel_size: odd along every axis: the kernel is centred.
        dilation: cells between neighbouring offsets.
        shape: the grid's cells per axis, handed on.

    Raises:
        ValueError: an even kernel, which has no centre.
    """
    check_coords(coords)
    dims = coords.shape[1] - 1
    size, dilation = odd_axes(kernel_size, dims), axes(dilation, dims, "dilation")
    table = offset_table(coords, coords, size, (1,) * dims, _centre(size, dilation), dilation)
    return KernelMap(table, coords, shape, coords.shape[0], mirrored=True)


def strided_map(
    coords: Tensor,
    kernel_size: Size,
    stride: Size = 1,
    padding: Size | None = None,
    dilation: Size = 1,
    shape: tuple[int, ...] | None = None,
    meaning: str = "spconv",
    cells: Tensor | None = None,
) -> KernelMap:
    """The map of a convolution to coarser cells (with stride 1: to a grown set of cells).

    Args:
        coords: [N, 1+D] int32, ascending, distinct.
        kernel_size: cells per axis.
        stride: input cells per output cell.
        padding: 'spconv': cells before the first one, default 0. 'minkowski': follows from the
            kernel; leave it out.
        dilation: cells between neighbouring offsets.
        shape: input cells per axis, None when unbounded.
        meaning: which output cells there are, 'spconv' or 'minkowski'.
        cells: [M, 1+D] int32: ``coarse_cells``, where 'minkowski' knows them already.

    Raises:
        ValueError: an unknown meaning, a padding that the meaning excludes, a kernel larger than
            the padded grid, or coordinates whose keys would overflow.
    """
    check_coords(coords)
    sizes = geometry(coords.shape[1] - 1, kernel_size, stride, padding, dilation, meaning)
    _check_grid(shape, coords)
    stride = sizes[1]
    if meaning == "minkowski":
        out_shape = shape and tuple(-(-g // s) for g, s in zip(shape, stride))
        cells = coarse_cells(coords, stride) if cells is None else cells
        table = offset_table(coords, cells, *sizes)
    else:
        out_shape = shape and _reduced_shape(shape, *sizes)
        cells, table = _strided(coords, *sizes, out_shape)
    return KernelMap(table, cells, out_shape, coords.shape[0])


def coarse_cells(coords: Tensor, stride: Size) -> Tensor:
    """[M, 1+D] int32 the different floor(cell / stride) of ``coords`` [N, 1+D] int32, ascending.

    Raises:
        ValueError: coordinates that are not int32, or whose keys would overflow.
    """
    check_coords(coords)
    dims = coords.shape[1] - 1
    stride = axes(stride, dims, "stride")
    # a kernel as large as the stride reaches floor(f / s) and nothing else
    return _cells(coords, stride, stride, (0,) * dims, (1,) * dims, None, False)


def generative_map(
    coords: Tensor,
    kernel_size: Size,
    stride: Size = 1,
    padding: Size | None = None,
    dilation: Size = 1,
    shape: tuple[int, ...] | None = None,
    meaning: str = "spconv",
) -> KernelMap:
    """The map of a transposed convolution: every finer cell that an input reaches exists.

    Arguments and errors as in ``strided_map``; ``stride`` is output cells per input cell. With
    'spconv' and a shape, outputs lie inside [0, (G-1)s - 2p + d(K-1) + 1); else they are unbounded.
    """
    check_coords(coords)
    sizes = geometry(coords.shape[1] - 1, kernel_size, stride, padding, dilation, meaning)
    _check_grid(shape, coords)
    out_shape = None
    if shape is not None and meaning == "spconv":
        out_shape = _enlarged_shape(shape, *sizes)
    cells = _cells(coords, *sizes, out_shape, True)
    down = offset_table(cells, coords, *sizes)
    return KernelMap(reverse_table(down, cells.shape[0]), cells, out_shape, coords.shape[0])


def offset_table(
    fine: Tensor, coarse: Tensor, kernel_size: Size, stride: Size, padding: Size, dilation: Size
) -> Tensor:
    """Table [K, M] int32 of the rows in ``fine`` of stride * coarse - padding + dilation * k.

    Args:
        fine: [N, 1+D] int32, ascending, distinct.
        coarse: [M, 1+D] int32, ascending, distinct; any cells.
        kernel_size, stride, padding, dilation: per axis or one number.

    Raises:
        ValueError: the cells span 2**63 keys or more, and are not found otherwise.
    """
    check_coords(fine)
    check_coords(coarse)
    dims = fine.shape[1] - 1
    if coarse.shape[1] != fine.shape[1]:
        raise ValueError(
            f"fine has shape {tuple(fine.shape)} and coarse {tuple(coarse.shape)}; both must have "
            "the same columns"
        )
    given = {
        "kernel_size": kernel_size,
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
    }
    return _offset_table(fine, coarse, *(axes(value, dims, name) for name, value in given.items()))


def reverse_table(table: Tensor, rows: int) -> Tensor:
    """Table [K, rows] int32 of the same triples, read from the input: the output row, or -1."""
    check_table("table", table)
    if rows < 0:
        raise ValueError(f"rows is {rows}; it must be 0 or more")
    return _reverse_table(table, rows)


def check_coords(coords: Tensor) -> None:
    """Refuses coordinates that are not int32 [N, 1+D]: a silent conversion could wrap."""
    if coords.dim() != 2 or not 2 <= coords.shape[1] <= 4:  # kernels have room for no more
        raise ValueError(
            f"coords have shape {tuple(coords.shape)}; [N, 1+D] with D of 1 to 3 is needed"
        )
    if coords.dtype != torch.int32:
        raise ValueError(
            f"coords are {coords.dtype}; they must be int32 (SparseVoxels.from_coords converts)"
        )


def _check_grid(shape: tuple[int, ...] | None, coords: Tensor) -> None:
    if shape is not None and len(shape) != coords.shape[1] - 1:
        raise ValueError(f"shape is {shape}; {coords.shape[1] - 1} numbers of cells are needed")


def check_table(name: str, table: Tensor) -> None:
    """Refuses a table that is not int32 [K, M]."""
    if table.dtype != torch.int32 or table.dim() != 2:
        raise ValueError(
            f"{name} is {table.dtype} of shape {tuple(table.shape)}; it must be int32 [K, M]"
        )


def refuse_rows(wrong: int, table: Tensor, rows: int) -> None:
    """Raises ValueError where a kernel found (``wrong``) that a table names more than ``rows``."""
    if wrong:
        raise ValueError(
            f"the table names row {int(table.max())} but there are {rows} rows; build it from the "
            "coordinates of these very voxels"
        )


def axes(value: Size, dims: int, name: str) -> tuple[int, ...]:
    """One number per axis.

    Raises:
        ValueError: a wrong count, or a number that ``name`` cannot have.
    """
    result = (value,) * dims if isinstance(value, int) else tuple(map(int, value))
    least = 0 if name == "padding" else 1
    if len(result) != dims or any(v < least for v in result):
        raise ValueError(
            f"{name} is {value}; give one number >= {least}, or {dims} of them (x, y, z)"
        )
    return result


def odd_axes(kernel_size: Size, dims: int) -> tuple[int, ...]:
    """One odd kernel size per axis.

    Raises:
        ValueError: an even size.
    """
    size = axes(kernel_size, dims, "kernel_size")
    if any(k % 2 == 0 for k in size):
        raise ValueError(
            f"kernel_size is {size}; a submanifold convolution needs odd sizes, because its kernel "
            f"is centred: take {tuple(k + 1 - k % 2 for k in size)}, or a strided convolution"
        )
    return size


def _centre(kernel_size: tuple[int, ...], dilation: tuple[int, ...]) -> tuple[int, ...]:
    """The padding that centres odd kernels and lets even ones reach forward."""
    return tuple(d * (k // 2) if k % 2 else 0 for k, d in zip(kernel_size, dilation))


def geometry(
    dims: int, kernel_size: Size, stride: Size, padding: Size | None, dilation: Size, meaning: str
) -> tuple[tuple[int, ...], ...]:
    """(kernel_size, stride, padding, dilation), one number per axis each.

    Raises:
        ValueError: as ``strided_map``.
    """
    if meaning not in MEANINGS:
        raise ValueError(f"meaning is {meaning!r}; it must be one of {', '.join(MEANINGS)}")
    size = axes(kernel_size, dims, "kernel_size")
    stride = axes(stride, dims, "stride")
    dilation = axes(dilation, dims, "dilation")
    centre = _centre(size, dilation)
    if padding is None:
        padding = centre if meaning == "minkowski" else 0
    padding = axes(padding, dims, "padding")
    if meaning == "minkowski" and padding != centre:
        raise ValueError(
            f"padding is {padding}; with meaning='minkowski' and kernel_size {size} it is "
            f"{centre}: leave it out"
        )
    return size, stride, padding, dilation


def _reduced_shape(shape, kernel_size, stride, padding, dilation) -> tuple[int, ...]:
    result = tuple(
        (g + 2 * p - d * (k - 1) - 1) // s + 1
        for g, k, s, p, d in zip(shape, kernel_size, stride, padding, dilation)
    )
    if any(size < 1 for size in result):
        raise ValueError(
            f"a kernel of {kernel_size} (dilation {dilation}) does not fit a grid of {shape} cells "
            f"with padding {padding}; use a larger grid, more padding or a smaller kernel"
        )
    return result


def _enlarged_shape(shape, kernel_size, stride, padding, dilation) -> tuple[int, ...]:
    result = tuple(
        (g - 1) * s - 2 * p + d * (k - 1) + 1
        for g, k, s, p, d in zip(shape, kernel_size, stride, padding, dilation)
    )
    if any(size < 1 for size in result):
        raise ValueError(
            f"padding {padding} leaves nothing of a grid of {shape} cells under a kernel of "
            f"{kernel_size} with stride {stride}; use less padding"
        )
    return result


# ---------------------------------------------------------------------- operators of torch


@torch.library.custom_op("sparse3d::offset_table", mutates_args=())
def _offset_table(
    fine: Tensor,
    coarse: Tensor,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> Tensor:
    sizes = map(tuple, (kernel_size, stride, padding, dilation))
    return backend.choose(OFFSET_TABLE, fine)(fine, coarse, *sizes)


@_offset_table.register_fake
def _(fine, coarse, kernel_size, stride, padding, dilation):
    return fine.new_empty(math.prod(kernel_size), coarse.shape[0])  # len would need a number


@torch.library.custom_op("sparse3d::reverse_table", mutates_args=())
def _reverse_table(table: Tensor, rows: int) -> Tensor:
    return backend.choose(REVERSE_TABLE, table)(table, rows)


@_reverse_table.register_fake
def _(table, rows):
    return table.new_empty(table.shape[0], rows)


@torch.library.custom_op("sparse3d::output_cells", mutates_args=())
def _cells(
    coords: Tensor,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    shape: list[int] | None,
    up: bool,
) -> Tensor:
    sizes = map(tuple, (kernel_size, stride, padding, dilation))
    run = backend.choose(SPREAD_CELLS if up else REACHED_CELLS, coords)
    return run(coords, *sizes, shape and tuple(shape))


@_cells.register_fake
def _(coords, kernel_size, stride, padding, dilation, shape, up):
    return coords.new_empty(torch.library.get_ctx().new_dynamic_size(), coords.shape[1])


@torch.library.custom_op("sparse3d::strided_map", mutates_args=())
def _strided(
    coords: Tensor,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    shape: list[int] | None,
) -> tuple[Tensor, Tensor]:
    """The cells that ``coords`` reach, and the table that leads to them."""
    sizes = map(tuple, (kernel_size, stride, padding, dilation))
    return backend.choose(STRIDED, coords)(coords, *sizes, shape and tuple(shape))


@_strided.register_fake
def _(coords, kernel_size, stride, padding, dilation, shape):
    found = torch.library.get_ctx().new_dynamic_size()
    table = coords.new_empty(math.prod(kernel_size), found)
    return coords.new_empty(found, coords.shape[1]), table


# ---------------------------------------------------------------------- implementations


def _native_offset_table(
    fine: Tensor, coarse: Tensor, *sizes: tuple[int, ...], table: Tensor | None = None
) -> Tensor:
    if table is None:
        table = native.empty(math.prod(sizes[0]), len(coarse), dtype=torch.int32)
    fine, coarse = fine.contiguous(), coarse.contiguous()
    counts = (fine, len(fine), coarse, len(coarse), len(sizes[0]))
    wrong = native.call("s3d_offset_table", *counts, torch.tensor(sizes), table, native.threads())
    if wrong:  # the definition finds the same fault and words it
        return reference.offset_table(fine, coarse, *sizes)
    return table


def _reference_reverse_table(table: Tensor, rows: int) -> Tensor:
    refuse_rows(table.numel() and int(table.max()) >= rows, table, rows)
    return reference.reverse_table(table, rows)


def _native_reverse_table(table: Tensor, rows: int) -> Tensor:
    reverse = native.empty(len(table), rows, dtype=torch.int32)
    offsets, columns = table.shape
    given = (table.contiguous(), offsets, columns, rows, reverse, native.threads())
    refuse_rows(native.call("s3d_reverse_table", *given), table, rows)
    return reverse


def _native_cells(definition: Callable, coords: Tensor, *arguments) -> Tensor:
    *sizes, shape = arguments
    dims = coords.shape[1] - 1
    limits = torch.tensor(shape or (-1,) * dims)
    up, threads = int(definition is reference.spread_cells), native.threads()
    coords, sizes = coords.contiguous(), torch.tensor(sizes)
    found = native.call("s3d_cells_find", coords, len(coords), dims, sizes, limits, up, threads)
    if found:
        (cells,) = _room_for(found, (1 + dims,))
        if not native.call("s3d_cells_take", found, cells, threads):
            return cells
    return definition(coords, *arguments)  # past int32: the definition says so


def _room_for(found: int, cells: tuple[int], *table: tuple[int]) -> list[Tensor]:
    """Tensors for what was found: [N, columns of cells], and [rows of a table, N] if asked for."""
    try:
        count = native.call("s3d_cells_count", found)
        shapes = [(count, *cells), *((*rows, count) for rows in table)]
        return [native.empty(*shape, dtype=torch.int32) for shape in shapes]
    except BaseException:  # no memory, or interrupted: what was found is nobody's then
        native.call("s3d_cells_drop", found)
        raise


def _reference_strided(coords: Tensor, *arguments) -> tuple[Tensor, Tensor]:
    *sizes, shape = arguments
    cells = reference.reached_cells(coords, *sizes, shape)
    return cells, reference.offset_table(coords, cells, *sizes)


def _native_strided(coords: Tensor, *arguments) -> tuple[Tensor, Tensor]:
    *sizes, shape = arguments
    coords, dims, threads = coords.contiguous(), coords.shape[1] - 1, native.threads()
    limits, numbers = torch.tensor(shape or (-1,) * dims), torch.tensor(sizes)
    given = (coords, len(coords), dims, numbers, limits, threads)
    found = native.call("s3d_strided_find", *given)
    if not found:  # cells too far apart to be drawn: in two steps
        cells = _native_cells(reference.reached_cells, coords, *arguments)
        return cells, _native_offset_table(coords, cells, *sizes)
    cells, table = _room_for(found, (1 + dims,), (math.prod(sizes[0]),))
    if native.call("s3d_strided_take", found, cells, table, threads):
        return cells, table
    return cells, _native_offset_table(coords, cells, *sizes, table=table)


OFFSET_TABLE = {
    "reference": reference.offset_table,
    "native": _native_offset_table,
    "cuda": reference.offset_table,
}
REVERSE_TABLE = {
    "reference": _reference_reverse_table,
    "native": _native_reverse_table,
    "cuda": reference.reverse_table,
}
STRIDED = {
    "reference": _reference_strided,
    "native": _native_strided,
    "cuda": _reference_strided,
}
REACHED_CELLS = {
    "reference": reference.reached_cells,
    "native": partial(_native_cells, reference.reached_cells),
    "cuda": reference.reached_cells,
}
SPREAD_CELLS = {
    "reference": reference.spread_cells,
    "native": partial(_native_cells, reference.spread_cells),
    "cuda": reference.spread_cells,
}
