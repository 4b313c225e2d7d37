from __future__ import annotations

import json
from typing import Any, cast

from websockets.exceptions import ConnectionClosedError
from websockets.sync.client import ClientConnection

from app.cli.chat import Chat
from app.settings import ClientSettings


def test_a_reply_that_cannot_be_had_again_stays():
    chat = Chat(ClientSettings(url="http://127.0.0.1:9"))
    said = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    chat._messages = list(said)
    chat._run_command("/retry")
    assert chat._messages == said


class Socket:
    """Hands out frames, and raises what is no frame."""

    def __init__(self, *received: dict[str, Any] | BaseException) -> None:
        self._received = list(received)
        self.sent: list[dict[str, Any]] = []

    def send(self, text: str) -> None:
        self.sent.append(json.loads(text))

    def recv(self) -> str:
        frame = self._received.pop(0)
        if isinstance(frame, BaseException):
            raise frame
        return json.dumps(frame)


class ChatOver(Chat):
    """Has one of these sockets each time that it wants one, or is interrupted."""

    def __init__(self, *sockets: Socket | BaseException) -> None:
        super().__init__(ClientSettings())
        self._sockets = list(sockets)

    def _connected(self, *, num_attempts: int) -> ClientConnection:
        socket = self._sockets.pop(0)
        if isinstance(socket, BaseException):
            raise socket
        return cast(ClientConnection, socket)


def test_a_reply_that_is_stopped_while_it_is_cut_off_is_found_again_and_then_cancelled():
    accepted = {"type": "accepted", "id": "reply-1", "generation_id": "gen"}
    done = {"type": "done", "id": "reply-1", "seq": 4}
    first, second = Socket(accepted, ConnectionClosedError(None, None)), Socket(done)
    chat = ChatOver(first, first, KeyboardInterrupt(), second)
    assert list(chat._frames({"type": "generate"})) == [accepted, done]
    assert [frame["type"] for frame in second.sent] == ["resume", "cancel"]
