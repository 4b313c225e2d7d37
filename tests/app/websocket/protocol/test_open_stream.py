from __future__ import annotations

import itertools

import pytest

from app.websocket.protocol.open_stream import (
    InvalidTransition,
    OpenStream,
    RecentIds,
    StreamState,
)
from streaming import Queued

_MOVES = {
    ("submitted", "accepted"),
    ("submitted", "ended"),
    ("accepted", "started"),
    ("accepted", "ended"),
    ("started", "ended"),
}


def make_stream(state: StreamState = StreamState.ACCEPTED) -> OpenStream:
    stream = OpenStream("a", has_client_id=True, return_token_ids=False, return_logprobs=False)
    stream.state = state
    return stream


@pytest.mark.parametrize(("start", "end"), list(itertools.product(StreamState, repeat=2)))
def test_only_the_listed_transitions_are_allowed(start: StreamState, end: StreamState) -> None:
    stream = make_stream(start)
    if (start, end) in _MOVES:
        stream.move_to(end)
        assert stream.state is end
    else:
        with pytest.raises(InvalidTransition, match=f"{start} -> {end}"):
            stream.move_to(end)
        assert stream.state is start


@pytest.mark.parametrize(
    ("return_token_ids", "return_logprobs"),
    [(False, False), (False, True), (True, False), (True, True)],
)
def test_empty_deltas_are_included_if_deltas_carry_tokens(
    return_token_ids: bool, return_logprobs: bool
) -> None:
    stream = OpenStream(
        "a", has_client_id=True, return_token_ids=return_token_ids, return_logprobs=return_logprobs
    )
    assert stream.include_empty_deltas is (return_token_ids or return_logprobs)


def test_the_first_queue_position_is_due_at_once_and_the_next_a_second_later() -> None:
    stream = make_stream()
    stream.hold(Queued(5, None))
    assert stream.release(now=10.0) == Queued(5, None)
    assert stream.next_timeout_at is None
    stream.hold(Queued(4, None))
    stream.hold(Queued(3, None))
    assert stream.next_timeout_at == 11.0
    assert stream.release(now=10.9) is None
    assert stream.release(now=11.0) == Queued(3, None)
    assert stream.release(now=20.0) is None


def test_a_held_queue_position_is_dropped_when_the_stream_starts() -> None:
    stream = make_stream()
    stream.hold(Queued(5, None))
    stream.release(now=0.0)
    stream.hold(Queued(0, None))
    stream.move_to(StreamState.STARTED)
    assert stream.next_timeout_at is None
    assert stream.release(now=5.0) is None


def test_a_started_stream_holds_no_queue_position() -> None:
    with pytest.raises(AssertionError):
        make_stream(StreamState.STARTED).hold(Queued(0, None))


def test_the_least_recently_added_id_is_evicted() -> None:
    ids = RecentIds(max_ids=2)
    for each in ("a", "b", "a", "c"):
        ids.remember(each)
    assert [each for each in "abc" if each in ids] == ["a", "c"]
