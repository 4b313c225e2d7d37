"""The kernels are compiled once and checked before use; failures give a reason."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from streaming.backends.native.library import (
    INPUTS,
    SOURCES,
    KernelsUnavailable,
    build,
    find_compiler,
    library_name,
    load_kernels,
)
from tests.streaming.backends.attentions import kernels


def files(folder: Path) -> list[str]:
    return sorted(path.suffix for path in (folder / "kernels").iterdir())


@pytest.mark.slow
def test_the_kernels_are_compiled_once(tmp_path: Path) -> None:
    said: list[str] = []
    for _ in range(2):
        loaded = load_kernels(str(tmp_path), on_progress=lambda text, _: said.append(text))
        assert loaded.tokenwire_attend
    assert said == ["Compiling kernels for this CPU"]
    assert files(tmp_path) == [".lock", ".so"]


def test_the_name_of_a_library_depends_on_sources_check_and_cpu(tmp_path: Path) -> None:
    assert {"attention.cpp", "vectors.h", "check.py"} <= {path.name for path in INPUTS}
    names = {library_name("a CPU", INPUTS), library_name("another", INPUTS)}
    for number, path in enumerate(INPUTS):
        changed = tmp_path / path.name
        changed.write_text(f"{path.read_text()}\n")
        names.add(library_name("a CPU", [*INPUTS[:number], changed, *INPUTS[number + 1 :]]))
    assert len(names) == len(INPUTS) + 2


def test_a_missing_compiler_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(KernelsUnavailable, match=r"no C\+\+ compiler found"):
        load_kernels(str(tmp_path))


def fake_compiler(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put a shell script named g++ first on the PATH."""
    compiler = folder / "g++"
    compiler.write_text(f"#!/bin/sh\n{script}\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_the_last_line_of_a_failing_compiler_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_compiler(tmp_path, monkeypatch, 'echo "note" >&2; echo "no such flag" >&2; exit 1')
    with pytest.raises(KernelsUnavailable, match=r"^g\+\+ failed: no such flag$"):
        load_kernels(str(tmp_path))


def changed_sources(folder: Path, change: Callable[[str], str]) -> list[Path]:
    """Copy the sources to a folder, with a change in `attention.cpp`, and return the copies."""
    for path in SOURCES[0].parent.glob("*.[ch]*"):
        text = path.read_text()
        (folder / path.name).write_text(change(text) if path.name == "attention.cpp" else text)
    return sorted(folder.glob("*.cpp"))


@pytest.mark.slow
def test_a_library_with_wrong_results_is_discarded(tmp_path: Path) -> None:
    right, wrong = "added[r][v] += weight * loaded[v]", "added[r][v] -= weight * loaded[v]"
    assert right in SOURCES[0].read_text()
    sources = changed_sources(tmp_path, lambda text: text.replace(right, wrong))
    with pytest.raises(KernelsUnavailable, match="the attention kernel has an error of"):
        build(find_compiler(), sources, tmp_path / "kernels.so")
    assert not list(tmp_path.glob("*.so"))


@pytest.mark.slow
def test_a_library_that_crashes_its_process_is_discarded(tmp_path: Path) -> None:
    """A library with instructions that the CPU lacks does so."""
    death = tmp_path / "death.cpp"
    death.write_text(
        "#include <cstdlib>\n__attribute__((constructor)) void die() { std::abort(); }\n"
    )
    with pytest.raises(KernelsUnavailable, match="exit status -6"):
        build(find_compiler(), [death], tmp_path / "kernels.so")
    assert not list(tmp_path.glob("*.so"))


def test_a_folder_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    (tmp_path / "kernels").write_text("a file")
    with pytest.raises(KernelsUnavailable, match="cannot write or load"):
        load_kernels(str(tmp_path))


@pytest.mark.slow
def test_the_check_as_a_command_accepts_the_kernels() -> None:
    command = [sys.executable, "-m", "streaming.backends.native.check", kernels()._name]
    subprocess.run(command, check=True)
