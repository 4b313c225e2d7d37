"""Every setting of the server; this module alone reads the environment.

A flag of `tokenwire serve` wins over a `TOKENWIRE_*` variable, which wins over the default.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Self, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from app.websocket.socket_memory import DEFAULT_MAX_BYTES
from streaming import BackendName, EngineConfig, ModelConfig

_MODEL = ModelConfig()
_ENGINE = EngineConfig()
_PREFIX = "TOKENWIRE_"
_SHARE = "without it, half where there are several API keys, else all"


class ReasoningDialect(StrEnum):
    """How the events of reasoning are called, which OpenAI and Open Responses do not agree on."""

    OPENAI = "openai"
    OPEN_RESPONSES = "open_responses"


def _check_log_level(value: str) -> str:
    levels = ("debug", "info", "warning", "error")
    if value.lower() not in levels:
        raise ValueError(f"must be one of {', '.join(levels)}")
    return value.lower()


@dataclass(frozen=True, slots=True)
class CallerLimits:
    """What one caller may have of each limit."""

    max_connections: int
    max_generations: int
    max_waiting_requests: int
    max_waiting_tokens: int


class Settings(BaseSettings):
    """The resolved configuration: frozen, and checked before any model is loaded."""

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX, extra="forbid", frozen=True, validate_default=True
    )

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (), description="Keys that may call, separated by commas; without any, everyone may."
    )
    allow_anonymous: bool = Field(
        False, description="Serve without keys on an address that other machines can reach."
    )
    allowed_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Web origins whose pages may call, separated by commas; * is any.",
    )

    model: str | None = Field(
        _MODEL.model,
        description="A hub id, a local folder or a .gguf file; without it, the embedded model.",
    )
    model_name: str | None = Field(
        None, description="The name that clients use for the model; without it, the model's own."
    )
    backend: BackendName = Field(_MODEL.backend, description="What runs the model.")
    dtype: str = Field(_MODEL.dtype, description="auto, float32, bfloat16 or float16.")
    device: str = Field(_MODEL.device, description="auto, cpu, cuda or cuda:N.")
    revision: str | None = Field(
        _MODEL.revision, description="Branch, tag or commit of a hub model."
    )
    trust_remote_code: bool = Field(
        _MODEL.trust_remote_code, description="Run Python code that comes with the model."
    )
    allow_pickle: bool = Field(
        _MODEL.allow_pickle,
        description="Load weights that are not safetensors; such a file can run any code.",
    )
    cache_dir: str | None = Field(_MODEL.cache_dir, description="Where converted models are kept.")
    max_model_len: int | None = Field(
        _MODEL.max_model_len,
        ge=2,
        description="Context size in tokens; without it, the model's own.",
    )
    num_threads: int | None = Field(
        _MODEL.num_threads,
        ge=1,
        description="CPU threads of the model; without it, torch's choice.",
    )

    max_num_seqs: int = Field(
        _MODEL.max_num_seqs, ge=1, description="Generations that run in one batch."
    )
    max_batch_tokens: int = Field(
        _MODEL.max_batch_tokens,
        ge=16,
        description="Tokens in one batch, prompts and answers together.",
    )
    kv_cache_bytes: int | None = Field(
        _MODEL.kv_cache_bytes,
        ge=1,
        description="Memory for keys and values; without it, a share of what is free.",
    )
    batch_invariant: bool = Field(
        _MODEL.batch_invariant,
        description="Answer a request the same, to the bit, whatever else runs.",
    )
    native_kernels: bool = Field(
        _MODEL.native_kernels,
        description="On a CPU, use kernels compiled here, where there is a C++ compiler.",
    )
    max_waiting_requests: int = Field(
        _ENGINE.max_waiting_requests, ge=1, description="Requests that may wait to be started."
    )
    max_waiting_requests_per_caller: int | None = Field(
        _ENGINE.max_waiting_requests_per_caller,
        ge=1,
        description=f"Of these, what one caller may have; {_SHARE}.",
    )
    max_waiting_tokens: int = Field(
        _ENGINE.max_waiting_tokens,
        ge=1,
        description="Prompt tokens that may wait with them; a longer prompt waits alone.",
    )
    max_waiting_tokens_per_caller: int | None = Field(
        _ENGINE.max_waiting_tokens_per_caller,
        ge=1,
        description=f"Of these, what one caller may have; {_SHARE}.",
    )
    max_generations: int | None = Field(
        _ENGINE.max_generations,
        ge=1,
        description="Generations open at once, running and waiting; without it, `max_num_seqs` and "
        "`max_waiting_requests` together.",
    )
    max_generations_per_caller: int | None = Field(
        _ENGINE.max_generations_per_caller,
        ge=1,
        description=f"Of these, what one caller may have; {_SHARE}.",
    )
    max_priority: int = Field(
        _ENGINE.max_priority,
        ge=0,
        le=100,
        description="The highest `priority` that a request may ask for. It goes before the lower "
        "ones of all callers, so raise it only where all of them are trusted.",
    )
    request_timeout_s: float = Field(
        _ENGINE.request_timeout_s, gt=0, description="A generation that runs longer is ended."
    )
    step_timeout_s: float = Field(
        _ENGINE.step_timeout_s,
        gt=0,
        description="A step of the model that takes longer hangs: the server ends open streams "
        "with an error and exits. A prompt whose tokenisation takes longer is refused.",
    )
    retention_s: float = Field(
        _ENGINE.retention_s,
        ge=0,
        description="How long an ended generation can be resumed once nobody follows it.",
    )
    retention_bytes: int = Field(
        _ENGINE.retention_bytes, ge=0, description="Memory that ended generations may take."
    )
    store_responses: bool = Field(
        True,
        description="Keep ended responses on disk; without it, in memory only, by the two limits "
        "above.",
    )
    data_dir: str | None = Field(
        None,
        description="Where responses are kept; without it, the user's own directory for data.",
    )
    stored_responses_ttl_s: float = Field(
        30 * 24 * 3600.0, gt=0, description="How long a response is kept on disk."
    )
    stored_responses_bytes: int = Field(
        2**30, ge=2**20, description="Disk that responses may take; the oldest go first."
    )
    reasoning_events: ReasoningDialect = Field(
        ReasoningDialect.OPENAI,
        description="How events of reasoning are called in responses: openai, or open_responses.",
    )
    disconnect_grace_s: float = Field(
        30.0, ge=0, description="A generation whose socket dropped goes on this long."
    )
    drain_timeout_s: float = Field(
        30.0, ge=0, description="At shutdown, running generations may go on this long."
    )

    max_connections: int = Field(1000, ge=1, description="WebSockets open at once.")
    max_connections_per_caller: int | None = Field(
        None, ge=1, description=f"Of these, what one caller may have; {_SHARE}."
    )
    max_streams: int = Field(64, ge=1, description="Generations open at once on one WebSocket.")
    socket_memory_bytes: int = Field(
        DEFAULT_MAX_BYTES,
        ge=2**20,
        description="Memory for what all WebSockets for responses can go on from, and for their "
        "large requests.",
    )
    max_connection_s: float = Field(
        3600.0, gt=0, description="Age at which a WebSocket for responses takes no new work."
    )
    max_choices: int = Field(
        128, ge=1, description="Prompts times n in one REST request, each a generation."
    )
    max_message_bytes: int = Field(
        2**20, ge=1024, description="Size of one WebSocket message or one REST body."
    )
    max_messages_per_s: float = Field(
        50.0, gt=0, description="Messages that one WebSocket may send, on average over a second."
    )
    max_open_requests_per_caller: int = Field(
        512,
        ge=1,
        description="REST requests that one caller may have open; without API keys, one address.",
    )
    max_requests_per_s: float = Field(
        100.0,
        gt=0,
        description="REST requests that one caller may make, on average over a second; without "
        "API keys, one address.",
    )
    max_bytes_per_s: int = Field(
        2**22,
        ge=2**16,
        description="Bytes that one connection may send, on average over a second; it is read more "
        "slowly beyond.",
    )
    max_tcp_connections: int = Field(
        2000, ge=16, description="Connections open at once, HTTP and WebSocket together."
    )
    max_tcp_connections_per_address: int = Field(
        1000,
        ge=0,
        description="Those from one address; 0 is no limit, for a server behind a reverse proxy.",
    )
    header_timeout_s: float = Field(
        10.0, gt=0, description="Time for the headers of a request, and for a WebSocket handshake."
    )
    body_timeout_s: float = Field(
        60.0, gt=0, description="Time for a request's body, from its headers on."
    )
    ping_interval_s: float = Field(20.0, gt=0, description="Time between pings to a WebSocket.")
    ping_timeout_s: float = Field(
        20.0, gt=0, description="A WebSocket that does not answer a ping for so long is closed."
    )
    stall_timeout_s: float = Field(
        30.0, gt=0, description="A client that does not read for so long is closed."
    )
    sse_keep_alive_s: float = Field(
        15.0, gt=0, description="Time between comments on an event stream that has nothing to say."
    )
    log_level: Annotated[str, AfterValidator(_check_log_level)] = Field(
        "info", description="debug, info, warning or error."
    )

    @field_validator("api_keys", "allowed_origins", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(part for part in (part.strip() for part in value.split(",")) if part)
        return value

    @model_validator(mode="after")
    def _check_reach(self) -> Self:
        if not (self.api_keys or self.allow_anonymous or is_loopback(self.host)):
            raise ValueError(
                f"host {self.host} can be reached by other machines: set api_keys, or "
                "allow_anonymous if everyone may call"
            )
        return self

    @property
    def caller_limits(self) -> CallerLimits:
        """What one caller may have.

        Half of everything, so that none can hold all of it; all where there are not several keys,
        because the callers are one then. Addresses do not tell them apart: many people share one
        behind a proxy, and one may have many.
        """

        def share(own: int | None, in_all: int) -> int:
            if own is not None:
                return min(own, in_all)
            return in_all if len(self.api_keys) < 2 else max(1, in_all // 2)

        max_generations = self.max_generations or self.max_num_seqs + self.max_waiting_requests
        return CallerLimits(
            max_connections=share(self.max_connections_per_caller, self.max_connections),
            max_generations=share(self.max_generations_per_caller, max_generations),
            max_waiting_requests=share(
                self.max_waiting_requests_per_caller, self.max_waiting_requests
            ),
            max_waiting_tokens=share(self.max_waiting_tokens_per_caller, self.max_waiting_tokens),
        )

    @property
    def max_choices_at_once(self) -> int:
        """What one REST request may have; more could never be admitted, however long it waits."""
        limits = self.caller_limits
        return min(self.max_choices, limits.max_waiting_requests, limits.max_generations)

    def to_model_config(self) -> ModelConfig:
        return ModelConfig(
            model=self.model,
            backend=self.backend,
            dtype=self.dtype,
            device=self.device,
            revision=self.revision,
            trust_remote_code=self.trust_remote_code,
            allow_pickle=self.allow_pickle,
            cache_dir=self.cache_dir,
            max_model_len=self.max_model_len,
            num_threads=self.num_threads,
            max_num_seqs=self.max_num_seqs,
            max_batch_tokens=self.max_batch_tokens,
            kv_cache_bytes=self.kv_cache_bytes,
            batch_invariant=self.batch_invariant,
            native_kernels=self.native_kernels,
        )

    def to_engine_config(self) -> EngineConfig:
        limits = self.caller_limits
        return EngineConfig(
            max_waiting_requests=self.max_waiting_requests,
            max_waiting_requests_per_caller=limits.max_waiting_requests,
            max_waiting_tokens=self.max_waiting_tokens,
            max_waiting_tokens_per_caller=limits.max_waiting_tokens,
            max_generations=self.max_generations,
            max_generations_per_caller=limits.max_generations,
            max_priority=self.max_priority,
            request_timeout_s=self.request_timeout_s,
            step_timeout_s=self.step_timeout_s,
            retention_s=self.retention_s,
            retention_bytes=self.retention_bytes,
        )


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
    """What `tokenwire chat` is told."""

    model_config = SettingsConfigDict(env_prefix=_PREFIX, extra="forbid", frozen=True)

    url: Annotated[str, AfterValidator(_check_url)] = Field(
        "http://127.0.0.1:8000", description="The server to talk to."
    )
    api_key: SecretStr | None = Field(None, description="Our key, where the server wants one.")
    temperature: float = Field(0.2, ge=0, le=2, description="0 always takes the likeliest token.")
    max_tokens: int | None = Field(None, ge=1, description="Longest answer, in tokens.")


_AnySettings = TypeVar("_AnySettings", Settings, ClientSettings)


def load_settings(model: type[_AnySettings], given: Mapping[str, Any]) -> _AnySettings:
    """Return the settings from flags and the environment.

    Raises:
        ValidationError: a value is wrong.
        ValueError: a `TOKENWIRE_*` variable that nobody knows, so probably a slip.
    """
    known = {*Settings.model_fields, *ClientSettings.model_fields}
    for name in os.environ:
        if name.startswith(_PREFIX) and name.removeprefix(_PREFIX).lower() not in known:
            raise ValueError(f"{name}: there is no such setting")
    return model(**given)


def check_keys(settings: Settings) -> None:
    """Refuse to serve everyone where a key was meant to be asked for.

    A shell may have the key of a client for another server, so that is no error beside keys of the
    server's own, or where everyone is let in explicitly.

    Raises:
        ValueError: `TOKENWIRE_API_KEY` is set, and the server would ask for no key.
    """
    variable = f"{_PREFIX}API_KEY"
    if os.environ.get(variable) and not (settings.api_keys or settings.allow_anonymous):
        raise ValueError(
            f"{variable} is the key of a client, and this server would ask for none: set "
            f"{_PREFIX}API_KEYS, or allow_anonymous if everyone may call"
        )


def ignored_variables(model: type[Settings] | type[ClientSettings]) -> list[str]:
    """Return the `TOKENWIRE_*` variables of the environment that belong to another command."""
    own = model.model_fields
    return sorted(
        name
        for name in os.environ
        if name.startswith(_PREFIX) and name.removeprefix(_PREFIX).lower() not in own
    )


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
