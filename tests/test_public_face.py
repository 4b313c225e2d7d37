"""What the project shows: a small sorted face, a docstring on each module, a test for each."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import streaming

ROOT = Path(__file__).parent.parent
FILES = sorted(path for package in ("app", "streaming") for path in (ROOT / package).rglob("*.py"))
STREAMING = sorted(path.stem for path in (ROOT / "streaming").glob("[!_]*.py"))


def test_the_face_is_sorted_and_complete():
    public = {
        name
        for name, value in vars(streaming).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    assert streaming.__all__ == sorted(public)


@pytest.mark.parametrize("module", ["streaming", "streaming.errors", "app.main"])
def test_import_is_cheap_and_does_nothing(module: str):
    """No model library is loaded, no thread started, no logging set up."""
    code = f"""
import sys, threading, logging, {module}
libraries = {{"torch", "transformers", "tokenizers", "safetensors", "gguf", "llguidance"}}
heavy = libraries & set(sys.modules)
assert not heavy, heavy
assert threading.active_count() == 1, threading.enumerate()
assert not logging.getLogger().handlers
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_says_what_it_is(path: Path):
    source = path.read_text(encoding="utf-8")
    if path.name == "__init__.py" and not source:
        return
    assert ast.get_docstring(ast.parse(source))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_has_a_test_module_of_its_name(path: Path):
    module = path.relative_to(ROOT)
    if path.name.startswith("__"):
        return
    assert (ROOT / "tests" / module.parent / f"test_{path.name}").is_file()


def test_a_streaming_test_module_has_a_module_of_its_name():
    tests = {
        path.stem.removeprefix("test_") for path in (ROOT / "tests/streaming").glob("test_*.py")
    }
    assert tests <= set(STREAMING)
