"""The registry of responses over the scripted backend, without HTTP."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from app.responses.response import LiveResponse
from app.responses.storage.ballast import BALLAST_BYTES
from app.responses.storage.store_status import StoreProblem, StoreTooNew
from streaming.backends.scripted import Gate, repeat_prompt, say, scripted_backend
from streaming.errors import InvalidRequest
from tests.app.response_events import check_events
from tests.app.responses.rig import body, complete, refusal, serving_responses, text_of
from tests.app.serving import until
from tests.support import ManualClock, entered

# Subscribe and read.


async def test_a_response_is_cancelled_when_its_last_subscriber_leaves():
    gate = Gate()
    backend = scripted_backend(say("x" * 1000), gate=gate)
    async with serving_responses(backend, gate=gate) as (service, _):
        response = await service.create(body(), caller="me")
        with service.registry.subscribe(response, on_wake=lambda: None):
            await entered(gate)
            with service.registry.observe(response, on_wake=lambda: None):
                pass
        gate.open()
        await service.registry.wait_ended(response)
        assert (await service.registry.snapshot(response))["status"] == "cancelled"


async def test_a_background_response_needs_no_subscribers(tmp_path: Path):
    gate = Gate()
    backend = scripted_backend(say("hello"), gate=gate)
    async with serving_responses(backend, gate=gate, directory=tmp_path) as (service, _):
        response = await service.create(body(background=True), caller="me")
        with service.registry.subscribe(response, on_wake=lambda: None):
            assert (await service.registry.snapshot(response))["status"] == "queued"
        gate.open()
        await service.registry.wait_ended(response)
        assert await text_of(service, response) == "hello"


async def test_a_snapshot_reads_a_long_log_on_another_thread():
    gate = Gate()
    async with serving_responses(scripted_backend(say("x" * 200), gate=gate), gate=gate) as (
        service,
        _,
    ):
        response = await service.create(body(max_output_tokens=200), caller="me")
        with service.registry.subscribe(response, on_wake=lambda: None):
            gate.allow(64)
            await until(lambda: response.generation.last_seq == 63)
            assert not response.is_snapshot_slow
            gate.allow()
            await until(lambda: response.generation.last_seq == 64)
            assert response.is_snapshot_slow
            assert await text_of(service, response) == "x" * 65
            assert not response.is_snapshot_slow, "it has been read"
            gate.open()
            await service.registry.wait_ended(response)
            assert response.is_snapshot_slow
            assert await text_of(service, response) == "x" * 200
            assert not response.is_snapshot_slow


async def test_subscribers_are_woken_by_new_events():
    gate = Gate()
    async with serving_responses(scripted_backend(say("ab"), gate=gate), gate=gate) as (service, _):
        response = await service.create(body(), caller="me")
        woken = asyncio.Event()
        writer = response.writer()
        with service.registry.subscribe(response, on_wake=woken.set):
            events = list(writer.events())
            while not writer.is_done:
                gate.allow()
                await woken.wait()
                woken.clear()
                events += writer.events()
        check_events(events)
        with service.registry.subscribe(response, on_wake=woken.set):
            assert list(response.writer(after=events[-1]["sequence_number"]).events()) == []


# Find.


@pytest.mark.pain(16)
async def test_another_callers_response_is_not_found(tmp_path: Path):
    async with serving_responses(scripted_backend(), directory=tmp_path) as (service, _):
        response = await complete(service)
        for call in (service.registry.find, service.registry.cancel, service.registry.delete):
            for response_id in (response.response_id, "resp_never"):
                code = await refusal(call(response_id, caller="you"))
                assert code == "response_not_found"
        fields = {"previous_response_id": response.response_id}
        code = await refusal(service.create(body(**fields), caller="you"))
        assert code == "previous_response_not_found"
        assert service.registry.find_live(response.response_id, caller="you") is None
        assert await service.registry.find(response.response_id, caller="me") is response


async def test_an_unstored_response_can_only_be_resumed(tmp_path: Path):
    async with serving_responses(scripted_backend(), directory=tmp_path) as (service, _):
        response = await complete(service, store=False)
        assert await refusal(service.registry.find(response.response_id, caller="me")) == (
            "response_not_found"
        )
        assert service.registry.find_live(response.response_id, caller="me") is response
    async with serving_responses(scripted_backend(), directory=tmp_path) as (service, _):
        assert await refusal(service.registry.find(response.response_id, caller="me")) == (
            "response_not_found"
        )


async def test_a_response_outlives_the_server(tmp_path: Path):
    async with serving_responses(scripted_backend(say("hello")), directory=tmp_path) as (
        service,
        _,
    ):
        response = await complete(service)
        snapshot = await service.registry.snapshot(response)
    async with serving_responses(scripted_backend(repeat_prompt), directory=tmp_path) as (
        service,
        _,
    ):
        found = await service.registry.find(response.response_id, caller="me")
        assert not isinstance(found, LiveResponse)
        assert await service.registry.snapshot(found) == snapshot
        assert found.context == response.context
        assert await service.registry.cancel(response.response_id, caller="me") == found
        second = await complete(service, previous_response_id=response.response_id)
        assert await text_of(service, second) == (
            "user: hi\nassistant: hello\nuser: hi\nassistant: "
        )


async def test_open_responses_are_stored_at_shutdown(tmp_path: Path):
    gate = Gate()
    backend = scripted_backend(say("hello"), gate=gate)
    async with serving_responses(backend, gate=gate, directory=tmp_path) as (service, _):
        response = await service.create(body(background=True), caller="me")
        await entered(gate)
    async with serving_responses(scripted_backend(), directory=tmp_path) as (service, _):
        snapshot = await service.registry.snapshot(
            await service.registry.find(response.response_id, caller="me")
        )
    assert snapshot["status"] in ("failed", "completed")


async def test_without_a_store_responses_are_in_memory_only():
    async with serving_responses(scripted_backend(), retention_s=1000) as (service, _):
        response = await complete(service)
        assert await service.registry.find(response.response_id, caller="me") is response
        await service.registry.delete(response.response_id, caller="me")
        assert await refusal(service.registry.find(response.response_id, caller="me")) == (
            "response_not_found"
        )


async def test_a_response_with_a_subscriber_does_not_expire() -> None:
    clock = ManualClock()
    async with serving_responses(scripted_backend(), retention_s=10.0, clock=clock) as (service, _):
        response = await complete(service)
        with service.registry.subscribe(response, on_wake=lambda: None):
            clock.advance(100.0)
            assert service.registry.find_live(response.response_id, caller="me") is response
        clock.advance(10.0)
        assert service.registry.find_live(response.response_id, caller="me") is response
        clock.advance(0.1)
        assert service.registry.find_live(response.response_id, caller="me") is None


# Cancel and delete.


async def test_cancelling_twice_is_the_same_as_once(tmp_path: Path):
    gate = Gate()
    backend = scripted_backend(say("x" * 1000), gate=gate)
    async with serving_responses(backend, gate=gate, directory=tmp_path) as (service, _):
        response = await service.create(body(background=True), caller="me")
        await entered(gate)
        async with asyncio.TaskGroup() as tasks:
            cancels = [
                tasks.create_task(service.registry.cancel(response.response_id, caller="me"))
                for _ in range(2)
            ]
            await until(lambda: response.generation.num_subscribers > 2)
            gate.open()
        assert [task.result() for task in cancels] == [response, response]
        assert (await service.registry.snapshot(response))["status"] == "cancelled"
        again = await service.registry.cancel(response.response_id, caller="me")
        assert (await service.registry.snapshot(again))["status"] == "cancelled"


async def test_only_a_background_response_can_be_cancelled_by_its_id():
    gate = Gate()
    async with serving_responses(scripted_backend(gate=gate), gate=gate) as (service, _):
        response = await service.create(body(), caller="me")
        with service.registry.subscribe(response, on_wake=lambda: None):
            with pytest.raises(InvalidRequest, match="not a background response"):
                await service.registry.cancel(response.response_id, caller="me")
            gate.open()
            await service.registry.wait_ended(response)
        assert await service.registry.cancel(response.response_id, caller="me") is response


async def test_deleting_an_open_response_cancels_it_and_stores_nothing(tmp_path: Path):
    gate = Gate()
    backend = scripted_backend(say("x" * 1000), gate=gate)
    async with serving_responses(backend, gate=gate, directory=tmp_path) as (service, _):
        response = await service.create(body(background=True), caller="me")
        await entered(gate)
        await service.registry.delete(response.response_id, caller="me")
        gate.open()
        await service.registry.wait_ended(response)
        await until(lambda: not service.registry._storing_tasks)
        assert await refusal(service.registry.find(response.response_id, caller="me")) == (
            "response_not_found"
        )
        assert (service.registry.live.num_open, service.registry.live.num_ended) == (0, 0)


# A store that fails.


async def test_responses_are_in_memory_until_the_store_can_be_opened(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    (tmp_path / "file").write_text("in the way")
    async with serving_responses(
        scripted_backend(), directory=tmp_path / "file", check_interval_s=0.01
    ) as (service, _):
        response = await complete(service)
        assert await service.registry.find(response.response_id, caller="me") is response
        assert (await service.registry.snapshot(response))["store"] is False
        assert await refusal(service.registry.find("resp_a", caller="me")) == "store_unavailable"
        assert service.registry.store_problem is StoreProblem.CANNOT_OPEN
        (tmp_path / "file").unlink()
        await until(lambda: service.registry.store_problem is None)
        response = await complete(service)
        assert (await service.registry.snapshot(response))["store"] is True
        assert await refusal(service.registry.find("resp_a", caller="me")) == "response_not_found"
    assert "in memory only" in caplog.text


async def test_a_store_of_a_newer_version_stops_the_start(tmp_path: Path):
    with closing(sqlite3.connect(tmp_path / "responses.sqlite3")) as connection:
        connection.execute("PRAGMA user_version = 7")
    with pytest.raises(StoreTooNew, match="schema 7"):
        async with serving_responses(scripted_backend(), directory=tmp_path):
            pass


async def test_the_terminal_event_waits_until_the_response_is_stored(tmp_path: Path):
    async with serving_responses(scripted_backend(say("hello")), directory=tmp_path) as (
        service,
        _,
    ):
        assert service.registry._store is not None
        await service.registry._store._file._writing.acquire()  # as if another write were slow
        response = await service.create(body(), caller="me")
        writer, woken = response.writer(), asyncio.Event()
        with service.registry.subscribe(response, on_wake=woken.set):
            await until(lambda: service.registry._num_unwritten == 1)
            events = list(writer.events())
            assert events[-1]["type"] == "response.output_item.done", "all but the terminal event"
            assert list(writer.events()) == []
            assert (await service.registry.snapshot(response))["status"] == "in_progress"
            assert not response.is_ended
            with pytest.raises(InvalidRequest, match="not ended"):
                await service.create(body(previous_response_id=response.response_id), caller="me")
            service.registry._store._file._writing.release()
            while not response.is_ended:
                await woken.wait()
                woken.clear()
        assert await service.registry._store.find(response.response_id, caller="me") is not None
        events += writer.events()
        assert check_events(events) == await service.registry.snapshot(response)
        assert events[-1]["response"]["store"] is True
        assert list(response.writer().events()) == events


async def test_an_unstored_response_does_not_wait_for_the_disk(tmp_path: Path):
    async with serving_responses(scripted_backend(say("hello")), directory=tmp_path) as (
        service,
        _,
    ):
        assert service.registry._store is not None
        async with service.registry._store._file._writing:
            response = await complete(service, store=False)
            assert (await service.registry.snapshot(response))["store"] is False


async def test_a_bug_during_the_write_still_ends_the_response(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    async with serving_responses(scripted_backend(say("hello")), directory=tmp_path) as (
        service,
        _,
    ):
        response = await service.create(body(), caller="me")
        response.head.echo["metadata"]["broken"] = object()  # is no JSON
        with service.registry.subscribe(response, on_wake=lambda: None):
            await service.registry.wait_ended(response)
        assert (await service.registry.snapshot(response))["store"] is False
    assert "could not be stored" in caplog.text


async def test_a_response_that_cannot_be_written_is_in_memory_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    async with serving_responses(
        scripted_backend(say("hello")), directory=tmp_path, max_disk_bytes=100
    ) as (service, _):
        with caplog.at_level(logging.WARNING):
            response = await complete(service)
        assert await text_of(service, response) == "hello"
        assert f"{response.response_id} is in memory only" in caplog.text
        assert service.registry.store_problem is None, "only this response is refused"
        events = list(response.writer().events())
        assert [event["response"]["store"] for event in events if "response" in event] == [
            True,
            True,
            False,
        ]
        assert check_events(events) == await service.registry.snapshot(response)
        assert await service.registry.find(response.response_id, caller="me") is response


async def test_the_number_of_responses_that_wait_for_a_slow_disk_is_limited(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    async with serving_responses(scripted_backend(), directory=tmp_path, max_unwritten=2) as (
        service,
        _,
    ):
        assert service.registry._store is not None
        async with service.registry._store._file._writing:  # as if another write were slow
            slow = [await service.create(body(background=True), caller="me") for _ in range(2)]
            await until(lambda: service.registry._num_unwritten == 2)
            response = await complete(service)
        await until(lambda: not service.registry._storing_tasks)
        found = [await service.registry._store.find(each.response_id, caller="me") for each in slow]
        assert all(found)
        assert await service.registry._store.find(response.response_id, caller="me") is None
    assert f"{response.response_id} is in memory only: 2 other responses wait" in caplog.text


async def test_an_unreadable_store_is_an_error_and_not_an_empty_store(tmp_path: Path):
    async with serving_responses(scripted_backend(), directory=tmp_path) as (service, _):
        assert service.registry._store is not None
        await service.registry._store.aclose()
        assert await refusal(service.registry.find("resp_a", caller="me")) == "store_unavailable"
        item = {"type": "item_reference", "id": f"msg_{'0' * 32}_0"}
        assert await refusal(service.create(body([item]), caller="me")) == "store_unavailable"
        response = await complete(service)
        assert await refusal(service.registry.delete(response.response_id, caller="me")) == (
            "store_unavailable"
        )


# Many responses.


@pytest.mark.pain(16)
@pytest.mark.slow
async def test_hundreds_of_responses_stay_within_their_limits(tmp_path: Path):
    async with serving_responses(
        scripted_backend(say("x" * 20), max_num_seqs=64),
        directory=tmp_path,
        retention_bytes=10**5,
        max_disk_bytes=2**19,
    ) as (service, _):

        async def one(number: int) -> LiveResponse:
            caller = "me" if number % 2 else "you"
            response = await service.create(body("y" * 3000), caller=caller)
            with service.registry.subscribe(response, on_wake=lambda: None):
                await service.registry.wait_ended(response)
            if number % 20 == 0:
                check_events(list(response.writer().events()))
            return response

        responses: list[LiveResponse] = []
        for start in range(0, 300, 100):
            responses += await asyncio.gather(*map(one, range(start, start + 100)))
        await until(lambda: not service.registry._storing_tasks)
        assert service.registry.live.num_ended_bytes <= 10**5
        assert 0 < service.registry.live.num_ended < 300
        first, last = responses[0], responses[-1]
        assert await refusal(service.registry.find(first.response_id, caller=first.caller)) == (
            "response_not_found"
        )
        assert await service.registry.find(last.response_id, caller=last.caller)
        assert await refusal(service.registry.find(last.response_id, caller=first.caller)) == (
            "response_not_found"
        )
    assert size_of(tmp_path) <= 2**19 + BALLAST_BYTES
    async with serving_responses(scripted_backend(), directory=tmp_path) as (service, _):
        found = await service.registry.find(last.response_id, caller=last.caller)
        assert found.snapshot() == last.snapshot()


def size_of(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.iterdir())
