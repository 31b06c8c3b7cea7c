"""Loads the native CPU library and calls it. The C side sees pointers, int64 and double only."""

import ctypes
import functools
import os
import warnings
from pathlib import Path

import torch  # before the library: torch brings the libgomp that both then share
from torch import Tensor

from . import native_build

LARGE = 2**22
"""Bytes from which on a tensor is worth huge pages."""


@functools.cache
def library() -> ctypes.CDLL | None:
    """The native library; None, after one warning, where there is neither library nor compiler."""
    for folder in (Path(__file__).parent, native_build.cache_folder()):
        path = folder / native_build.library_name()
        if path.exists():
            return ctypes.CDLL(str(path))
    try:
        return ctypes.CDLL(str(native_build.build(native_build.cache_folder())))
    except (RuntimeError, OSError) as error:
        warnings.warn(
            "sparse3d runs without its native CPU kernels, several times slower: "
            f"{error}. Install g++ and import again.",
            stacklevel=2,
        )
        return None


def available() -> bool:
    return library() is not None


def call(name: str, *arguments: Tensor | int | float | None) -> int:
    """Calls C function ``name`` and returns its int64 result (0, or what the function defines).

    A tensor is passed as the pointer to its data and must be a contiguous CPU tensor: checked here,
    because ctypes checks nothing. Integers are passed as int64, floats as double, None as a null
    pointer.
    """
    function = getattr(library(), name)
    function.restype = ctypes.c_int64
    return function(*(_argument(name, i, value) for i, value in enumerate(arguments)))


def _argument(name: str, position: int, value: Tensor | int | float | None):
    if isinstance(value, Tensor):
        if value.device.type != "cpu" or not value.is_contiguous():
            raise ValueError(
                f"{name}: argument {position} is a {value.device.type} tensor of shape "
                f"{tuple(value.shape)} and strides {value.stride()}; "
                "a contiguous CPU tensor is needed"
            )
        return ctypes.c_void_p(value.data_ptr())
    if isinstance(value, float):
        return ctypes.c_double(value)
    if value is None:
        return ctypes.c_void_p(None)
    return ctypes.c_int64(value)


def check_index(name: str, index: Tensor, rows: int, limit: int, least: int = 0) -> None:
    """Refuses an ``index`` that would lead a kernel past its tensors: it reads what it is told to.

    Args:
        name: of the argument, for the message.
        index: what must be int64 [rows] in ``least`` .. ``limit`` - 1.

    Raises:
        ValueError: it is not.
    """
    if index.dtype != torch.int64 or index.shape != (rows,):
        raise ValueError(
            f"{name} is {index.dtype} of shape {tuple(index.shape)}; int64 of shape ({rows},) is "
            "needed"
        )
    if not rows:
        return
    low, high = map(int, index.aminmax())
    if low < least or high >= limit:
        raise ValueError(f"{name} holds {low}..{high}; it must be in [{least}, {limit})")


def empty(*sizes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """An uninitialised CPU tensor, in huge pages where it is large: a kernel's output.

    Touching ordinary pages for the first time costs more than most kernels' arithmetic.
    """
    out = torch.empty(sizes, dtype=dtype)
    if out.nbytes >= LARGE:
        call("s3d_want_huge_pages", out, out.nbytes)
    return out


def threads() -> int:
    """The number of threads a kernel may use: torch's, so that torch.set_num_threads is obeyed."""
    return torch.get_num_threads()


def cpu_level() -> str:
    """$SPARSE3D_ISA, for tests: 'avx512', 'avx2' or 'plain'; empty: kernels choose."""
    return os.environ.get("SPARSE3D_ISA", "")
