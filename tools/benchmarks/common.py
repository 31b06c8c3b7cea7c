"""What the benchmarks share: timing in turns, peak memory, the machine, the file, the picture."""

import argparse
import ctypes
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from sparse3d.ops import backend, native

ENOUGH = 0.02  # seconds: a turn repeats shorter calls until they fill this
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass
class Case:
    """One line of comparison.

    Attributes:
        row: the columns that describe it.
        calls: what is timed, by implementation.
        gflop: arithmetic of one call, 1e9 operations; None where that says nothing.
    """

    row: dict
    calls: dict[str, Callable[[], object]]
    gflop: float | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that every benchmark has."""
    parser.add_argument("--out", type=Path, help="a json file for the numbers")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each implementation (5)")
    parser.add_argument("--seconds", type=float, default=20, help="at most per case (20)")
    parser.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="cpu: processor time, for one thread on a busy machine (wall)",
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--scale", type=float, default=1.0, help="share of the scenes' points (1)")


def by(name: str, call: Callable) -> Callable:
    """``call`` by implementation ``name``."""

    def run():
        with backend.forced(name):
            return call()

    return run


def under(name: str, call: Callable) -> Callable:
    """``call`` without gradients, by implementation ``name``."""
    return torch.no_grad()(by(name, call))


# ---------------------------------------------------------------------- timing


def measure_all(
    cases: Iterable[Case], args: argparse.Namespace, columns: Sequence[str] = ()
) -> list[dict]:
    """Rows of all cases, shown as they come; ``columns`` a case leaves out are None."""
    rows = []
    for case in cases:
        for row in measure(case, args.rounds, args.seconds, CLOCKS[args.clock]):
            rows.append(dict.fromkeys(columns) | row)
            show(rows[-1])
    return rows


def measure(
    case: Case, rounds: int, seconds: float, clock: Callable[[], float] = time.perf_counter
) -> list[dict]:
    """One row per implementation: the median over rounds in which they take turns.

    Args:
        case: what to run.
        rounds: turns of each implementation.
        seconds: no further round begins after this long; there is always one.
        clock: what tells the time of a call, seconds.
    """
    times: dict[str, list[float]] = {name: [] for name in case.calls}
    peaks = {name: peak_megabytes(call) for name, call in case.calls.items()}  # warms up, too
    start = time.perf_counter()
    for turn in range(rounds):
        if turn and time.perf_counter() - start > seconds:
            break
        for name, call in case.calls.items():
            times[name].append(_one_turn(call, clock))
    return [_row(case, name, statistics.median(times[name]), peaks[name]) for name in case.calls]


def _one_turn(call: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of one call: the median of as many as fill a turn."""
    times, start = [], clock()
    while True:
        before = clock()
        call()
        now = clock()
        times.append(now - before)
        if now - start > ENOUGH:
            return statistics.median(times)


def _row(case: Case, name: str, seconds: float, peak: float | None) -> dict:
    return case.row | {
        "implementation": name,
        "ms": round(seconds * 1e3, 4),
        "gflops": None if case.gflop is None else round(case.gflop / seconds, 2),
        "peak_mb": peak,
    }


def peak_megabytes(call: Callable[[], object]) -> float | None:
    """Resident memory that one call adds at its peak; None where Linux does not tell."""
    try:
        call()  # first-time costs stay out
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
        before = _status("VmRSS")
        call()
        return round(max(_status("VmHWM") - before, 0) / 1024, 1)
    except (OSError, AttributeError, KeyError):
        return None


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(dict(line.split(":", 1) for line in lines)[field].split()[0])


# ---------------------------------------------------------------------- the machine


