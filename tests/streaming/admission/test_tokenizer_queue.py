"""Callers are served in turn, and jobs of callers that have left do not run."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import pytest

from streaming.admission.tokenizer_queue import TokenizerQueue
from streaming.errors import Overloaded, ShuttingDown, StreamingError
from tests.support import entered
from tests.watching_loop import until

FULL = Overloaded(num_waiting=1, max_waiting=1, retry_after_s=1.0)


class Rig:
    """A queue for one thread that runs a job when told to, and records its caller."""

    def __init__(self, threads: ThreadPoolExecutor) -> None:
        self.refusal: StreamingError | None = None
        self.queue = TokenizerQueue(threads, num_threads=1, check=self._check)
        self.entered = threading.Semaphore(0)
        self.done: list[str] = []
        self._is_open = threading.Event()

    def submit(self, caller: str, num_requests: int = 1) -> asyncio.Task[str]:
        def work() -> str:
            self.entered.release()
            self._is_open.wait()
            self.done.append(caller)
            return caller

        running = self.queue.run(work, caller=caller, num_requests=num_requests)
        return asyncio.create_task(running)

    def open(self) -> None:
        self._is_open.set()

    def _check(self) -> None:
        if self.refusal is not None:
            raise self.refusal


@asynccontextmanager
async def held_queue() -> AsyncIterator[Rig]:
    with ThreadPoolExecutor(1) as threads:
        rig = Rig(threads)
        try:
            yield rig
        finally:
            rig.open()


async def test_callers_are_served_in_turn():
    async with held_queue() as rig:
        tasks = [rig.submit(caller) for caller in ("a", "a", "a", "a", "b", "b", "c")]
        await entered(rig)
        assert rig.queue.num_requests == Counter(a=4, b=2, c=1)
        rig.open()
        assert await asyncio.gather(*tasks) == ["a", "a", "a", "a", "b", "b", "c"]
        assert rig.done == ["a", "a", "b", "c", "a", "b", "a"]
        assert not rig.queue.num_requests


async def test_waiting_jobs_can_be_evicted_and_running_ones_cannot():
    async with held_queue() as rig:
        first, second, third = (rig.submit("a", num_requests=n) for n in (1, 2, 3))
        await entered(rig)
        places = list(rig.queue.evictables)
        assert [(place.caller, place.num_requests) for place in places] == [("a", 2), ("a", 3)]
        places[1].evict(FULL)
        assert rig.queue.num_requests == Counter(a=3), "its room is free at once"
        rig.open()
        results = await asyncio.gather(first, second, third, return_exceptions=True)
        assert list(results) == ["a", "a", FULL]
        assert rig.done == ["a", "a"]


async def test_a_cancelled_caller_is_uncounted_at_once_or_when_its_job_is_done():
    async with held_queue() as rig:
        tasks = [rig.submit("a"), rig.submit("b")]
        await entered(rig)
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(result) for result in results] == [asyncio.CancelledError] * 2
        assert rig.queue.num_requests == Counter(a=1)
        rig.open()
        await until(lambda: not rig.queue.num_requests)
        assert rig.done == ["a"]


async def test_waiting_jobs_fail_with_the_error_of_the_check():
    async with held_queue() as rig:
        tasks = [rig.submit("a"), rig.submit("b")]
        await entered(rig)
        rig.refusal = ShuttingDown(retry_after_s=1.0)
        rig.open()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert results == ["a", rig.refusal]
        assert not rig.queue.num_requests


async def test_a_job_that_the_pool_drops_fails_with_the_error_of_the_check():
    with ThreadPoolExecutor(1) as threads:
        rig = Rig(threads)
        queue = TokenizerQueue(threads, num_threads=2, check=rig._check)
        blocking = rig.submit("a")
        given_up = asyncio.create_task(queue.run(lambda: "b", caller="b", num_requests=1))
        await entered(rig)
        rig.refusal = ShuttingDown(retry_after_s=1.0)
        threads.shutdown(wait=False, cancel_futures=True)
        with pytest.raises(ShuttingDown):
            await given_up
        rig.open()
        assert await blocking == "a"


async def test_an_error_fails_its_own_job_only():
    def fail() -> None:
        raise FULL

    async with held_queue() as rig:
        refused = rig.queue.run(fail, caller="a", num_requests=1)
        fine = rig.queue.run(lambda: "fine", caller="a", num_requests=1)
        results = await asyncio.gather(refused, fine, return_exceptions=True)
    assert list(results) == [FULL, "fine"]
