"""A response: one that is generated here, and what is kept of one that has ended."""

from __future__ import annotations

from dataclasses import dataclass, field

from app.responses.context import Context
from app.responses.conversation import to_context
from app.responses.writer import EventFields, ResponseHead, ResponseWriter
from app.schemas.response_items import Item
from streaming import Generation


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredResponse:
    """A response that has ended, without its log.

    Attributes:
        owner: the caller that it belongs to.
        last_snapshot: the response as clients see it.
        num_bytes: about what it takes in memory.
    """

    response_id: str
    owner: str
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
        owner: the caller that it belongs to.
        generation: its log.
        is_stored: it can be fetched, and be gone on from, by whoever has its owner's key.
    """

    head: ResponseHead
    owner: str
    generation: Generation
    context: Context
    is_stored: bool
    _num_head_bytes: int = 0
    _writer: ResponseWriter | None = None
    _stored: StoredResponse | None = None

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
        return self.generation.is_ended

    @property
    def num_bytes(self) -> int:
        """About what it takes in memory.

        Its text counts thrice: it is in the log, in the last snapshot, and there with what
        surrounds it.
        """
        return self._num_head_bytes + 2 * self.context.num_bytes + 3 * self.generation.num_bytes

    def writer(self, *, after: int = -1) -> ResponseWriter:
        """Return a writer for one reader, whose last event was `after`."""
        return ResponseWriter(self.head, self.generation, after=after)

    def snapshot(self) -> EventFields:
        """Return the response as it stands.

        Takes time by the length of the text, so call it for an ended response on a worker thread;
        the last snapshot is made once.
        """
        if self._stored is not None:
            return self._stored.last_snapshot
        writer = self._writer = self._writer or self.writer()
        writer.advance()
        return writer.snapshot()

    def settle(self) -> StoredResponse:
        """Return what is to be kept of it; it has ended. As slow as `snapshot`.

        It is made once, but with log probabilities it is made each time: they are many objects for
        each token, which the log does without.
        """
        assert self.is_ended, "an open response cannot be settled"
        if self._stored is not None:
            return self._stored
        writer = self.writer()
        writer.advance()
        stored = StoredResponse(
            response_id=self.response_id,
            owner=self.owner,
            last_snapshot=writer.snapshot(),
            context=self.context,
            num_bytes=self.num_bytes,
        )
        self._writer = None
        if not self.head.reports_logprobs:
            self._stored = stored
        return stored

    def conversation(self) -> tuple[Item, ...]:
        """Return all items that a response which goes on from here begins with; it has ended."""
        return self.settle().conversation()


AnyResponse = LiveResponse | StoredResponse
