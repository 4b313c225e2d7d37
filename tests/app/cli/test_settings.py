from __future__ import annotations

import os
from typing import Any

import pytest

from app.cli.settings import ClientSettings, check_keys, ignored_variables, load_settings
from app.settings import Settings


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in tuple(os.environ):
        if name.startswith("TOKENWIRE_"):
            monkeypatch.delenv(name)


def test_an_unknown_variable_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TOKENWIRE_PORTS", "1")
    with pytest.raises(ValueError, match="TOKENWIRE_PORTS: there is no such setting"):
        load_settings(Settings, {})
    with pytest.raises(ValueError, match="TOKENWIRE_PORTS: there is no such setting"):
        load_settings(ClientSettings, {})


@pytest.mark.parametrize("given", [{}, {"api_keys": ""}, {"port": 1}])
def test_the_key_of_a_client_is_not_a_key_of_the_server(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, Any]
):
    monkeypatch.setenv("TOKENWIRE_API_KEY", "secret")
    with pytest.raises(ValueError, match="set TOKENWIRE_API_KEYS") as refused:
        check_keys(load_settings(Settings, given))
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("given", [{"api_keys": "a,b"}, {"allow_anonymous": True}])
def test_a_shell_may_hold_both_keys(monkeypatch: pytest.MonkeyPatch, given: dict[str, Any]):
    monkeypatch.setenv("TOKENWIRE_API_KEY", "secret")
    check_keys(load_settings(Settings, given))
    monkeypatch.setenv("TOKENWIRE_API_KEYS", "a")
    check_keys(load_settings(Settings, {}))
    key = load_settings(ClientSettings, {}).api_key
    assert key is not None
    assert key.get_secret_value() == "secret"


@pytest.mark.parametrize("key", ["", None])
def test_no_key_at_all_is_accepted(monkeypatch: pytest.MonkeyPatch, key: str | None):
    if key is not None:
        monkeypatch.setenv("TOKENWIRE_API_KEY", key)
    check_keys(load_settings(Settings, {}))


def test_variables_of_another_command_are_reported(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TOKENWIRE_MAX_TOKENS", "5")
    monkeypatch.setenv("TOKENWIRE_PORT", "1")
    assert ignored_variables(Settings) == ["TOKENWIRE_MAX_TOKENS"]
    assert ignored_variables(ClientSettings) == ["TOKENWIRE_PORT"]


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://here", "http://", "http://here:99999"])
def test_the_url_must_be_an_address(url: str):
    with pytest.raises(ValueError, match="must be an address such as http://"):
        load_settings(ClientSettings, {"url": url})
