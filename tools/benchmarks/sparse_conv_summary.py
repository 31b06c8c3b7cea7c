"""The ratios of a sparse_conv run that matter, beside what they should be."""

import math
from collections.abc import Callable, Iterable

from tools.benchmarks.common import geometric_mean, ratios

FRESH = "submanifold with a copied map"
"""Workload whose calls hold a map of 27 offsets of their own."""
_SAME = ("workload", "voxels", "in_channels", "out_channels", "dtype", "pass", "order")


def summary(rows: list[dict]) -> list[str]:
    """Lines of text: geometric mean and worst of each ratio, and what is wanted."""
    parts = (
        ("native / roofline, float32 (the worst is the largest)", _over_roofline(rows)),
        ("spconv / native, float32 (the worst is the smallest)", _under_spconv(rows)),
        ("bfloat16, row order and growth", _others(rows)),
    )
    lines = []
    for title, found in parts:
        lines += ["", title] if found else []
        lines += found
    return lines


def _line(name: str, values: Iterable[float], worst: Callable, wanted: str) -> list[str]:
    values = list(values)
    if not values:
        return []
    mean = geometric_mean(values)
    return [f"  {name:44} {mean:7.2f}  worst {worst(values):7.2f}   wanted {wanted}"]


def _between(least: int, most: int = 1 << 30) -> Callable[[int | None], bool]:
    return lambda channels: channels is not None and least <= channels <= most


def _ending(*words: str) -> Callable[[str], bool]:
    return lambda workload: workload.endswith(words)


def _over_roofline(rows: list[dict]) -> list[str]:
    one, two = _ending("submanifold"), _ending("strided", "inverse")
    groups = (  # name, workloads, channels, wanted forward, wanted forward and backward
        (
            "submanifold, 64 channels and more",
            one,
            _between(64),
            "0.85, worst 1.0",
            "0.95, worst 1.1",
        ),
        ("submanifold, 32 channels", one, _between(32, 32), "1.1", "1.2"),
        ("submanifold, 16 channels", one, _between(16, 16), "1.5", "1.6"),
        ("strided and inverse", two, _between(1), "1.2", "1.4"),
    )
    lines = []
    for column, what in enumerate(("forward", "forward_backward")):
        for name, workload, channels, *wanted in groups:
            test = {"workload": workload, "in_channels": channels, "pass": what}
            test |= {"dtype": "float32", "order": "sorted"}
            found = ratios(rows, "native", "roofline", _SAME, **test)
            lines += _line(f"{what} {name}", found.values(), max, f"<= {wanted[column]}")
    return lines


def _under_spconv(rows: list[dict]) -> list[str]:
    layers = _ending("submanifold", "strided", "inverse")
    one, two = _ending("submanifold"), _ending("strided")
    groups = (
        ("forward", {"pass": "forward", "workload": layers, "order": "sorted"}, 5),
        ("forward_backward", {"pass": "forward_backward", "order": "sorted"}, 4.5),
        ("build submanifold, sorted", {"pass": "build", "workload": one, "order": "sorted"}, 15),
        ("build submanifold, random", {"pass": "build", "workload": one, "order": "random"}, 8),
        ("build strided, sorted", {"pass": "build", "workload": two, "order": "sorted"}, 10),
        ("build strided, random", {"pass": "build", "workload": two, "order": "random"}, 10),
        ("VoxelResBackBone8x, maps included", {"workload": lambda name: "BackBone" in name}, 5),
    )
    lines = []
    for name, test, wanted in groups:
        found = ratios(rows, "spconv", "native", _SAME, **test)
        lines += _line(name, found.values(), min, f">= {wanted}")
    return lines


def _others(rows: list[dict]) -> list[str]:
    wide = {"in_channels": _between(32), "order": "sorted"}
    lines = _line(
        "spconv float32 / native bfloat16, forward",
        _over_half(rows, "spconv", {**wide, "pass": "forward"}),
        min,
        ">= 14",
    )
    lines += _line(
        "native float32 / bfloat16, forward_backward",
        _over_half(rows, "native", {**wide, "pass": "forward_backward"}),
        min,
        ">= 2",
    )
    lines += _line("native random / sorted rows", _over_sorted(rows), max, "<= 1.1")
    lines += _line("memory of a forward / (features + map)", _memory(rows), max, "<= 2")
    for what in ("build", "forward", "forward_backward"):
        for column in ("ms", "peak_mb"):
            exponent = _exponent(rows, what, column)
            if exponent is not None:
                name = f"exponent of {column} over voxels, {what}"
                lines.append(f"  {name:44} {exponent:7.3f}" + " " * 17 + "wanted <= 1.05")
    return lines


def _memory(rows: list[dict]) -> list[float]:
    """All that our forward holds at its peak, over features in and out and the map."""
    found = []
    for row in rows:
        if row["workload"].endswith(FRESH) and row["implementation"] == "native" and row["peak_mb"]:
            channel = 4 * row["voxels"] / 2**20
            features = channel * row["in_channels"]
            held = features + row["peak_mb"]
            found.append(held / (features + channel * (row["out_channels"] + 27)))
    return found


def _over_half(rows: list[dict], over: str, test: dict) -> list[float]:
    """float32 by ``over`` divided by our bfloat16."""
    return _quotients(
        [r for r in rows if r["implementation"] == over and r["dtype"] == "float32"],
        [r for r in rows if r["implementation"] == "native" and r["dtype"] == "bfloat16"],
        "dtype",
        test,
    )


def _over_sorted(rows: list[dict]) -> list[float]:
    """Our random rows divided by sorted ones; building, where they are sorted, left out."""
    ours = [r for r in rows if r["implementation"] == "native" and r["pass"] != "build"]
    return _quotients(
        [r for r in ours if r["order"] == "random"],
        [r for r in ours if r["order"] == "sorted"],
        "order",
        {},
    )


def _quotients(over: list[dict], under: list[dict], but: str, test: dict) -> list[float]:
    """Times of the rows that agree in every column except ``but``, divided."""
    same = tuple(column for column in _SAME if column != but)

    def keyed(rows: list[dict]) -> dict[tuple, float]:
        return {
            tuple(row[c] for c in same): row["ms"]
            for row in rows
            if all(v(row[c]) if callable(v) else row[c] == v for c, v in test.items())
        }

    below = keyed(under)
    return [ms / below[key] for key, ms in keyed(over).items() if key in below]


def _exponent(rows: list[dict], what: str, column: str) -> float | None:
    """The slope of log(column) over log(voxels), by least squares."""
    points = [
        (math.log(row["voxels"]), math.log(row[column]))
        for row in rows
        if row["workload"].startswith("scaling") and row["pass"] == what and row[column]
    ]
    if len(points) < 3:
        return None
    x, y = (sum(values) / len(points) for values in zip(*points))
    return sum((a - x) * (b - y) for a, b in points) / sum((a - x) ** 2 for a, _ in points)
