from __future__ import annotations

import os
from typing import Any

import pytest
from pydantic import ValidationError

from app.settings import CallerLimits, Settings, is_loopback


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in tuple(os.environ):
        if name.startswith("TOKENWIRE_"):
            monkeypatch.delenv(name)


def test_a_flag_overrides_a_variable_which_overrides_the_default(
    monkeypatch: pytest.MonkeyPatch,
):
    assert Settings().port == 8000
    monkeypatch.setenv("TOKENWIRE_PORT", "1")
    assert Settings().port == 1
    assert Settings(port=2).port == 2


def test_lists_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TOKENWIRE_ALLOWED_ORIGINS", "https://a.test, https://b.test,")
    monkeypatch.setenv("TOKENWIRE_API_KEYS", "secret-1,secret-2")
    settings = Settings()
    assert settings.allowed_origins == ("https://a.test", "https://b.test")
    assert [key.get_secret_value() for key in settings.api_keys] == ["secret-1", "secret-2"]
    assert "secret" not in str(settings)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"port": 70_000}, "less than or equal to 65535"),
        ({"prot": 1}, "Extra inputs are not permitted"),
        ({"log_level": "loud"}, "must be one of debug, info, warning, error"),
        ({"host": "0.0.0.0"}, "set api_keys, or allow_anonymous to serve without keys"),
    ],
)
def test_an_invalid_value_is_refused(values: dict[str, Any], message: str):
    with pytest.raises(ValidationError, match=message):
        Settings(**values)


@pytest.mark.parametrize("values", [{"api_keys": "one"}, {"allow_anonymous": True}])
def test_a_public_address_needs_keys_or_leave_to_go_without(values: dict[str, Any]):
    assert Settings(host="0.0.0.0", **values).host == "0.0.0.0"


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        *(("localhost", True), ("127.0.0.1", True), ("127.9.9.9", True), ("::1", True)),
        *(("0.0.0.0", False), ("::", False), ("10.0.0.1", False), ("example.org", False)),
    ],
)
def test_only_this_machine_reaches_a_loopback_address(host: str, expected: bool):
    assert is_loopback(host) == expected


# The share of one caller.


@pytest.mark.parametrize(
    ("api_keys", "share"),
    [((), 1.0), (("one",), 1.0), (("one", "two"), 0.5), (("one", "two", "three"), 0.5)],
)
def test_a_caller_may_use_half_if_there_are_several(api_keys: tuple[str, ...], share: float):
    settings = Settings(api_keys=api_keys, max_num_seqs=8, max_waiting_requests=12)
    assert settings.caller_limits == CallerLimits(
        max_connections=int(1000 * share),
        max_generations=int(20 * share),
        max_waiting_requests=int(12 * share),
        max_waiting_tokens=int(1_000_000 * share),
    )
    config = settings.to_engine_config()
    assert config.max_waiting_requests_per_caller == int(12 * share)
    assert config.max_generations_per_caller == int(20 * share)
    assert config.max_waiting_tokens_per_caller == int(1_000_000 * share)


def test_a_share_is_at_least_one_and_a_setting_overrides_it():
    settings = Settings(
        api_keys=("one", "two"),
        max_waiting_requests=1,
        max_connections_per_caller=2000,
        max_generations=9,
        max_generations_per_caller=7,
        max_waiting_tokens_per_caller=10,
    )
    assert settings.caller_limits == CallerLimits(
        max_connections=1000,
        max_generations=7,
        max_waiting_requests=1,
        max_waiting_tokens=10,
    )


def test_one_request_has_no_more_choices_than_its_caller_may_queue():
    settings = Settings(api_keys=("one", "two"), max_waiting_requests=12, max_generations=100)
    assert settings.max_choices_at_once == 6
    assert Settings(max_choices=3).max_choices_at_once == 3
