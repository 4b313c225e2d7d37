"""Every setting of the server, with its default and its description.

A flag of `tokenwire serve` overrides a `TOKENWIRE_*` environment variable, which overrides the
default here. The descriptions are also the help text and the table in the documentation.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from app.responses.dialect import ReasoningDialect
from app.websocket.socket_memory import DEFAULT_MAX_BYTES
from streaming import BackendName, EngineConfig, ModelConfig

_MODEL = ModelConfig()
_ENGINE = EngineConfig()
ENV_PREFIX = "TOKENWIRE_"
_SHARE = "by default half with several API keys, otherwise all"


def _check_log_level(value: str) -> str:
    levels = ("debug", "info", "warning", "error")
    if value.lower() not in levels:
        raise ValueError(f"must be one of {', '.join(levels)}")
    return value.lower()


@dataclass(frozen=True, slots=True)
class CallerLimits:
    """The share of each limit that one caller may use."""

    max_connections: int
    max_generations: int
    max_waiting_requests: int
    max_waiting_tokens: int


class Settings(BaseSettings):
    """The configuration of the server: immutable, and checked before any model is loaded."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, extra="forbid", frozen=True, validate_default=True
    )

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 picks a free one.")
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (), description="Valid API keys, separated by commas; without any, no key is required."
    )
    allow_anonymous: bool = Field(
        False,
        description="Serve without API keys on an address that other machines can reach.",
    )
    allowed_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Web origins whose pages may call, separated by commas; * allows any.",
    )

    model: str | None = Field(
        _MODEL.model,
        description="Hub id, local folder or .gguf file; by default the embedded model.",
    )
    model_name: str | None = Field(
        None, description="Name of the model in the API; by default the model's own."
    )
    backend: BackendName = Field(
        _MODEL.backend, description="Runner of the model: batched, generate or scripted."
    )
    dtype: str = Field(_MODEL.dtype, description="Data type: auto, float32, bfloat16 or float16.")
    device: str = Field(_MODEL.device, description="Device: auto, cpu, cuda or cuda:N.")
    revision: str | None = Field(
        _MODEL.revision, description="Branch, tag or commit of a hub model."
    )
    trust_remote_code: bool = Field(
        _MODEL.trust_remote_code,
        description="Run Python code that the model's repository contains.",
    )
    allow_pickle: bool = Field(
        _MODEL.allow_pickle,
        description="Load weights in pickle format; such a file can run any code.",
    )
    cache_dir: str | None = Field(_MODEL.cache_dir, description="Folder for converted models.")
    max_model_len: int | None = Field(
        _MODEL.max_model_len,
        ge=2,
        description="Context length in tokens; by default the model's own.",
    )
    num_threads: int | None = Field(
        _MODEL.num_threads,
        ge=1,
        description="CPU threads for the model; by default torch's choice.",
    )

    max_num_seqs: int = Field(
        _MODEL.max_num_seqs, ge=1, description="Maximum number of sequences in a batch."
    )
    max_batch_tokens: int = Field(
        _MODEL.max_batch_tokens,
        ge=16,
        description="Maximum number of tokens in a batch, prefill and decode together.",
    )
    kv_cache_bytes: int | None = Field(
        _MODEL.kv_cache_bytes,
        ge=1,
        description="Memory for the KV cache; by default a share of the free memory.",
    )
    batch_invariant: bool = Field(
        _MODEL.batch_invariant,
        description="Make results bitwise independent of the other requests in the batch.",
    )
    native_kernels: bool = Field(
        _MODEL.native_kernels,
        description="On a CPU, compile and use C++ kernels if there is a compiler.",
    )
    max_waiting_requests: int = Field(
        _ENGINE.max_waiting_requests, ge=1, description="Maximum number of queued requests."
    )
    max_waiting_requests_per_caller: int | None = Field(
        _ENGINE.max_waiting_requests_per_caller,
        ge=1,
        description=f"Maximum number of queued requests of one caller; {_SHARE}.",
    )
    max_waiting_tokens: int = Field(
        _ENGINE.max_waiting_tokens,
        ge=1,
        description="Maximum number of prompt tokens in the queue; a longer prompt may be queued "
        "alone.",
    )
    max_waiting_tokens_per_caller: int | None = Field(
        _ENGINE.max_waiting_tokens_per_caller,
        ge=1,
        description=f"Maximum number of prompt tokens that one caller has in the queue; {_SHARE}.",
    )
    max_generations: int | None = Field(
        _ENGINE.max_generations,
        ge=1,
        description="Maximum number of open generations, running and queued; by default "
        "`max_num_seqs` plus `max_waiting_requests`.",
    )
    max_generations_per_caller: int | None = Field(
        _ENGINE.max_generations_per_caller,
        ge=1,
        description=f"Maximum number of open generations of one caller; {_SHARE}.",
    )
    max_priority: int = Field(
        _ENGINE.max_priority,
        ge=0,
        le=100,
        description="Highest `priority` that a request may set. It is served before lower ones of "
        "all callers, so raise it only if all callers are trusted.",
    )
    request_timeout_s: float = Field(
        _ENGINE.request_timeout_s, gt=0, description="Maximum duration of a generation."
    )
    step_timeout_s: float = Field(
        _ENGINE.step_timeout_s,
        gt=0,
        description="Maximum duration of a model step; after it the server ends all streams with "
        "an error and exits. A prompt that takes longer to tokenize is refused.",
    )
    retention_s: float = Field(
        _ENGINE.retention_s,
        ge=0,
        description="Time that a finished generation can be resumed after its last reader left.",
    )
    retention_bytes: int = Field(
        _ENGINE.retention_bytes, ge=0, description="Memory for finished generations."
    )
    store_responses: bool = Field(
        True,
        description="Store finished responses on disk; otherwise only in memory, within the two "
        "limits above.",
    )
    data_dir: str | None = Field(
        None,
        description="Folder for stored responses; by default the user's data directory.",
    )
    stored_responses_ttl_s: float = Field(
        30 * 24 * 3600.0, gt=0, description="Time that a response is kept on disk."
    )
    stored_responses_bytes: int = Field(
        2**30, ge=2**20, description="Disk space for responses; the oldest are deleted first."
    )
    reasoning_events: ReasoningDialect = Field(
        ReasoningDialect.OPENAI,
        description="Names of reasoning events in responses: openai or open_responses.",
    )
    disconnect_grace_s: float = Field(
        30.0, ge=0, description="Time that a generation continues after its WebSocket dropped."
    )
    drain_timeout_s: float = Field(
        30.0, ge=0, description="Time that running generations have to finish at shutdown."
    )

    max_connections: int = Field(1000, ge=1, description="Maximum number of open WebSockets.")
    max_connections_per_caller: int | None = Field(
        None, ge=1, description=f"Maximum number of open WebSockets of one caller; {_SHARE}."
    )
    max_streams: int = Field(
        64, ge=1, description="Maximum number of open generations on one WebSocket."
    )
    socket_memory_bytes: int = Field(
        DEFAULT_MAX_BYTES,
        ge=2**20,
        description="Memory for the previous responses and the large requests of all WebSockets "
        "for responses.",
    )
    max_connection_s: float = Field(
        3600.0, gt=0, description="Age at which a WebSocket for responses accepts no new requests."
    )
    max_choices: int = Field(
        128,
        ge=1,
        description="Maximum number of generations in one REST request: prompts times `n`.",
    )
    max_message_bytes: int = Field(
        2**20, ge=1024, description="Maximum size of a WebSocket message or a REST body."
    )
    max_messages_per_s: float = Field(
        50.0, gt=0, description="Messages a second that one WebSocket may send, on average."
    )
    max_open_requests_per_caller: int = Field(
        512,
        ge=1,
        description="Maximum number of open REST requests of one caller; without API keys, of one "
        "address.",
    )
    max_requests_per_s: float = Field(
        100.0,
        gt=0,
        description="REST requests a second that one caller may make, on average; without API "
        "keys, one address.",
    )
    max_bytes_per_s: int = Field(
        2**22,
        ge=2**16,
        description="Bytes a second that the server reads from one connection, on average.",
    )
    max_tcp_connections: int = Field(
        2000, ge=16, description="Maximum number of open connections, HTTP and WebSocket together."
    )
    max_tcp_connections_per_address: int = Field(
        1000,
        ge=0,
        description="Maximum number of open connections of one address; 0 is no limit, for a "
        "server behind a reverse proxy.",
    )
    header_timeout_s: float = Field(
        10.0,
        gt=0,
        description="Time to receive a request's headers, and to complete a WebSocket handshake.",
    )
    body_timeout_s: float = Field(
        60.0, gt=0, description="Time to receive a request's body, after its headers."
    )
    ping_interval_s: float = Field(20.0, gt=0, description="Time between pings to a WebSocket.")
    ping_timeout_s: float = Field(
        20.0, gt=0, description="Time to answer a ping; then the WebSocket is closed."
    )
    stall_timeout_s: float = Field(
        30.0,
        gt=0,
        description="Time that a client may read nothing; then its connection is closed.",
    )
    sse_keep_alive_s: float = Field(
        15.0,
        gt=0,
        description="Time between comments on an event stream with nothing else to send.",
    )
    log_level: Annotated[str, AfterValidator(_check_log_level)] = Field(
        "info", description="Log level: debug, info, warning or error."
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
                f"other machines can reach host {self.host}: set api_keys, or allow_anonymous to "
                "serve without keys"
            )
        return self

    @property
    def caller_limits(self) -> CallerLimits:
        """The share of each limit that one caller may use.

        With several API keys, half of each limit, so that no caller can use up all of it. With one
        key or none, all clients are one caller and may use everything: addresses cannot tell them
        apart, because many people share one behind a proxy, and one person may have many.
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
        """Maximum number of generations in one REST request, within its caller's share."""
        limits = self.caller_limits
        return min(self.max_choices, limits.max_waiting_requests, limits.max_generations)

    def to_model_config(self) -> ModelConfig:
        """Return the settings of the model and its runner."""
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
        """Return the settings of the engine, with the shares of one caller resolved."""
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


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
