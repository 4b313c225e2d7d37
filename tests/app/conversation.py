"""Assertions for every conversation on `WS /v1/stream`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tests.app.described import assert_described

Frame = dict[str, Any]

_NEXT = {
    "accepted": {"accepted", "error"},
    "open": {"queued", "started", "done", "error"},
    "started": {"delta", "done", "error"},
}


def assert_conversation(frames: Iterable[Frame], *, open_ids: Iterable[str] = ()) -> None:
    """Assert that the frames are in order and match `/asyncapi.json`.

    Args:
        frames: all frames of one socket.
        open_ids: streams that have not ended yet.
    """
    frames = list(frames)
    for frame in frames:
        assert_described("stream", frame)
    assert_order(frames, open_ids=open_ids)


def assert_order(frames: Iterable[Frame], *, open_ids: Iterable[str] = ()) -> None:
    """Assert the order of one socket's frames.

    For each id: accepted, queued*, started?, delta*, then exactly one done or error. After its end
    an id may be used again.

    Args:
        frames: all frames of one socket.
        open_ids: streams that have not ended yet.
    """
    states: dict[str, str] = {}
    seqs: dict[str, int] = {}
    for frame in frames:
        kind, stream_id = frame["type"], frame.get("id")
        if stream_id is None:
            assert kind == "error", frame
            continue
        state = states.get(stream_id, "accepted")
        assert kind in _NEXT[state], f"{kind} in state {state}: {frame}"
        if "seq" in frame:
            assert frame["seq"] > seqs.get(stream_id, -1), f"seq does not increase: {frame}"
            seqs[stream_id] = frame["seq"]
        if kind in ("done", "error"):
            states.pop(stream_id, None)
            seqs.pop(stream_id, None)
        elif kind == "accepted":
            states[stream_id] = "open"
        elif kind == "started":
            states[stream_id] = "started"
    assert set(states) == set(open_ids)


def text_of(frames: Iterable[Frame], stream_id: str | None = None) -> str:
    """Return the joined text of one stream, or of all."""
    return "".join(
        frame["text"]
        for frame in frames
        if frame["type"] == "delta" and stream_id in (None, frame["id"])
    )
