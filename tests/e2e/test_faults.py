"""Faults of the runner or the tokenizer: what clients receive and how the process ends."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect

from tests.e2e.client import receive, receive_stream, receive_until, send
from tests.e2e.server_process import ServerProcess

pytestmark = [pytest.mark.pain(23), pytest.mark.slow, pytest.mark.timeout(120)]

StartFaulty = Callable[..., ServerProcess]


@pytest.fixture
def start_faulty() -> Iterator[StartFaulty]:
    servers: list[ServerProcess] = []

    def start(fault: str, **settings: object) -> ServerProcess:
        flags = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
        servers.append(
            ServerProcess(
                *(fault, "--port", "0", "--store_responses", "false", *flags),
                module="tests.e2e.faulty_server",
            )
        )
        return servers[-1]

    yield start
    for server in servers:
        if server.process.poll() is None:
            server.process.kill()
        server.wait()


async def cause_fault(socket: ClientConnection, *, neighbours: int = 1) -> None:
    """Start endless streams, and one that causes the fault."""
    for number in range(neighbours):
        await send(socket, type="generate", id=f"n{number}", prompt="go", max_tokens=10**5)
        await receive_until(socket, "delta")
    await send(socket, type="generate", id="bad", prompt="a fault", max_tokens=10)


async def endings(socket: ClientConnection, num_streams: int) -> set[str]:
    """Return the finish reasons or error codes of the next `num_streams` streams to end."""
    found: set[str] = set()
    while num_streams:
        frame = await receive(socket)
        if frame["type"] in ("done", "error"):
            num_streams -= 1
            found.add(frame.get("finish_reason") or frame["error"]["code"])
    return found


async def test_a_hanging_step_ends_all_streams_and_the_process(start_faulty: StartFaulty) -> None:
    server = start_faulty("hanging-step", step_timeout_s=0.5)
    async with connect(server.ws_url, close_timeout=0.1) as socket:
        await cause_fault(socket, neighbours=2)
        assert await endings(socket, 3) == {"engine_error"}
    assert server.wait() == 1
    assert (
        server.lines[-1] == "tokenwire: stopped because the engine failed; the log has the reason\n"
    )
    assert "one step has taken" in server.log
    assert "Traceback" not in server.log


async def test_repeated_failing_steps_end_the_process(start_faulty: StartFaulty) -> None:
    server = start_faulty("broken-model")
    async with connect(server.ws_url, close_timeout=0.1) as socket:
        await cause_fault(socket)
        assert await endings(socket, 2) == {"engine_error"}
        for _ in range(4):
            await send(socket, type="generate", prompt="go", max_tokens=10)
            assert (await receive_stream(socket))[-1]["error"]["code"] == "engine_error"
    assert server.wait() == 1
    assert "5 steps in a row have failed" in server.log


async def test_a_panic_in_a_step_ends_only_its_streams(
    start_faulty: StartFaulty,
) -> None:
    server = start_faulty("panicking-step")
    async with (
        httpx.AsyncClient(base_url=server.url) as client,
        connect(server.ws_url, close_timeout=0.1) as socket,
    ):
        await cause_fault(socket)
        assert await endings(socket, 2) == {"engine_error"}
        await send(socket, type="generate", prompt="go", max_tokens=10)
        assert (await receive_stream(socket))[-1]["type"] == "done"
        assert (await client.get("/readyz")).status_code == 200
    assert server.stop() == 0


@pytest.mark.parametrize("fault", ["hanging-step", "hanging-tokenizer"])
async def test_one_signal_ends_a_hanging_server(start_faulty: StartFaulty, fault: str) -> None:
    server = start_faulty(fault, drain_timeout_s=0.1)
    async with connect(server.ws_url, close_timeout=0.1) as socket:
        await cause_fault(socket)
        await server.logs("the fault is here")
        server.signal(signal.SIGTERM)
        assert server.wait() == 1
    assert "were left behind" in server.log


@pytest.mark.parametrize("fault", ["hanging-step", "hanging-tokenizer"])
async def test_a_second_signal_ends_a_hanging_server(start_faulty: StartFaulty, fault: str) -> None:
    server = start_faulty(fault, drain_timeout_s=3600)
    async with (
        connect(server.ws_url, close_timeout=0.1) as socket,
        httpx.AsyncClient(base_url=server.url) as client,
    ):
        await cause_fault(socket)
        await server.logs("the fault is here")
        server.signal(signal.SIGTERM)
        while (await client.get("/readyz")).status_code == 200:
            pass
        server.signal(signal.SIGTERM)
        assert server.wait() == 1
    assert server.lines[-1] == "tokenwire: stopped by a second signal; open streams were cut off\n"
