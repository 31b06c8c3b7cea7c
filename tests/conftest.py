"""Where tests find fixtures and real samples, and what happens when they are not there."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED = {
    "SPARSE3D_FIXTURES": ROOT.parent / "shared" / "fixtures",
    "SPARSE3D_REAL_DATA": ROOT.parent / "shared" / "data",
}


def _find(variable: str, pattern: str) -> list:
    """Paths under $variable that match a glob; else one parameter that skips, or in CI fails."""
    folder = Path(os.environ.get(variable) or SHARED[variable])
    found = sorted(folder.glob(pattern))
    if found:
        return found
    reason = f"nothing matches {pattern} in {folder}: set {variable}"
    if os.environ.get("CI"):
        raise FileNotFoundError(reason)
    return [pytest.param(None, marks=pytest.mark.skip(reason=reason), id="absent")]


def fixture_files(pattern: str) -> list:
    """Files of published outputs, for ``pytest.mark.parametrize``."""
    return _find("SPARSE3D_FIXTURES", pattern)


def real_data(pattern: str) -> list:
    """Real samples, for ``pytest.mark.parametrize``."""
    return _find("SPARSE3D_REAL_DATA", pattern)
