"""Calls of C functions: what a kernel would misread never reaches it."""

import re

import pytest
import torch

from sparse3d.ops import native
from sparse3d.ops.native_build import SOURCES, extra_flags
from sparse3d.ops.native_prototypes import DTYPES, prototypes

needs_library = pytest.mark.skipif(not native.available(), reason="there is no native library")
POINTERS = [(f, p.name) for f, taken in prototypes().items() for p in taken if p.dtypes]


def arguments(function: str, **changed) -> list:
    """Zeros, and empty tensors of the right types: no kernel may run on them."""
    made = []
    for parameter in prototypes()[function]:
        plain = 0 if parameter.dtypes is None else torch.empty(0, dtype=parameter.dtypes[0])
        made.append(changed.get(parameter.name, plain))
    return made


def test_every_function_that_is_exported_or_called_is_known():
    defined = re.findall(r"EXPORT int64_t (\w+)", "".join(p.read_text() for p in SOURCES.glob("*")))
    both = {name for name in defined if name.endswith("_")}  # of macros, for float and double
    names = set(defined) - both | {name + end for name in both for end in ("f32", "f64")}
    assert names == set(prototypes())
    called = "".join(path.read_text() for path in SOURCES.parent.glob("*.py"))
    plain = set(re.findall(r'"(s3d_\w+)"', called))
    assert plain <= names and len(plain) > 40


@needs_library
@pytest.mark.parametrize("name", prototypes())
def test_the_library_has_every_function(name):
    assert getattr(native.library(), name)


@needs_library
@pytest.mark.parametrize(("function", "name"), POINTERS)
def test_another_type_is_refused_by_its_names(function, name):
    allowed = next(p.dtypes for p in prototypes()[function] if p.name == name)
    wrong = next((d for d in DTYPES["void"] if d not in allowed), None)
    if wrong is None:
        return  # void: only bytes are counted
    given = arguments(function, **{name: torch.empty(0, dtype=wrong)})
    with pytest.raises(ValueError, match=rf"{function}: {name} is .*{wrong}.*{allowed[0]}"):
        native.call(function, *given)


@needs_library
def test_strides_numbers_for_tensors_and_wrong_counts_are_refused():
    strided = torch.zeros(3, 4, dtype=torch.int64).t()
    with pytest.raises(ValueError, match=r"s3d_segment_ranks: index .*\(4, 3\).*contiguous"):
        native.call("s3d_segment_ranks", strided, 3, 4, None)
    with pytest.raises(TypeError, match="index is 5; a tensor or None"):
        native.call("s3d_segment_ranks", 5, 0, 0, None)
    with pytest.raises(TypeError, match="takes 4 arguments; 3 are given"):
        native.call("s3d_segment_ranks", None, 0, 0)
    for number in (1.0, torch.zeros(1), None):  # ctypes' own error
        with pytest.raises(Exception, match="argument 2"):
            native.call("s3d_segment_ranks", None, number, 0, None)


@needs_library
def test_a_whole_number_is_a_double_where_one_is_needed():
    values = torch.zeros(1, 1)
    out, mean, variance = torch.empty(1, 1), torch.empty(1), torch.empty(1)
    given = (values, 1, 1, torch.ones(1), torch.full((1,), 7.0))
    native.call("s3d_batch_norm", *given, 1, 0, out, mean, variance, 1)
    assert out.item() == 7


def test_no_exported_function_lets_an_exception_out():
    for path in SOURCES.glob("*.cpp"):
        text = path.read_text().replace("\\\n", "\n")
        bodies = re.findall(
            r"EXPORT int64_t (\w+)[^{;]*?(try)? *{.*?(OR_SHORTAGE|\n} *\n)", text, re.S
        )
        assert all(begin and end == "OR_SHORTAGE" for _, begin, end in bodies), bodies
        assert len(bodies) == text.count("EXPORT int64_t"), path


MUCH = 2**50
SHORT = {
    "s3d_segment_ranks": {"segments": MUCH},
    "s3d_segment_sum": {"channels": MUCH, "threads": 2},  # in a parallel region, as those below
    "s3d_segment_max": {"channels": MUCH, "threads": 2},
    "s3d_splat_composite": {"channels": MUCH, "tile": 16, "threads": 2},
    "s3d_splat_composite_gradient": {"channels": MUCH, "tile": 16, "threads": 2},
    "s3d_conv_pairs_list": {"block": MUCH, "threads": 2},
    "s3d_smooth_planes": {"planes": MUCH, "threads": 2},
    "s3d_batch_norm": {"channels": 2**62},  # more than a vector can ever hold
}


@needs_library
@pytest.mark.skipif(bool(extra_flags()), reason="sanitizers stop where memory is short")
@pytest.mark.parametrize("name", SHORT)
def test_a_kernel_that_gets_no_memory_says_so(name):
    size, value = next(iter(SHORT[name].items()))
    with pytest.raises(MemoryError, match=rf"{name} did not .* {size} = {value}.*less at a time"):
        native.call(name, *arguments(name, **SHORT[name]))
    assert native.call("s3d_segment_ranks", *arguments("s3d_segment_ranks")) == 0
