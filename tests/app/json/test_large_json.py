from __future__ import annotations

import asyncio
import json
import threading
from functools import partial

import pytest

from app.json.json_object import parse_object
from app.json.large_json import LargeMessages
from tests.support import TIMEOUT_S, yield_to_loop


class Bench:
    """Work that records its start and then waits for `let_end`."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self._leave = threading.Semaphore(0)
        self.has_begun = threading.Semaphore(0)

    def work(self, name: str) -> str:
        self.begun.append(name)
        self.has_begun.release()
        assert self._leave.acquire(timeout=TIMEOUT_S)
        return name

    async def until_begun(self) -> None:
        assert await asyncio.to_thread(self.has_begun.acquire, timeout=TIMEOUT_S / 2)

    def let_end(self) -> None:
        self._leave.release()


def start(large: LargeMessages, bench: Bench, caller: str, name: str) -> asyncio.Task[str]:
    return asyncio.create_task(large.run(caller, partial(bench.work, name)))


async def test_work_runs_one_at_a_time_and_callers_take_turns() -> None:
    large, bench = LargeMessages(), Bench()
    names = ["a1", "a2", "a3", "b1", "b2", "c1"]
    tasks = [start(large, bench, name[0], name) for name in names]
    for count in range(1, len(names) + 1):
        await bench.until_begun()
        assert len(bench.begun) == count
        bench.let_end()
    assert await asyncio.gather(*tasks) == names
    assert bench.begun == ["a1", "a2", "b1", "c1", "a3", "b2"]


async def test_cancelling_running_work_does_not_start_the_next_early() -> None:
    large, bench = LargeMessages(), Bench()
    gone, waits = start(large, bench, "a", "gone"), start(large, bench, "b", "waits")
    await bench.until_begun()
    gone.cancel()
    await yield_to_loop()
    assert bench.begun == ["gone"]
    bench.let_end()
    await bench.until_begun()
    bench.let_end()
    assert await waits == "waits"
    with pytest.raises(asyncio.CancelledError):
        await gone


async def test_cancelled_waiting_work_is_skipped() -> None:
    large, bench = LargeMessages(), Bench()
    tasks = [start(large, bench, name, name) for name in ("a", "b", "c")]
    await bench.until_begun()
    tasks[1].cancel()
    await yield_to_loop()
    for _ in range(2):
        bench.let_end()
    assert await tasks[0] == "a"
    assert await tasks[2] == "c"
    assert bench.begun == ["a", "c"]
    assert not large._is_busy


async def test_an_exception_is_raised_and_ends_the_turn() -> None:
    large = LargeMessages()
    with pytest.raises(ZeroDivisionError):
        await large.run("a", lambda: 1 // 0)
    assert await large.run("a", lambda: 1) == 1


async def test_the_event_loop_runs_while_a_megabyte_is_parsed() -> None:
    message = {"role": "user", "content": "x"}
    body = json.dumps({"messages": [message] * 26_000}).encode()
    parsing = asyncio.create_task(
        LargeMessages().run("a", partial(parse_object, body, what="body"))
    )
    num_turns = 0
    while not parsing.done():
        await yield_to_loop()
        num_turns += 1
    assert len((await parsing)["messages"]) == 26_000
    assert num_turns > 100  # it is two if parsed on the event loop
