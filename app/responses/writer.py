"""A log in the form of a response: the events of its stream, and the response as a whole.

Events are a pure function of the request and its log. They are not kept: who comes back later has
them written once more from the log's beginning, and gets the ones after the last that it saw. So
nothing in them may depend on when the log is read, or by whom. Ids are made of the response's own,
and the log is taken record by record, however much of it has come at once. The last event also
depends on whether the response was stored, so it is written once that is decided.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, assert_never

from app.responses.response_item import ItemKind, ItemStatus, OutputItem
from app.responses.storage.keeping import Keeping
from app.responses.unshown_tokens import UnshownTokens
from app.responses.usage import to_usage
from app.schemas.logprobs import clamp_logprob
from app.settings import ReasoningDialect
from streaming import (
    AnswerText,
    Failed,
    Finished,
    FinishReason,
    Generation,
    OutputParser,
    Piece,
    ReasoningText,
    Token,
    ToolArguments,
    ToolCallEnded,
    ToolCallStarted,
)

EventFields = dict[str, Any]
"""One event, ready for JSON."""

_MAX_CACHED_TOKENS = 4096
"""How many tokens' texts a writer remembers: alternatives repeat, and decoding takes long."""
_HEAD_BYTES = 4000
"""Cost of a response without its texts."""
_ERROR_CODES = {
    "overloaded": "rate_limit_exceeded",
    "rate_limited": "rate_limit_exceeded",
    "no_token_allowed": "invalid_prompt",
}
"""The dialect has few codes for a response that fails; all others are `server_error`."""


