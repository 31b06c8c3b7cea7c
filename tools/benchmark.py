"""Measure on this machine: python tools/benchmark.py NAME --out numbers.json

NAME is a file of tools/benchmarks; without one, they are listed. Implementations of one case take
turns, round after round, so that a busy machine slows all of them, and the median is reported:
compare rows of one run. Beside the numbers lies a picture of them.
"""

import argparse
import ast
import importlib
import sys
import warnings
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from sparse3d.engine.command_line import plain_errors
from tools.benchmarks import common

FOLDER = Path(__file__).parent / "benchmarks"


def benchmarks() -> dict[str, str]:
    """The first line of each benchmark's docstring, by name."""
    found = {}
    for path in sorted(FOLDER.glob("*.py")):
        tree = ast.parse(path.read_text())
        if any(isinstance(node, ast.FunctionDef) and node.name == "run" for node in tree.body):
            found[path.stem] = (ast.get_docstring(tree) or "").split("\n")[0]
    return found


def parse_args(argv: list[str]) -> tuple[argparse.Namespace, object]:
    """The command line and the benchmark that it names."""
    known = benchmarks()
    lines = "\n".join(f"    {name:14} {about}" for name, about in known.items())
    chooser = argparse.ArgumentParser(
        description=f"{__doc__}\n{lines}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    chooser.add_argument("benchmark", metavar="NAME", choices=known)
    if not argv:
        chooser.print_help()
        raise SystemExit(0)
    chosen = chooser.parse_args(argv[:1]).benchmark
    module = importlib.import_module(f"tools.benchmarks.{chosen}")
    parser = argparse.ArgumentParser(f"benchmark.py {chosen}", description=known[chosen])
    common.add_arguments(parser)
    module.add_arguments(parser)
    return parser.parse_args(argv[1:]), module


def main(argv: list[str] | None = None) -> None:
    """Measure, show and write."""
    warnings.filterwarnings("ignore", category=FutureWarning)  # spconv's, about torch.cuda.amp
    args, module = parse_args(sys.argv[1:] if argv is None else argv)
    torch.set_num_threads(args.threads)
    about = {**common.machine(), "clock": args.clock}
    print(", ".join(f"{key} {value}" for key, value in about.items()), flush=True)
    rows = module.run(args)
    for line in getattr(module, "summary", lambda rows: [])(rows):
        print(line)
    if args.out:
        common.write(args.out, about, rows)


if __name__ == "__main__":
    with plain_errors():
        main()
