"""Responses from the first to the last: made, found, followed, cancelled, kept and deleted."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from app.errors import RequestRefused
from app.responses.admission import submit, warm_up
from app.responses.compaction import to_compacted, to_summary_request
from app.responses.context import Context
from app.responses.conversation import to_messages
from app.responses.dialect import translate_errors
from app.responses.references import resolve
from app.responses.refusals import not_found, previous_not_found, store_unavailable
from app.responses.response import AnyResponse, LiveResponse, StoredResponse
from app.responses.schemas.items import Item
from app.responses.schemas.request import CompactRequest, ResponseRequest
from app.responses.storage.keeping import Keeping
from app.responses.storage.store import ResponseStore, encode
from app.responses.storage.store_status import StoreProblem, StoreTooNew, StoreUnavailable
from app.responses.writer import EventFields, ResponseHead
from app.settings import ReasoningDialect
from app.websocket.socket_memory import DEFAULT_MAX_BYTES, SocketMemory
from streaming import AsyncEngine, Failed, GenerationRequest, LogStore, Reader
from streaming.errors import InvalidRequest

logger = logging.getLogger(__name__)

MAX_UNWRITTEN_RESPONSES = 256
"""Ended responses that wait to be written to a slow disk."""
MAX_ENDED_RESPONSES = 4096
"""Ended responses that are kept in memory, where their size allows so many."""
CHECK_INTERVAL_S = 5.0
"""How soon it shows that the store cannot be used, or can be again, where nobody uses it."""
SWEEP_INTERVAL_S = 60.0
"""How often expired responses are looked for."""


class ResponseService:
    """Owns all responses, and the tasks that follow each to its end.

    Args:
        engine: generates.
        store: keeps what has ended; None keeps it in memory only.
        retention_s: how long an ended response stays in memory that nobody follows any more.
        retention_bytes: how much memory ended responses may take.
        max_unwritten: ended responses that may wait to be written to the store.
        reasoning_dialect: how the events of reasoning are called.
        socket_memory_bytes: what the sockets may take together, beside what is kept here.
        check_interval_s: how often the store is looked at.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        store: ResponseStore | None,
        *,
        retention_s: float,
        retention_bytes: int,
        max_unwritten: int = MAX_UNWRITTEN_RESPONSES,
        reasoning_dialect: ReasoningDialect = ReasoningDialect.OPENAI,
        socket_memory_bytes: int = DEFAULT_MAX_BYTES,
        check_interval_s: float = CHECK_INTERVAL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._store = store
        self.socket_memory = SocketMemory(max_bytes=socket_memory_bytes)
        self._reasoning_dialect = reasoning_dialect
        self.registry = LogStore[LiveResponse](
            retention_s=retention_s,
            max_ended=MAX_ENDED_RESPONSES,
            retention_bytes=retention_bytes,
            clock=clock,
        )
        self._check_interval_s = check_interval_s
        self._watcher: asyncio.Task[None] | None = None
        self._keepers: set[asyncio.Task[None]] = set()
        self._max_unwritten = max_unwritten
        self._num_unwritten = 0
        self._deleted: set[str] = set()
        """Ids of responses that are deleted, while their keepers may still write them."""

    async def start(self) -> None:
        """Open the store. Without it, responses are in memory only until it can be opened.

        Raises:
            StoreTooNew: the store was written by a newer version.
        """
        if self._store is None:
            return
        try:
            await self._store.open()
        except StoreTooNew:
            raise
        except StoreUnavailable as error:
            logger.warning(
                "responses are kept in memory only, until the store can be used; "
                "--no-store-responses does without one: %s",
                error,
            )
        self._watcher = asyncio.create_task(self._watch(self._store))

    async def aclose(self) -> None:
        """Wait until all is written, and close the store; the engine has ended every log."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
        try:
            await asyncio.gather(*self._keepers)
        finally:
            if self._store is not None:
                await self._store.aclose()

    @property
    def has_store(self) -> bool:
        return self._store is not None

    @property
    def store_problem(self) -> StoreProblem | None:
        """Why the store cannot be used; None if it can, or there is none."""
        return None if self._store is None else self._store.problem

    async def _watch(self, store: ResponseStore) -> None:
        """Delete what expires, and find out what becomes of the store."""
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
                logger.debug("the store is looked at again soon: %s", error)

    # Making.

    async def create(
        self, body: ResponseRequest, *, caller: str, parent: AnyResponse | None = None
    ) -> LiveResponse:
        """Admit a request and return its response; the engine writes its log from now on.

        Nothing generates for a caller that is gone: unless it is a background one, `follow` it
        before anything is awaited.

        Args:
            parent: what `body.previous_response_id` stands for, where that is known already.

        Raises:
            StreamingError: the request cannot be served, or not now.
            RequestRefused: it goes on from a response that is not there, or has not ended.
        """
        key = secrets.token_hex(16)
        context, request = await self._prepare(body, key=key, caller=caller, parent=parent)
        generation = (
            await submit(self._engine, request, truncates=body.truncation == "auto")
            if body.generates
            else await warm_up(self._engine, request)
        )
        response = LiveResponse(
            head=ResponseHead(
                key=key,
                echo=body.echo(),
                token_text=self._engine.tokenizer.token_text,
                token_bytes=self._engine.tokenizer.token_bytes,
                is_background=bool(body.background),
                is_warm_up=not body.generates,
                reports_logprobs=body.includes_logprobs,
                reasoning_dialect=self._reasoning_dialect,
            ),
            caller=caller,
            generation=generation,
            context=context,
            is_stored=body.is_stored,
            keeping=Keeping(is_decided=self._store is None or not body.is_stored),
        )
        self.registry.add(response.response_id, response)
        keeper = asyncio.create_task(self._keep(response))
        self._keepers.add(keeper)
        keeper.add_done_callback(self._keepers.discard)
        return response

    async def _prepare(
        self, body: ResponseRequest, *, key: str, caller: str, parent: AnyResponse | None
    ) -> tuple[Context, GenerationRequest]:
        """Return the whole context, and what to generate."""
        body.check()
        if parent is None and body.previous_response_id is not None:
            parent = await self._find_parent(body.previous_response_id, caller)
        if parent is not None and not parent.is_ended:
            raise InvalidRequest(param="previous_response_id", reason="has not ended yet")
        own = await resolve(
            body.to_items(key), parent=parent, find=partial(self.find, caller=caller)
        )
        if parent is None:
            context = Context.of((), own)
        else:
            context = await asyncio.to_thread(_go_on, parent, own)
        messages = to_messages(context, instructions=body.instructions)
        if body.generates and not messages:
            raise InvalidRequest(param="input", reason="give an input")
        with translate_errors():
            request = body.to_request(messages, caller=caller)
        return context, request

    async def _find_parent(self, response_id: str, caller: str) -> AnyResponse:
        try:
            return await self.find(response_id, caller=caller)
        except RequestRefused as error:
            if error.info.code != "response_not_found":
                raise
            raise previous_not_found(response_id) from error

    async def count_input_tokens(self, body: ResponseRequest, *, caller: str) -> int:
        """Return the size of a request's prompt, which may be longer than the context.

        Raises:
            StreamingError: the request could not be served.
            RequestRefused: it goes on from a response that is not there, or has not ended.
        """
        key = secrets.token_hex(16)
        _, request = await self._prepare(body, key=key, caller=caller, parent=None)
        with translate_errors():
            return len(await self._engine.tokenize(request))

    async def compact(self, body: CompactRequest, *, caller: str) -> EventFields:
        """Return what stands for a conversation from now on; nothing is kept.

        Raises:
            StreamingError: the request cannot be served, or not now, or failed.
            RequestRefused: it goes on from a response that is not there, or has not ended.
        """
        context, request = await self._prepare(
            body.to_response_request(), key=secrets.token_hex(16), caller=caller, parent=None
        )
        generation = await submit(self._engine, to_summary_request(request))
        with self._engine.subscribe(generation) as reader:
            outcome = await reader.wait_ended()
        if isinstance(outcome, Failed):
            raise outcome.error
        return to_compacted(context.items, generation)

    # Following.

    @contextmanager
    def subscribe(
        self, response: LiveResponse, *, on_wake: Callable[[], None], grace_s: float = 0.0
    ) -> Iterator[None]:
        """Be told of news, as a client that the response lives for.

        When the last follower leaves a response that is not a background one, it is cancelled after
        `grace_s` seconds. Read with a `writer` of the response.
        """
        with self.registry.pin(response.response_id):
            if response.is_ended:
                yield
            elif response.is_background:
                with self.watch(response, on_wake=on_wake):
                    yield
            else:
                with self._engine.subscribe(response.generation, on_wake=on_wake, grace_s=grace_s):
                    yield

    @contextmanager
    def watch(self, response: LiveResponse, *, on_wake: Callable[[], None]) -> Iterator[None]:
        """Be told of news, as one that the response does not live for."""
        with Reader(response.generation, on_wake=on_wake):
            yield

    async def wait_ended(self, response: LiveResponse) -> None:
        """Wait until the end can be told, as one that the response does not live for."""
        woken = asyncio.Event()
        with self.watch(response, on_wake=woken.set):
            while not response.is_ended:
                await woken.wait()
                woken.clear()

    async def snapshot(self, response: AnyResponse) -> EventFields:
        """Return the response as it stands."""
        if isinstance(response, LiveResponse) and response.is_snapshot_slow:
            return await asyncio.to_thread(response.snapshot)
        return response.snapshot()

    # Finding.

    async def find(self, response_id: str, *, caller: str) -> AnyResponse:
        """Return a stored response, from memory or from the store.

        Raises:
            RequestRefused: it never was, has expired, was not to be stored, or is someone else's;
                or the store cannot be read now.
        """
        live = self.registry.find(response_id, caller=caller)
        if live is not None and live.is_stored:
            return live
        stored = None
        if self._store is not None and live is None and response_id not in self._deleted:
            try:
                stored = await self._store.find(response_id, caller=caller)
            except StoreUnavailable as error:
                logger.error("the store of responses failed: %s", error)
                raise store_unavailable() from error
        if stored is None:
            raise not_found(response_id)
        return stored

    def find_live(self, response_id: str, *, caller: str) -> LiveResponse | None:
        """Return a response whose log is in memory, stored or not: for resuming only."""
        return self.registry.find(response_id, caller=caller)

    # Ending.

    def stop(self, response: LiveResponse) -> None:
        """End a response at the engine's next step; nothing happens if it has ended."""
        self._engine.cancel(response.generation)

    async def cancel(self, response_id: str, *, caller: str) -> AnyResponse:
        """End a background response and return it; one that has ended is returned as it is.

        Raises:
            RequestRefused: as `find` says.
            InvalidRequest: it is open, and lives for the one that is following it.
        """
        response = await self.find(response_id, caller=caller)
        if isinstance(response, LiveResponse) and not response.is_ended:
            if not response.is_background:
                raise InvalidRequest(
                    param="response_id",
                    reason="is not a background response; close its connection to end it",
                )
            self.stop(response)
            await self.wait_ended(response)
        return response

    async def delete(self, response_id: str, *, caller: str) -> None:
        """Forget a response, and end it if it is open.

        Raises:
            RequestRefused: as `find` says; or the store cannot be written now.
        """
        response = await self.find(response_id, caller=caller)
        if isinstance(response, LiveResponse):
            if self.registry.remove(response_id):
                self._deleted.add(response_id)
            self.stop(response)
        if self._store is not None:
            try:
                await self._store.delete(response_id, caller=caller)
            except StoreUnavailable as error:
                logger.error("the store of responses failed: %s", error)
                raise store_unavailable() from error

    async def _keep(self, response: LiveResponse) -> None:
        """Follow a response to the end of its log, store it, and let its end be told."""
        ended = asyncio.Event()

        def check_ended() -> None:
            if response.generation.is_ended:
                ended.set()

        follow = self._engine.subscribe if response.is_background else Reader
        with follow(response.generation, on_wake=check_ended):
            check_ended()
            await ended.wait()
        stored = None
        try:
            if response.is_stored:
                stored = await self._write(response)
        finally:
            self._deleted.discard(response.response_id)
            is_lost = response.is_stored and self._store is not None and stored is None
            response.decide(stored, is_lost=is_lost)
            self.registry.finish(response.response_id)

    async def _write(self, response: LiveResponse) -> StoredResponse | None:
        """Write a response to the store, and return what is there; None if it is not."""
        if self._store is None or response.response_id in self._deleted:
            return None
        self._num_unwritten += 1
        try:
            if self._num_unwritten > self._max_unwritten:
                raise StoreUnavailable(f"{self._max_unwritten} others wait to be written")
            stored, body = await asyncio.to_thread(_write_out, response)
            await self._store.put(stored, body)
            if response.response_id in self._deleted:  # meanwhile
                await self._store.delete(response.response_id, caller=response.caller)
                return None
        except StoreUnavailable as error:
            logger.warning("%s is in memory only: %s", response.response_id, error)
            return None
        except Exception:  # its client waits for its end, whatever is wrong with our own code
            logger.exception("%s could not be stored", response.response_id)
            return None
        finally:
            self._num_unwritten -= 1
        return stored


def _go_on(parent: AnyResponse, own: tuple[Item, ...]) -> Context:
    return Context.of(parent.conversation(), own)


def _write_out(response: LiveResponse) -> tuple[StoredResponse, str]:
    stored = response.to_be_written()
    return stored, encode(stored)
