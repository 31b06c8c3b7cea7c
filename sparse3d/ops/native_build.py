"""Compiles csrc/*.cpp into one shared library with a C interface. Standard library only.

setup.py runs this at install time; ``ops.native`` runs it when an installation has no library but a
compiler is there. The library's name holds a hash of the sources and flags, so a stale one is never
loaded, and it is written beside and renamed, so a half-written one is never seen.
"""

import concurrent.futures
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCES = Path(__file__).parent / "csrc"
# No -march=native: each file picks its instruction set at run time (function target attributes).
FLAGS = ["-O3", "-std=c++17", "-fPIC", "-fopenmp", "-fno-math-errno", "-ffp-contract=off", "-Wall"]

SANITIZE = [
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=undefined",
    "-fno-omit-frame-pointer",
    "-g",
    "-O1",
]
SPLATTING = ["--param", "asan-stack=0"]
"""In AddressSanitizer's frames GCC 12 puts variables of 64 bytes at addresses that are no multiple
of 64, and reports them then. Only splatting's kernels have such variables."""


def compiler() -> str | None:
    """Path of the C++ compiler ($CXX, else g++, else clang++), or None."""
    names = [os.environ.get("CXX"), "g++", "clang++"]
    return next((shutil.which(name) for name in names if name and shutil.which(name)), None)


def extra_flags(source: Path | None = None) -> list[str]:
    """Flags of $SPARSE3D_CXXFLAGS, and of the sanitizers if $SPARSE3D_SANITIZE is set and not 0.

    ``source``: the file that is compiled with them.

    A sanitized library finds reads and writes out of bounds and undefined behaviour, and stops
    there. It loads only into a process that began with libasan: tools/run_sanitized.sh does that.
    """
    sanitize = os.environ.get("SPARSE3D_SANITIZE", "0") not in ("", "0")
    flags = os.environ.get("SPARSE3D_CXXFLAGS", "").split()
    if sanitize:
        flags += SANITIZE
        flags += SPLATTING if source and source.name.startswith("splat") else []
    return flags


def _digest(files: list[Path], extra: list[str]) -> str:
    digest = hashlib.sha256(" ".join(FLAGS + extra).encode())
    for path in files:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def library_name() -> str:
    """File name of the library that belongs to the present sources and flags."""
    return f"_native-{_digest(sorted(SOURCES.glob('*.[ch]*')), extra_flags())}.so"


def cache_folder() -> Path:
    """The user's cache folder for libraries built after installation."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "sparse3d"


def build(folder: Path) -> Path:
    """Compiles the library into ``folder`` and returns its path.

    Raises:
        RuntimeError: no compiler, or the compiler failed; the message holds what it printed.
    """
    cxx = compiler()
    if cxx is None:
        raise RuntimeError("no C++ compiler found: install g++ (Debian: apt-get install g++)")
    target = folder / library_name()
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    headers = sorted(SOURCES.glob("*.h"))

    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        jobs = [
            (source, Path(scratch) / f"{source.stem}.o") for source in sorted(SOURCES.glob("*.cpp"))
        ]
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(lambda job: _compile(cxx, *job, headers), jobs))
        linked = Path(scratch) / "linked.so"
        _run(
            [
                cxx,
                *FLAGS,
                *extra_flags(),
                "-shared",
                "-o",
                str(linked),
                *(str(obj) for _, obj in jobs),
            ]
        )
        os.replace(linked, target)
    return target


def _compile(cxx: str, source: Path, target: Path, headers: list[Path]) -> None:
    extra = extra_flags(source)
    cached = cache_folder() / "objects" / f"{source.stem}-{_digest([source, *headers], extra)}.o"
    if cached.exists():
        shutil.copyfile(cached, target)
        return
    _run([cxx, *FLAGS, *extra, "-c", str(source), "-o", str(target)])
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        beside = cached.with_suffix(f".{os.getpid()}.tmp")
        shutil.copyfile(target, beside)
        os.replace(beside, cached)
    except OSError:
        pass  # a read-only home costs time at the next build, nothing else


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
