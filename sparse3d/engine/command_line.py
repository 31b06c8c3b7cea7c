"""What the tools share: options of a config, and mistakes of the user's said in one message."""

import argparse
import inspect
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches

import mmengine.registry
from mmengine.config import DictAction

TRACEBACK = "SPARSE3D_TRACEBACK"
"""Environment variable: when set, an error shows where it arose."""

_UNKNOWN_TYPE = re.compile(r"(\S+) is not in the (?:\w+::)?([\w ]+?) registry")
_UNKNOWN_KEY = re.compile(r"(\w+)(?:\.__init__)?\(\) got an unexpected keyword argument '(\w+)'")
_MISSING_KEY = re.compile(r"(\w+)(?:\.__init__)?\(\) missing \d+ required .*arguments?: (.*)")
_NO_MEMORY = re.compile(r"out of memory|can't allocate memory", re.IGNORECASE)
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
    if isinstance(error, KeyError) and (found := _UNKNOWN_TYPE.search(text)):
        return _unknown_type(*found.groups())
    if isinstance(error, TypeError) and (found := _UNKNOWN_KEY.search(text)):
        return _unknown_key(*found.groups())
    if isinstance(error, TypeError) and (found := _MISSING_KEY.search(text)):
        return f"{found[1]} lacks {found[2]}: the config must give it"
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
        "of a class of your own, name the module in custom_imports"
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
