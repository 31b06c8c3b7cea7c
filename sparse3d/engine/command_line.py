"""What the tools share: options of a config, and mistakes of the user's said in one message."""

import argparse
import inspect
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Union, get_args, get_origin, get_type_hints

import mmengine.registry
from mmengine.config import DictAction
from torch import Tensor

TRACEBACK = "SPARSE3D_TRACEBACK"
"""Environment variable: when set, an error shows where it arose."""

_UNKNOWN_TYPE = re.compile(r"(\S+) is not in the (?:\w+::)?([\w ]+?) registry")
_UNKNOWN_KEY = re.compile(r"(\w+)(?:\.__init__)?\(\) got an unexpected keyword argument '(\w+)'")
_MISSING_KEY = re.compile(r"(\w+)(?:\.__init__)?\(\) missing \d+ required .*arguments?: (.*)")
_NO_MEMORY = re.compile(r"out of memory|can't allocate memory", re.IGNORECASE)
_REMEDY = re.compile(r"\b(?:pip|apt) install |--window")
"""In the errors, of kinds that mostly are faults of the program's, that say what to do."""
PACKAGES = {
    **dict.fromkeys(("onnx", "onnxscript", "onnxruntime"), "onnx onnxscript onnxruntime"),
    **{name: name for name in ("viser", "pycolmap", "pyarrow", "transformers", "matplotlib")},
    "open3d": "open3d-cpu",
    "nuscenes": "nuscenes-devkit",
}
"""What to install for the modules that are imported only where they are used; any other module that
is missing is a fault of the program's or of a config's own code."""
_LAST_OF_TRACEBACK = re.compile(r"^[\w.]*(?:Error|Exception): ", re.MULTILINE)


class ConfigOptions(DictAction):
    """key.inner=value pairs."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        for value in values:
            if "=" not in value:
                parser.error(f"{option_string} takes key.inner=value pairs, not {value!r}")
        super().__call__(parser, namespace, values, option_string)


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """Adds --cfg-options to ``parser``."""
    parser.add_argument(
        "--cfg-options", nargs="+", action=ConfigOptions, help="key.inner=value pairs to replace"
    )


def check_output(option: str, path: str | Path | None) -> None:
    """Sees before the work, which can take hours, whether its result can be written.

    Raises:
        ValueError: ``path``, given by ``option``, is a folder, or a part of it is a file.
    """
    if path is None:
        return
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{option} {path} is a folder: name a file in it")
    check_folder(option, path.parent)


def check_folder(option: str, folder: str | Path | None) -> None:
    """Makes ``folder``, into which ``option`` has something written.

    Raises:
        ValueError: it is a file, or a part of it is one.
    """
    if folder is None:
        return
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(f"{option}: {folder} cannot be made, a file is in the way") from error


def check_score(option: str, score: float) -> None:
    """Raises ValueError where ``score``, given by ``option``, is not in 0..1."""
    if not 0 <= score <= 1:
        raise ValueError(f"{option} is {score:g}; scores are in 0..1")


@contextmanager
def plain_errors() -> Iterator[None]:
    """Ends the program with 'error: ...' and code 1 where the user can mend the cause.

    Anything else is a fault of the program's and keeps its traceback, and so does everything when
    $SPARSE3D_TRACEBACK is set.
    """
    try:
        yield
    except Exception as error:
        message = explain(error)
        if message is None or os.environ.get(TRACEBACK):
            raise
        sys.exit(f"error: {message}")


def explain(error: Exception) -> str | None:
    """What a user should know of an error; None where it says nothing to him."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    if "Original Traceback" in text:  # of a loader's worker, whose traceback is in the message
        ends = list(_LAST_OF_TRACEBACK.finditer(text))
        text = text[ends[-1].end() :].strip() if ends else text
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, (OSError, ValueError, FloatingPointError)):
        return text
    if isinstance(error, (RuntimeError, ImportError)) and _REMEDY.search(text):
        return text
    if isinstance(error, ModuleNotFoundError) and error.name:
        module = error.name.split(".")[0]
        if module in PACKAGES:
            return f"{module} is not installed: pip install {PACKAGES[module]}"
    if isinstance(error, KeyError) and (found := _UNKNOWN_TYPE.search(text)):
        return _unknown_type(*found.groups())
    if isinstance(error, TypeError) and (found := _UNKNOWN_KEY.search(text)):
        return _unknown_key(*found.groups())
    if isinstance(error, TypeError) and (found := _MISSING_KEY.search(text)):
        return f"{found[1]} lacks {found[2]}: the config must give it"
    if isinstance(error, (TypeError, AttributeError)) and (said := _wrong_kind(error)):
        return said
    if isinstance(error, (RuntimeError, MemoryError)) and _NO_MEMORY.search(text):
        reason = text.splitlines()[0]
        return f"memory is not enough ({reason}): use a smaller batch or range, or larger voxels"
    return None


