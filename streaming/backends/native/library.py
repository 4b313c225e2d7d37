"""Compile the kernels, once for each compiler and CPU, and load them.

They are plain C++ without torch's headers, so that this takes seconds and not a minute.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from filelock import FileLock

from streaming.backends import OnProgress
from streaming.backends.loading.model_cache import default_cache_dir

_FOLDER = Path(__file__).parent
SOURCES = tuple(sorted(_FOLDER.glob("*.cpp")))
INPUTS = (*SOURCES, *sorted(_FOLDER.glob("*.h")), _FOLDER / "check.py")
"""What a cached library depends on. It is made anew if the check that it has passed is another."""
_FLAGS = (
    "-std=c++17",
    "-O3",
    "-march=native",
    "-ffp-contract=fast",  # products and sums are fused wherever they can be, in all copies alike
    "-fno-math-errno",
    "-fopenmp",  # torch brings the same runtime, so both share its threads
    "-shared",
    "-fPIC",
)
_COMPILERS = ("g++", "c++", "clang++")
"""g++ first: torch has the same threads, and two kinds of them in a process hinder each other."""
_MAX_SECONDS = 120


class NoKernels(Exception):
    """The kernels cannot be had here; the text says why, in one line."""


def load_kernels(
    cache_dir: str | None = None, *, on_progress: OnProgress = lambda *_: None
) -> ctypes.CDLL:
    """Return the kernels; if need be, compile them first.

    A library goes into the cache once it has given right answers in a process of its own: one with
    instructions that this CPU lacks kills that process and not the server.

    Args:
        cache_dir: where compiled libraries are kept; None is the user's cache directory.

    Raises:
        NoKernels: there is no compiler, it fails, or what it makes is wrong.
    """
    root = default_cache_dir() if cache_dir is None else Path(cache_dir).expanduser()
    return _load(root / "kernels", on_progress)


@cache
def _load_file(path: Path) -> ctypes.CDLL:
    return ctypes.CDLL(str(path))


def _load(folder: Path, on_progress: OnProgress) -> ctypes.CDLL:
    compiler = find_compiler()
    target = _run([compiler, "-march=native", "-dM", "-E", "-x", "c++", os.devnull])
    library = folder / library_name(target, INPUTS)
    try:
        if not library.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(library.with_suffix(".lock")):
                if not library.exists():
                    on_progress("Compiling kernels for this CPU", None)
                    build(compiler, SOURCES, library)
        return _load_file(library)
    except OSError as error:
        raise NoKernels(f"{library} cannot be written or loaded: {error}") from error


def library_name(target: str, inputs: Iterable[Path]) -> str:
    """Return the name that a library has in the cache.

    Args:
        target: what the compiler says of this CPU.
    """
    texts = [path.read_text() for path in inputs]
    key = hashlib.sha256("\0".join([target, *_FLAGS, *texts]).encode()).hexdigest()
    return f"kernels-{key[:16]}.so"


def find_compiler() -> str:
    """Return the path of a C++ compiler.

    Raises:
        NoKernels: there is none.
    """
    for name in _COMPILERS:
        if path := shutil.which(name):
            return path
    raise NoKernels("there is no C++ compiler (g++, c++ or clang++)")


def build(compiler: str, sources: Iterable[Path], library: Path) -> None:
    """Compile aside, check, and rename: the library is whole and right, or not there.

    Raises:
        NoKernels: the compiler fails, or what it makes does.
        OSError: the library's folder cannot be written.
    """
    with tempfile.TemporaryDirectory(dir=library.parent, prefix=".building-") as folder:
        built = Path(folder) / library.name
        _run([compiler, *_FLAGS, *map(str, sources), "-o", str(built)])
        _run([sys.executable, "-m", "streaming.backends.native.check", str(built)])
        with built.open("rb") as file:
            os.fsync(file.fileno())  # half a library would kill every later start
        built.rename(library)


def _run(command: list[str]) -> str:
    """Return what a command prints.

    Raises:
        NoKernels: it fails.
    """
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_MAX_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoKernels(f"{Path(command[0]).name} does not run: {error}") from error
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        reason = lines[-1] if lines else f"exit status {done.returncode}"
        raise NoKernels(f"{Path(command[0]).name} fails: {reason}")
    return done.stdout
