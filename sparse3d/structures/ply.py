"""Ply files of tables: elements with named scalar properties, binary or text."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

TYPES = {
    "char": "i1",
    "uchar": "u1",
    "short": "i2",
    "ushort": "u2",
    "int": "i4",
    "uint": "u4",
    "float": "f4",
    "double": "f8",
    "int8": "i1",
    "uint8": "u1",
    "int16": "i2",
    "uint16": "u2",
    "int32": "i4",
    "uint32": "u4",
    "float32": "f4",
    "float64": "f8",
}
NAMES = {"i1": "char", "u1": "uchar", "i4": "int", "u4": "uint", "f4": "float", "f8": "double"}
FORMATS = {"binary_little_endian": "<", "binary_big_endian": ">", "ascii": ""}


def read_ply(path: str | Path) -> dict[str, np.ndarray]:
    """Every element of a ply file before the first one with lists, as an array of records.

    Raises:
        ValueError: it is no ply file, is cut off, or begins with an element that has lists.
    """
    data = Path(path).read_bytes()
    head, mark, body = data.partition(b"end_header\n")
    lines = head.decode("ascii", "replace").split("\n")
    if lines[0].strip() != "ply" or not mark:
        raise ValueError(f"{path} is no ply file: it begins with {data[:16]!r}")
    order, elements = _parse_header(path, lines[1:])
    if order is None:
        raise ValueError(f"{path} has no known format line; one of {', '.join(FORMATS)} is needed")
    if order == "":
        return _read_text(path, body, elements)
    tables, start = {}, 0
    for name, count, fields in elements:
        if fields is None:
            break
        kind = np.dtype([(field, order + code) for field, code in fields])
        if start + count * kind.itemsize > len(body):
            raise ValueError(
                f"{path} is cut off: {count} rows of {name!r} need {count * kind.itemsize} bytes, "
                f"{len(body) - start} are there; copy or export it again"
            )
        tables[name] = np.frombuffer(body, kind, count, start)
        start += count * kind.itemsize
    if not tables:
        raise ValueError(f"{path} holds no table of numbers: it has {[e[0] for e in elements]}")
    return tables


def write_ply(path: str | Path, tables: Mapping[str, np.ndarray]) -> None:
    """Write arrays of records as the elements of a binary little-endian ply file."""
    lines = ["ply", "format binary_little_endian 1.0"]
    for name, table in tables.items():
        lines.append(f"element {name} {len(table)}")
        for field in table.dtype.names:
            lines.append(f"property {NAMES[table.dtype[field].str[1:]]} {field}")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(("\n".join([*lines, "end_header"]) + "\n").encode())
        for table in tables.values():
            kind = table.dtype.newbyteorder("<")
            file.write(np.ascontiguousarray(table).astype(kind).tobytes())


def _parse_header(path, lines):
    """The byte order, and name, count and fields (None: it has lists) of each element."""
    order, elements = None, []
    for line in lines:
        words = line.split()
        if words[:1] == ["format"]:
            order = FORMATS.get(words[1])
        elif words[:1] == ["element"]:
            elements.append([words[1], int(words[2]), []])
        elif words[:1] == ["property"]:
            if not elements or (words[1] != "list" and words[1] not in TYPES):
                raise ValueError(f"{path} has a header line that means nothing: {line!r}")
            fields = elements[-1][2]
            if words[1] == "list" or fields is None:
                elements[-1][2] = None
            else:
                fields.append((words[2], TYPES[words[1]]))
    return order, elements


def _read_text(path, body, elements):
    tables, rows = {}, body.decode("ascii", "replace").splitlines()
    for name, count, fields in elements:
        if fields is None:
            break
        if len(rows) < count:
            raise ValueError(f"{path} is cut off: {name!r} has {len(rows)} of {count} rows")
        kind = np.dtype(fields)
        tables[name] = np.array([tuple(row.split()) for row in rows[:count]], kind)
        rows = rows[count:]
    return tables