def machine() -> dict:
    """What the numbers depend on."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        pass
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "torch": torch.__version__,
        "native": native.available(),
        **limits(),
    }


def limits() -> dict[str, float]:
    """Bandwidth of a memory copy (read and written bytes) and speed of a large matrix product."""
    source = torch.ones(1 << 24)
    target = torch.empty_like(source)
    found = {"copy_gb_s": 2 * source.nbytes / 1e9 / _one_turn(lambda: target.copy_(source))}
    for dtype in (torch.float32, torch.bfloat16):
        square = torch.ones(1024, 1024, dtype=dtype)
        seconds = _one_turn(lambda square=square: square @ square)
        found[f"mm_{str(dtype).removeprefix('torch.')}_gflops"] = 2 * 1.024**3 / seconds
    return {name: round(value, 1) for name, value in found.items()}


# ---------------------------------------------------------------------- results


def geometric_mean(values: Iterable[float]) -> float:
    """Of positive numbers; NaN of none."""
    logarithms = [math.log(value) for value in values]
    return math.exp(statistics.fmean(logarithms)) if logarithms else math.nan


def ratios(
    rows: list[dict], over: str, under: str, same: Sequence[str], **wanted
) -> dict[tuple, float]:
    """Time of implementation ``over`` divided by that of ``under``, where both were measured.

    Args:
        rows: what was measured.
        over, under: implementations.
        same: the columns that both rows share; their values are the keys of the result.
        wanted: values that columns must have, or callables that tell whether they are wanted.
    """
    found: dict[str, dict[tuple, float]] = {over: {}, under: {}}
    for row in rows:
        tests = ((row.get(c), v) for c, v in wanted.items())
        if all(v(have) if callable(v) else have == v for have, v in tests):
            key = tuple(row.get(column) for column in same)
            found.setdefault(row["implementation"], {})[key] = row["ms"]
    return {k: ms / found[under][k] for k, ms in found[over].items() if k in found[under]}


def label(row: dict) -> str:
    """What tells a row from others, but for the implementation."""
    skipped = ("implementation", "ms", "gflops", "peak_mb", "in_channels", "out_channels")
    words = [str(v) for k, v in row.items() if k not in skipped and isinstance(v, str)]
    if row.get("in_channels"):
        words.insert(1, f"{row['in_channels']}->{row['out_channels']}")
    return " ".join(words)


def show(row: dict) -> None:
    """One line of the table."""
    gflops = f"{row['gflops']:8.1f} GFLOP/s" if row.get("gflops") is not None else " " * 16
    peak = f"{row['peak_mb']:8.1f} MB" if row.get("peak_mb") is not None else ""
    what = f"{label(row):64} {row['implementation']:10}"
    print(f"{what} {row['ms']:10.3f} ms {gflops} {peak}", flush=True)


def write(path: Path, about: dict, rows: list[dict]) -> None:
    """Writes {"machine", "rows"} to ``path``, whole or not at all, and a chart beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(f".{os.getpid()}.tmp")
    beside.write_text(json.dumps({"machine": about, "rows": rows}, indent=1) + "\n")
    os.replace(beside, path)
    chart(rows, path.with_suffix(".png"))


def chart(rows: list[dict], path: Path) -> None:
    """Bars of milliseconds on a logarithmic axis, one colour per implementation."""
    try:
        import matplotlib
    except ImportError:
        print("no picture: pip install matplotlib draws one")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(dict.fromkeys(row["implementation"] for row in rows))
    cases = list(dict.fromkeys(label(row) for row in rows))
    height = 1.5 + 0.13 * len(rows) + 0.12 * len(cases)
    figure, axes = pyplot.subplots(figsize=(11, height), layout="constrained")
    thick = 0.85 / max(len(names), 1)
    for number, name in enumerate(names):
        own = {label(row): row["ms"] for row in rows if row["implementation"] == name}
        places = [cases.index(case) + number * thick for case in own]
        bars = axes.barh(places, list(own.values()), thick, label=name)
        axes.bar_label(bars, [f"{ms:.3g}" for ms in own.values()], padding=2, fontsize=6)
    axes.set_yticks([place + 0.4 for place in range(len(cases))], cases, fontsize=7)
    axes.set(xscale="log", xlabel="milliseconds (shorter is better)")
    axes.invert_yaxis()
    axes.legend(loc="lower right")
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
