"""A response: one that is generated here, and what is kept of one that has ended."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from app.responses.context import Context
from app.responses.conversation import to_context
from app.responses.schemas.items import Item
from app.responses.storage.keeping import Keeping
from app.responses.writer import EventFields, ResponseHead, ResponseWriter
from streaming import Generation

_MAX_RECORDS_AT_ONCE = 64
"""Records of a log that are read on the event loop for a snapshot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredResponse:
    """A response that has ended, without its log.

    Attributes:
        caller: the caller that it belongs to.
        last_snapshot: the response as clients see it.
        num_bytes: about what it takes in memory.
    """

    response_id: str
    caller: str
    last_snapshot: EventFields
    context: Context
    num_bytes: int = field(compare=False)

    @property
    def is_ended(self) -> bool:
        return True

    def snapshot(self) -> EventFields:
        return self.last_snapshot

    def conversation(self) -> tuple[Item, ...]:
        """Return all items that a response which goes on from here begins with."""
        return (*self.context.items, *to_context(self.last_snapshot["output"]))


@dataclass(slots=True, eq=False, kw_only=True)
class LiveResponse:
    """A response whose log is in memory, open or ended.

    Attributes:
        head: what each of its snapshots and events shows.
        caller: the caller that it belongs to.
        generation: its log.
        is_stored: it can be fetched, and be gone on from, by whoever has its caller's key.
        keeping: whether it has been written to the store, where there is one.
    """

    head: ResponseHead
    caller: str
    generation: Generation
    context: Context
    is_stored: bool
    keeping: Keeping = field(default_factory=Keeping)
    _num_head_bytes: int = 0
    _writer: ResponseWriter | None = None
    _stored: StoredResponse | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)
    """Held by the worker thread that reads the log for a snapshot."""

    def __post_init__(self) -> None:
        self._num_head_bytes = self.head.num_bytes

    @property
    def response_id(self) -> str:
        return self.head.response_id

    @property
    def is_background(self) -> bool:
        return self.head.is_background

    @property
    def is_ended(self) -> bool:
        """Whether its last event can be read."""
        return self.generation.is_ended and self.keeping.is_decided

    @property
    def num_bytes(self) -> int:
        """About what it takes in memory.

        Its text counts thrice: it is in the log, in the last snapshot, and there with what
        surrounds it.
        """
        return self._num_head_bytes + 2 * self.context.num_bytes + 3 * self.generation.num_bytes

    def writer(self, *, after: int = -1) -> ResponseWriter:
        """Return a writer for one reader, whose last event was `after`."""
        return ResponseWriter(self.head, self.generation, after=after, keeping=self.keeping)

    @property
    def is_snapshot_slow(self) -> bool:
        """Whether a snapshot should be made on a worker thread."""
        if self._stored is not None:
            return False
        writer = self._writer
        if writer is None or self.head.reports_logprobs:  # which are written anew each time
            return self.generation.last_seq >= _MAX_RECORDS_AT_ONCE
        return writer.num_unread > _MAX_RECORDS_AT_ONCE

    def snapshot(self) -> EventFields:
        """Return the response as it stands.

        Takes time by the text that has come since the last call; the last snapshot is made once.
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
        """Return what is to be kept of it; it has ended. As slow as `snapshot`.

        It is made once, but with log probabilities it is made each time: they are many objects for
        each token, which the log does without.
        """
        assert self.is_ended, "an open response cannot be settled"
        with self._lock:
            if self._stored is not None:
                return self._stored
            stored = self._to_stored(self.keeping)
            self._writer = None
            self._keep(stored)
            return stored

    def to_be_written(self) -> StoredResponse:
        """Return what is to be written to the store, before its end is told; as slow."""
        assert self.generation.is_ended, "an open response cannot be stored"
        return self._to_stored(Keeping())

    def decide(self, stored: StoredResponse | None, *, is_lost: bool) -> None:
        """Let the end be told, and wake all readers.

        Args:
            stored: what has been written to the store, if anything has.
            is_lost: it was to be written, and was not.
        """
        self.keeping.is_lost = is_lost
        self.keeping.is_decided = True
        self._writer = None
        if stored is not None:
            self._keep(stored)
        self.generation.wake()

    def _keep(self, stored: StoredResponse) -> None:
        if not self.head.reports_logprobs:
            self._stored = stored

    def _to_stored(self, keeping: Keeping) -> StoredResponse:
        writer = ResponseWriter(self.head, self.generation, keeping=keeping)
        writer.advance()
        return StoredResponse(
            response_id=self.response_id,
            caller=self.caller,
            last_snapshot=writer.snapshot(),
            context=self.context,
            num_bytes=self.num_bytes,
        )

    def conversation(self) -> tuple[Item, ...]:
        """Return all items that a response which goes on from here begins with; it has ended."""
        return self.finish().conversation()


AnyResponse = LiveResponse | StoredResponse
