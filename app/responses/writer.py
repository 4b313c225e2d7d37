"""Writes a generation's log in the form of a response: the events of its stream, and snapshots.

Events are a pure function of the request and its log. They are not kept: a client that reconnects
has them written again from the beginning of the log, and gets those after its cursor. So an event
must not depend on when the log is read, or by whom. Ids are derived from the response's own key,
and the log is processed record by record, even if many records are available at once. The terminal
event also depends on whether the response was stored, so it is written once that is decided.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Unpack, assert_never

from app.responses.logprobs import LogprobFormatter, PendingTokens
from app.responses.response_item import ItemKind, ItemStatus, OutputItem
from app.responses.schemas.objects import (
    ChosenLogprobObject,
    ContentFields,
    EventFields,
    EventObject,
    ItemFields,
    ResponseObject,
)
from app.responses.snapshot import ResponseHead, ResponseSnapshot
from app.responses.storage.store_status import StorageOutcome
from streaming import (
    AnswerText,
    Failed,
    Finished,
    Generation,
    OutputParser,
    Piece,
    ReasoningText,
    Token,
    ToolArguments,
    ToolCallEnded,
    ToolCallStarted,
)


class ResponseWriter:
    """Writes one response for one reader.

    Args:
        head: the fields that every snapshot repeats.
        generation: the log of the response.
        after: the sequence number of the last event that the reader has; -1 if it has none.
        storage: the terminal event waits until this is decided; without one it does not wait.
    """

    def __init__(
        self,
        head: ResponseHead,
        generation: Generation,
        *,
        after: int = -1,
        storage: StorageOutcome | None = None,
    ) -> None:
        self._head = head
        self._generation = generation
        self._after = after
        self._storage = storage or StorageOutcome()
        self._cursor = -1
        self._num_events = 0
        self._parser = OutputParser(generation.output_format)
        self._snapshot = ResponseSnapshot(head, generation)
        self._items: list[OutputItem] = []
        self._pending_tokens = PendingTokens()
        self._logprobs = LogprobFormatter(
            generation, token_text=head.token_text, token_bytes=head.token_bytes
        )
        self._num_tokens = 0
        self._num_reasoning_tokens = 0
        self._has_answer = False
        self._last_closed: tuple[OutputItem, list[ChosenLogprobObject]] | None = None
        """The item that ended last, with its log probabilities, until the terminal event."""
        self._outcome: Finished | Failed | None = None
        self.is_done = False
        """Whether the terminal event has been written."""

    @property
    def num_events(self) -> int:
        """Number of events written so far, including those up to the reader's cursor."""
        return self._num_events

    @property
    def num_unread(self) -> int:
        """Number of records in the log that have not been processed."""
        return self._generation.last_seq - self._cursor

    def events(self) -> Iterator[EventObject]:
        """Write and yield the events of all records since the last call; never waits.

        Exhaust the iterator before the next call of any method.
        """
        for event in self._new_events():
            if event["sequence_number"] > self._after:
                yield event

    def advance(self) -> None:
        """Process all records since the last call, without returning events."""
        for _ in self._new_events():
            pass

    def snapshot(self) -> ResponseObject:
        """Return the response as of the last event."""
        output = [item.to_object(self._logprobs_of(item)) for item in self._items]
        return self._snapshot.to_object(output)

    def _event(self, kind: str, **fields: Unpack[EventFields]) -> EventObject:
        event: EventObject = {"type": kind, "sequence_number": self._num_events, **fields}
        self._num_events += 1
        return event

    def _lifecycle_event(self, name: str) -> EventObject:
        return self._event(f"response.{name}", response=self.snapshot())

    def _new_events(self) -> Iterator[EventObject]:
        if not self._num_events:
            yield self._lifecycle_event("created")
            yield self._lifecycle_event(self._snapshot.status)
        # Read the records before the start mark, which is set before the first of them.
        records = self._generation.records_after(self._cursor)
        has_new = self._generation.last_seq > self._cursor
        is_queued = self._snapshot.status == "queued"
        if is_queued and (has_new or self._generation.started is not None):
            self._snapshot.status = "in_progress"
            yield self._lifecycle_event("in_progress")
        for record in records:
            self._cursor += 1
            match record:
                case Finished() | Failed():
                    self._outcome = record
                    yield from self._end_items(record)
                case Token(text=text):
                    yield from self._feed(text, record)
                case _:
                    yield from self._feed(record.text, None)
        if self._outcome is not None and self._storage.is_decided and not self.is_done:
            yield self._end(self._outcome)

    def _feed(self, text: str, token: Token | None) -> Iterator[EventObject]:
        if self._head.is_warm_up:
            return
        if token is not None and self._head.reports_logprobs:
            self._pending_tokens.add(self._cursor, text)
        was_in_reasoning = self._parser.is_in_reasoning
        pieces = self._parser.feed(text)
        if token is not None:
            self._num_tokens += 1
            if was_in_reasoning or self._parser.is_in_reasoning:
                # All tokens so far count: whitespace and the begin marker come before reasoning.
                self._num_reasoning_tokens = self._num_tokens
        yield from self._write(pieces)

    def _write(self, pieces: list[Piece]) -> Iterator[EventObject]:
        for piece in pieces:
            match piece:
                case ReasoningText(text):
                    yield from self._extend(ItemKind.REASONING, text)
                case AnswerText(text):
                    self._has_answer = True
                    yield from self._extend(ItemKind.MESSAGE, text)
                case ToolCallStarted(name=name):
                    self._has_answer = True
                    yield from self._begin(ItemKind.FUNCTION_CALL, name)
                case ToolArguments(text=text):
                    yield from self._extend(ItemKind.FUNCTION_CALL, text)
                case ToolCallEnded():
                    yield from self._close(ItemStatus.COMPLETED)
                case _:
                    assert_never(piece)
        if pieces and not isinstance(pieces[-1], AnswerText):
            self._pending_tokens.clear()  # reasoning and calls have no log probabilities

    @property
    def _open_item(self) -> OutputItem | None:
        last = self._items[-1] if self._items else None
        return last if last is not None and last.status is ItemStatus.IN_PROGRESS else None

    def _begin(self, kind: ItemKind, name: str = "") -> Iterator[EventObject]:
        yield from self._close(ItemStatus.COMPLETED)
        index = len(self._items)
        item = OutputItem(kind=kind, key=f"{self._head.key}_{index}", name=name)
        self._items.append(item)
        yield self._event(
            "response.output_item.added", output_index=index, item=item.to_object([], is_new=True)
        )
        if kind is not ItemKind.FUNCTION_CALL:
            yield self._part_event("response.content_part.added", item, part=item.to_part([]))

    def _extend(self, kind: ItemKind, text: str) -> Iterator[EventObject]:
        item = self._open_item
        if item is None or item.kind is not kind:
            yield from self._begin(kind)
            item = self._items[-1]
        item.add(text)
        match kind:
            case ItemKind.REASONING:
                prefix = self._head.reasoning_dialect.event_prefix
                yield self._part_event(f"{prefix}.delta", item, delta=text)
            case ItemKind.MESSAGE:
                numbers = self._pending_tokens.take(text)
                item.token_numbers.extend(numbers)
                yield self._part_event(
                    "response.output_text.delta",
                    item,
                    delta=text,
                    logprobs=self._logprobs.format(numbers),
                )
            case ItemKind.FUNCTION_CALL:
                yield self._item_event("response.function_call_arguments.delta", item, delta=text)
            case _:
                assert_never(kind)

    def _close(self, status: ItemStatus) -> Iterator[EventObject]:
        """End the open item, if there is one."""
        item = self._open_item
        if item is None:
            return
        item.status = status
        text, logprobs = item.text, self._logprobs_of(item)
        self._last_closed = (item, logprobs)
        match item.kind:
            case ItemKind.REASONING:
                prefix = self._head.reasoning_dialect.event_prefix
                yield self._part_event(f"{prefix}.done", item, text=text)
            case ItemKind.MESSAGE:
                yield self._part_event(
                    "response.output_text.done", item, text=text, logprobs=logprobs
                )
            case ItemKind.FUNCTION_CALL:
                yield self._item_event(
                    "response.function_call_arguments.done", item, arguments=text
                )
            case _:
                assert_never(item.kind)
        if item.kind is not ItemKind.FUNCTION_CALL:
            yield self._part_event("response.content_part.done", item, part=item.to_part(logprobs))
        yield self._event(
            "response.output_item.done",
            output_index=len(self._items) - 1,
            item=item.to_object(logprobs),
        )

    def _item_event(self, kind: str, item: OutputItem, **fields: Unpack[ItemFields]) -> EventObject:
        output_index = len(self._items) - 1
        return self._event(kind, item_id=item.item_id, output_index=output_index, **fields)

    def _part_event(
        self, kind: str, item: OutputItem, **fields: Unpack[ContentFields]
    ) -> EventObject:
        return self._item_event(kind, item, content_index=0, **fields)

    def _end_items(self, record: Finished | Failed) -> Iterator[EventObject]:
        if self._head.is_warm_up:
            return
        yield from self._write(self._parser.flush())
        is_complete = self._snapshot.is_complete(record)
        is_cut = self._open_item is not None and (
            # A call that is still open at the end is incomplete, whatever ended the text.
            not is_complete or self._open_item.kind is ItemKind.FUNCTION_CALL
        )
        yield from self._close(ItemStatus.INCOMPLETE if is_cut else ItemStatus.COMPLETED)
        if is_complete and not self._has_answer:
            # Clients expect a message even if it is empty.
            yield from self._begin(ItemKind.MESSAGE)
            yield from self._close(ItemStatus.COMPLETED)

    def _end(self, record: Finished | Failed) -> EventObject:
        event_name = self._snapshot.finish(
            record,
            num_reasoning_tokens=self._num_reasoning_tokens,
            is_lost=self._storage.is_lost,
        )
        self.is_done = True
        terminal_event = self._lifecycle_event(event_name)
        self._last_closed = None
        return terminal_event

    def _logprobs_of(self, item: OutputItem) -> list[ChosenLogprobObject]:
        """Return an item's log probabilities.

        Only those of the item that ended last are kept: they are many objects per token, which
        would stay in memory for as long as the reader.
        """
        if self._last_closed is not None and self._last_closed[0] is item:
            return self._last_closed[1]
        return self._logprobs.format(item.token_numbers)
