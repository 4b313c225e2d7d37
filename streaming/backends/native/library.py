"""Compile the kernels, once per CPU, compiler and version of the sources, and load them.

The kernels are plain C++ without torch's headers: compiling takes seconds instead of a minute.
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
"""Files whose contents are part of a cached library's name. `check.py` is one of them: a library is
compiled and checked again when the check changes."""
_FLAGS = (
    "-std=c++17",
    "-O3",
    "-march=native",
    "-ffp-contract=fast",  # fuse every multiply and add, the same way in all copies of a function
    "-fno-math-errno",
    "-fopenmp",  # torch has the same runtime, so both share one pool of threads
    "-shared",
    "-fPIC",
)
_COMPILERS = ("g++", "c++", "clang++")
"""In order of preference. g++ links torch's OpenMP runtime (libgomp). clang++ links another, and
two thread pools in a process slow each other down."""
_TIMEOUT_S = 120


class KernelsUnavailable(Exception):
    """The kernels cannot be compiled or loaded; the message says why in one line."""


def load_kernels(
    cache_dir: str | None = None, *, on_progress: OnProgress = lambda *_: None
) -> ctypes.CDLL:
    """Return the kernels. Compile and check them first if they are not in the cache.

    The check runs in a process of its own: a library with instructions that this CPU lacks kills
    that process instead of the server.

    Args:
        cache_dir: directory of compiled libraries; None is the user's cache directory.
        on_progress: called before compiling.

    Raises:
        KernelsUnavailable: there is no compiler, it fails, or the library fails the check.
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
        raise KernelsUnavailable(f"cannot write or load {library}: {error}") from error


def library_name(target: str, inputs: Iterable[Path]) -> str:
    """Return the file name of a library in the cache, which contains a hash of what it depends on.

    Args:
        target: the compiler's predefined macros, which name its version and the CPU's features.
        inputs: files whose contents are hashed.
    """
    texts = [path.read_text() for path in inputs]
    key = hashlib.sha256("\0".join([target, *_FLAGS, *texts]).encode()).hexdigest()
    return f"kernels-{key[:16]}.so"


def find_compiler() -> str:
    """Return the path of a C++ compiler.

    Raises:
        KernelsUnavailable: no compiler is on the PATH.
    """
    for name in _COMPILERS:
        if path := shutil.which(name):
            return path
    raise KernelsUnavailable(f"no C++ compiler found, install one of {', '.join(_COMPILERS)}")


def build(compiler: str, sources: Iterable[Path], library: Path) -> None:
    """Compile and check a library in a temporary directory, then rename it to `library`.

    So `library` is either complete and checked, or does not exist.

    Raises:
        KernelsUnavailable: the compiler or the check fails.
        OSError: the library's directory cannot be written.
    """
    with tempfile.TemporaryDirectory(dir=library.parent, prefix=".building-") as folder:
        built = Path(folder) / library.name
        _run([compiler, *_FLAGS, *map(str, sources), "-o", str(built)])
        _run([sys.executable, "-m", "streaming.backends.native.check", str(built)])
        with built.open("rb") as file:
            # Without it, a power failure could leave a truncated library: every start would crash.
            os.fsync(file.fileno())
        built.rename(library)


def _run(command: list[str]) -> str:
    """Run a command and return its standard output.

    Raises:
        KernelsUnavailable: the command cannot be run, fails or times out.
    """
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KernelsUnavailable(f"cannot run {Path(command[0]).name}: {error}") from error
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        reason = lines[-1] if lines else f"exit status {done.returncode}"
        raise KernelsUnavailable(f"{Path(command[0]).name} failed: {reason}")
    return done.stdout
