"""A module imports only from rooms to its left, and files keep the house's sizes."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "sparse3d"
# Rooms from left to right; rooms of one entry do not import each other.
ROOMS = [
    {"registry"},
    {"ops"},
    {"structures"},
    {"datasets", "models"},
    {"evaluation", "visualization"},
    {"engine"},
]
# evaluation reads the data sets' conventions, visualization draws what evaluation does not need.
FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(parts: tuple[str, ...]) -> int | None:
    """Position of the room that holds the module sparse3d.<parts>; None for the package itself."""
    return next((i for i, names in enumerate(ROOMS) if parts and parts[0] in names), None)


def imported(path: Path) -> list[tuple[str, ...]]:
    """Modules of sparse3d that ``path`` imports, as parts below the package."""
    here = path.relative_to(PACKAGE).with_suffix("").parts
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [a.name.split(".")[1:] for a in node.names if a.name.startswith("sparse3d.")]
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                base = list(here[: len(here) - node.level])
                module = (node.module or "").split(".") if node.module else []
                found += [base + module] if module else [[*base, a.name] for a in node.names]
            elif (node.module or "").split(".")[0] == "sparse3d":
                module = node.module.split(".")[1:]
                found += [module] if module else [[a.name] for a in node.names]
    return [tuple(parts) for parts in found if parts]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_left(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    own = room_of(parts)
    if own is None:
        return
    for target in imported(path):
        room = room_of(target)
        same = target[0] == parts[0]
        assert room is None or same or room < own, (
            f"{'.'.join(parts)} imports {'.'.join(target)}, which is not to its left"
        )


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_stay_short(path):
    lines = path.read_text().count("\n")
    assert lines <= 500, f"{path.name} has {lines} lines; split it"
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            length = node.end_lineno - node.lineno + 1
            assert length <= 80, f"{path.name}: {node.name} has {length} lines; split it"
