"""In which order the turns of a socket run: in order on each lane, side by side on several."""

from __future__ import annotations

from typing import Generic

from app.errors import ErrorInfo, RequestRefused
from app.responses.protocol.commands import ResponseT
from app.responses.protocol.turn import Refusal, Turn
from app.websocket.socket_memory import SocketMemory

MAX_LANES = 32
"""Named lanes over the life of a socket; the default lane has no name."""
MAX_RUNNING_TURNS = 16
"""Over all lanes; the others wait."""
MAX_WAITING_CHARS = 8 * 2**20
"""Of the frames that wait together. One frame may wait whatever its size."""
_RETRY_AFTER_S = 1.0


class Lanes(Generic[ResponseT]):
    """The turns that have not ended, and which of them may run.

    Args:
        max_turns: that have not ended.
        memory: shared with other sockets.
    """

    def __init__(self, *, max_turns: int, memory: SocketMemory) -> None:
        self._max_turns = max_turns
        self._memory = memory
        self._names: set[str] = set()
        self._waiting: list[Turn[ResponseT]] = []
        self._running: dict[str | None, Turn[ResponseT]] = {}

    def __len__(self) -> int:
        return len(self._waiting) + len(self._running)

    def first(self, lane: str | None) -> Turn[ResponseT] | None:
        """Return the turn that runs on a lane, or will once those of other lanes make room."""
        waiting = (turn for turn in self._waiting if turn.lane == lane)
        return self._running.get(lane) or next(waiting, None)

    def open(self, lane: str | None) -> None:
        """Use a lane, from now on.

        Raises:
            RequestRefused: the socket has had as many names as it may.
        """
        if lane is None or lane in self._names:
            return
        if len(self._names) >= MAX_LANES:
            text = f"stream_id: this connection has used {MAX_LANES} streams, the most it may"
            raise RequestRefused(
                ErrorInfo(code="websocket_stream_limit_reached", message=text, param="stream_id")
            )
        self._names.add(lane)

    def check_room(self, num_chars: int) -> None:
        """Refuse a turn for which the queue is too long.

        Raises:
            RequestRefused: there are too many turns, or their frames are too large together, here
                or on all sockets.
        """
        num_waiting_chars = sum(turn.num_chars for turn in self._waiting)
        if len(self) >= self._max_turns:
            text = f"This connection has {self._max_turns} unfinished responses, the most it may."
        elif num_waiting_chars and num_waiting_chars + num_chars > MAX_WAITING_CHARS:
            text = f"The requests that wait on this connection have {num_waiting_chars} characters."
        elif not self._memory.has_room_for_request(num_chars):
            text = "The requests on all connections take as much memory as they may together."
        else:
            return
        raise RequestRefused(
            ErrorInfo(code="rate_limit_exceeded", message=text, retry_after_s=_RETRY_AFTER_S)
        )

    def add(self, turn: Turn[ResponseT]) -> None:
        self._waiting.append(turn)
        self._memory.begin_request(turn.num_chars)

    def refuse_waiting(self, info: ErrorInfo) -> None:
        """Let all that waits be refused when its turn comes."""
        for turn in self._waiting:
            turn.wish = Refusal(info)
            turn.parent = None

    def take_next(self) -> Turn[ResponseT] | None:
        """Return the turn that came first of those that may run now; it runs until `end`."""
        is_full = len(self._running) >= MAX_RUNNING_TURNS
        # A lane's first waiting turn is found before its second.
        for turn in self._waiting:
            if turn.lane not in self._running and not (is_full and turn.needs_engine):
                self._waiting.remove(turn)
                self._running[turn.lane] = turn
                return turn
        return None

    def end(self, turn: Turn[ResponseT]) -> None:
        assert self._running[turn.lane] is turn
        del self._running[turn.lane]
        self._memory.end_request(turn.num_chars)

    def release(self) -> None:
        """Give back the memory that is shared with other sockets; the socket is closed."""
        for turn in (*self._waiting, *self._running.values()):
            self._memory.end_request(turn.num_chars)
        self._waiting.clear()
        self._running.clear()
