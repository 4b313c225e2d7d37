from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.requests import ClientDisconnect

from app.http.disconnect import run_while_connected


async def stays() -> Any:
    await asyncio.Event().wait()


async def test_the_result_is_returned_and_the_listener_ends():
    async def work() -> int:
        return 5

    tasks_before = asyncio.all_tasks()
    assert await run_while_connected(stays, work()) == 5
    assert asyncio.all_tasks() == tasks_before


async def test_an_error_of_the_work_is_raised():
    async def work() -> None:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        await run_while_connected(stays, work())


@pytest.mark.pain(10)
async def test_a_disconnect_cancels_the_work_and_waits_for_its_end():
    ended = False

    async def work() -> None:
        nonlocal ended
        try:
            await asyncio.Event().wait()
        finally:
            ended = True

    messages = iter([{"type": "http.request"}, {"type": "http.disconnect"}])

    async def receive() -> Any:
        return next(messages)

    with pytest.raises(ClientDisconnect):
        await run_while_connected(receive, work())
    assert ended


async def test_a_cancelled_caller_leaves_no_task():
    working = asyncio.Event()

    async def work() -> None:
        working.set()
        await asyncio.Event().wait()

    tasks_before = asyncio.all_tasks()
    caller = asyncio.ensure_future(run_while_connected(stays, work()))
    await working.wait()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert asyncio.all_tasks() == tasks_before


async def test_an_error_of_receive_is_not_a_disconnect():
    async def receive() -> Any:
        raise OSError("broken")

    with pytest.raises(OSError, match="broken"):
        await run_while_connected(receive, stays())
