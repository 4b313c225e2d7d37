"""The protocol core of `WS /v1/stream`: frames and events in, commands and frames out.

Sans-I/O: no socket, no clock, no await. Callers pass in the time as monotonic seconds. A client's
mistake is data, an `error` frame; a mistake in our own code is an exception.

Rules for stream ids:

* The frames of one id are accepted, queued*, started, delta*, then exactly one `done` or `error`.
* An error with an id ends the stream of that id. An error that refuses a `generate` or `resume`
  carries the id of the message, unless a stream with this id is open: the error would end that
  stream, so it is sent without an id.
* After its end an id is free again. A `cancel` for it is ignored, because the client may have sent
  it before it received the end.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias, assert_never

from app.errors import ErrorInfo, RequestRefused
from app.stream.frames import (
    TokenText,
    accepted_frame,
    delta_frames,
    ended_frame,
    error_frame,
    queued_frame,
    started_frame,
)
from app.stream.parsing import requested_stream_id, to_message
from app.stream.schemas.frames import ServerFrame
from app.stream.schemas.messages import CancelMessage, GenerateMessage, ResumeMessage
from app.websocket.protocol.frames import Close
from app.websocket.protocol.open_stream import OpenStream, RecentIds, StreamState
from app.websocket.protocol.parsing import Parsed, parse_frame, peek_fields
from app.websocket.protocol.rate_limiter import MessageRateLimiter
from streaming import Delta, Ended, Event, Generation, GenerationRequest, Queued, Started
from streaming.errors import StreamingError

ClientMessage: TypeAlias = GenerateMessage | CancelMessage | ResumeMessage

STREAMS_RETRY_AFTER_S = 1.0
"""`retry_after_s` when a socket is at `max_streams`; a guess, as generation lengths are unknown."""
MAX_ENDED_IDS = 1024
"""Ids of ended streams that a socket remembers, to ignore a late `cancel`."""


@dataclass(frozen=True, slots=True)
class StartGeneration:
    """Command to submit `request`; answer with `receive_accepted` or `receive_refused`."""

    stream_id: str
    request: GenerationRequest
    include_empty_deltas: bool


@dataclass(frozen=True, slots=True)
class ResumeGeneration:
    """Command to read a log from the cursor `after`; answer as for `StartGeneration`."""

    stream_id: str
    generation_id: str
    after: int
    include_empty_deltas: bool


@dataclass(frozen=True, slots=True)
class CancelGeneration:
    """Command to cancel the generation of an open stream."""

    stream_id: str


EngineCommand: TypeAlias = StartGeneration | ResumeGeneration | CancelGeneration
Command: TypeAlias = EngineCommand | Close


class StreamProtocol:
    """The server side of one conversation.

    Args:
        caller: owner of the generations that this socket starts.
        token_text: returns the text of a single token id.
        max_streams: streams open at once, including those being submitted.
        max_messages_per_s: sustained message rate; a burst may open and cancel every stream.
    """

    def __init__(
        self, *, caller: str, token_text: TokenText, max_streams: int, max_messages_per_s: float
    ) -> None:
        self._caller = caller
        self._token_text = token_text
        self._max_streams = max_streams
        self._limiter = MessageRateLimiter(
            max_messages_per_s=max_messages_per_s,
            max_burst_messages=max(max_messages_per_s, 2 * max_streams),
        )
        self._streams: dict[str, OpenStream] = {}
        self._ended_ids = RecentIds(max_ids=MAX_ENDED_IDS)
        self._num_generated_ids = 0
        self._commands: list[Command] = []
        self._outbox: deque[ServerFrame | tuple[OpenStream, Delta]] = deque()
        self._is_draining = False
        self._is_closed = False

    # Input from the client.

    def receive_text(self, frame: str, *, now: float) -> None:
        """Receive a text frame. Ignored after a `Close` command."""
        if self.admit(frame, now=now):
            self.receive_parsed(self.parse(frame), now=now)

    def admit(self, frame: str | bytes, *, now: float) -> bool:
        """Count a frame; return True if the caller should parse it and pass on the result."""
        if isinstance(frame, bytes):
            self.receive_bytes(frame, now=now)
            return False
        if self._is_closed:
            return False
        if retry_after_s := self._limiter.refused_for_s(now=now):
            info = _rate_limited("too many messages", retry_after_s)
            self._refuse(info, requested_stream_id(peek_fields(frame)))
            return False
        return True

    def parse(self, frame: str | bytes) -> Parsed[ClientMessage]:
        """Parse an admitted frame. Reads no state, so it can run in another thread."""
        return parse_frame(frame, to_message)

    def receive_parsed(self, parsed: Parsed[ClientMessage], *, now: float) -> None:
        """Receive an admitted frame after `parse`."""
        if self._is_closed:
            return
        if parsed.refusal is not None:
            self._refuse(parsed.refusal, requested_stream_id(parsed.fields))
            return
        assert parsed.message is not None
        try:
            self._receive_message(parsed.message)
        except RequestRefused as refused:
            self._refuse(refused.info, requested_stream_id(parsed.fields))
        except StreamingError as error:
            self._refuse(ErrorInfo.of(error), requested_stream_id(parsed.fields))

    def receive_bytes(self, _: bytes, *, now: float) -> None:
        """Receive a binary frame and answer with an error."""
        if self._is_closed:
            return
        if retry_after_s := self._limiter.refused_for_s(now=now):
            self._refuse(_rate_limited("too many messages", retry_after_s), None)
        else:
            message = "Binary frames are not supported: send JSON in text frames."
            self._refuse(ErrorInfo(code="invalid_json", message=message), None)

    # Input from the engine.

    def receive_accepted(self, stream_id: str, generation: Generation) -> None:
        """Receive the log opened for a `StartGeneration` or `ResumeGeneration`."""
        stream = self._streams[stream_id]
        stream.move_to(StreamState.ACCEPTED)
        stream.generation = generation
        self._outbox.append(accepted_frame(stream_id, generation))
        if stream.is_cancelled:
            self._commands.append(CancelGeneration(stream_id))

    def receive_refused(self, stream_id: str, info: ErrorInfo) -> None:
        """Receive the error of a failed `StartGeneration` or `ResumeGeneration`."""
        stream = self._streams[stream_id]
        assert stream.state is StreamState.SUBMITTED
        self._end(stream)
        # A generated id is not sent here: the client learns it only from `accepted`.
        self._outbox.append(error_frame(info, stream_id if stream.has_client_id else None))

    def receive_events(self, stream_id: str, events: Iterable[Event], *, now: float) -> None:
        """Receive new events of the stream's log."""
        stream = self._streams[stream_id]
        for event in events:
            self._receive_event(stream, event, now)

    def receive_drain(self) -> None:
        """Start to drain: the socket is closed once no stream is open."""
        self._is_draining = True
        self._close_if_drained()

    # Output.

    @property
    def num_unsent(self) -> int:
        """Number of frames queued to be sent; a long delta counts as one."""
        return len(self._outbox)

    @property
    def next_timeout_at(self) -> float | None:
        """When to call `handle_timeout` next; None if no timeout is pending."""
        return min(
            (at for stream in self._streams.values() if (at := stream.next_timeout_at) is not None),
            default=None,
        )

    def handle_timeout(self, *, now: float) -> None:
        """Queue the held `queued` frames whose minimum interval has passed."""
        for stream in self._streams.values():
            self._release_queued(stream, now)

    def commands(self) -> list[Command]:
        """Return the new commands in order, each once."""
        commands, self._commands = self._commands, []
        return commands

    def frames_to_send(self) -> Iterator[ServerFrame]:
        """Yield the queued frames in order, each once. Delta frames are built lazily."""
        while self._outbox:
            entry = self._outbox.popleft()
            if isinstance(entry, dict):
                yield entry
                continue
            stream, delta = entry
            yield from delta_frames(
                stream.stream_id,
                delta,
                return_token_ids=stream.return_token_ids,
                return_logprobs=stream.return_logprobs,
                token_text=self._token_text,
            )

    def _receive_message(self, message: ClientMessage) -> None:
        match message:
            case GenerateMessage():
                request = message.to_request(caller=self._caller)
                stream = self._open(message, return_logprobs=message.logprobs is not None)
                self._commands.append(
                    StartGeneration(stream.stream_id, request, stream.include_empty_deltas)
                )
            case ResumeMessage():
                stream = self._open(message, return_logprobs=message.logprobs)
                self._commands.append(
                    ResumeGeneration(
                        stream.stream_id,
                        message.generation_id,
                        message.after,
                        stream.include_empty_deltas,
                    )
                )
            case CancelMessage():
                self._cancel(message.id)
            case _:
                assert_never(message)

    def _open(
        self, message: GenerateMessage | ResumeMessage, *, return_logprobs: bool
    ) -> OpenStream:
        if message.id is not None and message.id in self._streams:
            text = f"id: stream {message.id!r} is already open on this socket; choose another id"
            raise RequestRefused(ErrorInfo(code="duplicate_id", message=text, param="id"))
        if len(self._streams) >= self._max_streams:
            text = f"this socket has reached its limit of {self._max_streams} open streams"
            raise RequestRefused(_rate_limited(text, STREAMS_RETRY_AFTER_S))
        stream = OpenStream(
            message.id or self._generate_id(),
            has_client_id=message.id is not None,
            return_token_ids=message.return_token_ids,
            return_logprobs=return_logprobs,
        )
        self._streams[stream.stream_id] = stream
        return stream

    def _generate_id(self) -> str:
        while True:
            self._num_generated_ids += 1
            stream_id = f"stream_{self._num_generated_ids}"
            if stream_id not in self._streams:
                return stream_id

    def _cancel(self, stream_id: str) -> None:
        stream = self._streams.get(stream_id)
        if stream is None:
            if stream_id not in self._ended_ids:
                text = f"id: this socket has no stream {stream_id!r}"
                raise RequestRefused(ErrorInfo(code="unknown_id", message=text, param="id"))
        elif stream.generation is None:
            # Still being tokenized. It is cancelled once accepted, before its first step, so that
            # it has a log and a last frame like every other stream.
            stream.is_cancelled = True
        else:
            self._commands.append(CancelGeneration(stream_id))

    def _receive_event(self, stream: OpenStream, event: Event, now: float) -> None:
        match event:
            case Queued():
                assert stream.state is StreamState.ACCEPTED
                stream.hold(event)
                self._release_queued(stream, now)
            case Started():
                stream.move_to(StreamState.STARTED)
                self._outbox.append(started_frame(stream.stream_id, event))
            case Delta():
                assert stream.state is StreamState.STARTED
                self._outbox.append((stream, event))
            case Ended():
                assert stream.generation is not None
                self._outbox.append(ended_frame(stream.stream_id, event, stream.generation))
                self._end(stream)
            case _:
                assert_never(event)

    def _release_queued(self, stream: OpenStream, now: float) -> None:
        if (queued := stream.release(now=now)) is not None:
            self._outbox.append(queued_frame(stream.stream_id, queued))

    def _refuse(self, info: ErrorInfo, stream_id: str | None) -> None:
        if stream_id is not None and stream_id in self._streams:
            stream_id = None
        if stream_id is not None:
            self._ended_ids.remember(stream_id)
        self._outbox.append(error_frame(info, stream_id))

    def _end(self, stream: OpenStream) -> None:
        stream.move_to(StreamState.ENDED)
        del self._streams[stream.stream_id]
        self._ended_ids.remember(stream.stream_id)
        self._close_if_drained()

    def _close_if_drained(self) -> None:
        if self._is_draining and not self._is_closed and not self._streams:
            self._is_closed = True
            self._commands.append(Close(1001, "the server is going away"))


def _rate_limited(reason: str, retry_after_s: float) -> ErrorInfo:
    message = f"{reason[0].upper()}{reason[1:]}; try again in {retry_after_s:.2f} s."
    return ErrorInfo(code="rate_limited", message=message, retry_after_s=retry_after_s)
