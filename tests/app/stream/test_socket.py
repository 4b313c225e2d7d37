"""One connection over sockets made by hand: who leaves, who stops taking, what goes wrong."""

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
from tests.app.sockets import HandSocket, run_connection
from tests.support import (
    ManualClock,
    ManualHost,
    entered,
    finish_reason,
    running_engine,
    yield_to_loop,
)

LONG = "abcdefghij" * 20


def log_of(engine: AsyncEngine, hand: HandSocket) -> Generation:
    [accepted] = [frame for frame in hand.frames if frame["type"] == "accepted"]
    return engine.find(accepted["generation_id"], caller="anyone")


def ask(hand: HandSocket, stream_id: str = "a", **fields: Any) -> None:
    asked = {"prompt": "hi", "max_tokens": 1000, **fields}
    hand.say(type="generate", id=stream_id, **asked)


async def until_running(hand: HandSocket, gate: Gate, stream_id: str = "a") -> None:
    """Wait until the first step of the stream stands at the gate."""
    await hand.until_shown("accepted", stream_id)
    await entered(gate)


class GatedTokenizer(ByteTokenizer):
    """Tokenises the prompt "slow" only once it is let go."""

    def __init__(self) -> None:
        self.let_go = threading.Event()
        self.has_begun = threading.Event()

    def encode(self, text: str) -> list[int]:
        if text == "slow":
            self.has_begun.set()
            self.let_go.wait()
        if text == "broken":
            raise ZeroDivisionError("the tokenizer has a bug")
        return super().encode(text)


def backend_with(tokenizer: GatedTokenizer) -> Backend:
    return replace(scripted_backend(say("hello")), tokenizer=tokenizer)


# The client leaves.


@pytest.mark.pain(10)
async def test_a_client_that_leaves_is_noticed_though_nothing_is_sent() -> None:
    gate = Gate()
    async with running_engine(scripted_backend(say(LONG), gate=gate), gate=gate) as engine:
        hand = HandSocket()
        serving = asyncio.create_task(run_connection(hand, engine, disconnect_grace_s=1000))
        ask(hand)
        await until_running(hand, gate)
        hand.leave()
        await serving
        log = log_of(engine, hand)
        assert not log.is_ended
        assert log.num_subscribers == 0
        assert engine._followers.in_grace == {log.generation_id}


@pytest.mark.parametrize("num_taken", [1, 2])
async def test_a_client_that_has_not_taken_the_end_can_come_back_to_it(num_taken: int) -> None:
    host, config = ManualHost(), EngineConfig(retention_s=10.0)
    async with running_engine(scripted_backend(say("hello")), config, host=host) as engine:
        slow = HandSocket(takes=num_taken)
        serving = asyncio.create_task(run_connection(slow, engine))
        ask(slow)
        await slow.until_shown("accepted")
        log = log_of(engine, slow)
        await until(lambda: engine._store.num_ended == 1)
        await until(lambda: len(slow.frames) == num_taken)
        host.clock.advance(100.0)
        slow.leave()
        await serving

        for away_s, expected in ((9.0, "done"), (9.0, "done"), (11.0, "error")):
            host.clock.advance(away_s)
            back = HandSocket()
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
        hand = HandSocket()
        serving = asyncio.create_task(run_connection(hand, engine, disconnect_grace_s=0))
        ask(hand)
        await until_running(hand, gate)
        hand.leave()
        await serving
        log = log_of(engine, hand)
        gate.allow()
        await until(lambda: log.is_ended)
        assert finish_reason(log) == "cancelled"
        assert log.usage.completion_tokens == 1


@pytest.mark.pain(2)
async def test_a_client_that_leaves_while_queued_never_runs() -> None:
    gate = Gate()
    backend = scripted_backend(say(LONG), gate=gate, max_num_seqs=1)
    async with running_engine(backend, gate=gate) as engine:
        first, second = HandSocket(), HandSocket()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(run_connection(first, engine))
            ask(first)
            await until_running(first, gate)
            waiting = tasks.create_task(run_connection(second, engine, disconnect_grace_s=0))
            ask(second)
            await second.until_shown("accepted")
            second.leave()
            await waiting
            log = log_of(engine, second)
            gate.allow()
            await until(lambda: log.is_ended)
            first.leave()
        assert finish_reason(log) == "cancelled"
        assert log.started is None


