"""Schedules the turns of a socket: in order on each stream, concurrently across streams."""

from __future__ import annotations

from typing import Generic

from app.errors import ErrorInfo, RequestRefused
from app.responses.protocol.commands import ResponseT
from app.responses.protocol.turn import RejectedRequest, Turn
from app.websocket.socket_memory import SocketMemory

MAX_STREAMS = 32
"""Named streams over the life of a socket; the default stream has no name."""
MAX_RUNNING_TURNS = 16
"""On all streams; other turns wait."""
MAX_WAITING_CHARS = 8 * 2**20
"""Total size of the frames that wait. A single frame may wait whatever its size."""
_RETRY_AFTER_S = 1.0


class TurnScheduler(Generic[ResponseT]):
    """Holds the unfinished turns, and decides which of them run.

    Args:
        max_turns: limit of unfinished turns.
        memory: shared with other sockets.
    """

    def __init__(self, *, max_turns: int, memory: SocketMemory) -> None:
        self._max_turns = max_turns
        self._memory = memory
        self._stream_ids: set[str] = set()
        self._waiting: list[Turn[ResponseT]] = []
        self._running: dict[str | None, Turn[ResponseT]] = {}

    def __len__(self) -> int:
        return len(self._waiting) + len(self._running)

    def first(self, stream_id: str | None) -> Turn[ResponseT] | None:
        """Return the turn that runs on a stream, or the one that will run next on it."""
        waiting = (turn for turn in self._waiting if turn.stream_id == stream_id)
        return self._running.get(stream_id) or next(waiting, None)

    def open_stream(self, stream_id: str | None) -> None:
        """Open a stream, if it is not open yet.

        Raises:
            RequestRefused: the socket has opened `MAX_STREAMS` streams.
        """
        if stream_id is None or stream_id in self._stream_ids:
            return
        if len(self._stream_ids) >= MAX_STREAMS:
            text = f"stream_id: a connection can use at most {MAX_STREAMS} streams"
            raise RequestRefused(
                ErrorInfo(code="websocket_stream_limit_reached", message=text, param="stream_id")
            )
        self._stream_ids.add(stream_id)

    def check_room(self, num_chars: int) -> None:
        """Check that one more turn may wait.

        Args:
            num_chars: size of its frame.

        Raises:
            RequestRefused: there are too many turns, or their frames are too large together, on
                this socket or on all sockets.
        """
        num_waiting_chars = sum(turn.num_chars for turn in self._waiting)
        if len(self) >= self._max_turns:
            text = f"This connection has {self._max_turns} unfinished responses, the maximum."
        elif num_waiting_chars and num_waiting_chars + num_chars > MAX_WAITING_CHARS:
            text = (
                f"The requests that wait on this connection have {num_waiting_chars} characters; "
                f"at most {MAX_WAITING_CHARS} may wait."
            )
        elif not self._memory.has_room_for_request(num_chars):
            text = "The requests that wait on all connections fill the memory reserved for them."
        else:
            return
        raise RequestRefused(
            ErrorInfo(code="rate_limit_exceeded", message=text, retry_after_s=_RETRY_AFTER_S)
        )

    def add(self, turn: Turn[ResponseT]) -> None:
        """Queue a turn; call `check_room` before."""
        self._waiting.append(turn)
        self._memory.begin_request(turn.num_chars)

    def reject_waiting(self, info: ErrorInfo) -> None:
        """Make every waiting turn end with this error, still in the order of its stream."""
        for turn in self._waiting:
            turn.request = RejectedRequest(info)
            turn.parent = None

    def start_next(self) -> Turn[ResponseT] | None:
        """Start the oldest turn that may run, and return it; it runs until `end`."""
        is_full = len(self._running) >= MAX_RUNNING_TURNS
        # The list is in order of arrival, so a stream's first waiting turn is found first.
        for turn in self._waiting:
            if turn.stream_id not in self._running and not (is_full and turn.needs_engine):
                self._waiting.remove(turn)
                self._running[turn.stream_id] = turn
                return turn
        return None

    def end(self, turn: Turn[ResponseT]) -> None:
        """End a running turn."""
        assert self._running[turn.stream_id] is turn
        del self._running[turn.stream_id]
        self._memory.end_request(turn.num_chars)

    def release(self) -> None:
        """Return the memory that is shared with other sockets; call it when the socket closes."""
        for turn in (*self._waiting, *self._running.values()):
            self._memory.end_request(turn.num_chars)
        self._waiting.clear()
        self._running.clear()
