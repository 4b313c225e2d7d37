from __future__ import annotations

import json
import socket
from collections.abc import Callable

import httpx
import pytest

from streaming.backends.scripted import scripted_backend
from tests.app.serving import Call, client_of, serving

PATH = "/v1/completions"
LIMIT = 1024


def body_of(size: int) -> bytes:
    """Return a valid body of this many bytes."""
    empty = len(json.dumps({"prompt": ""}))
    return json.dumps({"prompt": "a" * (size - empty)}).encode()


@pytest.mark.parametrize(("size", "status"), [(LIMIT, 200), (LIMIT + 1, 413)])
async def test_a_content_length_is_held_to_the_limit(size: int, status: int):
    async with client_of(scripted_backend(), max_message_bytes=LIMIT) as calling:
        response = await calling.post(
            PATH, content=body_of(size), headers={"content-type": "application/json"}
        )
    assert response.status_code == status
    assert (response.headers.get("connection") == "close") == (status == 413)


@pytest.mark.parametrize("size", [LIMIT, LIMIT + 1])
@pytest.mark.parametrize("chunk_size", [1, 100, LIMIT, 2 * LIMIT])
async def test_a_chunked_body_is_held_to_the_limit(size: int, chunk_size: int):
    body = body_of(size)
    chunks = [body[start : start + chunk_size] for start in range(0, size, chunk_size)]
    async with serving(scripted_backend(), max_message_bytes=LIMIT) as (app, _):
        call = Call(app, PATH, chunks)
        await call()
    if size == LIMIT:
        assert call.status == 200
    else:
        assert call.status == 413
        assert json.loads(call.body)["error"]["code"] == "message_too_big"
        assert (b"connection", b"close") in call.messages[0]["headers"]


async def test_an_endless_body_is_not_read_to_its_end():
    async with serving(scripted_backend(), max_message_bytes=LIMIT) as (app, _):
        call = Call(app, PATH, [b"x" * LIMIT] * 100)
        await call()
    assert (call.status, call.num_received) == (413, 2)


@pytest.mark.parametrize("length", ["x", "-1", "9" * 30, "٣"])
async def test_a_malformed_content_length_is_ignored_and_the_body_counted(length: str):
    async with client_of(scripted_backend(), max_message_bytes=LIMIT) as calling:
        response = await calling.post(
            PATH,
            content=body_of(LIMIT + 1),
            headers=[
                (b"content-type", b"application/json"),
                (b"content-length", length.encode()),
            ],
        )
    assert response.status_code == 413


async def test_a_body_that_no_route_reads_is_refused_too():
    async with client_of(scripted_backend(), max_message_bytes=LIMIT) as calling:
        response = await calling.post("/nothing", content=b"x" * (LIMIT + 1))
    assert (response.status_code, response.json()["error"]["code"]) == (413, "message_too_big")


def test_a_real_server_closes_the_connection_of_an_endless_body(live_server: Callable[..., str]):
    url = httpx.URL(live_server(scripted_backend(), max_message_bytes=LIMIT))
    with socket.create_connection((url.host, url.port)) as connection:
        connection.sendall(
            b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n" % PATH.encode()
        )
        connection.sendall(b"800\r\n%s\r\n" % (b"x" * 0x800))
        answer = connection.makefile("rb").read()  # to its end: the server closes
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b'"code":"message_too_big"' in answer
