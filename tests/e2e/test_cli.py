"""The command line: help, invalid settings, and the terminal chat.

Most commands run in this process, which saves the imports. Those in a process of their own, which
`make check` skips, show that the process ends in the same way.
"""

from __future__ import annotations

import os
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from app.cli.commands import cli
from app.settings import Settings
from streaming.backends.scripted import scripted_backend
from tests.app.cli.logging_state import restored_logging
from tests.app.serving import live
from tests.e2e.server_process import ROOT

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(autouse=True)
def _restored_logging() -> Iterator[None]:
    with restored_logging():
        yield


def call(*arguments: str, stdin: str = "", **env: str) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(cli, arguments, input=stdin, env={"COLUMNS": "200", **env})


def run(*arguments: str, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "app", *arguments],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "200", **env},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=100,
    )


def test_help_lists_every_setting_with_its_variable() -> None:
    text = call("serve", "--help").stdout
    for name in Settings.model_fields:
        assert f"--{name.replace('_', '-')}" in text
        assert f"TOKENWIRE_{name.upper()}" in text


@pytest.mark.slow
def test_an_invalid_setting_ends_the_process_with_one_line_and_its_status() -> None:
    wrong = run("serve", "--port", "70000")
    impossible = run("serve", "--log-level", "error", "--host", "a..b", "--allow-anonymous")
    assert (wrong.returncode, impossible.returncode) == (2, 1)
    for result, says in (
        (wrong, "port: must be at most 65535 (got 70000)"),
        (impossible, "cannot listen on a..b:8000"),
    ):
        assert says in result.stderr
        assert len(result.stderr.splitlines()) == 1
        assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("flags", "env", "says"),
    [
        (["--port", "70000"], {}, "port: must be at most 65535 (got 70000)"),
        (["--host", "0.0.0.0"], {}, "set api_keys, or allow_anonymous"),
        ([], {"TOKENWIRE_PORTS": "1"}, "TOKENWIRE_PORTS: there is no such setting"),
        ([], {"TOKENWIRE_LOG_LEVEL": "loud"}, "log_level: must be one of debug, info"),
        ([], {"TOKENWIRE_API_KEY": "secret"}, "set TOKENWIRE_API_KEYS, or allow_anonymous"),
    ],
)
def test_wrong_settings_end_with_one_line_and_status_2(
    flags: list[str], env: dict[str, str], says: str
) -> None:
    result = call("serve", *flags, **env)
    assert result.exit_code == 2
    assert says in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--model", "/nowhere/at/all"], "/nowhere/at/all"),
        (["--dtype", "float7"], "float7"),
        (["--host", "192.0.2.1", "--allow-anonymous"], "cannot listen on 192.0.2.1:0"),
        (["--host", "a..b", "--allow-anonymous"], "cannot listen on a..b:0"),
    ],
)
def test_a_failed_start_ends_with_one_line_and_status_1(flags: list[str], says: str) -> None:
    result = call("serve", "--log-level", "error", "--port", "0", *flags)
    assert result.exit_code == 1
    assert says in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_stored_responses_of_a_newer_version_are_not_touched(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "responses.sqlite3")) as connection:
        connection.execute("PRAGMA user_version = 7")
    result = call("serve", "--port", "0", "--log-level", "error", "--data-dir", str(tmp_path))
    assert result.exit_code == 1
    assert "schema 7 is newer than this server's" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["responses.sqlite3"]


@pytest.mark.slow
def test_a_model_that_cannot_be_loaded_ends_the_process() -> None:
    result = run("serve", "--log-level", "error", "--port", "0", "--model", "/nowhere/at/all")
    assert result.returncode == 1
    assert "/nowhere/at/all" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_chat_without_a_server_reports_it() -> None:
    result = call("chat", "--url", "http://127.0.0.1:9", "hello")
    assert result.exit_code == 1
    assert "cannot reach http://127.0.0.1:9" in result.stdout


@pytest.mark.slow
def test_chat_without_a_server_ends_the_process() -> None:
    result = run("chat", "--url", "http://127.0.0.1:9", "hello")
    assert result.returncode == 1
    assert "cannot reach http://127.0.0.1:9" in result.stdout
    assert result.stderr == ""


@pytest.mark.parametrize(
    "url", ["localhost:8000", "", "ftp://here", "http://", "http://[::1", "http://here:99999"]
)
def test_chat_refuses_a_url_that_is_not_an_address(url: str) -> None:
    result = call("chat", "--url", url, "hello")
    assert result.exit_code == 2
    assert result.stderr == "tokenwire: url: must be an address such as http://127.0.0.1:8000\n"


def test_chat_reports_another_server_and_an_invalid_host_name() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mail:

        def greet() -> None:
            with mail.accept()[0] as peer:
                peer.recv(4096)
                peer.sendall(b"220 mail\r\n")

        thread = threading.Thread(target=greet)
        thread.start()
        url = f"http://127.0.0.1:{mail.getsockname()[1]}"
        other = call("chat", "--url", url, "hello")
        thread.join()
    no_name = call("chat", "--url", "http://a..b", "hello")
    assert (other.exit_code, no_name.exit_code) == (1, 1)
    assert other.stdout == f"{url} is not a Tokenwire server\n"
    assert no_name.stdout.startswith("cannot reach http://a..b: ")
    assert other.stderr == no_name.stderr == ""


def test_chat_prints_brackets_unchanged() -> None:
    result = call("chat", "--url", "http://127.0.0.1:9/[/x]", stdin="/[/y]\nhello\n/quit\n")
    assert result.exit_code == 0, result.stderr
    assert "Unknown command /[/y]; try /help." in result.stdout
    assert "cannot reach http://127.0.0.1:9/[/x]: " in result.stdout


def test_chat_removes_control_characters() -> None:
    with live(scripted_backend()) as url:
        result = call("chat", "--url", url, "ab\x1b[2J\x9b2Jc\x07\x7fd")
    assert result.stdout.startswith("user: ab[2J2Jcd\n")


@pytest.mark.slow
def test_chat_keeps_the_conversation(start_server) -> None:
    """With a process for the server and one for the chat."""
    server = start_server("--backend", "scripted")
    result = run("chat", "--url", server.url, stdin="hello\n/retry\n/new\n/nonsense\n/quit\n")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("user: hello") == 2
    assert "unknown command /nonsense" in result.stdout.lower()


def test_chat_reports_a_wrong_key() -> None:
    with live(scripted_backend(), api_keys=("right",)) as url:
        wrong = call("chat", "--url", url, "--api-key", "wrong", "hello")
        right = call("chat", "--url", url, "hello", TOKENWIRE_API_KEY="right")
    assert (wrong.exit_code, right.exit_code) == (1, 0)
    assert "API key" in wrong.stdout
    assert "user: hello" in right.stdout


@pytest.mark.slow
def test_serve_excludes_loaded_objects_from_garbage_collection(start_server) -> None:
    server = start_server("--backend", "scripted", "--log-level", "debug")
    assert "garbage collection skips" in server.log
