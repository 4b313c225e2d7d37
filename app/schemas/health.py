"""The answers of `/health`, `/livez` and `/readyz`."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, Field


class ServerStatus(StrEnum):
    """What the server is doing."""

    OK = "ok"
    LOADING = "loading"
    DRAINING = "draining"
    FAILED = "failed"


class Liveness(BaseModel):
    """Whether the process is up."""

    status: ServerStatus


class StoreStatus(StrEnum):
    """Whether responses are stored on disk."""

    OK = "ok"
    UNAVAILABLE = "unavailable"
    OFF = "off"


class StoreHealth(BaseModel):
    """The response store."""

    status: StoreStatus = Field(description="With `off`, responses are kept in memory only.")
    reason: str | None = Field(
        description="Why the store is unavailable, such as `disk_full`. New responses then end "
        "with `store: false`."
    )


class Health(Liveness):
    """The state of the server, its load, and what it serves."""

    model_loaded: bool
    model: str
    version: str
    uptime_s: float
    active: int = Field(description="Number of running generations.")
    queued: int = Field(description="Number of waiting generations.")
    connections: int = Field(description="Number of open WebSockets.")
    backend: str
    dtype: str
    device: str
    max_model_len: int = Field(description="Context length in tokens: prompt and answer together.")
    has_chat_template: bool = Field(description="Whether the model takes `messages`.")
    batch_invariant: bool = Field(
        description="Whether an answer is bit-for-bit the same, whatever else is in its batch."
    )
    attention: str | None = Field(
        description="The attention kernel for batches: `native` (our own, on the CPU) or `torch`."
    )
    store: StoreHealth = Field(description="The store of finished responses.")
