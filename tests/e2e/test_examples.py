"""Runs each example against the default model."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.e2e.server_process import ROOT, ServerProcess

pytestmark = [pytest.mark.model, pytest.mark.alone, pytest.mark.timeout(120)]


def _run(script: str, *arguments: str) -> str:
    command = [sys.executable, f"examples/{script}", *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_stream_and_resume(server: ServerProcess) -> None:
    output = _run("stream_and_resume.py", "--url", server.ws_url, "Tell me a long story.")
    assert "[connection dropped]" in output
    assert "[length after 80 tokens]" in output or "[stop after" in output


def test_two_streams(server: ServerProcess) -> None:
    output = _run("two_streams.py", "--url", server.ws_url)
    assert "[poem: cancelled]" in output
    assert "[story: length]" in output


def test_batch(server: ServerProcess) -> None:
    lines = _run("batch.py", "--url", server.url).splitlines()
    assert lines[0].startswith("The capital of France is Paris")
    assert len(lines) == 4


def test_openai_tools(server: ServerProcess) -> None:
    output = _run("openai_tools.py", "--url", server.url)
    colours, _, rest = output.partition("[get_temperature({'city': '")
    assert colours.strip()
    assert rest.startswith(("Paris'})]\n", "Oslo'})]\n"))
    assert rest.partition("\n")[2].strip()


def test_responses_socket(server: ServerProcess) -> None:
    output = _run("responses_socket.py", "--url", server.url)
    _, first, second = output.split("> ")
    assert "Paris" in first
    assert "Rome" in second
