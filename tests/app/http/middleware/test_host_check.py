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
async def test_only_names_of_this_machine_are_answered(host: str, status: int):
    async with client_of(scripted_backend()) as calling:
        response = await calling.get("/health", headers={"host": host})
    assert response.status_code == status
    if status == 403:
        assert response.json()["error"]["code"] == "forbidden_host"


async def test_any_name_is_answered_where_keys_are_set():
    async with client_of(scripted_backend(), api_keys=("secret",)) as calling:
        response = await calling.get("/health", headers={"host": "rebound.test"})
    assert response.status_code == 200


async def test_handshakes_for_another_name_are_refused():
    sent: list[Message] = []

    async def never(*_: Any) -> None:
        raise AssertionError("it must not get through")

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "websocket", "headers": [(b"host", b"rebound.test")]}
    await HostCheck(never)(scope, receive, send)
    start, body = sent
    assert (start["type"], start["status"]) == ("websocket.http.response.start", 403)
    assert b"forbidden_host" in body["body"]