_REASONING_EVENTS = {
    ReasoningDialect.OPENAI: "response.reasoning_text",
    ReasoningDialect.OPEN_RESPONSES: "response.reasoning",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseHead:
    """What is known of a response before its first token.

    Attributes:
        key: makes the ids of the response and of all that is in it.
        echo: what every snapshot shows of the request.
        token_text: how a token is written by itself.
        token_bytes: its UTF-8, which may be a part of a character's; None where nobody knows.
        is_background: it may wait for its turn as `queued`.
        is_warm_up: its log is not shown.
        reports_logprobs: of the answer's tokens.
    """

    key: str
    echo: Mapping[str, Any]
    token_text: Callable[[int], str]
    token_bytes: Callable[[int], bytes | None]
    is_background: bool = False
    is_warm_up: bool = False
    reports_logprobs: bool = False
    reasoning_dialect: ReasoningDialect = ReasoningDialect.OPENAI

    @property
    def response_id(self) -> str:
        return f"resp_{self.key}"

    @property
    def num_bytes(self) -> int:
        """About what it takes in memory."""
        return _HEAD_BYTES + 2 * len(json.dumps(self.echo))


class ResponseWriter:
    """Writes one response, for one reader.

    Args:
        after: the sequence number of the last event that the reader has; -1 is none.
        keeping: the last event waits for it; without one, nothing is waited for.
    """

    def __init__(
        self,
        head: ResponseHead,
        generation: Generation,
        *,
        after: int = -1,
        keeping: Keeping | None = None,
    ) -> None:
        self._head = head
        self._generation = generation
        self._after = after
        self._keeping = keeping or Keeping()
        self._cursor = -1
        self._num_events = 0
        self._parser = OutputParser(generation.output_format)
        self._items: list[OutputItem] = []
        self._unshown = UnshownTokens()
        self._spelling = lru_cache(_MAX_CACHED_TOKENS)(partial(_spelling, head))
        self._num_tokens = 0
        self._num_reasoning_tokens = 0
        self._has_answer = False
        self._closed: tuple[OutputItem, list[EventFields]] | None = None
        """The newest item that has ended, with its log probabilities, until the last event."""
        self._outcome: Finished | Failed | None = None
        self._status = "queued" if head.is_background else "in_progress"
        self._end_fields: EventFields = {}
        self.is_done = False
        """Whether the last event has been written."""

    @property
    def num_events(self) -> int:
        """How many events have been written, those that the reader had already included."""
        return self._num_events

    @property
    def num_unread(self) -> int:
        """How many records of the log have not been read."""
        return self._generation.last_seq - self._cursor

    def events(self) -> Iterator[EventFields]:
        """Write what the log has had since the last call, and return it; never waits.

        Whoever stops before the end of it may not go on with this writer.
        """
        for event in self._new_events():
            if event["sequence_number"] > self._after:
                yield event

    def advance(self) -> None:
        """Read what the log has had since the last call, for a `snapshot`."""
        for _ in self._new_events():
            pass

    def snapshot(self) -> EventFields:
        """Return the response as it stood at the last event."""
        return {
            "id": self._head.response_id,
            "object": "response",
            "created_at": int(self._generation.created_at),
            "completed_at": None,
            "status": self._status,
            "incomplete_details": None,
            "model": self._generation.model,
            "output": [item.shown(self._logprobs_of(item)) for item in self._items],
            "error": None,
            "usage": None,
            **self._head.echo,
            **self._end_fields,
        }

    def _event(self, kind: str, **fields: Any) -> EventFields:
        event = {"type": kind, "sequence_number": self._num_events, **fields}
        self._num_events += 1
        return event

    def _lifecycle_event(self, name: str) -> EventFields:
        return self._event(f"response.{name}", response=self.snapshot())

    def _new_events(self) -> Iterator[EventFields]:
        if not self._num_events:
            yield self._lifecycle_event("created")
            yield self._lifecycle_event(self._status)
        # The records are read before the start mark, which is set before the first of them.
        records = self._generation.records_after(self._cursor)
        has_new = self._generation.last_seq > self._cursor
        if self._status == "queued" and (has_new or self._generation.started is not None):
            self._status = "in_progress"
            yield self._lifecycle_event(self._status)
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
        if self._outcome is not None and self._keeping.is_decided and not self.is_done:
            yield self._end(self._outcome)

    def _feed(self, text: str, token: Token | None) -> Iterator[EventFields]:
        if self._head.is_warm_up:
            return
        if token is not None and self._head.reports_logprobs:
            self._unshown.add(self._cursor, text)
        was_in_reasoning = self._parser.is_in_reasoning
        pieces = self._parser.feed(text)
        if token is not None:
            self._num_tokens += 1
            if was_in_reasoning or self._parser.is_in_reasoning:
                # With those before it, which are blanks and the mark that begins it.
                self._num_reasoning_tokens = self._num_tokens
        yield from self._write(pieces)

    def _write(self, pieces: list[Piece]) -> Iterator[EventFields]:
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
            self._unshown.clear()  # what reasoning and calls are written with is not reported

    @property
    def _open_item(self) -> OutputItem | None:
        last = self._items[-1] if self._items else None
        return last if last is not None and last.status is ItemStatus.IN_PROGRESS else None

    def _begin(self, kind: ItemKind, name: str = "") -> Iterator[EventFields]:
        yield from self._close(ItemStatus.COMPLETED)
        index = len(self._items)
        item = OutputItem(kind=kind, key=f"{self._head.key}_{index}", name=name)
        self._items.append(item)
        yield self._event(
            "response.output_item.added", output_index=index, item=item.shown([], is_new=True)
        )
        if kind is not ItemKind.FUNCTION_CALL:
            yield self._part_event("response.content_part.added", item, part=item.part([]))

    def _extend(self, kind: ItemKind, text: str) -> Iterator[EventFields]:
        item = self._open_item
        if item is None or item.kind is not kind:
            yield from self._begin(kind)
            item = self._items[-1]
        item.add(text)
        match kind:
            case ItemKind.REASONING:
                yield self._part_event(f"{self._reasoning_event}.delta", item, delta=text)
            case ItemKind.MESSAGE:
                numbers = self._unshown.take(text)
                item.token_numbers.extend(numbers)
                yield self._part_event(
                    "response.output_text.delta",
                    item,
                    delta=text,
                    logprobs=self._logprobs(numbers),
                )
            case ItemKind.FUNCTION_CALL:
                yield self._item_event("response.function_call_arguments.delta", item, delta=text)
            case _:
                assert_never(kind)

    def _close(self, status: ItemStatus) -> Iterator[EventFields]:
        """End the open item, if there is one."""
        item = self._open_item
        if item is None:
            return
        item.status = status
        text, logprobs = item.text, self._logprobs_of(item)
        self._closed = (item, logprobs)
        match item.kind:
            case ItemKind.REASONING:
                yield self._part_event(f"{self._reasoning_event}.done", item, text=text)
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
            yield self._part_event("response.content_part.done", item, part=item.part(logprobs))
        yield self._event(
            "response.output_item.done",
            output_index=len(self._items) - 1,
            item=item.shown(logprobs),
        )

    def _item_event(self, kind: str, item: OutputItem, **fields: Any) -> EventFields:
        output_index = len(self._items) - 1
        return self._event(kind, item_id=item.item_id, output_index=output_index, **fields)

    def _part_event(self, kind: str, item: OutputItem, **fields: Any) -> EventFields:
        return self._item_event(kind, item, content_index=0, **fields)

    @property
    def _reasoning_event(self) -> str:
        return _REASONING_EVENTS[self._head.reasoning_dialect]

    def _end_items(self, record: Finished | Failed) -> Iterator[EventFields]:
        if self._head.is_warm_up:
            return
        yield from self._write(self._parser.flush())
        is_complete = isinstance(record, Finished) and self._is_complete(record.finish_reason)
        is_cut = self._open_item is not None and (
            # A call that is still open at the end was cut, whatever ended the text.
            not is_complete or self._open_item.kind is ItemKind.FUNCTION_CALL
        )
        yield from self._close(ItemStatus.INCOMPLETE if is_cut else ItemStatus.COMPLETED)
        if is_complete and not self._has_answer:
            # An answer of no text is still an answer, which clients look for.
            yield from self._begin(ItemKind.MESSAGE)
            yield from self._close(ItemStatus.COMPLETED)

    def _end(self, record: Finished | Failed) -> EventFields:
        event_name = self._finish(record)
        self._end_fields["usage"] = self._usage()
        if self._keeping.is_lost:
            self._end_fields["store"] = False
        self.is_done = True
        last_event = self._lifecycle_event(event_name)
        self._closed = None
        return last_event

    def _is_complete(self, reason: FinishReason) -> bool:
        if reason is FinishReason.LENGTH:
            return self._head.is_warm_up  # which has the model read, and not write
        return reason is not FinishReason.CANCELLED

    def _finish(self, record: Finished | Failed) -> str:
        """Set what the end decides, and return the name of its event."""
        match record:
            case Failed(error=error):
                self._status = "failed"
                code = _ERROR_CODES.get(error.code, "server_error")
                self._end_fields["error"] = {"code": code, "message": str(error)}
                return "failed"
            case Finished(reason, at) if self._is_complete(reason):
                self._status = "completed"
                duration_s = at - self._generation.submitted_at
                self._end_fields["completed_at"] = int(self._generation.created_at + duration_s)
                return "completed"
            case Finished(FinishReason.LENGTH):
                self._status = "incomplete"
                self._end_fields["incomplete_details"] = {"reason": "max_output_tokens"}
                return "incomplete"
            case Finished(FinishReason.CANCELLED):
                # There is a status for it, but no event; this one comes closest.
                self._status = "cancelled"
                return "incomplete"
            case _:
                raise AssertionError(record)

    def _usage(self) -> EventFields:
        usage = self._generation.usage
        return to_usage(
            input_tokens=usage.prompt_tokens,
            cached_tokens=usage.cached_tokens,
            output_tokens=0 if self._head.is_warm_up else usage.completion_tokens,
            reasoning_tokens=self._num_reasoning_tokens,
        )

    def _logprobs_of(self, item: OutputItem) -> list[EventFields]:
        """Return an item's log probabilities, which are not kept while it is written.

        They would be many objects for each token, for as long as a reader stays.
        """
        if self._closed is not None and self._closed[0] is item:
            return self._closed[1]
        return self._logprobs(item.token_numbers)

    def _logprobs(self, numbers: Sequence[int]) -> list[EventFields]:
        """Return the log probabilities of these records, in their wire form."""
        logprobs = []
        for scores in self._generation.tokens_at(numbers).scores():
            chosen, *top = [self._logprob(*score) for score in scores]
            chosen["top_logprobs"] = top
            logprobs.append(chosen)
        return logprobs

    def _logprob(self, token_id: int, logprob: float) -> EventFields:
        text, utf8 = self._spelling(token_id)
        return {"token": text, "bytes": list(utf8), "logprob": clamp_logprob(logprob)}


def _spelling(head: ResponseHead, token_id: int) -> tuple[str, bytes]:
    """Return how a token is written by itself, and its UTF-8."""
    text, utf8 = head.token_text(token_id), head.token_bytes(token_id)
    return text, text.encode() if utf8 is None else utf8
