from __future__ import annotations

import json
from typing import Any, cast

from websockets.exceptions import ConnectionClosedError
from websockets.sync.client import ClientConnection

from app.cli.settings import ClientSettings
from app.cli.terminal_chat import TerminalChat


def test_a_retry_that_fails_keeps_the_last_turn():
    chat = TerminalChat(ClientSettings(url="http://127.0.0.1:9"))
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    chat._messages = list(messages)
    chat._run_command("/retry")
    assert chat._messages == messages


class Socket:
    """Returns frames in order, and raises exceptions in their place."""

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


class ChatOver(TerminalChat):
    """Connects to each socket in turn; an exception interrupts it instead."""

    def __init__(self, *sockets: Socket | BaseException) -> None:
        super().__init__(ClientSettings())
        self._sockets = list(sockets)

    def _connect(self, *, num_attempts: int) -> ClientConnection:
        socket = self._sockets.pop(0)
        if isinstance(socket, BaseException):
            raise socket
        return cast(ClientConnection, socket)


def test_stopping_a_reply_while_disconnected_resumes_and_then_cancels_it():
    accepted = {"type": "accepted", "id": "reply-1", "generation_id": "gen"}
    done = {"type": "done", "id": "reply-1", "seq": 4}
    first, second = Socket(accepted, ConnectionClosedError(None, None)), Socket(done)
    chat = ChatOver(first, first, KeyboardInterrupt(), second)
    assert list(chat._frames({"type": "generate"})) == [accepted, done]
    assert [frame["type"] for frame in second.sent] == ["resume", "cancel"]
