"""What the C functions take, read from their own definitions in csrc/*.cpp: there is no other list.

The sources belong to every installation, because the library's name is a hash of them.
"""

import functools
import re
from typing import NamedTuple

import torch

from .native_build import SOURCES

DTYPES = {
    "float": (torch.float32,),
    "double": (torch.float64,),
    "Rect": (torch.float64,),  # six numbers of a rectangle
    "int64_t": (torch.int64,),
    "int32_t": (torch.int32,),
    "int16_t": (torch.int16,),
    "uint16_t": (torch.uint16, torch.bfloat16),  # C++17 has no bfloat16: kernels take its bits
    "uint8_t": (torch.uint8, torch.bool),
    "void": tuple({d for d in vars(torch).values() if isinstance(d, torch.dtype)}),
}
NUMBERS = ("int64_t", "double")
_FUNCTION = re.compile(r"EXPORT int64_t (\w+)(##SUFFIX)?\(([^)]*)\)")
_PARAMETER = re.compile(r"(?:const )?(\w+)(\*?) (\w+)")
_OF_SUFFIX = {"f32": "float", "f64": "double"}
"""What T is in the macros that define a function for both."""


class Parameter(NamedTuple):
    """A parameter of a C function.

    Attributes:
        name: in C.
        kind: of a number, or of what is pointed to: its name in C.
        dtypes: of a tensor whose data the pointer may point to; None: a number.
    """

    name: str
    kind: str
    dtypes: tuple[torch.dtype, ...] | None


@functools.cache
def prototypes() -> dict[str, tuple[Parameter, ...]]:
    """The parameters of every C function."""
    found = {}
    for path in sorted(SOURCES.glob("*.cpp")):
        text = path.read_text().replace("\\\n", "\n")
        for name, both, parameters in _FUNCTION.findall(text):
            for suffix, number in _OF_SUFFIX.items() if both else (("", ""),):
                given = filter(None, (" ".join(p.split()) for p in parameters.split(",")))
                found[name + suffix] = tuple(_parameter(p, number) for p in given)
    return found


def _parameter(text: str, number: str) -> Parameter:
    """``text``: as in C, 'const float* x'; ``number``: what T stands for."""
    kind, pointer, name = _PARAMETER.fullmatch(text).groups()
    kind = number if kind == "T" else kind
    if not pointer and kind not in NUMBERS:
        raise ValueError(f"C parameter {text!r}: numbers must be one of {', '.join(NUMBERS)}")
    return Parameter(name, kind, DTYPES[kind] if pointer else None)
