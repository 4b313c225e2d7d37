"""Responses over the scripted backend, without HTTP."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from app.errors import RequestRefused
from app.responses.response import AnyResponse, LiveResponse
from app.responses.schemas.request import ResponseRequest
from app.responses.service import ResponseService
from app.responses.storage.ballast import BALLAST_BYTES
from app.responses.storage.store import ResponseStore
from app.responses.storage.store_file import StoreFile
from app.responses.storage.store_status import StoreProblem, StoreTooNew
from streaming import AsyncEngine, Backend
from streaming.backends.scripted import Gate, repeat_prompt, say, scripted_backend
from streaming.errors import InvalidRequest, ModelNotFound, PromptTooLong
from tests.app.response_events import check_events
from tests.app.serving import until
from tests.support import Barrier, ManualClock, entered, running_engine


@asynccontextmanager
async def serving_responses(
    backend: Backend,
    *,
    directory: Path | None = None,
    gate: Barrier | None = None,
    retention_s: float = 100.0,
    retention_bytes: int = 2**26,
    max_disk_bytes: int = 2**26,
    max_unwritten: int = 1000,
    check_interval_s: float = 1000.0,
    clock: Callable[[], float] = time.monotonic,
) -> AsyncIterator[tuple[ResponseService, AsyncEngine]]:
    async with running_engine(backend, gate=gate) as engine:
        store = (
            None
            if directory is None
            else ResponseStore(StoreFile(directory), ttl_s=1000.0, max_bytes=max_disk_bytes)
        )
        service = ResponseService(
            engine,
            store,
            retention_s=retention_s,
            retention_bytes=retention_bytes,
            max_unwritten=max_unwritten,
            check_interval_s=check_interval_s,
            clock=clock,
        )
        try:
            await service.start()
            yield service, engine
        finally:
            if gate is not None:
                gate.open()
            await engine.aclose()
            await service.aclose()


def body(text: Any = "hi", **fields: Any) -> ResponseRequest:
    return ResponseRequest.model_validate({"input": text, **fields})


async def complete(service: ResponseService, *, caller: str = "me", **fields: Any) -> LiveResponse:
    """Create a response, follow it to its end, and wait until it has been kept."""
    parent = fields.pop("parent", None)
    response = await service.create(
        body(fields.pop("text", "hi"), **fields), caller=caller, parent=parent
    )
    with service.subscribe(response, on_wake=lambda: None):
        await service.wait_ended(response)
    await until(lambda: response not in service.registry._open.values())
    return response


async def text_of(service: ResponseService, response: AnyResponse) -> str:
    snapshot = await service.snapshot(response)
    [message] = snapshot["output"]
    text: str = message["content"][0]["text"]
    return text


async def refusal(coroutine: Any) -> str:
    with pytest.raises(RequestRefused) as refused:
        await coroutine
    return refused.value.info.code


# Making and following.


async def test_a_response_is_written_from_its_log():
    async with serving_responses(scripted_backend(say("hello"))) as (service, _):
        response = await complete(service)
        events = list(response.writer().events())
        assert check_events(events) == await service.snapshot(response)
    assert await text_of(service, response) == "hello"


async def test_a_response_ends_when_its_last_follower_leaves():
    gate = Gate()
    backend = scripted_backend(say("x" * 1000), gate=gate)
    async with serving_responses(backend, gate=gate) as (service, _):
        response = await service.create(body(), caller="me")
        with service.subscribe(response, on_wake=lambda: None):
            await entered(gate)
            with service.watch(response, on_wake=lambda: None):
                pass
        gate.open()
        await service.wait_ended(response)
        assert (await service.snapshot(response))["status"] == "cancelled"


async def test_a_background_response_goes_on_without_followers(tmp_path: Path):
    gate = Gate()
    backend = scripted_backend(say("hello"), gate=gate)
    async with serving_responses(backend, gate=gate, directory=tmp_path) as (service, _):
        response = await service.create(body(background=True), caller="me")
        with service.subscribe(response, on_wake=lambda: None):
            assert (await service.snapshot(response))["status"] == "queued"
        gate.open()
        await service.wait_ended(response)
        assert await text_of(service, response) == "hello"


async def test_a_long_log_is_read_for_a_snapshot_on_another_thread():
    gate = Gate()
    async with serving_responses(scripted_backend(say("x" * 200), gate=gate), gate=gate) as (
        service,
        _,
    ):
        response = await service.create(body(max_output_tokens=200), caller="me")
        with service.subscribe(response, on_wake=lambda: None):
            gate.allow(64)
            await until(lambda: response.generation.last_seq == 63)
            assert not response.is_snapshot_slow
            gate.allow()
            await until(lambda: response.generation.last_seq == 64)
            assert response.is_snapshot_slow
            assert await text_of(service, response) == "x" * 65
            assert not response.is_snapshot_slow, "it has been read"
            gate.open()
            await service.wait_ended(response)
            assert response.is_snapshot_slow
            assert await text_of(service, response) == "x" * 200
            assert not response.is_snapshot_slow


async def test_followers_are_told_of_news():
    gate = Gate()
    async with serving_responses(scripted_backend(say("ab"), gate=gate), gate=gate) as (service, _):
        response = await service.create(body(), caller="me")
        woken = asyncio.Event()
        writer = response.writer()
        with service.subscribe(response, on_wake=woken.set):
            events = list(writer.events())
            while not writer.is_done:
                gate.allow()
                await woken.wait()
                woken.clear()
                events += writer.events()
        check_events(events)
        with service.subscribe(response, on_wake=woken.set):
            assert list(response.writer(after=events[-1]["sequence_number"]).events()) == []


# Going on from another.


async def test_a_response_goes_on_from_an_earlier_one(tmp_path: Path):
    async with serving_responses(scripted_backend(repeat_prompt), directory=tmp_path) as (
        service,
        _,
    ):
        first = await complete(service, text="one", instructions="be nice")
        second = await complete(service, text="two", previous_response_id=first.response_id)
        assert await text_of(service, second) == (
            "user: one\nassistant: system: be nice\nuser: one\nassistant: \nuser: two\nassistant: "
        )
        assert [item["role"] for item in second.context.items] == ["user", "assistant", "user"]
        assert [item["content"][0]["text"] for item in second.context.own] == ["two"]


async def test_a_given_parent_is_taken_as_it_is():
    async with serving_responses(scripted_backend(repeat_prompt)) as (service, _):
        first = await complete(service, text="one", store=False)
        fields = {"text": "two", "previous_response_id": first.response_id}
        assert await refusal(complete(service, **fields)) == "previous_response_not_found"
        second = await complete(service, **fields, parent=first)
        assert len(second.context.items) == 3


async def test_an_open_response_cannot_be_gone_on_from():
    gate = Gate()
    async with serving_responses(scripted_backend(gate=gate), gate=gate) as (service, _):
        first = await service.create(body(background=True), caller="me")
        with pytest.raises(InvalidRequest, match="not ended"):
            await service.create(body(previous_response_id=first.response_id), caller="me")


async def test_items_are_named_instead_of_sent(tmp_path: Path):
    async with serving_responses(scripted_backend(repeat_prompt), directory=tmp_path) as (
        service,
        _,
    ):
        mine = {"role": "user", "content": "mine", "id": "my-own"}
        first = await complete(service, text=[mine, {"role": "user", "content": "two"}])
        names = [item["id"] for item in first.finish().conversation()][1:]
        items = [{"type": "item_reference", "id": name} for name in names]
        second = await complete(service, text=items)
        assert second.context.items == first.finish().conversation()[1:]
        by_my_own = [{"type": "item_reference", "id": "my-own"}]
        third = await complete(service, text=by_my_own, previous_response_id=first.response_id)
        assert third.context.items[-1] == third.context.items[0]
        for caller, item in (("me", by_my_own[0]), ("you", items[0])):
            with pytest.raises(InvalidRequest, match="no item") as refused:
                await service.create(body([item]), caller=caller)
            assert refused.value.param == "input[0].id"


async def test_items_of_an_open_response_cannot_be_named():
    gate = Gate()
    async with serving_responses(scripted_backend(gate=gate), gate=gate) as (service, _):
        first = await service.create(body(background=True), caller="me")
        item = {"type": "item_reference", "id": first.context.items[0]["id"]}
        with pytest.raises(InvalidRequest, match="no item"):
            await service.create(body([item]), caller="me")


async def test_deleting_the_first_does_not_break_the_second(tmp_path: Path):
    async with serving_responses(scripted_backend(repeat_prompt), directory=tmp_path) as (
        service,
        _,
    ):
        first = await complete(service, text="one")
        second = await complete(service, text="two", previous_response_id=first.response_id)
        await service.delete(first.response_id, caller="me")
        third = await complete(service, text="three", previous_response_id=second.response_id)
        assert len(third.context.items) == 5


async def test_a_warm_up_writes_nothing_and_can_be_gone_on_from():
    prompts: list[str] = []

    def script(sequence: Any) -> list[int]:
        prompts.append(bytes(sequence.prompt_ids).decode())
        return [ord("x")] * 3

    async with serving_responses(scripted_backend(script)) as (service, _):
        fields: dict[str, Any] = {"text": None, "instructions": "be nice", "generate": False}
        first = await complete(service, **fields, max_output_tokens=20)
        response = check_events(list(first.writer().events()))
        assert (response["status"], response["output"]) == ("completed", [])
        assert response["max_output_tokens"] == 20
        second = await complete(service, text="well", generate=False)
        third = await complete(service, previous_response_id=second.response_id)
        with pytest.raises(PromptTooLong):
            await service.create(body("x" * 5000, generate=False), caller="me")
    assert prompts == [
        "system: be nice\n",
        "user: well\n",
        "user: well\nuser: hi\nassistant: ",
    ]
    assert [each.generation.usage.completion_tokens for each in (first, second, third)] == [1, 1, 4]


@pytest.mark.parametrize("has_chat_template", [True, False])
async def test_a_warm_up_with_nothing_to_read_is_complete_at_once(has_chat_template: bool):
    """Without a template the prompt is refused, as a template that wants a user would do."""
    backend = scripted_backend(has_chat_template=has_chat_template)
    async with serving_responses(backend) as (service, engine):
        text = None if has_chat_template else "hi"
        response = await service.create(body(text, generate=False), caller="me")
        assert response.is_ended
        assert check_events(list(response.writer().events()))["status"] == "completed"
        assert engine.stats.num_running == engine.stats.num_waiting == 0
        with pytest.raises(ModelNotFound):
            await service.create(body(None, generate=False, model="other"), caller="me")


# What is refused.


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"background": True, "store": False}, "background"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_tool_calls": 0}, "max_tool_calls"),
        ({"temperature": 3}, "temperature"),
        ({"top_logprobs": 21, "include": ["message.output_text.logprobs"]}, "top_logprobs"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"top_logprobs": -1}, "top_logprobs"),
        ({"text": {"format": {"type": "json_object"}}}, "text.format"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "name": "f"}}, "tool_choice"),
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"stop": [""]}, "stop"),
        ({"timeout_s": -1}, "timeout_s"),
    ],
)
async def test_errors_name_the_field_of_this_dialect(fields: dict[str, Any], param: str):
    async with serving_responses(scripted_backend()) as (service, _):
        request = ResponseRequest.model_validate({"input": "hi", **fields})
        with pytest.raises(InvalidRequest) as refused:
            await service.create(request, caller="me")
        assert refused.value.param == param
        assert service.registry.num_open == 0


async def test_another_model_is_refused():
    async with serving_responses(scripted_backend()) as (service, _):
        with pytest.raises(ModelNotFound):
            await service.create(body(model="other"), caller="me")


async def test_what_does_not_fit_is_refused_or_left_out():
    async with serving_responses(scripted_backend(repeat_prompt, max_model_len=100)) as (
        service,
        _,
    ):
        turns = [{"role": "user", "content": f"{number}" * 30} for number in range(4)]
        with pytest.raises(PromptTooLong) as refused:
            await service.create(body(turns), caller="me")
        assert refused.value.param == "input"
        fields: dict[str, Any] = {"text": turns, "truncation": "auto", "instructions": "be nice"}
        response = await complete(service, **fields)
        assert (
            await text_of(service, response)
            == (f"system: be nice\nuser: {'3' * 30}\nassistant: "[:36])
        )
        assert len(response.context.items) == 4, "what is kept is whole"
        turns[-1]["content"] = "3" * 100
        with pytest.raises(PromptTooLong):
            await complete(service, **fields)


async def test_the_size_of_a_prompt_may_be_more_than_fits():
    async with serving_responses(scripted_backend(max_model_len=50)) as (service, _):
        assert await service.count_input_tokens(body("x" * 45), caller="me") == 63
        assert service.registry.num_open == 0


# Finding.


@pytest.mark.pain(16)
async def test_another_keys_response_is_as_unknown_as_none(tmp_path: Path):
    async with serving_responses(scripted_backend(), directory=tmp_path) as (service, _):
        response = await complete(service)
        for call in (service.find, service.cancel, service.delete):
            for response_id in (response.response_id, "resp_never"):
                code = await refusal(call(response_id, caller="you"))
                assert code == "response_not_found"
        fields = {"previous_response_id": response.response_id}
        code = await refusal(service.create(body(**fields), caller="you"))
        assert code == "previous_response_not_found"
        assert service.find_live(response.response_id, caller="you") is None
        assert await service.find(response.response_id, caller="me") is response


async def test_what_is_not_to_be_stored_is_found_for_resuming_only(tmp_path: Path):
    async with serving_responses(scripted_backend(), directory=tmp_path) as (service, _):
        response = await complete(service, store=False)
        assert await refusal(service.find(response.response_id, caller="me")) == (
            "response_not_found"
        )
        assert service.find_live(response.response_id, caller="me") is response
    async with serving_responses(scripted_backend(), directory=tmp_path) as (service, _):
        assert await refusal(service.find(response.response_id, caller="me")) == (
            "response_not_found"
        )


async def test_a_response_outlives_the_server(tmp_path: Path):
    async with serving_responses(scripted_backend(say("hello")), directory=tmp_path) as (
        service,
        _,
    ):
        response = await complete(service)
        snapshot = await service.snapshot(response)
    async with serving_responses(scripted_backend(repeat_prompt), directory=tmp_path) as (
        service,
        _,
    ):
        found = await service.find(response.response_id, caller="me")
        assert not isinstance(found, LiveResponse)
        assert await service.snapshot(found) == snapshot
        assert found.context == response.context
        assert await service.cancel(response.response_id, caller="me") == found
        second = await complete(service, previous_response_id=response.response_id)
        assert await text_of(service, second) == (
            "user: hi\nassistant: hello\nuser: hi\nassistant: "
        )


async def test_open_responses_are_kept_when_the_server_ends(tmp_path: Path):
    gate = Gate()
    backend = scripted_backend(say("hello"), gate=gate)
    async with serving_responses(backend, gate=gate, directory=tmp_path) as (service, _):
        response = await service.create(body(background=True), caller="me")
        await entered(gate)
    async with serving_responses(scripted_backend(), directory=tmp_path) as (service, _):
        snapshot = await service.snapshot(await service.find(response.response_id, caller="me"))
    assert snapshot["status"] in ("failed", "completed")


async def test_without_a_store_responses_are_in_memory_only():
    async with serving_responses(scripted_backend(), retention_s=1000) as (service, _):
        response = await complete(service)
        assert await service.find(response.response_id, caller="me") is response
        await service.delete(response.response_id, caller="me")
        assert await refusal(service.find(response.response_id, caller="me")) == (
            "response_not_found"
        )


# Ending.


async def test_cancelling_twice_is_the_same_as_once(tmp_path: Path):
    gate = Gate()
    backend = scripted_backend(say("x" * 1000), gate=gate)
    async with serving_responses(backend, gate=gate, directory=tmp_path) as (service, _):
        response = await service.create(body(background=True), caller="me")
        await entered(gate)
        async with asyncio.TaskGroup() as tasks:
            cancels = [
                tasks.create_task(service.cancel(response.response_id, caller="me"))
                for _ in range(2)
            ]
            await until(lambda: response.generation.num_subscribers > 2)
            gate.open()
        assert [task.result() for task in cancels] == [response, response]
        assert (await service.snapshot(response))["status"] == "cancelled"
        again = await service.cancel(response.response_id, caller="me")
        assert (await service.snapshot(again))["status"] == "cancelled"


async def test_only_a_background_response_can_be_cancelled_by_its_id():
    gate = Gate()
    async with serving_responses(scripted_backend(gate=gate), gate=gate) as (service, _):
        response = await service.create(body(), caller="me")
        with service.subscribe(response, on_wake=lambda: None):
            with pytest.raises(InvalidRequest, match="not a background response"):
                await service.cancel(response.response_id, caller="me")
            gate.open()
            await service.wait_ended(response)
        assert await service.cancel(response.response_id, caller="me") is response


async def test_deleting_an_open_response_ends_it_and_keeps_nothing(tmp_path: Path):
    gate = Gate()
    backend = scripted_backend(say("x" * 1000), gate=gate)
    async with serving_responses(backend, gate=gate, directory=tmp_path) as (service, _):
        response = await service.create(body(background=True), caller="me")
        await entered(gate)
        await service.delete(response.response_id, caller="me")
        gate.open()
        await service.wait_ended(response)
        await until(lambda: not service._keepers)
        assert await refusal(service.find(response.response_id, caller="me")) == (
            "response_not_found"
        )
        assert (service.registry.num_open, service.registry.num_ended) == (0, 0)


# A store that fails.


async def test_a_store_that_cannot_be_opened_is_done_without_until_it_can(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    (tmp_path / "file").write_text("in the way")
    async with serving_responses(
        scripted_backend(), directory=tmp_path / "file", check_interval_s=0.01
    ) as (service, _):
        response = await complete(service)
        assert await service.find(response.response_id, caller="me") is response
        assert (await service.snapshot(response))["store"] is False
        assert await refusal(service.find("resp_a", caller="me")) == "store_unavailable"
        assert service.store_problem is StoreProblem.CANNOT_OPEN
        (tmp_path / "file").unlink()
        await until(lambda: service.store_problem is None)
        response = await complete(service)
        assert (await service.snapshot(response))["store"] is True
        assert await refusal(service.find("resp_a", caller="me")) == "response_not_found"
    assert "in memory only" in caplog.text


async def test_a_store_of_a_newer_version_is_not_done_without(tmp_path: Path):
    with closing(sqlite3.connect(tmp_path / "responses.sqlite3")) as connection:
        connection.execute("PRAGMA user_version = 7")
    with pytest.raises(StoreTooNew, match="schema 7"):
        async with serving_responses(scripted_backend(), directory=tmp_path):
            pass


async def test_the_end_is_told_once_the_response_is_stored(tmp_path: Path):
    async with serving_responses(scripted_backend(say("hello")), directory=tmp_path) as (
        service,
        _,
    ):
        assert service._store is not None
        await service._store._file._writing.acquire()  # as if another write took long
        response = await service.create(body(), caller="me")
        writer, woken = response.writer(), asyncio.Event()
        with service.subscribe(response, on_wake=woken.set):
            await until(lambda: service._num_unwritten == 1)
            events = list(writer.events())
            assert events[-1]["type"] == "response.output_item.done", "all but the end is told"
            assert list(writer.events()) == []
            assert (await service.snapshot(response))["status"] == "in_progress"
            assert not response.is_ended
            with pytest.raises(InvalidRequest, match="not ended"):
                await service.create(body(previous_response_id=response.response_id), caller="me")
            service._store._file._writing.release()
            while not response.is_ended:
                await woken.wait()
                woken.clear()
        assert await service._store.find(response.response_id, caller="me") is not None
        events += writer.events()
        assert check_events(events) == await service.snapshot(response)
        assert events[-1]["response"]["store"] is True
        assert list(response.writer().events()) == events


async def test_what_is_not_to_be_stored_waits_for_no_disk(tmp_path: Path):
    async with serving_responses(scripted_backend(say("hello")), directory=tmp_path) as (
        service,
        _,
    ):
        assert service._store is not None
        async with service._store._file._writing:
            response = await complete(service, store=False)
            assert (await service.snapshot(response))["store"] is False


async def test_a_fault_of_our_own_while_writing_ends_the_response(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    async with serving_responses(scripted_backend(say("hello")), directory=tmp_path) as (
        service,
        _,
    ):
        response = await service.create(body(), caller="me")
        response.head.echo["metadata"]["broken"] = object()  # is no JSON
        with service.subscribe(response, on_wake=lambda: None):
            await service.wait_ended(response)
        assert (await service.snapshot(response))["store"] is False
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
        assert service.store_problem is None, "this response is refused, the store is well"
        events = list(response.writer().events())
        assert [event["response"]["store"] for event in events if "response" in event] == [
            True,
            True,
            False,
        ]
        assert check_events(events) == await service.snapshot(response)
        assert await service.find(response.response_id, caller="me") is response


async def test_only_so_many_responses_wait_for_a_slow_disk(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    async with serving_responses(scripted_backend(), directory=tmp_path, max_unwritten=2) as (
        service,
        _,
    ):
        assert service._store is not None
        async with service._store._file._writing:  # as if another write took long
            slow = [await service.create(body(background=True), caller="me") for _ in range(2)]
            await until(lambda: service._num_unwritten == 2)
            response = await complete(service)
        await until(lambda: not service._keepers)
        found = [await service._store.find(each.response_id, caller="me") for each in slow]
        assert all(found)
        assert await service._store.find(response.response_id, caller="me") is None
    assert f"{response.response_id} is in memory only: 2 others wait" in caplog.text


async def test_a_store_that_cannot_be_read_is_not_taken_for_an_empty_one(tmp_path: Path):
    async with serving_responses(scripted_backend(), directory=tmp_path) as (service, _):
        assert service._store is not None
        await service._store.aclose()
        assert await refusal(service.find("resp_a", caller="me")) == "store_unavailable"
        item = {"type": "item_reference", "id": f"msg_{'0' * 32}_0"}
        assert await refusal(service.create(body([item]), caller="me")) == "store_unavailable"
        response = await complete(service)
        assert await refusal(service.delete(response.response_id, caller="me")) == (
            "store_unavailable"
        )


# Many.


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
            with service.subscribe(response, on_wake=lambda: None):
                await service.wait_ended(response)
            if number % 20 == 0:
                check_events(list(response.writer().events()))
            return response

        responses: list[LiveResponse] = []
        for start in range(0, 300, 100):
            responses += await asyncio.gather(*map(one, range(start, start + 100)))
        await until(lambda: not service._keepers)
        assert service.registry.num_ended_bytes <= 10**5
        assert 0 < service.registry.num_ended < 300
        first, last = responses[0], responses[-1]
        assert await refusal(service.find(first.response_id, caller=first.caller)) == (
            "response_not_found"
        )
        assert await service.find(last.response_id, caller=last.caller)
        assert await refusal(service.find(last.response_id, caller=first.caller)) == (
            "response_not_found"
        )
    assert size_of(tmp_path) <= 2**19 + BALLAST_BYTES
    async with serving_responses(scripted_backend(), directory=tmp_path) as (service, _):
        found = await service.find(last.response_id, caller=last.caller)
        assert found.snapshot() == last.snapshot()


def size_of(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.iterdir())


async def test_a_response_that_is_still_being_taken_is_found() -> None:
    clock = ManualClock()
    async with serving_responses(scripted_backend(), retention_s=10.0, clock=clock) as (service, _):
        response = await complete(service)
        with service.subscribe(response, on_wake=lambda: None):
            clock.advance(100.0)
            assert service.find_live(response.response_id, caller="me") is response
        clock.advance(10.0)
        assert service.find_live(response.response_id, caller="me") is response
        clock.advance(0.1)
        assert service.find_live(response.response_id, caller="me") is None
