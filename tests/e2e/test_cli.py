"""The command line as a user meets it: help, mistakes, models, and the chat."""

from __future__ import annotations

import os
import socket
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

from app.settings import Settings
from tests.e2e.server_process import ROOT

pytestmark = pytest.mark.timeout(120)


def run(*arguments: str, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
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
    text = run("serve", "--help").stdout
    for name in Settings.model_fields:
        assert f"--{name.replace('_', '-')}" in text
        assert f"TOKENWIRE_{name.upper()}" in text


@pytest.mark.parametrize(
    ("flags", "env", "says"),
    [
        (["--port", "70000"], {}, "port: Input should be less than or equal to 65535"),
        (["--host", "0.0.0.0"], {}, "set api_keys, or allow_anonymous"),
        ([], {"TOKENWIRE_PORTS": "1"}, "TOKENWIRE_PORTS: there is no such setting"),
        ([], {"TOKENWIRE_LOG_LEVEL": "loud"}, "log_level: must be one of debug, info"),
        ([], {"TOKENWIRE_API_KEY": "secret"}, "set TOKENWIRE_API_KEYS, or allow_anonymous"),
    ],
)
def test_wrong_settings_end_with_one_line_and_status_2(
    flags: list[str], env: dict[str, str], says: str
) -> None:
    result = run("serve", *flags, **env)
    assert result.returncode == 2
    assert says in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        # These two are found out after the model libraries have been imported.
        pytest.param(["--model", "/nowhere/at/all"], "/nowhere/at/all", marks=pytest.mark.slow),
        pytest.param(["--dtype", "float7"], "float7", marks=pytest.mark.slow),
        (["--host", "192.0.2.1", "--allow-anonymous"], "cannot listen on 192.0.2.1:8000"),
        (["--host", "a..b", "--allow-anonymous"], "cannot listen on a..b:8000"),
    ],
)
def test_what_cannot_be_served_ends_with_one_line_and_status_1(flags: list[str], says: str) -> None:
    result = run("serve", "--log-level", "error", *flags)
    assert result.returncode == 1
    assert says in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_responses_of_a_newer_version_are_left_alone(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "responses.sqlite3")) as connection:
        connection.execute("PRAGMA user_version = 7")
    result = run("serve", "--log-level", "error", "--data-dir", str(tmp_path))
    assert result.returncode == 1
    assert "has the schema 7, which is newer than this server's" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["responses.sqlite3"]


def test_chat_without_a_server_says_so() -> None:
    result = run("chat", "--url", "http://127.0.0.1:9", "hello")
    assert result.returncode == 1
    assert "cannot reach http://127.0.0.1:9" in result.stdout


@pytest.mark.parametrize(
    "url", ["localhost:8000", "", "ftp://here", "http://", "http://[::1", "http://here:99999"]
)
def test_chat_takes_addresses_only(url: str) -> None:
    result = run("chat", "--url", url, "hello")
    assert result.returncode == 2
    assert result.stderr == "tokenwire: url: must be an address such as http://127.0.0.1:8000\n"


def test_chat_says_where_there_is_no_such_server() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mail:

        def greet() -> None:
            with mail.accept()[0] as peer:
                peer.recv(4096)
                peer.sendall(b"220 mail\r\n")

        thread = threading.Thread(target=greet)
        thread.start()
        url = f"http://127.0.0.1:{mail.getsockname()[1]}"
        other = run("chat", "--url", url, "hello")
        thread.join()
    no_name = run("chat", "--url", "http://a..b", "hello")
    assert (other.returncode, no_name.returncode) == (1, 1)
    assert other.stdout == f"{url} is no server of this kind\n"
    assert no_name.stdout.startswith("cannot reach http://a..b: ")
    assert other.stderr == no_name.stderr == ""


def test_chat_shows_brackets_as_they_are() -> None:
    result = run("chat", "--url", "http://127.0.0.1:9/[/x]", stdin="/[/y]\nhello\n/quit\n")
    assert result.returncode == 0, result.stderr
    assert "There is no command /[/y]; try /help." in result.stdout
    assert "cannot reach http://127.0.0.1:9/[/x]: " in result.stdout


def test_chat_shows_nothing_that_a_terminal_would_obey(start_server) -> None:
    server = start_server("--backend", "scripted")
    result = run("chat", "--url", server.url, "ab\x1b[2J\x9b2Jc\x07\x7fd")
    assert result.stdout.startswith("user: ab[2J2Jcd\n")


def test_chat_talks_across_turns(start_server) -> None:
    server = start_server("--backend", "scripted")
    result = run("chat", "--url", server.url, stdin="hello\n/retry\n/new\n/nonsense\n/quit\n")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("user: hello") == 2
    assert "there is no command /nonsense" in result.stdout.lower()


def test_chat_is_told_that_its_key_is_wrong(start_server) -> None:
    server = start_server("--backend", "scripted", "--api-keys", "right")
    wrong = run("chat", "--url", server.url, "--api-key", "wrong", "hello")
    right = run("chat", "--url", server.url, "hello", TOKENWIRE_API_KEY="right")
    assert (wrong.returncode, right.returncode) == (1, 0)
    assert "API key" in wrong.stdout
    assert "user: hello" in right.stdout


def test_serve_keeps_what_is_loaded_out_of_garbage_collections(start_server) -> None:
    server = start_server("--backend", "scripted", "--log-level", "debug")
    assert "the garbage collector leaves out" in server.log
