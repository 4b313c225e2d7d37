"""A client of `WS /v1/stream` for tests: sends, and collects a stream to its end."""

from __future__ import annotations

import json
from typing import Any

from websockets.asyncio.client import ClientConnection

Frame = dict[str, Any]


async def send(socket: ClientConnection, **message: Any) -> None:
    await socket.send(json.dumps(message))


async def receive(socket: ClientConnection) -> Frame:
    frame = json.loads(await socket.recv())
    assert isinstance(frame, dict)
    return frame


async def receive_until(socket: ClientConnection, *types: str) -> list[Frame]:
    """Return all frames up to the first of one of `types`."""
    frames = [await receive(socket)]
    while frames[-1]["type"] not in types:
        frames.append(await receive(socket))
    return frames


async def receive_stream(socket: ClientConnection) -> list[Frame]:
    """Return the frames of the only open stream, to its ending."""
    return await receive_until(socket, "done", "error")


def text_of(frames: list[Frame]) -> str:
    return "".join(frame["text"] for frame in frames if frame["type"] == "delta")
