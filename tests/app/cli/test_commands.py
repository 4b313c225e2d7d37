"""The commands in this process; `tests/e2e/test_cli.py` has their errors and real processes."""

from __future__ import annotations

import gc
import re
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from app.cli.commands import cli, serve_engine
from app.cli.settings import ClientSettings
from app.server import bind
from app.settings import Settings
from streaming import AsyncEngine
from streaming.backends.scripted import scripted_backend


def call(*arguments: str) -> Result:
    """Run a command in a wide terminal."""
    return CliRunner().invoke(cli, arguments, env={"COLUMNS": "300"})


@pytest.mark.parametrize(
    ("command", "name", "flag", "ending"),
    [
        ("serve", "port", "--port", "[TOKENWIRE_PORT, default 8000]"),
        ("serve", "api_keys", "--api-keys", "[TOKENWIRE_API_KEYS]"),
        ("serve", "model", "--model", "[TOKENWIRE_MODEL]"),
        ("serve", "dtype", "--dtype", "[TOKENWIRE_DTYPE, default auto]"),
        (
            "serve",
            "store_responses",
            "--store-responses / --no-store-responses",
            "[TOKENWIRE_STORE_RESPONSES, default true]",
        ),
        ("serve", "backend", "--backend", "[TOKENWIRE_BACKEND, default batched]"),
        ("chat", "max_tokens", "--max-tokens", "[TOKENWIRE_MAX_TOKENS]"),
        ("chat", "url", "--url", "[TOKENWIRE_URL, default http://127.0.0.1:8000]"),
    ],
)
def test_an_option_shows_its_description_variable_and_default(
    command: str, name: str, flag: str, ending: str
) -> None:
    model = Settings if command == "serve" else ClientSettings
    text = " ".join(call(command, "--help").stdout.split())
    description = " ".join(str(model.model_fields[name].description).split())
    assert re.search(rf"{re.escape(flag)} .*{re.escape(description)} {re.escape(ending)}", text), (
        text
    )


def test_each_command_is_listed_with_its_help() -> None:
    text = call("--help").stdout
    assert "Serve the model: the chat page, the WebSocket and the REST routes." in text
    assert "Chat with a running server." in text
    assert "List the models that are stored on this machine." in text


def test_an_invalid_flag_of_the_chat_ends_with_one_line_and_status_2() -> None:
    result = call("chat", "--temperature", "3", "hello")
    assert result.exit_code == 2
    assert result.stderr == "tokenwire: temperature: must be at most 2 (got 3.0)\n"


def test_models_of_an_empty_folder_are_none(tmp_path: Path) -> None:
    result = call("models", "--cache-dir", str(tmp_path))
    assert (result.exit_code, result.stderr) == (0, "")
    assert "No model has been downloaded or converted yet." in result.stdout


def test_a_taken_port_ends_the_server_with_one_line_and_status_1(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The port is taken between `bind` and `listen`, while the model is loaded."""
    thresholds = gc.get_threshold()
    with bind("127.0.0.1", 0) as other, bind("127.0.0.1", other.getsockname()[1]) as listener:
        other.listen()
        settings = Settings(port=other.getsockname()[1])
        engine = AsyncEngine(scripted_backend(), settings.to_engine_config())
        try:
            with pytest.raises(typer.Exit) as ended:
                serve_engine(engine, settings, listener)
        finally:
            gc.set_threshold(*thresholds)
            gc.unfreeze()
    assert ended.value.exit_code == 1
    error = capsys.readouterr().err
    assert error.startswith(f"tokenwire: cannot listen on 127.0.0.1:{settings.port}: ")
    assert len(error.splitlines()) == 1
