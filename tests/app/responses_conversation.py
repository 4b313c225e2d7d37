"""Assertions about every conversation on `WS /v1/responses`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from app.errors import ERRORS
from app.responses.protocol.events import TERMINAL_TYPES
from app.responses.schemas.events import RESPONSE_EVENTS
from tests.app.described import assert_described
from tests.app.response_events import check_events

Frame = dict[str, Any]

AT_ONCE = frozenset({"rate_limit_exceeded", "websocket_stream_limit_reached", "invalid_stream_id"})
"""Errors that are sent at once and end no turn."""
_OF_NO_TURN = frozenset({"invalid_json", "unknown_type", "response_not_found"})


def assert_responses_conversation(
    frames: Iterable[Frame],
    *,
    open_streams: Iterable[str | None] = (),
    accepts_extensions: bool = False,
) -> None:
    """Assert the form and the order of one socket's frames.

    Frames that are no events of a response must match `/asyncapi.json`; `check_event` checks the
    others.

    The responses of a stream come one after the other: each from its first event, or the one after
    a cursor, to exactly one terminal event, numbered without gaps. Between them, an error is the
    ending of a turn without a response.

    Args:
        frames: all frames of the socket, in order.
        open_streams: streams whose last response has not ended.
        accepts_extensions: the client asked for events that are not OpenAI's.
    """
    numbers: dict[str | None, int] = {}
    response_ids: dict[str | None, str] = {}
    for frame in frames:
        kind, stream_id = frame["type"], frame.get("stream_id")
        if "stream_id" in frame:
            assert re.fullmatch(r"[A-Za-z0-9_.-]{1,256}", frame["stream_id"]), frame
        if kind not in RESPONSE_EVENTS:
            assert_described("responses", frame)
        if kind == "error":
            _assert_error(frame)
            code = frame["error"]["code"]
            if code == "websocket_connection_limit_reached" and stream_id is None:
                numbers.clear()  # concerns the connection: open responses are to be resumed
            elif code not in AT_ONCE | _OF_NO_TURN:
                assert stream_id not in numbers, f"an error in the middle of a response: {frame}"
            continue
        assert type(frame["sequence_number"]) is int, frame
        if kind == "response.steer.failed":
            continue
        if kind.startswith("tokenwire:"):
            assert accepts_extensions, frame
            continue
        assert kind.startswith("response."), frame
        number = frame["sequence_number"]
        assert number == numbers.get(stream_id, number - 1) + 1, f"a gap or a repetition: {frame}"
        assert (kind == "response.created") == (number == 0), frame
        if "response" in frame:
            response_id = frame["response"]["id"]
            assert response_ids.setdefault(stream_id, response_id) == response_id, frame
        if kind in TERMINAL_TYPES:
            numbers.pop(stream_id, None)
            response_ids.pop(stream_id, None)
        else:
            numbers[stream_id] = number
    assert set(numbers) == set(open_streams)


def _assert_error(frame: Frame) -> None:
    assert set(frame) - {"stream_id"} == {"type", "status", "error"}, frame
    error = frame["error"]
    assert set(error) - {"headers"} == {"type", "code", "message", "param"}, frame
    row = ERRORS[error["code"]]
    assert frame["status"] == (400 if row.http_status == 422 else row.http_status)
    assert error["type"] == row.type
    assert error["message"]
    if "headers" in error:
        assert set(error["headers"]) == {"retry-after"}
        assert int(error["headers"]["retry-after"]) >= 1


def endings(frames: Iterable[Frame], stream_id: str | None = None) -> list[str]:
    """Return the endings of a stream's turns, in order: the terminal event or the error code."""
    ended = []
    for frame in frames:
        if frame.get("stream_id") != stream_id:
            continue
        if frame["type"] == "error":
            ended.append(frame["error"]["code"])
        elif frame["type"] in TERMINAL_TYPES:
            ended.append(frame["type"].removeprefix("response."))
    return ended


def text_of(frames: Iterable[Frame], stream_id: str | None = None) -> str:
    """Return the text of a stream's answers."""
    return "".join(
        frame["delta"]
        for frame in frames
        if frame["type"] == "response.output_text.delta" and frame.get("stream_id") == stream_id
    )


def turns(frames: Iterable[Frame], stream_id: str | None = None) -> list[list[Frame]]:
    """Return the events of each response of a stream, without `stream_id`."""
    found: list[list[Frame]] = []
    is_open = False
    for frame in frames:
        kind = frame["type"]
        is_event = kind.startswith("response.") and kind != "response.steer.failed"
        if not is_event or frame.get("stream_id") != stream_id:
            continue
        if not is_open:
            found.append([])
        found[-1].append({name: frame[name] for name in frame if name != "stream_id"})
        is_open = kind not in TERMINAL_TYPES
    return found


def assert_valid_responses(
    frames: Sequence[Frame], *, open_streams: Iterable[str | None] = ()
) -> None:
    """Assert the order of a conversation, and that each of its responses is valid in itself."""
    open_streams = tuple(open_streams)
    assert_responses_conversation(frames, open_streams=open_streams)
    for stream_id in {frame.get("stream_id") for frame in frames}:
        responses = turns(frames, stream_id)
        for events in responses:
            is_open = stream_id in open_streams and events is responses[-1]
            check_events(events, after=events[0]["sequence_number"] - 1, is_open=is_open)
