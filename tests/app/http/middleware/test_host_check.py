from __future__ import annotations

from typing import Any

import pytest
from starlette.types import Message

from app.http.middleware.host_check import HostCheck
from streaming.backends.scripted import scripted_backend
from tests.app.serving import client_of


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("localhost:8000", 200),
        ("127.0.0.1:8000", 200),
        ("[::1]:8000", 200),
        ("rebound.test", 403),
        ("rebound.test:8000", 403),
        ("127.0.0.1.rebound.test", 403),
        ("[", 403),
        ("", 403),
    ],
)
async def test_only_local_host_names_are_accepted(host: str, status: int):
    async with client_of(scripted_backend()) as calling:
        response = await calling.get("/health", headers={"host": host})
    assert response.status_code == status
    if status == 403:
        assert response.json()["error"]["code"] == "forbidden_host"


async def test_with_keys_any_host_name_is_accepted():
    async with client_of(scripted_backend(), api_keys=("secret",)) as calling:
        response = await calling.get("/health", headers={"host": "rebound.test"})
    assert response.status_code == 200


async def test_handshakes_for_other_host_names_are_refused():
    sent: list[Message] = []

    async def never(*_: Any) -> None:
        raise AssertionError("the application was called")

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "websocket", "headers": [(b"host", b"rebound.test")]}
    await HostCheck(never)(scope, receive, send)
    start, body = sent
    assert (start["type"], start["status"]) == ("websocket.http.response.start", 403)
    assert b"forbidden_host" in body["body"]
