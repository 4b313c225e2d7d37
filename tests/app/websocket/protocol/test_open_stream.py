from __future__ import annotations

import itertools

import pytest

from app.websocket.protocol.open_stream import InvalidTransition, OpenStream, StreamState
from streaming import Queued

_MOVES = {
    ("submitted", "accepted"),
    ("submitted", "ended"),
    ("accepted", "started"),
    ("accepted", "ended"),
    ("started", "ended"),
}


def make_stream(state: StreamState = StreamState.ACCEPTED) -> OpenStream:
    stream = OpenStream("a", is_named=True, return_token_ids=False, return_logprobs=False)
    stream.state = state
    return stream


@pytest.mark.parametrize(("start", "end"), list(itertools.product(StreamState, repeat=2)))
def test_only_the_listed_moves_pass(start: StreamState, end: StreamState) -> None:
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
def test_every_token_is_wanted_where_tokens_are_shown(
    return_token_ids: bool, return_logprobs: bool
) -> None:
    stream = OpenStream(
        "a", is_named=True, return_token_ids=return_token_ids, return_logprobs=return_logprobs
    )
    assert stream.include_empty_deltas is (return_token_ids or return_logprobs)


def test_first_place_is_told_at_once_and_the_next_a_second_later() -> None:
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


def test_a_place_is_out_of_date_once_the_stream_moves_on() -> None:
    stream = make_stream()
    stream.hold(Queued(5, None))
    stream.release(now=0.0)
    stream.hold(Queued(0, None))
    stream.move_to(StreamState.STARTED)
    assert stream.next_timeout_at is None
    assert stream.release(now=5.0) is None


def test_who_has_started_waits_no_more() -> None:
    with pytest.raises(AssertionError):
        make_stream(StreamState.STARTED).hold(Queued(0, None))
