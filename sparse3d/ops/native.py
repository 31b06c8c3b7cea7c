"""Loads the native CPU library and calls it. C sees pointers, int64 and double only."""

import ctypes
import functools
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import torch  # before the library: torch brings the libgomp that both then share
from torch import Tensor

from . import native_build
from .native_prototypes import Parameter, prototypes

SHORTAGE = -(2**63)
"""What C functions return, instead of a result, where memory was short: common.h's OR_SHORTAGE."""
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

    A tensor is passed as the pointer to its data and must be a contiguous CPU tensor of what the
    function reads or writes there: checked here, because C checks nothing. Sizes are for the caller
    to check. None is passed as a null pointer.

    Raises:
        ValueError: a tensor that is not what the function takes.
        TypeError: too few or too many arguments, or one of a wrong kind.
        MemoryError: the function did not get the memory it needs; outputs hold anything then.
    """
    function, parameters = _function(name)
    if len(arguments) != len(parameters):
        raise TypeError(f"{name} takes {len(parameters)} arguments; {len(arguments)} are given")
    result = function(*[_argument(name, p, v) for p, v in zip(parameters, arguments)])
    if result == SHORTAGE:
        numbers = zip(parameters, arguments)
        sizes = ", ".join(f"{p.name} = {v}" for p, v in numbers if p.dtypes is None)
        raise MemoryError(
            f"{name} did not get the memory it needs, with {sizes or 'no sizes'}: give it less at "
            "a time, or the process more memory"
        )
    return result


@functools.cache
def _function(name: str) -> tuple[Callable, tuple[Parameter, ...]]:
    parameters = prototypes()[name]
    function = getattr(library(), name)
    function.restype = ctypes.c_int64
    numbers = {"int64_t": ctypes.c_int64, "double": ctypes.c_double}
    function.argtypes = [ctypes.c_void_p if p.dtypes else numbers[p.kind] for p in parameters]
    return function, parameters


def _argument(name: str, parameter: Parameter, value: Tensor | int | float | None):
    """What ctypes passes on. Numbers it checks itself."""
    if parameter.dtypes is None or value is None:
        return value
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: {parameter.name} is {value!r}; a tensor or None is needed")
    if value.dtype in parameter.dtypes and value.is_cpu and value.is_contiguous():
        return value.data_ptr()
    wanted = " or ".join(str(dtype) for dtype in parameter.dtypes)
    raise ValueError(
        f"{name}: {parameter.name} is a {value.device.type} tensor of {value.dtype}, shape "
        f"{tuple(value.shape)} and strides {value.stride()}; a contiguous CPU tensor of {wanted} "
        "is needed"
    )


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