def did_you_mean(name: str, known: list[str]) -> str:
    """' (did you mean ...?)' where a name of ``known`` is like ``name``, else nothing."""
    close = get_close_matches(name, known, 1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _registered() -> dict[str, type]:
    """Classes and functions by the name under which a config finds them."""
    found = {}
    for root in vars(mmengine.registry).values():
        if isinstance(root, mmengine.registry.Registry):
            for registry in (root, *root.children.values()):
                found.update(registry.module_dict)
    return found


def _unknown_type(name: str, kind: str) -> str:
    return (
        f"the config's type {name!r} is no known {kind}{did_you_mean(name, list(_registered()))}; "
        "a class of your own needs @DATASETS.register_module() (or MODELS', ...; all are in "
        "sparse3d.registry) above it, and its module in custom_imports"
    )


def _unknown_key(owner: str, key: str) -> str:
    """For a class that was given an unknown argument; a base class may be the one that says so."""
    known: list[str] = []
    registered = _registered()
    for kind in registered.values():
        family = [base.__name__ for base in getattr(kind, "__mro__", ())]
        if owner in family:
            known += [
                p for base in kind.__mro__[: family.index(owner) + 1] for p in _settings(base)
            ]
    listed = f"; it takes {', '.join(dict.fromkeys(known))}" if owner in registered else ""
    return f"{owner} has no setting {key!r}{did_you_mean(key, known)}{listed}"


def _settings(kind: type) -> list[str]:
    if "__init__" not in vars(kind):
        return []
    skipped = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(kind.__init__).parameters.values()
    return [p.name for p in parameters if p.name != "self" and p.kind not in skipped]


def _wrong_kind(error: Exception) -> str | None:
    """For a config's value of another kind than its class declares, such as a word for a number.

    Only where the error arose while that class was made: then the value is its cause.
    """
    registered, step = set(_registered().values()), error.__traceback__
    while step is not None:
        frame, step = step.tb_frame, step.tb_next
        owner = type(frame.f_locals.get("self"))
        if frame.f_code.co_name != "__init__" or owner not in registered:
            continue
        made = next((k for k in owner.__mro__ if _constructor(k) is frame.f_code), owner)
        for name, hint in _hints(made).items():
            value = frame.f_locals.get(name)
            if name in frame.f_locals and not _fits(value, hint):
                kind = re.sub(
                    r"\b(?:collections\.abc|typing)\.", "", inspect.formatannotation(hint)
                )
                return f"{owner.__name__}'s {name} is {value!r}; the config must give {kind}"
    return None


def _constructor(kind: type):
    return getattr(vars(kind).get("__init__"), "__code__", None)


def _hints(kind: type) -> dict:
    """Declared kinds of the arguments of ``kind``'s own constructor."""
    try:
        return {n: h for n, h in get_type_hints(kind.__init__).items() if n != "return"}
    except (NameError, TypeError):  # a class of another package, annotated for its checker alone
        return {}


def _fits(value, hint) -> bool:
    """Whether ``value`` may be of the declared kind; True where this cannot be told."""
    origin = get_origin(hint) or hint
    if origin in (Union, UnionType):
        return any(_fits(value, option) for option in get_args(hint))
    if hint is type(None):
        return value is None
    if origin in (bool, int, float):
        return not isinstance(value, (str, Mapping, Sequence))
    if origin in (str, Tensor):
        return isinstance(value, origin)
    if origin in (Sequence, list, tuple):
        return not isinstance(value, (str, Mapping, int, float))
    if origin in (Mapping, dict):
        return isinstance(value, Mapping)
    return True
