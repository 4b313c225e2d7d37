"""A response service over the scripted backend, for tests."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from app.errors import RequestRefused
from app.responses.registry import ResponseRegistry
from app.responses.response import AnyResponse, LiveResponse
from app.responses.schemas.request import ResponseRequest
from app.responses.service import ResponseService
from app.responses.storage.store import ResponseStore
from app.responses.storage.store_file import StoreFile
from streaming import AsyncEngine, Backend
from tests.app.serving import until
from tests.support import Barrier, running_engine


@asynccontextmanager
async def serving_responses(
    backend: Backend,
    *,
    directory: Path | None = None,
    gate: Barrier | None = None,
    retention_s: float = 100.0,
    retention_bytes: int = 2**26,
    max_disk_bytes: int = 2**26,
    max_unwritten: int = 1000,
    check_interval_s: float = 1000.0,
    clock: Callable[[], float] = time.monotonic,
) -> AsyncIterator[tuple[ResponseService, AsyncEngine]]:
    async with running_engine(backend, gate=gate) as engine:
        store = (
            None
            if directory is None
            else ResponseStore(StoreFile(directory), ttl_s=1000.0, max_bytes=max_disk_bytes)
        )
        registry = ResponseRegistry(
            engine,
            store,
            retention_s=retention_s,
            retention_bytes=retention_bytes,
            max_unwritten=max_unwritten,
            check_interval_s=check_interval_s,
            clock=clock,
        )
        service = ResponseService(engine, registry)
        try:
            await service.registry.start()
            yield service, engine
        finally:
            if gate is not None:
                gate.open()
            await engine.aclose()
            await service.registry.aclose()


def body(text: Any = "hi", **fields: Any) -> ResponseRequest:
    return ResponseRequest.model_validate({"input": text, **fields})


async def complete(service: ResponseService, *, caller: str = "me", **fields: Any) -> LiveResponse:
    """Create a response, subscribe to it until its end, and wait until it is stored."""
    parent = fields.pop("parent", None)
    response = await service.create(
        body(fields.pop("text", "hi"), **fields), caller=caller, parent=parent
    )
    with service.registry.subscribe(response, on_wake=lambda: None):
        await service.registry.wait_ended(response)
    await until(lambda: response not in service.registry.live._open.values())
    return response


async def text_of(service: ResponseService, response: AnyResponse) -> str:
    snapshot = await service.registry.snapshot(response)
    [message] = snapshot["output"]
    text: str = message["content"][0]["text"]
    return text


async def refusal(coroutine: Any) -> str:
    with pytest.raises(RequestRefused) as refused:
        await coroutine
    return refused.value.info.code
