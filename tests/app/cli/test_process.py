from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator

import pytest

from app.cli.process import configure_logging
from tests.app.cli.logging_state import restored_logging


@pytest.fixture(autouse=True)
def _restored_logging() -> Iterator[None]:
    with restored_logging():
        yield


@pytest.mark.parametrize(
    ("level", "expected"), [("debug", ["own", "library"]), ("info", ["own"]), ("error", [])]
)
def test_libraries_log_warnings_only_unless_at_debug(
    level: str, expected: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging(level)
    logging.getLogger("app.server").info("own")
    logging.getLogger("httpx").info("library")
    lines = capsys.readouterr().err.splitlines()
    assert [line.rpartition(": ")[2] for line in lines] == expected


def test_a_line_has_time_level_and_logger(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info")
    logging.getLogger("httpx").warning("slow")
    time, level, name, text = capsys.readouterr().err.split()
    assert len(time.split(":")) == 3
    assert (level, name, text) == ("WARNING", "httpx:", "slow")


# Exit: in a process of its own, with a thread that never ends.

HANGING = """
import sys, threading
from app.cli.process import exit_now, exit_within
threading.Thread(target=threading.Event().wait).start()
print("printed", end="")
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", HANGING + code], capture_output=True, text=True, timeout=30
    )


@pytest.mark.parametrize(("message", "line"), [("why", "tokenwire: why\n"), (None, "")])
def test_exit_now_ends_a_process_whose_thread_hangs(message: str | None, line: str) -> None:
    ended = run(f"exit_now({message!r}, status=3)")
    assert (ended.returncode, ended.stdout, ended.stderr) == (3, "printed", line)


def test_exit_within_ends_a_process_that_hangs() -> None:
    ended = run("exit_within(0.01, 'too late', status=4)")
    assert (ended.returncode, ended.stderr) == (4, "tokenwire: too late\n")


def test_exit_within_does_not_delay_a_process_that_ends_earlier() -> None:
    code = HANGING.replace("threading.Thread(", "threading.Thread(daemon=True, ")
    ended = subprocess.run(
        [sys.executable, "-c", code + "exit_within(1000, 'too late', status=4)"],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "printed", "")
