"""A response: live, with its log in memory, or stored, as it was when it ended."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from app.responses.context import Context
from app.responses.conversation import to_context
from app.responses.schemas.objects import Item, ResponseObject
from app.responses.snapshot import ResponseHead
from app.responses.storage.store_status import StorageOutcome
from app.responses.writer import ResponseWriter
from streaming import Generation

_MAX_RECORDS_ON_LOOP = 64
"""Log records that a snapshot processes on the event loop; with more it runs on a thread."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredResponse:
    """A response that has ended, without its log.

    Attributes:
        response_id: its id.
        caller: the caller that owns it.
        last_snapshot: the response as clients see it.
        context: the items of its prompt.
        num_bytes: estimated memory in bytes.
    """

    response_id: str
    caller: str
    last_snapshot: ResponseObject
    context: Context
    num_bytes: int = field(compare=False)

    @property
    def is_ended(self) -> bool:
        """Always true: only ended responses are stored."""
        return True

    def snapshot(self) -> ResponseObject:
        """Return the response as clients see it."""
        return self.last_snapshot

    def conversation(self) -> tuple[Item, ...]:
        """Return the items that the context of a follow-up response starts with."""
        return (*self.context.items, *to_context(self.last_snapshot["output"]))


@dataclass(slots=True, eq=False, kw_only=True)
class LiveResponse:
    """A response whose log is in memory, open or ended.

    Attributes:
        head: the fields that its snapshots and events repeat.
        caller: the caller that owns it.
        generation: its log.
        context: the items of its prompt.
        is_stored: its caller can retrieve and continue it by its id.
        storage: whether it was written to the store.
    """

    head: ResponseHead
    caller: str
    generation: Generation
    context: Context
    is_stored: bool
    storage: StorageOutcome = field(default_factory=StorageOutcome)
    _num_head_bytes: int = 0
    _writer: ResponseWriter | None = None
    _stored: StoredResponse | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)
    """Held while a worker thread processes the log for a snapshot."""

    def __post_init__(self) -> None:
        self._num_head_bytes = self.head.num_bytes

    @property
    def response_id(self) -> str:
        """Its id."""
        return self.head.response_id

    @property
    def is_background(self) -> bool:
        """Whether it is generated without subscribers."""
        return self.head.is_background

    @property
    def is_ended(self) -> bool:
        """Whether its terminal event can be read."""
        return self.generation.is_ended and self.storage.is_decided

    @property
    def num_bytes(self) -> int:
        """Estimated memory in bytes.

        The text counts three times: once in the log, and once in the last snapshot, where the
        surrounding objects take about as much again.
        """
        return self._num_head_bytes + 2 * self.context.num_bytes + 3 * self.generation.num_bytes

    def writer(self, *, after: int = -1) -> ResponseWriter:
        """Return a new writer for one reader.

        Args:
            after: the sequence number of the reader's last event; -1 if it has none.
        """
        return ResponseWriter(self.head, self.generation, after=after, storage=self.storage)

    @property
    def is_snapshot_slow(self) -> bool:
        """Whether `snapshot` should run on a worker thread."""
        if self._stored is not None:
            return False
        writer = self._writer
        if writer is None or self.head.reports_logprobs:  # they are formatted again each time
            return self.generation.last_seq >= _MAX_RECORDS_ON_LOOP
        return writer.num_unread > _MAX_RECORDS_ON_LOOP

    def snapshot(self) -> ResponseObject:
        """Return the response as it stands.

        Takes time proportional to the text since the last call. The final snapshot is cached.
        """
        if self._stored is not None:
            return self._stored.last_snapshot
        if self.is_ended:
            return self.finish().last_snapshot
        with self._lock:
            writer = self._writer = self._writer or self.writer()
            writer.advance()
            return writer.snapshot()

    def finish(self) -> StoredResponse:
        """Return the response without its log; it must have ended. As slow as `snapshot`.

        The result is cached unless it has log probabilities, which are many objects per token and
        which the log holds in compact form.
        """
        assert self.is_ended, "an open response cannot be finished"
        with self._lock:
            if self._stored is not None:
                return self._stored
            stored = self._to_stored(self.storage)
            self._writer = None
            self._cache(stored)
            return stored

    def to_be_written(self) -> StoredResponse:
        """Return what to write to the store, before the outcome is known. As slow as `snapshot`."""
        assert self.generation.is_ended, "an open response cannot be stored"
        return self._to_stored(StorageOutcome())

    def decide_storage(self, stored: StoredResponse | None, *, is_lost: bool) -> None:
        """Set the outcome of the write, and wake all readers for the terminal event.

        Args:
            stored: what was written to the store, if anything was.
            is_lost: it should have been written, and was not.
        """
        self.storage.is_lost = is_lost
        self.storage.is_decided = True
        self._writer = None
        if stored is not None:
            self._cache(stored)
        self.generation.wake()

    def _cache(self, stored: StoredResponse) -> None:
        if not self.head.reports_logprobs:
            self._stored = stored

    def _to_stored(self, storage: StorageOutcome) -> StoredResponse:
        writer = ResponseWriter(self.head, self.generation, storage=storage)
        writer.advance()
        return StoredResponse(
            response_id=self.response_id,
            caller=self.caller,
            last_snapshot=writer.snapshot(),
            context=self.context,
            num_bytes=self.num_bytes,
        )

    def conversation(self) -> tuple[Item, ...]:
        """Return the items that a follow-up's context starts with; the response must have ended."""
        return self.finish().conversation()


AnyResponse = LiveResponse | StoredResponse