async def test_a_client_that_leaves_while_tokenising_leaves_nothing() -> None:
    tokenizer = GatedTokenizer()
    async with running_engine(backend_with(tokenizer)) as engine:
        hand = HandSocket()
        serving = asyncio.create_task(run_connection(hand, engine))
        hand.say(type="generate", prompt="slow")
        await asyncio.to_thread(tokenizer.has_begun.wait)
        hand.leave()
        await serving
        tokenizer.let_go.set()
        assert hand.frames == []
        assert engine.stats.num_waiting == 0


async def test_resumed_within_its_grace_a_generation_goes_on() -> None:
    gate = Gate()
    async with running_engine(scripted_backend(say("hello"), gate=gate), gate=gate) as engine:
        first, second = HandSocket(), HandSocket()
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
        await second.until_shown("started")
        assert engine._followers.in_grace == set()
        gate.open()
        done = await second.until_shown("done")
        assert text_of(first.frames) + text_of(second.frames) == "hello"
        assert done["finish_reason"] == "stop"
        assert_conversation(second.frames)
        second.leave()
        await resuming


@pytest.mark.parametrize("failure", [OSError("gone"), RuntimeError("the server closed it")])
async def test_a_client_that_is_found_gone_at_a_send(
    failure: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_engine(scripted_backend(say(LONG))) as engine:
        hand = HandSocket(takes=1, failure=failure)
        ask(hand)
        await run_connection(hand, engine, disconnect_grace_s=0)
        assert (len(hand.frames), hand.close) == (1, None)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


# The client does not take what is sent.


async def test_what_a_slow_client_does_not_take_is_merged() -> None:
    async with running_engine(scripted_backend(say(LONG))) as engine:
        hand = HandSocket(takes=4)
        serving = asyncio.create_task(run_connection(hand, engine))
        ask(hand)
        await hand.until(lambda frames: len(frames) == 4)
        log = log_of(engine, hand)
        await until(lambda: log.is_ended)
        for _ in range(20):
            await yield_to_loop()
        assert len(hand.frames) == 4
        hand.take_on()
        await hand.until_shown("done")
        assert text_of(hand.frames) == LONG
        # Beside the one on its way when the client stopped, all that was missed comes as one.
        assert len(hand.frames) <= 4 + 1 + 1 + 1
        assert_conversation(hand.frames)
        hand.leave()
        await serving


async def test_a_stalled_client_is_closed_by_policy_and_can_come_back() -> None:
    gate = Gate()
    async with running_engine(scripted_backend(say("hello"), gate=gate), gate=gate) as engine:
        stalled, back = HandSocket(takes=3), HandSocket()
        serving = asyncio.create_task(
            run_connection(stalled, engine, stall_timeout_s=0.05, disconnect_grace_s=1000)
        )
        ask(stalled)
        gate.allow()
        await stalled.until_shown("delta")
        gate.allow()
        await serving
        assert stalled.close == (1008, "nothing was read for 0.05 s")
        log = log_of(engine, stalled)
        assert not log.is_ended
        serving = asyncio.create_task(run_connection(back, engine))
        assert stalled.frames[-1]["seq"] == 0
        back.say(type="resume", generation_id=log.generation_id, after=0)
        gate.open()
        await back.until_shown("done")
        assert text_of(stalled.frames) + text_of(back.frames) == "hello"
        back.leave()
        await serving


async def test_a_stalled_client_does_not_hold_up_another() -> None:
    async with running_engine(scripted_backend(say(LONG))) as engine:
        stalled, other = HandSocket(takes=0), HandSocket()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(run_connection(stalled, engine))
            tasks.create_task(run_connection(other, engine))
            ask(stalled)
            ask(other)
            await other.until_shown("done")
            assert text_of(other.frames) == LONG
            assert stalled.frames == []
            stalled.leave()
            other.leave()


async def test_who_does_not_take_answers_is_not_listened_to() -> None:
    async with running_engine(scripted_backend()) as engine:
        hand = HandSocket(takes=0)
        serving = asyncio.create_task(run_connection(hand, engine, max_messages_per_s=1e9))
        for _ in range(1000):
            hand.put(text="no json")
        await until(lambda: hand.num_received > 256)
        for _ in range(20):
            await yield_to_loop()
        assert hand.num_received < 300
        hand.take_on()
        await hand.until(lambda frames: len(frames) == 1000)
        hand.leave()
        await serving


# Several streams, and what happens beside a slow one.


async def test_a_long_tokenisation_holds_up_neither_a_cancel_nor_another_stream() -> None:
    tokenizer = GatedTokenizer()
    async with running_engine(backend_with(tokenizer)) as engine:
        hand = HandSocket()
        serving = asyncio.create_task(run_connection(hand, engine))
        hand.say(type="generate", id="slow", prompt="slow")
        await asyncio.to_thread(tokenizer.has_begun.wait)
        hand.say(type="generate", id="fast", prompt="hi")
        await hand.until_shown("done", "fast")
        hand.say(type="cancel", id="slow")
        hand.say(type="cancel", id="nobody")
        await hand.until_shown("error")
        assert not [frame for frame in hand.frames if frame.get("id") == "slow"]
        tokenizer.let_go.set()
        done = await hand.until_shown("done", "slow")
        assert done["finish_reason"] == "cancelled"
        assert done["usage"]["completion_tokens"] == 0
        assert_conversation(hand.frames)
        hand.leave()
        await serving


async def test_one_log_followed_twice_on_one_socket() -> None:
    gate = Gate()
    async with running_engine(scripted_backend(say("hello"), gate=gate), gate=gate) as engine:
        hand = HandSocket()
        serving = asyncio.create_task(run_connection(hand, engine))
        ask(hand, "a")
        await until_running(hand, gate)
        generation_id = log_of(engine, hand).generation_id
        hand.say(type="resume", id="b", generation_id=generation_id, after=-1)
        await hand.until_shown("started", "b")
        gate.open()
        await hand.until_shown("done", "a")
        await hand.until_shown("done", "b")
        assert text_of(hand.frames, "a") == text_of(hand.frames, "b") == "hello"
        assert_conversation(hand.frames)
        hand.leave()
        await serving


async def test_a_held_place_in_the_queue_is_told_when_its_time_comes() -> None:
    gate = Gate()
    backend = scripted_backend(say(LONG), gate=gate, max_num_seqs=1)
    clock = ManualClock()
    async with running_engine(backend, gate=gate) as engine:
        hand = HandSocket()
        serving = asyncio.create_task(run_connection(hand, engine, clock=clock))
        ask(hand, "running")
        await until_running(hand, gate, "running")
        for stream_id in ("ahead", "behind"):
            ask(hand, stream_id)
            await hand.until_shown("accepted", stream_id)
        while not hand.shown("queued", "behind"):
            gate.allow()
            await entered(gate)
        clock.advance(0.99)
        hand.say(type="cancel", id="ahead")
        while not hand.shown("done", "ahead"):
            gate.allow()
            await entered(gate)
        gate.allow()  # the ending is in the log at once, the new place after the step
        await entered(gate)
        assert [frame["position"] for frame in hand.shown("queued", "behind")] == [1]
        clock.advance(0.01)  # and nothing else happens: only the writer's own timer can tell
        await hand.until(lambda _: len(hand.shown("queued", "behind")) == 2)
        assert hand.shown("queued", "behind")[1]["position"] == 0
        hand.leave()
        await serving


# What goes wrong on our side.


async def test_a_request_that_breaks_the_tokenizer_fails_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with running_engine(backend_with(GatedTokenizer())) as engine:
        hand = HandSocket()
        serving = asyncio.create_task(run_connection(hand, engine))
        hand.say(type="generate", id="a", prompt="broken")
        error = await hand.until_shown("error", "a")
        assert error["error"]["code"] == "internal_error"
        assert "bug" not in error["error"]["message"]
        assert "the tokenizer has a bug" in caplog.text
        ask(hand, "b")
        await hand.until_shown("done", "b")
        hand.leave()
        await serving


class BrokenEngine(AsyncEngine):
    def find(self, generation_id: str, *, caller: str) -> Generation:
        raise ZeroDivisionError("a bug")


async def test_a_bug_of_ours_closes_with_1011_and_a_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    gate = Gate()
    engine = BrokenEngine(scripted_backend(say(LONG), gate=gate), EngineConfig())
    await engine.start()
    hand = HandSocket()
    ask(hand)
    serving = asyncio.create_task(run_connection(hand, engine, disconnect_grace_s=1000))
    await until_running(hand, gate)
    hand.say(type="resume", generation_id="gen_1", after=-1)
    await serving
    assert hand.close == (1011, "internal error")
    assert "ZeroDivisionError" in caplog.text
    assert len(engine._followers.in_grace) == 1
    gate.open()
    await engine.aclose()


async def test_a_cancelled_handler_says_so_and_leaves_nothing() -> None:
    gate = Gate()
    async with running_engine(scripted_backend(say(LONG), gate=gate), gate=gate) as engine:
        hand = HandSocket()
        serving = asyncio.create_task(run_connection(hand, engine, disconnect_grace_s=1000))
        ask(hand)
        await until_running(hand, gate)
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving
        assert log_of(engine, hand).num_subscribers == 0
        assert hand.close is None


# The rest.


async def test_binary_frames_are_answered_and_the_socket_lives_on() -> None:
    async with running_engine(scripted_backend(say("hello"))) as engine:
        hand = HandSocket()
        serving = asyncio.create_task(run_connection(hand, engine))
        hand.put(bytes=b"\x00")
        hand.put(bytes=json.dumps({"type": "generate", "prompt": "hi"}).encode(), text=None)
        ask(hand)
        await hand.until_shown("done")
        codes = [frame["error"]["code"] for frame in hand.frames if frame["type"] == "error"]
        assert codes == ["invalid_json", "invalid_json"]
        hand.leave()
        await serving


async def test_drain_closes_when_the_last_stream_has_ended() -> None:
    gate = Gate()
    async with running_engine(scripted_backend(say("hello"), gate=gate), gate=gate) as engine:
        hand = HandSocket()
        connection = StreamConnection(
            hand.websocket, engine=engine, caller="anyone", settings=Settings()
        )
        await hand.websocket.accept()
        serving = asyncio.create_task(connection.run())
        ask(hand)
        await until_running(hand, gate)
        connection.drain()
        gate.open()
        await serving
        assert hand.close == (1001, "the server is going away")
        assert text_of(hand.frames) == "hello"
        assert_conversation(hand.frames)


async def test_a_client_that_is_found_gone_at_the_close() -> None:
    async with running_engine(scripted_backend(say(LONG))) as engine:
        hand = HandSocket(takes=1, close_failure=OSError("gone"))
        ask(hand)
        await run_connection(hand, engine, stall_timeout_s=0.01, disconnect_grace_s=0)
        assert hand.close is None


async def test_refusals_of_the_engine_reach_their_stream() -> None:
    async with running_engine(scripted_backend()) as engine:
        hand = HandSocket()
        serving = asyncio.create_task(run_connection(hand, engine))
        ask(hand, "a", prompt="")
        hand.say(type="resume", id="b", generation_id="gen_1", after=-1)
        await hand.until(lambda frames: len(frames) == 2)
        told = {frame["id"]: frame["error"]["code"] for frame in hand.frames}
        assert told == {"a": "invalid_request", "b": "generation_not_found"}
        hand.leave()
        await serving


async def test_drain_before_the_first_frame_closes_at_once() -> None:
    async with running_engine(scripted_backend()) as engine:
        hand = HandSocket()
        connection = StreamConnection(
            hand.websocket, engine=engine, caller="anyone", settings=Settings()
        )
        connection.drain()
        await hand.websocket.accept()
        await connection.run()
        assert hand.close == (1001, "the server is going away")
