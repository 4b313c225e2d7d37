"""A Responses connection over a scripted socket: lost connections, slow clients, its age."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from app.responses.protocol.connection_age import GRACE_S
from app.responses.protocol.parsing import query_resumes
from app.responses.response_reader import MAX_EVENTS_PER_READ
from streaming import ChatPrompt
from streaming.backend import EncodedPrompt
from streaming.backends.scripted import (
    ByteTokenizer,
    Gate,
    repeat_prompt,
    say,
    scripted_backend,
)
from tests.app.response_sockets import responding, until_running
from tests.app.responses_conversation import (
    assert_responses_conversation,
    assert_valid_responses,
    endings,
    text_of,
    turns,
)
from tests.app.serving import until
from tests.support import ManualClock, finish_reason, yield_to_loop

LONG = "abcdefghij" * 20


# Turns


async def test_turns_of_one_stream_follow_each_other() -> None:
    async with responding(scripted_backend(say("one", "two", "three"))) as rig:
        client = rig.connect()
        for _ in range(3):
            client.create()
        await client.until_ended(count=3)
        assert text_of(client.frames) == "onetwothree"
        assert_valid_responses(client.frames)


async def test_an_unstored_chain_is_known_on_its_connection_only() -> None:
    async with responding(scripted_backend(repeat_prompt)) as rig:
        client = rig.connect()
        client.create(input="first", store=False)
        first = (await client.until_ended())["response"]["id"]
        client.create(input="second", store=False, previous_response_id=first)
        second = (await client.until_ended(count=2))["response"]
        answer = "user: first\nassistant: "
        assert text_of([*turns(client.frames)[1]]) == (
            f"user: first\nassistant: {answer}\nuser: second\nassistant: "
        )
        assert second["previous_response_id"] == first
        other = rig.connect()
        other.create(previous_response_id=second["id"], store=False)
        error = await other.until_shown("error")
        assert (error["status"], error["error"]["code"]) == (400, "previous_response_not_found")
        assert_valid_responses(client.frames)


async def test_a_stored_response_can_be_continued_anywhere() -> None:
    async with responding(scripted_backend(repeat_prompt)) as rig:
        client, other = rig.connect(), rig.connect()
        client.create(input="first")
        first = (await client.until_ended())["response"]["id"]
        other.create("a", input="second", previous_response_id=first)
        await other.until_ended(stream_id="a")
        assert "first" in text_of(other.frames, "a")


async def test_a_warm_up_can_be_continued() -> None:
    async with responding(scripted_backend(repeat_prompt)) as rig:
        client = rig.connect()
        client.create(input="begin", generate=False, store=False)
        warm = (await client.until_ended())["response"]
        assert (warm["status"], warm["output"]) == ("completed", [])
        client.create(input="more", store=False, previous_response_id=warm["id"])
        await client.until_ended(count=2)
        assert text_of(client.frames) == "user: begin\nuser: more\nassistant: "
        client.create(prompt_cache_options={"prewarm": True}, store=False)
        prewarmed = (await client.until_ended(count=3))["response"]
        assert prewarmed["output"] == []
        assert_valid_responses(client.frames)


async def test_streams_run_concurrently() -> None:
    gate = Gate()
    async with responding(scripted_backend(say("hello", "world"), gate=gate), gate=gate) as rig:
        client = rig.connect()
        client.create("a")
        await client.until_shown("response.created", stream_id="a")
        client.create("b")
        await client.until_shown("response.created", stream_id="b")
        gate.open()
        await client.until_ended(stream_id="a")
        await client.until_ended(stream_id="b")
        assert {text_of(client.frames, "a"), text_of(client.frames, "b")} == {"hello", "world"}
        assert_valid_responses(client.frames)


async def test_a_refusal_of_the_service_is_an_error_of_its_turn() -> None:
    async with responding(scripted_backend(say("hello"))) as rig:
        client = rig.connect()
        output = [{"type": "function_call_output", "call_id": "call_x", "output": "1"}]
        client.create(input=output)
        client.create(temperature=9)
        client.create(model="gpt")
        client.create()
        await client.until_ended()
        assert endings(client.frames) == [
            "invalid_request",
            "invalid_request",
            "model_not_found",
            "completed",
        ]
        params = [frame["error"]["param"] for frame in client.frames[:3]]
        assert params == ["input[0].call_id", "temperature", "model"]
        assert_valid_responses(client.frames)


async def test_a_step_that_fails_ends_its_response_and_no_other() -> None:
    async with responding(scripted_backend(lambda _: [97, ValueError("broken")])) as rig:
        client = rig.connect()
        client.create()
        failed = await client.until_shown("response.failed")
        assert failed["response"]["error"]["code"] == "server_error"
        assert endings(client.frames) == ["failed"]
        assert_valid_responses(client.frames)


async def test_cancel_ends_a_response_as_incomplete() -> None:
    gate = Gate()
    async with responding(scripted_backend(say(LONG), gate=gate), gate=gate) as rig:
        client = rig.connect()
        client.create()
        gate.allow(3)
        await client.until_said("abc")
        client.hand.say(type="response.cancel")
        client.hand.say(type="response.cancel", response_id="resp_x")
        await client.until_shown("error")
        gate.open()
        ended = await client.until_shown("response.incomplete")
        assert ended["response"]["status"] == "cancelled"
        assert ended["response"]["usage"]["output_tokens"] < len(LONG)
        client.create(previous_response_id=ended["response"]["id"])
        await client.until_ended()
        assert_valid_responses(client.frames)


# Lost connections and resumes


async def test_without_grace_a_response_is_cancelled_at_the_next_step() -> None:
    gate = Gate()
    backend = scripted_backend(say(LONG), gate=gate)
    async with responding(backend, gate=gate, disconnect_grace_s=0) as rig:
        client = rig.connect()
        client.create()
        log = rig.log_of(await until_running(client, gate))
        await client.leave()
        gate.allow()
        await until(lambda: log.is_ended)
        assert (finish_reason(log), log.usage.completion_tokens) == ("cancelled", 1)


async def test_a_client_that_disconnects_leaves_no_waiting_turns() -> None:
    gate = Gate()
    backend = scripted_backend(say(LONG), gate=gate, max_num_seqs=1)
    async with responding(backend, gate=gate, disconnect_grace_s=0) as rig:
        first, second = rig.connect(), rig.connect()
        first.create()
        await until_running(first, gate)
        second.create()
        second.create()
        created = await second.until_shown("response.created")
        log = rig.log_of(created["response"]["id"])
        await second.leave()
        gate.allow()
        await until(lambda: log.is_ended)
        assert (finish_reason(log), log.started) == ("cancelled", None)
        gate.allow()  # the end is in the log at once, but readers are woken after the step
        # Its second turn never got a response.
        await until(lambda: rig.service.registry.live.num_open == 1)
        assert rig.service.registry.live.num_ended == 1


@pytest.mark.parametrize("store", [True, False])
async def test_a_dropped_response_is_resumed_without_gap_or_repetition(store: bool) -> None:
    gate = Gate()
    backend = scripted_backend(say(LONG), gate=gate)
    async with responding(backend, gate=gate, disconnect_grace_s=1000) as rig:
        first = rig.connect()
        first.create(store=store)
        gate.allow(3)
        await first.until_said("abc")
        await first.leave()
        cursor = first.frames[-1]["sequence_number"]
        response_id = first.frames[0]["response"]["id"]
        gate.allow(3)
        second = rig.connect(resumes=query_resumes([response_id], [str(cursor)]))
        await second.until_said("def")
        assert not rig.engine._subscribers.in_grace
        gate.open()
        await second.until_ended()
        events = first.frames + second.frames
        assert text_of(events) == LONG
        assert_valid_responses(events)
        assert_valid_responses(second.frames)
        # Only now can it be continued here.
        second.create(store=False, previous_response_id=response_id)
        await second.until_ended(count=2)


async def test_each_lost_connection_has_its_own_grace_period() -> None:
    gate = Gate()
    backend = scripted_backend(say("hello"), gate=gate)
    async with responding(backend, gate=gate, disconnect_grace_s=1000) as rig:
        first = rig.connect()
        first.create()
        response_id = await until_running(first, gate)
        await first.leave()
        for num_turns in (0, 1, 2, 5, 50):
            again = rig.connect(resumes=query_resumes([response_id], []))
            for _ in range(num_turns):
                await yield_to_loop()
            await again.leave()  # at any point of its resume
            assert rig.engine._subscribers.in_grace == {rig.log_of(response_id).generation_id}
        gate.open()
        last = rig.connect(resumes=query_resumes([response_id], []))
        await last.until_ended()
        assert text_of(last.frames) == "hello"
        assert_valid_responses(last.frames)


async def test_a_resume_at_every_cursor_of_an_ended_response() -> None:
    async with responding(scripted_backend(say("año €😀"))) as rig:
        client = rig.connect()
        client.create(store=False)
        await client.until_ended()
        whole = list(client.frames)
        response_id = whole[0]["response"]["id"]
        for after in range(-1, len(whole) - 1):
            client.resume(response_id, starting_after=after, stream_id="a")
            num_before = len(client.frames)
            await client.until_ended(stream_id="a", count=after + 2)
            [events] = turns(client.frames[num_before:], "a")
            assert events == whole[after + 1 :]
        client.resume(response_id, starting_after=len(whole) - 1)
        error = await client.until_shown("error")
        assert (error["status"], error["error"]["code"]) == (400, "nothing_to_resume")


async def test_what_cannot_be_resumed() -> None:
    gate = Gate()
    async with responding(scripted_backend(say(LONG), gate=gate), gate=gate) as rig:
        mine, other = rig.connect(caller="me"), rig.connect(caller="other")
        mine.create()
        response_id = await until_running(mine, gate)
        for number, (client, fields, status, code, param) in enumerate(
            [
                (other, {}, 404, "response_not_found", "response_id"),
                (mine, {"starting_after": 2}, 400, "invalid_request", "starting_after"),
                (mine, {"starting_after": 10**30}, 400, "invalid_request", "starting_after"),
            ]
        ):
            stream_id = f"stream_{number}"
            client.resume(response_id, stream_id=stream_id, **fields)
            error = await client.until_shown("error", stream_id=stream_id)
            told = (error["status"], error["error"]["code"], error["error"]["param"])
            assert told == (status, code, param)
        mine.resume(response_id, stream_id="b", starting_after=1)  # its newest
        gate.open()
        await mine.until_ended(stream_id="b")
        assert text_of(mine.frames, "b") == LONG


async def test_two_sockets_that_resume_one_response_both_get_it() -> None:
    gate = Gate()
    async with responding(scripted_backend(say("hello"), gate=gate), gate=gate) as rig:
        client = rig.connect()
        client.create()
        response_id = await until_running(client, gate)
        others = [rig.connect(resumes=query_resumes([response_id], [])) for _ in range(2)]
        for other in others:
            await other.until_shown("response.created")
        gate.open()
        for each in (client, *others):
            await each.until_ended()
            assert text_of(each.frames) == "hello"
            assert_valid_responses(each.frames)


async def test_a_failed_response_cannot_be_continued_after_a_resume() -> None:
    async with responding(scripted_backend(lambda _: [ValueError("broken")])) as rig:
        client = rig.connect()
        client.create(store=False)
        failed = await client.until_shown("response.failed")
        response_id = failed["response"]["id"]
        client.resume(response_id, starting_after=failed["sequence_number"])
        client.create(previous_response_id=response_id)
        await client.until_shown("error", count=2)
        assert endings(client.frames) == [
            "failed",
            "nothing_to_resume",
            "previous_response_not_found",
        ]


async def test_when_the_log_is_gone_nothing_can_be_resumed() -> None:
    async with responding(scripted_backend(say("hello")), retention_s=0) as rig:
        client = rig.connect()
        client.create()
        response_id = (await client.until_ended())["response"]["id"]
        await until(lambda: rig.service.registry.live.num_open == 0)
        client.resume(response_id)
        error = await client.until_shown("error")
        assert error["error"]["code"] == "response_not_found"


# The memory of all sockets


async def test_sockets_share_the_memory_of_their_caches() -> None:
    async with responding(scripted_backend(say("hello"))) as rig:
        memory = rig.service.registry.socket_memory
        clients = [rig.connect() for _ in range(3)]
        ids = []
        for client in clients:
            client.create(store=False)
            ids.append((await client.until_ended())["response"]["id"])
            if len(ids) == 1:
                memory._max_bytes = 2 * memory.num_kept_bytes
        assert memory.num_kept_bytes == memory._max_bytes
        clients[0].create(previous_response_id=ids[0])
        error = await clients[0].until_shown("error")
        assert error["error"]["code"] == "previous_response_not_found"
        clients[1].create(previous_response_id=ids[1])
        await clients[1].until_ended(count=2)
        for client in clients:
            await client.leave()
        assert memory.num_kept_bytes == 0


async def test_large_requests_of_all_sockets_are_limited_together() -> None:
    gate = Gate()
    backend = scripted_backend(say("hello"), gate=gate, max_model_len=10**6)
    async with responding(backend, gate=gate) as rig:
        memory = rig.service.registry.socket_memory
        memory._max_bytes = 2**20
        hog, other, small = rig.connect(), rig.connect(), rig.connect()
        hog.create(input="x" * 100_000)
        await until_running(hog, gate)
        other.create(input="x" * 100_000)
        error = await other.until_shown("error")
        assert error["error"]["code"] == "rate_limit_exceeded"
        assert "all connections" in error["error"]["message"]
        small.create()
        gate.open()
        await small.until_ended()
        await hog.until_ended()
        assert memory.num_request_bytes == 0
        other.create(input="x" * 100_000)
        await other.until_ended()
        hog.create(input="x" * 100_000, max_output_tokens=5)
        await hog.leave()
        await until(lambda: memory.num_request_bytes == 0)


# Slow clients


async def test_a_slow_client_gets_every_event_and_costs_one_chunk() -> None:
    async with responding(scripted_backend(say(LONG))) as rig:
        client = rig.connect(takes=3)
        client.create()
        created = await client.until_shown("response.created")
        log = rig.log_of(created["response"]["id"])
        await until(lambda: log.is_ended)
        for _ in range(20):
            await yield_to_loop()
        assert client.connection._core.num_unsent <= MAX_EVENTS_PER_READ
        client.hand.take_on()
        await client.until_ended()
        assert text_of(client.frames) == LONG
        assert_valid_responses(client.frames)


async def test_other_tasks_run_between_the_chunks_of_a_long_response() -> None:
    async with responding(scripted_backend(say(LONG * 3))) as rig:
        first = rig.connect()
        first.create()
        response_id = (await first.until_ended())["response"]["id"]
        client = rig.connect()
        client.resume(response_id)
        sizes = [0]
        while len(client.frames) < len(first.frames):
            await yield_to_loop()
            sizes.append(len(client.frames))
        assert max(after - before for before, after in pairwise(sizes)) == MAX_EVENTS_PER_READ


async def test_a_stalled_client_is_closed_by_policy_and_can_come_back() -> None:
    gate = Gate()
    backend = scripted_backend(say("hello"), gate=gate)
    limits: dict[str, Any] = {"stall_timeout_s": 0.05, "disconnect_grace_s": 1000}
    async with responding(backend, gate=gate, **limits) as rig:
        stalled = rig.connect(takes=2)
        stalled.create()
        gate.allow()
        await stalled.serving
        assert stalled.hand.close == (1008, "nothing was read for 0.05 s")
        response_id = stalled.frames[0]["response"]["id"]
        gate.open()
        back = rig.connect()
        back.resume(response_id, starting_after=1)
        await back.until_ended()
        assert_valid_responses([*stalled.frames, *back.frames])


# Errors of the server


class BrokenTokenizer(ByteTokenizer):
    def prepare_chat(self, prompt: ChatPrompt) -> EncodedPrompt:
        if prompt.messages[0].content == "broken":
            raise ZeroDivisionError("the tokenizer has a bug")
        return super().prepare_chat(prompt)


async def test_a_request_that_breaks_the_tokenizer_fails_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with responding(
        replace(scripted_backend(say("hello")), tokenizer=BrokenTokenizer())
    ) as rig:
        client = rig.connect()
        client.create(input="broken")
        error = await client.until_shown("error")
        assert error["error"]["code"] == "internal_error"
        assert "bug" not in error["error"]["message"]
        assert "the tokenizer has a bug" in caplog.text
        client.create()
        await client.until_ended()


# The end of the connection


async def test_an_idle_connection_is_closed_at_its_maximum_age() -> None:
    async with responding(scripted_backend(), max_connection_s=0.05) as rig:
        client = rig.connect(warns_of_expiry=True)
        await client.serving
        kinds = [frame["type"] for frame in client.frames]
        assert kinds == ["tokenwire:connection.expiring", "error"]
        assert client.frames[1]["error"]["code"] == "websocket_connection_limit_reached"
        assert client.hand.close == (1001, "the connection has reached its maximum age")
        assert_responses_conversation(client.frames, accepts_extensions=True)


async def test_a_running_response_may_end_on_an_expired_connection() -> None:
    gate = Gate()
    clock = ManualClock()
    async with responding(scripted_backend(say("hello"), gate=gate), gate=gate) as rig:
        client = rig.connect(clock=clock)
        client.create()
        client.create()
        await until_running(client, gate)
        clock.advance(rig.settings.max_connection_s)
        client.create("late")
        await client.until_shown("error", stream_id="late")
        gate.open()
        await client.serving
        assert client.hand.close == (1001, "the connection has reached its maximum age")
        reached = "websocket_connection_limit_reached"
        assert endings(client.frames, "late") == [reached]
        assert endings(client.frames) == ["completed", reached, reached]
        assert text_of(client.frames) == "hello"
        assert_valid_responses(client.frames)


async def test_a_response_that_outlives_its_connection_is_resumed_on_another() -> None:
    gate = Gate()
    clock = ManualClock()
    backend = scripted_backend(say(LONG), gate=gate)
    async with responding(backend, gate=gate, disconnect_grace_s=1000) as rig:
        client = rig.connect(clock=clock)
        client.create(store=False)
        gate.allow(3)
        await client.until_said("abc")
        clock.advance(rig.settings.max_connection_s + GRACE_S)
        client.hand.say(type="response.cancel", stream_id="nothing")  # and it checks its clock
        await client.serving
        assert client.hand.close == (1001, "the connection has reached its maximum age")
        assert endings(client.frames) == ["websocket_connection_limit_reached"]
        *events, _ = client.frames
        cursor = events[-1]["sequence_number"]
        response_id = events[0]["response"]["id"]
        back = rig.connect(resumes=query_resumes([response_id], [str(cursor)]))
        gate.open()
        await back.until_ended()
        assert text_of(events + back.frames) == LONG
        assert_valid_responses(events + back.frames)


async def test_drain_closes_when_the_last_response_has_ended() -> None:
    gate = Gate()
    async with responding(scripted_backend(say("hello"), gate=gate), gate=gate) as rig:
        idle, client = rig.connect(), rig.connect()
        client.create()
        client.create()
        await until_running(client, gate)
        rig.engine.is_shutting_down = True
        idle.connection.drain()
        client.connection.drain()
        await idle.serving
        assert (idle.frames, idle.hand.close) == ([], (1001, "the server is going away"))
        gate.open()
        await client.serving
        assert client.hand.close == (1001, "the server is going away")
        assert text_of(client.frames) == "hello"
        assert endings(client.frames) == ["completed", "shutting_down"]
        assert_valid_responses(client.frames)


async def test_a_cancelled_handler_leaves_nothing(caplog: pytest.LogCaptureFixture) -> None:
    gate = Gate()
    backend = scripted_backend(say(LONG), gate=gate)
    async with responding(backend, gate=gate, disconnect_grace_s=1000) as rig:
        client = rig.connect()
        client.create()
        log = rig.log_of(await until_running(client, gate))
        client.serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await client.serving
        rig.clients.remove(client)
        assert rig.engine._subscribers.in_grace == {log.generation_id}
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
