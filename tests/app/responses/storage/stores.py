"""Stores of responses on the disk, for tests."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from app.responses.context import Context
from app.responses.response import StoredResponse
from app.responses.schemas.objects import Item
from app.responses.storage.retention_clock import RetentionClock
from app.responses.storage.store import ResponseStore, encode
from app.responses.storage.store_file import StoreFile
from tests.support import ManualClock


def to_item(item_id: str) -> Item:
    return {"id": item_id, "type": "item_reference"}


def make_stored(name: str, *, caller: str = "me", num_chars: int = 10) -> StoredResponse:
    return StoredResponse(
        response_id=f"resp_{name}",
        caller=caller,
        last_snapshot={"id": f"resp_{name}", "output": [], "text": "é" * num_chars},
        context=Context.of((to_item("msg_1"),), (to_item("msg_2"),)),
        num_bytes=0,
    )


@asynccontextmanager
async def opened(
    directory: Path,
    *,
    ttl_s: float = 100.0,
    max_bytes: int = 2**22,
    clock: Callable[[], float] | None = None,
    monotonic: Callable[[], float] | None = None,
    **options: Any,
) -> AsyncIterator[ResponseStore]:
    monotonic = monotonic or ManualClock()
    store = ResponseStore(
        StoreFile(directory, monotonic=monotonic, **options),
        ttl_s=ttl_s,
        max_bytes=max_bytes,
        clock=RetentionClock(wall=clock or ManualClock(1000.0), monotonic=monotonic),
    )
    try:
        await store.open()
        yield store
    finally:
        await store.aclose()


async def put(store: ResponseStore, *responses: StoredResponse) -> None:
    for response in responses:
        await store.put(response, encode(response))


async def found(store: ResponseStore, *names: str, caller: str = "me") -> list[bool]:
    return [await store.find(f"resp_{name}", caller=caller) is not None for name in names]


def rows(directory: Path) -> list[tuple[str]]:
    connection = sqlite3.connect(directory / "responses.sqlite3")
    try:
        return connection.execute("SELECT response_id FROM responses ORDER BY number").fetchall()
    finally:
        connection.close()


async def pragma(store: ResponseStore, text: str) -> None:
    connection = await store._file._open()
    await connection.execute_fetchall(f"PRAGMA {text}")


async def limit_pages(store: ResponseStore, *, by: int) -> None:
    """Let the file grow by at most `by` pages."""
    connection = store._file._connection
    assert connection is not None
    [[num_pages]] = await connection.execute_fetchall("PRAGMA page_count")
    await connection.execute_fetchall(f"PRAGMA max_page_count = {num_pages + by}")
