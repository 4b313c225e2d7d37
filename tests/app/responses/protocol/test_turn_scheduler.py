from __future__ import annotations

from dataclasses import dataclass

import pytest

from app.errors import ErrorInfo, RequestRefused
from app.responses.protocol.turn import RejectedRequest, Resume, Turn
from app.responses.protocol.turn_scheduler import (
    MAX_RUNNING_TURNS,
    MAX_STREAMS,
    MAX_WAITING_CHARS,
    TurnScheduler,
)
from app.websocket.socket_memory import SocketMemory


@dataclass(frozen=True)
class Known:
    response_id: str
    num_bytes: int = 1


ERROR = ErrorInfo(code="invalid_request", message="no")


def make_scheduler(
    *, max_turns: int = 100, memory: SocketMemory | None = None
) -> TurnScheduler[Known]:
    return TurnScheduler(max_turns=max_turns, memory=memory or SocketMemory())


def add(
    scheduler: TurnScheduler[Known],
    turn_id: str,
    stream_id: str | None = None,
    *,
    num_chars: int = 0,
    is_rejected: bool = False,
) -> Turn[Known]:
    turn: Turn[Known] = Turn(
        turn_id,
        stream_id=stream_id,
        request=RejectedRequest(ERROR) if is_rejected else Resume("resp_1", 0),
        num_chars=num_chars,
    )
    scheduler.add(turn)
    return turn


def started(scheduler: TurnScheduler[Known]) -> list[str]:
    """Start all turns that may run, and return their ids."""
    return [turn.turn_id for turn in iter(scheduler.start_next, None)]


def code_of(refused: pytest.ExceptionInfo[RequestRefused]) -> str:
    return refused.value.info.code


def test_a_stream_runs_its_turns_in_order():
    scheduler = make_scheduler()
    first, second = add(scheduler, "a1", "a"), add(scheduler, "a2", "a")
    other = add(scheduler, "b1", "b")
    assert started(scheduler) == ["a1", "b1"]
    assert (scheduler.first("a"), scheduler.first("b"), scheduler.first(None)) == (
        first,
        other,
        None,
    )
    scheduler.end(first)
    assert scheduler.first("a") is second, "it is the next to run"
    assert started(scheduler) == ["a2"]
    assert len(scheduler) == 2


def test_rejected_requests_are_not_held_up_by_other_streams():
    scheduler = make_scheduler()
    for number in range(MAX_RUNNING_TURNS + 1):
        add(scheduler, f"t{number}", f"s{number}")
    add(scheduler, "bad", "bad", is_rejected=True)
    add(scheduler, "late", "s0", is_rejected=True)
    assert started(scheduler) == [*(f"t{n}" for n in range(MAX_RUNNING_TURNS)), "bad"]


def test_waiting_turns_are_rejected_in_their_place():
    scheduler = make_scheduler()
    running, waiting = add(scheduler, "a1", "a"), add(scheduler, "a2", "a")
    assert started(scheduler) == ["a1"]
    scheduler.reject_waiting(ERROR)
    assert running.request == Resume("resp_1", 0)
    assert waiting.request == RejectedRequest(ERROR)
    assert started(scheduler) == []


def test_the_number_of_streams_is_limited():
    scheduler = make_scheduler()
    for number in range(MAX_STREAMS):
        scheduler.open_stream(f"s{number}")
    scheduler.open_stream("s0")
    scheduler.open_stream(None)
    with pytest.raises(RequestRefused, match="at most 32") as refused:
        scheduler.open_stream("one more")
    assert code_of(refused) == "websocket_stream_limit_reached"


def test_the_number_of_unfinished_turns_is_limited():
    scheduler = make_scheduler(max_turns=2)
    turn = add(scheduler, "a1")
    scheduler.check_room(10**9)
    add(scheduler, "a2")
    assert started(scheduler) == ["a1"]
    with pytest.raises(RequestRefused, match="2 unfinished") as refused:
        scheduler.check_room(0)
    assert code_of(refused) == "rate_limit_exceeded"
    scheduler.end(turn)
    scheduler.check_room(0)


def test_the_size_of_the_waiting_frames_is_limited():
    scheduler = make_scheduler()
    scheduler.check_room(MAX_WAITING_CHARS + 1)
    add(scheduler, "a1", num_chars=MAX_WAITING_CHARS)
    with pytest.raises(RequestRefused, match="characters"):
        scheduler.check_room(1)
    assert started(scheduler) == ["a1"]
    scheduler.check_room(1)


def test_the_memory_of_all_sockets_is_counted_until_the_turn_ends():
    memory = SocketMemory(max_bytes=80_000)
    one, other = make_scheduler(memory=memory), make_scheduler(memory=memory)
    turn = add(one, "a1", num_chars=10_000)
    with pytest.raises(RequestRefused, match="all connections"):
        other.check_room(10_000)
    assert started(one) == ["a1"]
    one.end(turn)
    other.check_room(10_000)
    add(one, "a2", num_chars=10_000)
    add(one, "b1", "b", num_chars=10_000)
    assert started(one) == ["a2", "b1"]
    one.release()
    assert (memory.num_request_bytes, len(one)) == (0, 0)
