"""Helpers for tests that use `WS /v1/stream`: send messages and collect frames."""

from __future__ import annotations

import json
from typing import Any

from websockets.asyncio.client import ClientConnection

Frame = dict[str, Any]


async def send(socket: ClientConnection, **message: Any) -> None:
    """Send a message as JSON."""
    await socket.send(json.dumps(message))


async def receive(socket: ClientConnection) -> Frame:
    """Return the next frame."""
    frame = json.loads(await socket.recv())
    assert isinstance(frame, dict)
    return frame


async def receive_until(socket: ClientConnection, *types: str) -> list[Frame]:
    """Return the frames up to and including the first of one of these types."""
    frames = [await receive(socket)]
    while frames[-1]["type"] not in types:
        frames.append(await receive(socket))
    return frames


async def receive_stream(socket: ClientConnection) -> list[Frame]:
    """Return the frames up to and including `done` or `error`."""
    return await receive_until(socket, "done", "error")


def text_of(frames: list[Frame]) -> str:
    """Return the text of the delta frames."""
    return "".join(frame["text"] for frame in frames if frame["type"] == "delta")
