"""All responses that can be read: live ones in memory, and ended ones in the store.

The registry follows each response to its end, writes it to the store, and forgets it when its
retention is over. Routes and sockets find, read, cancel and delete responses here.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from app.responses.refusals import not_found, store_unavailable
from app.responses.response import AnyResponse, LiveResponse, StoredResponse
from app.responses.schemas.objects import ResponseObject
from app.responses.storage.store import ResponseStore, encode
from app.responses.storage.store_status import (
    StorageOutcome,
    StoreProblem,
    StoreTooNew,
    StoreUnavailable,
)
from app.websocket.socket_memory import DEFAULT_MAX_BYTES, SocketMemory
from streaming import AsyncEngine, LogStore, Reader
from streaming.errors import InvalidRequest

logger = logging.getLogger(__name__)

MAX_UNWRITTEN_RESPONSES = 256
"""Ended responses that may wait for a slow disk."""
MAX_ENDED_RESPONSES = 4096
"""Ended responses in memory, if `retention_bytes` allows as many."""
CHECK_INTERVAL_S = 5.0
"""How often the store is checked, so that `/health` notices a problem or its end."""
SWEEP_INTERVAL_S = 60.0
"""How often expired responses are deleted from the store."""


class ResponseRegistry:
    """Owns all responses, and the tasks that store each one when it ends.

    Args:
        engine: generates the responses.
        store: stores ended responses; None keeps them in memory only.
        retention_s: how long an ended response stays in memory after its last subscriber left.
        retention_bytes: memory that ended responses may take.
        max_unwritten: ended responses that may wait to be written to the store.
        socket_memory_bytes: memory that the sockets may take together, in addition.
        check_interval_s: how often the store is checked.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        store: ResponseStore | None = None,
        *,
        retention_s: float,
        retention_bytes: int,
        max_unwritten: int = MAX_UNWRITTEN_RESPONSES,
        socket_memory_bytes: int = DEFAULT_MAX_BYTES,
        check_interval_s: float = CHECK_INTERVAL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._store = store
        self.socket_memory = SocketMemory(max_bytes=socket_memory_bytes)
        """Shared by all sockets of this dialect."""
        self.live = LogStore[LiveResponse](
            retention_s=retention_s,
            max_ended=MAX_ENDED_RESPONSES,
            retention_bytes=retention_bytes,
            clock=clock,
        )
        """The responses whose logs are in memory."""
        self._check_interval_s = check_interval_s
        self._check_task: asyncio.Task[None] | None = None
        self._storing_tasks: set[asyncio.Task[None]] = set()
        self._max_unwritten = max_unwritten
        self._num_unwritten = 0
        self._deleted: set[str] = set()
        """Ids of deleted responses that a task may still be writing to the store."""

    async def start(self) -> None:
        """Open the store. Until it can be opened, responses are in memory only.

        Raises:
            StoreTooNew: a newer version wrote the store.
        """
        if self._store is None:
            return
        try:
            await self._store.open()
        except StoreTooNew:
            raise
        except StoreUnavailable as error:
            logger.warning(
                "the store is unavailable, responses are in memory only until it can be opened "
                "(--no-store-responses turns the store off): %s",
                error,
            )
        self._check_task = asyncio.create_task(self._check_store(self._store))

    async def aclose(self) -> None:
        """Finish all writes, and close the store. Call it once the engine has ended every log."""
        if self._check_task is not None:
            self._check_task.cancel()
            await asyncio.gather(self._check_task, return_exceptions=True)
        try:
            await asyncio.gather(*self._storing_tasks)
        finally:
            if self._store is not None:
                await self._store.aclose()

    @property
    def has_store(self) -> bool:
        """Whether ended responses are stored."""
        return self._store is not None

    @property
    def store_problem(self) -> StoreProblem | None:
        """Why the store cannot be used; None if it can, or if there is none."""
        return None if self._store is None else self._store.problem

    async def _check_store(self, store: ResponseStore) -> None:
        """Check the store, and delete expired responses, periodically."""
        loop = asyncio.get_running_loop()
        sweep_at = loop.time() + SWEEP_INTERVAL_S
        while True:
            await asyncio.sleep(self._check_interval_s)
            try:
                await store.check()
                if loop.time() >= sweep_at:
                    await store.sweep()
                    sweep_at = loop.time() + SWEEP_INTERVAL_S
            except StoreUnavailable as error:
                logger.debug("the store is unavailable, checking it again soon: %s", error)

    # Add, subscribe, read.

    def add(self, response: LiveResponse) -> None:
        """Register a response, and follow it to its end.

        Unless it is a background response, subscribe to it before the next await: a response
        without subscribers is cancelled.
        """
        response.storage = StorageOutcome(is_decided=self._store is None or not response.is_stored)
        self.live.add(response.response_id, response)
        storing = asyncio.create_task(self._store_at_end(response))
        self._storing_tasks.add(storing)
        storing.add_done_callback(self._storing_tasks.discard)

    @contextmanager
    def subscribe(
        self, response: LiveResponse, *, on_wake: Callable[[], None], grace_s: float = 0.0
    ) -> Iterator[None]:
        """Subscribe to the response and keep it alive.

        A response that is not a background one is cancelled `grace_s` seconds after its last
        subscriber left. Read its events with `response.writer`.

        Args:
            response: registered here.
            on_wake: called when there may be new events.
            grace_s: how long the response outlives its last subscriber.
        """
        with self.live.pin(response.response_id):
            if response.is_ended:
                yield
            elif response.is_background:
                with self.observe(response, on_wake=on_wake):
                    yield
            else:
                with self._engine.subscribe(response.generation, on_wake=on_wake, grace_s=grace_s):
                    yield

    @contextmanager
    def observe(self, response: LiveResponse, *, on_wake: Callable[[], None]) -> Iterator[None]:
        """Subscribe to the response without keeping it alive."""
        with Reader(response.generation, on_wake=on_wake):
            yield

    async def wait_ended(self, response: LiveResponse) -> None:
        """Wait until the terminal event can be read, without keeping the response alive."""
        woken = asyncio.Event()
        with self.observe(response, on_wake=woken.set):
            while not response.is_ended:
                await woken.wait()
                woken.clear()

    async def snapshot(self, response: AnyResponse) -> ResponseObject:
        """Return the response as it stands."""
        if isinstance(response, LiveResponse) and response.is_snapshot_slow:
            return await asyncio.to_thread(response.snapshot)
        return response.snapshot()

    # Find.

    async def find(self, response_id: str, *, caller: str) -> AnyResponse:
        """Return a response that may be stored, from memory or from the store.

        Raises:
            RequestRefused: the response does not exist, has expired, has `store: false`, or belongs
                to another caller; or the store cannot be read.
        """
        live = self.live.find(response_id, caller=caller)
        if live is not None and live.is_stored:
            return live
        stored = None
        if self._store is not None and live is None and response_id not in self._deleted:
            try:
                stored = await self._store.find(response_id, caller=caller)
            except StoreUnavailable as error:
                logger.error("cannot read the store of responses: %s", error)
                raise store_unavailable() from error
        if stored is None:
            raise not_found(response_id)
        return stored

    def find_live(self, response_id: str, *, caller: str) -> LiveResponse | None:
        """Return a response whose log is in memory, even with `store: false`, to resume it."""
        return self.live.find(response_id, caller=caller)

    # Cancel, delete.

    def stop(self, response: LiveResponse) -> None:
        """Cancel a response at the engine's next step; does nothing if it has ended."""
        self._engine.cancel(response.generation)

    async def cancel(self, response_id: str, *, caller: str) -> AnyResponse:
        """Cancel a background response and return it; an ended one is returned unchanged.

        Raises:
            RequestRefused: see `find`.
            InvalidRequest: the response is open and not a background one.
        """
        response = await self.find(response_id, caller=caller)
        if isinstance(response, LiveResponse) and not response.is_ended:
            if not response.is_background:
                raise InvalidRequest(
                    param="response_id",
                    reason="is not a background response; close its connection to cancel it",
                )
            self.stop(response)
            await self.wait_ended(response)
        return response

    async def delete(self, response_id: str, *, caller: str) -> None:
        """Delete a response; an open one is cancelled.

        Raises:
            RequestRefused: see `find`; or the store cannot be written.
        """
        response = await self.find(response_id, caller=caller)
        if isinstance(response, LiveResponse):
            if self.live.remove(response_id):
                self._deleted.add(response_id)
            self.stop(response)
        if self._store is not None:
            try:
                await self._store.delete(response_id, caller=caller)
            except StoreUnavailable as error:
                logger.error("cannot delete from the store of responses: %s", error)
                raise store_unavailable() from error

    # Store.

    async def _store_at_end(self, response: LiveResponse) -> None:
        """Wait for the end of a response's log, store it, and release its terminal event."""
        ended = asyncio.Event()

        def check_ended() -> None:
            if response.generation.is_ended:
                ended.set()

        # Keeps a background response alive; all others end with their subscribers.
        subscribe = self._engine.subscribe if response.is_background else Reader
        with subscribe(response.generation, on_wake=check_ended):
            check_ended()
            await ended.wait()
        stored = None
        try:
            if response.is_stored:
                stored = await self._write(response)
        finally:
            self._deleted.discard(response.response_id)
            is_lost = response.is_stored and self._store is not None and stored is None
            response.decide_storage(stored, is_lost=is_lost)
            self.live.finish(response.response_id)

    async def _write(self, response: LiveResponse) -> StoredResponse | None:
        """Write a response to the store, and return what was written; None if nothing was."""
        if self._store is None or response.response_id in self._deleted:
            return None
        self._num_unwritten += 1
        try:
            if self._num_unwritten > self._max_unwritten:
                raise StoreUnavailable(f"{self._max_unwritten} other responses wait to be written")
            stored, body = await asyncio.to_thread(_encode, response)
            await self._store.put(stored, body)
            if response.response_id in self._deleted:  # deleted during the write
                await self._store.delete(response.response_id, caller=response.caller)
                return None
        except StoreUnavailable as error:
            logger.warning("%s is in memory only: %s", response.response_id, error)
            return None
        except Exception:  # the client waits for the terminal event, whatever our bug is
            logger.exception("%s could not be stored", response.response_id)
            return None
        finally:
            self._num_unwritten -= 1
        return stored


def _encode(response: LiveResponse) -> tuple[StoredResponse, str]:
    stored = response.to_be_written()
    return stored, encode(stored)
