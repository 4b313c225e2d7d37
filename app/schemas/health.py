"""How the server is."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, Field


class ServerStatus(StrEnum):
    OK = "ok"
    LOADING = "loading"
    DRAINING = "draining"
    FAILED = "failed"


class Liveness(BaseModel):
    status: ServerStatus


class StoreStatus(StrEnum):
    OK = "ok"
    UNAVAILABLE = "unavailable"
    OFF = "off"


class StoreHealth(BaseModel):
    status: StoreStatus = Field(description="`off` keeps responses in memory only.")
    reason: str | None = Field(
        description="Why it is unavailable, such as `disk_full`; responses end with "
        "`store: false` then."
    )


class Health(Liveness):
    model_loaded: bool
    model: str
    version: str
    uptime_s: float
    active: int = Field(description="Generations that run.")
    queued: int = Field(description="Generations that wait to be started.")
    connections: int = Field(description="WebSockets open.")
    backend: str
    dtype: str
    device: str
    max_model_len: int = Field(description="Prompt and answer together, in tokens.")
    has_chat_template: bool = Field(description="Whether `messages` can be served.")
    batch_invariant: bool = Field(
        description="Whether an answer is the same, to the bit, whatever else runs."
    )
    attention: str | None = Field(
        description="What attends in batches: `native`, a kernel of our own on the CPU, or `torch`."
    )
    store: StoreHealth = Field(description="Where ended responses are kept.")
