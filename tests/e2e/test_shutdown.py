"""How the server goes away, as its operator and its clients see it."""

from __future__ import annotations

import signal
from collections.abc import Callable

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from tests.e2e.client import receive, receive_stream, receive_until, send
from tests.e2e.server_process import ServerProcess

pytestmark = pytest.mark.timeout(120)

LONG = {"type": "generate", "prompt": "Once", "ignore_eos": True, "temperature": 0}
FOR_EVER = {**LONG, "max_tokens": 900_000}


@pytest.fixture
def start_endless(start_server) -> Callable[..., ServerProcess]:
    """Return a function that starts a server whose answers do not end by themselves."""

    def start(*flags: str) -> ServerProcess:
        given = ("none", "--port", "0", "--store_responses", "false", *flags)
        server = start_server(*given, module="tests.e2e.faulty_server")
        assert isinstance(server, ServerProcess)
        return server

    return start


@pytest.mark.model
@pytest.mark.alone
@pytest.mark.pain(15)
async def test_first_signal_refuses_new_work_and_lets_the_running_finish(start_server) -> None:
    server = start_server("--max-num-seqs", "1")
    async with connect(server.ws_url) as running, connect(server.ws_url) as other:
        await send(running, **LONG, max_tokens=60)
        await receive_until(running, "delta")
        await send(other, **LONG, id="waits", max_tokens=5)
        await receive_until(other, "queued")
        server.signal()
        await server.logs("shutting down")
        async with httpx.AsyncClient(base_url=server.url) as client:
            refusal = await client.get("/readyz")
        assert refusal.status_code == 503
        assert int(refusal.headers["Retry-After"]) >= 1
        ended = await receive_stream(other)
        assert ended[-1]["error"]["code"] == "shutting_down"
        assert ended[-1]["error"]["retryable"] is True
        frames = await receive_stream(running)
        assert frames[-1]["finish_reason"] == "length"
        with pytest.raises(ConnectionClosed):
            await receive(running)
        assert running.close_code == 1001
    assert server.wait() == 0, server.log


@pytest.mark.slow
@pytest.mark.pain(15)
async def test_deadline_ends_what_still_runs(start_endless) -> None:
    server = start_endless("--drain_timeout_s", "0.2")
    async with connect(server.ws_url) as socket:
        await send(socket, **FOR_EVER)
        await receive_until(socket, "delta")
        server.signal()
        frames = await receive_stream(socket)
        assert frames[-1]["error"]["code"] == "shutting_down"
    assert server.wait() == 0, server.log


@pytest.mark.slow
async def test_second_signal_ends_at_once(start_endless) -> None:
    server = start_endless("--drain_timeout_s", "3600")
    async with connect(server.ws_url) as socket:
        await send(socket, **FOR_EVER)
        await receive_until(socket, "delta")
        server.signal(signal.SIGINT)
        await server.logs("shutting down")
        server.signal(signal.SIGINT)
        with pytest.raises(ConnectionClosed):
            await receive_stream(socket)
    assert server.wait() == 1
    assert server.lines[-1] == "tokenwire: stopped by a second signal; open streams were cut off\n"
    assert "Traceback" not in server.log
