"""`StreamConnection` over manual sockets: disconnects, slow clients, and errors."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from dataclasses import replace
from typing import Any

import pytest

from app.settings import Settings
from app.stream.socket import StreamConnection
from streaming import AsyncEngine, Backend, EngineConfig, Generation
from streaming.backends.scripted import ByteTokenizer, Gate, say, scripted_backend
from tests.app.conversation import assert_conversation, text_of
from tests.app.serving import until
from tests.app.sockets import ManualSocket, run_connection
from tests.support import (
    ManualClock,
    ManualHost,
    entered,
    finish_reason,
    running_engine,
    yield_to_loop,
)

LONG = "abcdefghij" * 20


def log_of(engine: AsyncEngine, client: ManualSocket) -> Generation:
    [accepted] = [frame for frame in client.frames if frame["type"] == "accepted"]
    return engine.find(accepted["generation_id"], caller="anyone")


def ask(client: ManualSocket, stream_id: str = "a", **fields: Any) -> None:
    asked = {"prompt": "hi", "max_tokens": 1000, **fields}
    client.say(type="generate", id=stream_id, **asked)


async def until_running(client: ManualSocket, gate: Gate, stream_id: str = "a") -> None:
    """Wait until the first step of the stream is at the gate."""
    await client.until_frame("accepted", stream_id)
    await entered(gate)


class GatedTokenizer(ByteTokenizer):
    """Blocks on the prompt "slow" until released, and fails on "broken"."""

    def __init__(self) -> None:
        self.released = threading.Event()
        self.has_started = threading.Event()

    def encode(self, text: str) -> list[int]:
        if text == "slow":
            self.has_started.set()
            self.released.wait()
        if text == "broken":
            raise ZeroDivisionError("the tokenizer has a bug")
        return super().encode(text)


def backend_with(tokenizer: GatedTokenizer) -> Backend:
    return replace(scripted_backend(say("hello")), tokenizer=tokenizer)


# The client disconnects.


@pytest.mark.pain(10)
async def test_a_disconnect_is_noticed_while_nothing_is_sent() -> None:
    gate = Gate()
    async with running_engine(scripted_backend(say(LONG), gate=gate), gate=gate) as engine:
        client = ManualSocket()
        serving = asyncio.create_task(run_connection(client, engine, disconnect_grace_s=1000))
        ask(client)
        await until_running(client, gate)
        client.leave()
        await serving
        log = log_of(engine, client)
        assert not log.is_ended
        assert log.num_subscribers == 0
        assert engine._subscribers.in_grace == {log.generation_id}


@pytest.mark.parametrize("num_received", [1, 2])
async def test_a_client_that_missed_the_end_can_resume(num_received: int) -> None:
    host, config = ManualHost(), EngineConfig(retention_s=10.0)
    async with running_engine(scripted_backend(say("hello")), config, host=host) as engine:
        slow = ManualSocket(takes=num_received)
        serving = asyncio.create_task(run_connection(slow, engine))
        ask(slow)
        await slow.until_frame("accepted")
        log = log_of(engine, slow)
        await until(lambda: engine._store.num_ended == 1)
        await until(lambda: len(slow.frames) == num_received)
        host.clock.advance(100.0)
        slow.leave()
        await serving

        for away_s, expected in ((9.0, "done"), (9.0, "done"), (11.0, "error")):
            host.clock.advance(away_s)
            back = ManualSocket()
            serving = asyncio.create_task(run_connection(back, engine))
            back.say(type="resume", id="b", generation_id=log.generation_id, after=-1)
            *_, ending = await back.until(lambda f: bool(f) and f[-1]["type"] in ("done", "error"))
            back.leave()
            await serving
            assert_conversation(back.frames)
            assert ending["type"] == expected
            assert text_of(back.frames) == ("hello" if expected == "done" else "")
        assert ending["error"]["code"] == "generation_not_found"


async def test_without_grace_a_running_generation_is_cancelled_at_the_next_step() -> None:
    gate = Gate()
    async with running_engine(scripted_backend(say(LONG), gate=gate), gate=gate) as engine:
        client = ManualSocket()
        serving = asyncio.create_task(run_connection(client, engine, disconnect_grace_s=0))
        ask(client)
        await until_running(client, gate)
        client.leave()
        await serving
        log = log_of(engine, client)
        gate.allow()
        await until(lambda: log.is_ended)
        assert finish_reason(log) == "cancelled"
        assert log.usage.completion_tokens == 1


@pytest.mark.pain(2)
async def test_a_queued_request_of_a_client_that_left_never_runs() -> None:
    gate = Gate()
    backend = scripted_backend(say(LONG), gate=gate, max_num_seqs=1)
    async with running_engine(backend, gate=gate) as engine:
        first, second = ManualSocket(), ManualSocket()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(run_connection(first, engine))
            ask(first)
            await until_running(first, gate)
            waiting = tasks.create_task(run_connection(second, engine, disconnect_grace_s=0))
            ask(second)
            await second.until_frame("accepted")
            second.leave()
            await waiting
            log = log_of(engine, second)
            gate.allow()
            await until(lambda: log.is_ended)
            first.leave()
        assert finish_reason(log) == "cancelled"
        assert log.started is None


async def test_a_disconnect_during_tokenization_leaves_nothing() -> None:
    tokenizer = GatedTokenizer()
    async with running_engine(backend_with(tokenizer)) as engine:
        client = ManualSocket()
        serving = asyncio.create_task(run_connection(client, engine))
        client.say(type="generate", prompt="slow")
        await asyncio.to_thread(tokenizer.has_started.wait)
        client.leave()
        await serving
        tokenizer.released.set()
        assert client.frames == []
        assert engine.stats.num_waiting == 0


async def test_a_generation_resumed_in_its_grace_period_goes_on() -> None:
    gate = Gate()
    async with running_engine(scripted_backend(say("hello"), gate=gate), gate=gate) as engine:
        first, second = ManualSocket(), ManualSocket()
        serving = asyncio.create_task(run_connection(first, engine, disconnect_grace_s=1000))
        ask(first)
        gate.allow(2)
        await first.until(lambda frames: text_of(frames) == "he")
        first.leave()
        await serving
        resuming = asyncio.create_task(run_connection(second, engine))
        log = log_of(engine, first)
        cursor = first.frames[-1]["seq"]
        second.say(type="resume", generation_id=log.generation_id, after=cursor)
        await second.until_frame("started")
        assert engine._subscribers.in_grace == set()
        gate.open()
        done = await second.until_frame("done")
        assert text_of(first.frames) + text_of(second.frames) == "hello"
        assert done["finish_reason"] == "stop"
        assert_conversation(second.frames)
        second.leave()
        await resuming


@pytest.mark.parametrize("failure", [OSError("gone"), RuntimeError("the server closed it")])
async def test_a_send_to_a_closed_socket_ends_the_connection(
    failure: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_engine(scripted_backend(say(LONG))) as engine:
        client = ManualSocket(takes=1, failure=failure)
        ask(client)
        await run_connection(client, engine, disconnect_grace_s=0)
        assert (len(client.frames), client.close) == (1, None)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


# The client is slow.


async def test_deltas_for_a_slow_client_are_merged() -> None:
    async with running_engine(scripted_backend(say(LONG))) as engine:
        client = ManualSocket(takes=4)
        serving = asyncio.create_task(run_connection(client, engine))
        ask(client)
        await client.until(lambda frames: len(frames) == 4)
        log = log_of(engine, client)
        await until(lambda: log.is_ended)
        for _ in range(20):
            await yield_to_loop()
        assert len(client.frames) == 4
        client.take_on()
        await client.until_frame("done")
        assert text_of(client.frames) == LONG
        # One frame was on its way when the client stopped; all later text is in one delta.
        assert len(client.frames) <= 4 + 1 + 1 + 1
        assert_conversation(client.frames)
        client.leave()
        await serving


async def test_a_stalled_client_is_closed_and_can_resume() -> None:
    gate = Gate()
    async with running_engine(scripted_backend(say("hello"), gate=gate), gate=gate) as engine:
        stalled, back = ManualSocket(takes=3), ManualSocket()
        serving = asyncio.create_task(
            run_connection(stalled, engine, stall_timeout_s=0.05, disconnect_grace_s=1000)
        )
        ask(stalled)
        gate.allow()
        await stalled.until_frame("delta")
        gate.allow()
        await serving
        assert stalled.close == (1008, "nothing was read for 0.05 s")
        log = log_of(engine, stalled)
        assert not log.is_ended
        serving = asyncio.create_task(run_connection(back, engine))
        assert stalled.frames[-1]["seq"] == 0
        back.say(type="resume", generation_id=log.generation_id, after=0)
        gate.open()
        await back.until_frame("done")
        assert text_of(stalled.frames) + text_of(back.frames) == "hello"
        back.leave()
        await serving


async def test_a_stalled_client_does_not_delay_another() -> None:
    async with running_engine(scripted_backend(say(LONG))) as engine:
        stalled, other = ManualSocket(takes=0), ManualSocket()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(run_connection(stalled, engine))
            tasks.create_task(run_connection(other, engine))
            ask(stalled)
            ask(other)
            await other.until_frame("done")
            assert text_of(other.frames) == LONG
            assert stalled.frames == []
            stalled.leave()
            other.leave()


async def test_the_server_stops_reading_from_a_client_that_receives_nothing() -> None:
    async with running_engine(scripted_backend()) as engine:
        client = ManualSocket(takes=0)
        serving = asyncio.create_task(run_connection(client, engine, max_messages_per_s=1e9))
        for _ in range(1000):
            client.put(text="no json")
        await until(lambda: client.num_read > 256)
        for _ in range(20):
            await yield_to_loop()
        assert client.num_read < 300
        client.take_on()
        await client.until(lambda frames: len(frames) == 1000)
        client.leave()
        await serving


# Several streams.


async def test_a_long_tokenization_delays_neither_a_cancel_nor_another_stream() -> None:
    tokenizer = GatedTokenizer()
    async with running_engine(backend_with(tokenizer)) as engine:
        client = ManualSocket()
        serving = asyncio.create_task(run_connection(client, engine))
        client.say(type="generate", id="slow", prompt="slow")
        await asyncio.to_thread(tokenizer.has_started.wait)
        client.say(type="generate", id="fast", prompt="hi")
        await client.until_frame("done", "fast")
        client.say(type="cancel", id="slow")
        client.say(type="cancel", id="unknown")
        await client.until_frame("error")
        assert not [frame for frame in client.frames if frame.get("id") == "slow"]
        tokenizer.released.set()
        done = await client.until_frame("done", "slow")
        assert done["finish_reason"] == "cancelled"
        assert done["usage"]["completion_tokens"] == 0
        assert_conversation(client.frames)
        client.leave()
        await serving


async def test_one_log_subscribed_twice_on_one_socket() -> None:
    gate = Gate()
    async with running_engine(scripted_backend(say("hello"), gate=gate), gate=gate) as engine:
        client = ManualSocket()
        serving = asyncio.create_task(run_connection(client, engine))
        ask(client, "a")
        await until_running(client, gate)
        generation_id = log_of(engine, client).generation_id
        client.say(type="resume", id="b", generation_id=generation_id, after=-1)
        await client.until_frame("started", "b")
        gate.open()
        await client.until_frame("done", "a")
        await client.until_frame("done", "b")
        assert text_of(client.frames, "a") == text_of(client.frames, "b") == "hello"
        assert_conversation(client.frames)
        client.leave()
        await serving


async def test_a_held_queue_position_is_sent_when_it_is_due() -> None:
    gate = Gate()
    backend = scripted_backend(say(LONG), gate=gate, max_num_seqs=1)
    clock = ManualClock()
    async with running_engine(backend, gate=gate) as engine:
        client = ManualSocket()
        serving = asyncio.create_task(run_connection(client, engine, clock=clock))
        ask(client, "running")
        await until_running(client, gate, "running")
        for stream_id in ("ahead", "behind"):
            ask(client, stream_id)
            await client.until_frame("accepted", stream_id)
        while not client.frames_of("queued", "behind"):
            gate.allow()
            await entered(gate)
        clock.advance(0.99)
        client.say(type="cancel", id="ahead")
        while not client.frames_of("done", "ahead"):
            gate.allow()
            await entered(gate)
        gate.allow()  # the last record is logged at once, the new position after the step
        await entered(gate)
        assert [frame["position"] for frame in client.frames_of("queued", "behind")] == [1]
        clock.advance(0.01)  # only the writer's timer can wake it
        await client.until(lambda _: len(client.frames_of("queued", "behind")) == 2)
        assert client.frames_of("queued", "behind")[1]["position"] == 0
        client.leave()
        await serving


# Internal errors.


async def test_a_request_that_breaks_the_tokenizer_fails_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with running_engine(backend_with(GatedTokenizer())) as engine:
        client = ManualSocket()
        serving = asyncio.create_task(run_connection(client, engine))
        client.say(type="generate", id="a", prompt="broken")
        error = await client.until_frame("error", "a")
        assert error["error"]["code"] == "internal_error"
        assert "bug" not in error["error"]["message"]
        assert "the tokenizer has a bug" in caplog.text
        ask(client, "b")
        await client.until_frame("done", "b")
        client.leave()
        await serving


class BrokenEngine(AsyncEngine):
    def find(self, generation_id: str, *, caller: str) -> Generation:
        raise ZeroDivisionError("a bug")


async def test_an_internal_error_closes_with_1011_and_logs_a_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    gate = Gate()
    engine = BrokenEngine(scripted_backend(say(LONG), gate=gate), EngineConfig())
    await engine.start()
    client = ManualSocket()
    ask(client)
    serving = asyncio.create_task(run_connection(client, engine, disconnect_grace_s=1000))
    await until_running(client, gate)
    client.say(type="resume", generation_id="gen_1", after=-1)
    await serving
    assert client.close == (1011, "internal error")
    assert "ZeroDivisionError" in caplog.text
    assert len(engine._subscribers.in_grace) == 1
    gate.open()
    await engine.aclose()


async def test_a_cancelled_handler_raises_and_leaves_nothing() -> None:
    gate = Gate()
    async with running_engine(scripted_backend(say(LONG), gate=gate), gate=gate) as engine:
        client = ManualSocket()
        serving = asyncio.create_task(run_connection(client, engine, disconnect_grace_s=1000))
        ask(client)
        await until_running(client, gate)
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving
        assert log_of(engine, client).num_subscribers == 0
        assert client.close is None


# Other cases.


async def test_binary_frames_are_errors_and_the_socket_stays_open() -> None:
    async with running_engine(scripted_backend(say("hello"))) as engine:
        client = ManualSocket()
        serving = asyncio.create_task(run_connection(client, engine))
        client.put(bytes=b"\x00")
        client.put(bytes=json.dumps({"type": "generate", "prompt": "hi"}).encode(), text=None)
        ask(client)
        await client.until_frame("done")
        codes = [frame["error"]["code"] for frame in client.frames if frame["type"] == "error"]
        assert codes == ["invalid_json", "invalid_json"]
        client.leave()
        await serving


async def test_drain_closes_after_the_last_stream() -> None:
    gate = Gate()
    async with running_engine(scripted_backend(say("hello"), gate=gate), gate=gate) as engine:
        client = ManualSocket()
        connection = StreamConnection(
            client.websocket, engine=engine, caller="anyone", settings=Settings()
        )
        await client.websocket.accept()
        serving = asyncio.create_task(connection.run())
        ask(client)
        await until_running(client, gate)
        connection.drain()
        gate.open()
        await serving
        assert client.close == (1001, "the server is going away")
        assert text_of(client.frames) == "hello"
        assert_conversation(client.frames)


async def test_a_failed_close_frame_is_ignored() -> None:
    async with running_engine(scripted_backend(say(LONG))) as engine:
        client = ManualSocket(takes=1, close_failure=OSError("gone"))
        ask(client)
        await run_connection(client, engine, stall_timeout_s=0.01, disconnect_grace_s=0)
        assert client.close is None


async def test_errors_of_the_engine_carry_their_stream_id() -> None:
    async with running_engine(scripted_backend()) as engine:
        client = ManualSocket()
        serving = asyncio.create_task(run_connection(client, engine))
        ask(client, "a", prompt="")
        client.say(type="resume", id="b", generation_id="gen_1", after=-1)
        await client.until(lambda frames: len(frames) == 2)
        codes = {frame["id"]: frame["error"]["code"] for frame in client.frames}
        assert codes == {"a": "invalid_request", "b": "generation_not_found"}
        client.leave()
        await serving


async def test_drain_before_the_first_frame_closes_at_once() -> None:
    async with running_engine(scripted_backend()) as engine:
        client = ManualSocket()
        connection = StreamConnection(
            client.websocket, engine=engine, caller="anyone", settings=Settings()
        )
        connection.drain()
        await client.websocket.accept()
        await connection.run()
        assert client.close == (1001, "the server is going away")
