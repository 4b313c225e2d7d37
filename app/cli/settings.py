"""Settings of the commands: `ClientSettings`, and loading from flags and the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.settings import ENV_PREFIX, Settings


def _check_url(value: str) -> str:
    try:
        parts = urlsplit(value)
        is_server = bool(parts.hostname) and parts.port != 0 and not (parts.query or parts.fragment)
    except ValueError:
        is_server = False
    if not (is_server and value.startswith(("http://", "https://", "ws://", "wss://"))):
        raise ValueError("must be an address such as http://127.0.0.1:8000")
    return value


class ClientSettings(BaseSettings):
    """The configuration of `tokenwire chat`."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="forbid", frozen=True)

    url: Annotated[str, AfterValidator(_check_url)] = Field(
        "http://127.0.0.1:8000", description="Address of the server."
    )
    api_key: SecretStr | None = Field(None, description="API key, if the server requires one.")
    temperature: float = Field(
        0.2, ge=0, le=2, description="Sampling temperature; 0 always takes the likeliest token."
    )
    max_tokens: int | None = Field(
        None, ge=1, description="Maximum length of an answer, in tokens."
    )


_AnySettings = TypeVar("_AnySettings", Settings, ClientSettings)


def load_settings(model: type[_AnySettings], given: Mapping[str, Any]) -> _AnySettings:
    """Return the settings from flags and the environment.

    Args:
        model: which settings.
        given: values of the flags that are set.

    Raises:
        ValidationError: a value is not valid.
        ValueError: a `TOKENWIRE_*` variable is not a setting, so it is probably misspelt.
    """
    known = {*Settings.model_fields, *ClientSettings.model_fields}
    for name in _variables():
        if _setting_of(name) not in known:
            raise ValueError(f"{name}: there is no such setting")
    return model(**given)


def check_keys(settings: Settings) -> None:
    """Refuse to serve without keys if `TOKENWIRE_API_KEY`, the client's setting, has a value.

    It was probably meant to be `TOKENWIRE_API_KEYS`. A shell may hold the key for another server,
    so the variable is accepted if the server has keys of its own or `allow_anonymous` is set.

    Raises:
        ValueError: `TOKENWIRE_API_KEY` is set, and the server would not require a key.
    """
    variable = f"{ENV_PREFIX}API_KEY"
    if os.environ.get(variable) and not (settings.api_keys or settings.allow_anonymous):
        raise ValueError(
            f"{variable} is the key of a client, and this server would not require a key: set "
            f"{ENV_PREFIX}API_KEYS, or allow_anonymous to serve without keys"
        )


def ignored_variables(model: type[Settings] | type[ClientSettings]) -> list[str]:
    """Return the `TOKENWIRE_*` variables of the environment that belong to another command."""
    return sorted(name for name in _variables() if _setting_of(name) not in model.model_fields)


def _variables() -> list[str]:
    return [name for name in os.environ if name.startswith(ENV_PREFIX)]


def _setting_of(variable: str) -> str:
    return variable.removeprefix(ENV_PREFIX).lower()
