"""The conversation on one `WS /v1/stream`: frames and events in, commands and frames out.

No socket, no clock, no await: time is passed in as monotonic seconds. What a client does wrong is
data, an `error` frame; what our own code does wrong is an exception.

Rules of an id:

* For one id the order is accepted, queued*, started, delta*, then exactly one `done` or `error`.
* An error with an id ends what the id names. So an error that refuses a `generate` or a `resume`
  carries the id that the client gave, unless a stream of that name is open: then it would end the
  wrong one, and the error goes out without an id.
* After its end an id is free again, and a `cancel` for it is answered with silence, because it may
  have crossed the end on its way.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
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
from app.stream.parsing import attempted_id, to_message
from app.stream.schemas.frames import ServerFrame
from app.stream.schemas.messages import CancelMessage, GenerateMessage, ResumeMessage
from app.websocket.protocol.commands import (
    CancelGeneration,
    Close,
    Command,
    ResumeGeneration,
    StartGeneration,
)
from app.websocket.protocol.open_stream import OpenStream, StreamState
from app.websocket.protocol.parsing import Parsed, parse_frame, peek_fields
from app.websocket.protocol.rate_limiter import MessageRateLimiter
from app.websocket.protocol.recent_ids import RecentIds
from streaming import Delta, Ended, Event, Generation, Queued, Started
from streaming.errors import StreamingError

ClientMessage: TypeAlias = GenerateMessage | CancelMessage | ResumeMessage

STREAMS_RETRY_AFTER_S = 1.0
"""Said when a socket has all the streams it may: how long they last, nobody knows."""
MAX_ENDED_IDS = 1024


class StreamProtocol:
    """The server's end of one conversation.

    Args:
        caller: the caller; its generations are the only ones it can resume.
        token_text: how a token is written when it is listed by itself.
        max_streams: streams open at once, those being submitted included.
        max_messages_per_s: messages in the long run; a burst may open and cancel every stream.
    """

    def __init__(
        self, *, caller: str, token_text: TokenText, max_streams: int, max_messages_per_s: float
    ) -> None:
        self._owner = caller
        self._token_text = token_text
        self._max_streams = max_streams
        self._limiter = MessageRateLimiter(
            max_messages_per_s=max_messages_per_s,
            max_burst_messages=max(max_messages_per_s, 2 * max_streams),
        )
        self._streams: dict[str, OpenStream] = {}
        self._ended_ids = RecentIds(max_ids=MAX_ENDED_IDS)
        self._num_made_ids = 0
        self._commands: list[Command] = []
        self._outbox: deque[ServerFrame | tuple[OpenStream, Delta]] = deque()
        self._is_draining = False
        self._is_closed = False

    # What comes in from the client.

    def receive_text(self, frame: str, *, now: float) -> None:
        """Take one text frame; nothing is heard any more once a `Close` has been given out."""
        if self.admit(frame, now=now):
            self.receive_parsed(self.parse(frame), now=now)

    def admit(self, frame: str | bytes, *, now: float) -> bool:
        """Count one frame; return whether it is to be parsed and received."""
        if isinstance(frame, bytes):
            self.receive_bytes(frame, now=now)
            return False
        if self._is_closed:
            return False
        if retry_after_s := self._limiter.refused_for_s(now=now):
            info = _rate_limited("too many messages", retry_after_s)
            self._refuse(info, attempted_id(peek_fields(frame)))
            return False
        return True

    def parse(self, frame: str | bytes) -> Parsed[ClientMessage]:
        """Read an admitted frame; touches nothing of the conversation, so a thread may do it."""
        return parse_frame(frame, to_message)

    def receive_parsed(self, parsed: Parsed[ClientMessage], *, now: float) -> None:
        """Take an admitted frame that has been parsed."""
        if self._is_closed:
            return
        if parsed.refusal is not None:
            self._refuse(parsed.refusal, attempted_id(parsed.fields))
            return
        assert parsed.message is not None
        try:
            self._receive_message(parsed.message)
        except RequestRefused as refused:
            self._refuse(refused.info, attempted_id(parsed.fields))
        except StreamingError as error:
            self._refuse(ErrorInfo.of(error), attempted_id(parsed.fields))

    def receive_bytes(self, _: bytes, *, now: float) -> None:
        """Take one binary frame, whatever is in it."""
        if self._is_closed:
            return
        if retry_after_s := self._limiter.refused_for_s(now=now):
            self._refuse(_rate_limited("too many messages", retry_after_s), None)
        else:
            message = "Binary frames mean nothing here: send JSON in text frames."
            self._refuse(ErrorInfo(code="invalid_json", message=message), None)

    # What comes in from the engine.

    def receive_accepted(self, stream_id: str, generation: Generation) -> None:
        """Take the log that a `StartGeneration` or `ResumeGeneration` led to."""
        stream = self._streams[stream_id]
        stream.move_to(StreamState.ACCEPTED)
        stream.generation = generation
        self._outbox.append(accepted_frame(stream_id, generation))
        if stream.is_cancelled:
            self._commands.append(CancelGeneration(stream_id))

    def receive_refused(self, stream_id: str, info: ErrorInfo) -> None:
        """Take the reason why a `StartGeneration` or `ResumeGeneration` led to nothing."""
        stream = self._streams[stream_id]
        assert stream.state is StreamState.SUBMITTED
        self._end(stream)
        # The client has never heard of an id that was made here.
        self._outbox.append(error_frame(info, stream_id if stream.is_named else None))

    def receive_events(self, stream_id: str, events: Iterable[Event], *, now: float) -> None:
        """Take what a reader of the stream's log has read."""
        stream = self._streams[stream_id]
        for event in events:
            self._receive_event(stream, event, now)

    def receive_drain(self) -> None:
        """Take that the server goes away: the socket is closed once no stream is open."""
        self._is_draining = True
        self._close_if_drained()

    # What goes out.

    @property
    def num_unsent(self) -> int:
        """Frames that wait to be sent, a long delta counted once."""
        return len(self._outbox)

    @property
    def next_timeout_at(self) -> float | None:
        """When `handle_timeout` has something to do, if nothing comes in before."""
        return min(
            (at for stream in self._streams.values() if (at := stream.next_timeout_at) is not None),
            default=None,
        )

    def handle_timeout(self, *, now: float) -> None:
        """Let go the places in the queue that were held because the last was told too recently."""
        for stream in self._streams.values():
            self._release_queued(stream, now)

    def commands(self) -> list[Command]:
        """Return what is to be done, each once, in order."""
        commands, self._commands = self._commands, []
        return commands

    def frames_to_send(self) -> Iterator[ServerFrame]:
        """Yield the frames to be sent, each once, in order, and each made when it is asked for."""
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

    # Inside.

    def _receive_message(self, message: ClientMessage) -> None:
        match message:
            case GenerateMessage():
                request = message.to_request(caller=self._owner)
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
            text = f"id: a stream {message.id!r} is open on this socket"
            raise RequestRefused(ErrorInfo(code="duplicate_id", message=text, param="id"))
        if len(self._streams) >= self._max_streams:
            text = f"this socket has {self._max_streams} open streams, the most it may"
            raise RequestRefused(_rate_limited(text, STREAMS_RETRY_AFTER_S))
        stream = OpenStream(
            message.id or self._make_id(),
            is_named=message.id is not None,
            return_token_ids=message.return_token_ids,
            return_logprobs=return_logprobs,
        )
        self._streams[stream.stream_id] = stream
        return stream

    def _make_id(self) -> str:
        while True:
            self._num_made_ids += 1
            stream_id = f"stream_{self._num_made_ids}"
            if stream_id not in self._streams:
                return stream_id

    def _cancel(self, stream_id: str) -> None:
        stream = self._streams.get(stream_id)
        if stream is None:
            if stream_id not in self._ended_ids:
                text = f"id: no stream {stream_id!r} has been open on this socket"
                raise RequestRefused(ErrorInfo(code="unknown_id", message=text, param="id"))
        elif stream.generation is None:
            # It is still being tokenised. Once accepted it is cancelled before its first step, so
            # that it has a log and an ending like every other.
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
