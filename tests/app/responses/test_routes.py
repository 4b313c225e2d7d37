"""`/v1/responses` over HTTP, against the scripted backend."""

from __future__ import annotations

import asyncio
import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.routing import iter_route_contexts
from openresponses_types import CompactResource

from app.responses.routes import EXAMPLES
from app.responses.schemas.request import ResponseRequest
from streaming.backends.scripted import (
    ByteTokenizer,
    Gate,
    repeat_prompt,
    say,
    scripted_backend,
)
from tests.app.response_events import TERMINAL, check_events, check_response
from tests.app.responses.logs import call
from tests.app.serving import Call, client, client_of, serving, until
from tests.support import entered

PATH = "/v1/responses"
TOOL = {"type": "function", "name": "f", "parameters": {"type": "object"}}
ASK = {"input": "hi", "stream": True}

Event = dict[str, Any]


def events_of(text: str) -> list[Event]:
    """Return the events of a whole stream, whose names are their types."""
    *blocks, done = [
        block for block in text.removesuffix("\n\n").split("\n\n") if not block.startswith(":")
    ]
    assert done == "data: [DONE]"
    events = []
    for block in blocks:
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        events.append(event)
    return events


async def create(calling: httpx.AsyncClient, **body: Any) -> Event:
    response = await calling.post(PATH, json={"input": "hi", **body})
    assert response.status_code == 200, response.text
    return check_response(response.json())


async def get(calling: httpx.AsyncClient, path: str, **query: Any) -> Event:
    response = await calling.get(f"{PATH}/{path}", params=query)
    assert response.status_code == 200, response.text
    answer: Event = response.json()
    return answer


async def stream(calling: httpx.AsyncClient, path: str, **query: Any) -> list[Event]:
    response = await calling.get(f"{PATH}/{path}", params={"stream": True, **query})
    assert response.status_code == 200, response.text
    return events_of(response.text)


def error_of(response: httpx.Response) -> tuple[int, str, str | None]:
    error = response.json()["error"]
    return response.status_code, error["code"], error["param"]


def text_of(response: Event) -> str:
    [message] = (item for item in response["output"] if item["type"] == "message")
    text: str = message["content"][0]["text"]
    return text


# The whole answer.


async def test_the_answer_has_the_form_of_the_dialect():
    async with client_of(scripted_backend(say("hello"))) as calling:
        response = await create(calling, model="scripted", metadata={"a": "b"})
    response_id = response.pop("id")
    assert response_id.startswith("resp_")
    assert response.pop("completed_at") >= response.pop("created_at") > 1_600_000_000
    message_id = f"msg_{response_id.removeprefix('resp_')}_0"
    part = {"type": "output_text", "text": "hello", "annotations": [], "logprobs": []}
    assert response == {
        "object": "response",
        "status": "completed",
        "incomplete_details": None,
        "model": "scripted",
        "output": [
            {
                "id": message_id,
                "type": "message",
                "status": "completed",
                "role": "assistant",
                "content": [part],
            }
        ],
        "error": None,
        "usage": {
            "input_tokens": len("user: hi\nassistant: "),
            "output_tokens": 6,
            "total_tokens": len("user: hi\nassistant: ") + 6,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens_details": {"reasoning_tokens": 0},
        },
        **ResponseRequest(metadata={"a": "b"}).echo(),
    }


@pytest.mark.parametrize("example", EXAMPLES.values(), ids=EXAMPLES.keys())
async def test_examples_of_the_docs_page_work(example: dict[str, Any]):
    async with client_of(scripted_backend()) as calling:
        response = await calling.post(PATH, json=example["value"])
    assert response.status_code == 200, response.text


async def test_an_answer_at_its_limit_is_incomplete():
    async with client_of(scripted_backend(say("hello"))) as calling:
        response = await create(calling, max_output_tokens=2)
    assert (response["status"], text_of(response)) == ("incomplete", "he")
    assert response["output"][0]["status"] == "incomplete"


async def test_a_failed_generation_is_an_http_error():
    async with client_of(scripted_backend(lambda _: [RuntimeError("secret")])) as calling:
        response = await calling.post(PATH, json={"input": "hi"})
    assert error_of(response) == (500, "engine_error", None)
    assert "secret" not in response.text


async def test_log_probabilities_are_returned_on_request():
    async with client_of(scripted_backend(say("aé"))) as calling:
        response = await create(
            calling, include=["message.output_text.logprobs"], top_logprobs=1, max_output_tokens=3
        )
        without = await create(calling, top_logprobs=1)
    logprobs = response["output"][0]["content"][0]["logprobs"]
    assert [(each["bytes"], each["logprob"]) for each in logprobs] == [
        ([0x61], -0.5),
        ([0xC3], -0.5),
        ([0xA9], -0.5),
    ]
    assert [len(each["top_logprobs"]) for each in logprobs] == [1, 1, 1]
    assert without["output"][0]["content"][0]["logprobs"] == []


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "input[0].content[0]",
        ),
        ({"tools": [{"type": "web_search"}]}, "tools[0]"),
    ],
)
async def test_content_other_than_text_is_refused(body: Event, error: str):
    async with client_of(scripted_backend()) as calling:
        response = await calling.post(PATH, json=body)
    assert error_of(response) == (400, "unsupported_content", error)


@pytest.mark.pain(13)
@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({}, (422, "invalid_request", "input")),
        ({"input": "a", "conversation": "c"}, (422, "invalid_request", "conversation")),
        ({"input": "a", "model": "other"}, (404, "model_not_found", "model")),
        ({"input": "a" * 5000}, (413, "prompt_too_long", "input")),
        ({"input": [], "tools": [TOOL, TOOL]}, (422, "invalid_request", "input")),
        ({"input": "a", "tools": [TOOL, TOOL]}, (422, "invalid_request", "tools")),
        (
            {"input": "a", "previous_response_id": "resp_x"},
            (400, "previous_response_not_found", "previous_response_id"),
        ),
        (
            {"input": [{"type": "function_call_output", "call_id": "c", "output": ""}]},
            (422, "invalid_request", "input[0].call_id"),
        ),
    ],
)
@pytest.mark.parametrize("streams", [True, False])
async def test_invalid_requests_are_refused_before_the_stream_starts(
    body: Event, error: tuple[int, str, str], streams: bool
):
    async with client_of(scripted_backend()) as calling:
        response = await calling.post(PATH, json={**body, "stream": streams})
    assert error_of(response) == error


# The stream.


@pytest.mark.parametrize(
    ("script", "fields", "kinds", "status"),
    [
        ("hello", {}, ["message"], "completed"),
        ("", {}, ["message"], "completed"),
        ("hello", {"max_output_tokens": 2}, ["message"], "incomplete"),
        ("hello", {"stop": "l"}, ["message"], "completed"),
        (call("f", '{"a": 1}'), {"tools": [TOOL]}, ["function_call"], "completed"),
        (
            f"so\n{call('f', '{}')}\n{call('f', '{}')}",
            {"tools": [TOOL]},
            ["message", "function_call", "function_call"],
            "completed",
        ),
        (call("f", '{"a": 1}'), {"tools": [TOOL], "tool_choice": "none"}, ["message"], "completed"),
        ("<think>hm</think>hello", {}, ["reasoning", "message"], "completed"),
        ("<think>hm", {"max_output_tokens": 9}, ["reasoning"], "incomplete"),
        (
            f"<think>hm</think>\n{call('f', '{}')}",
            {"tools": [TOOL]},
            ["reasoning", "function_call"],
            "completed",
        ),
        ("hello", {"include": ["message.output_text.logprobs"]}, ["message"], "completed"),
    ],
)
async def test_a_stream_ends_with_the_response(
    script: str, fields: Event, kinds: list[str], status: str
):
    async with client_of(scripted_backend(say(script), reasons=True)) as calling:
        answer = await calling.post(PATH, json={**ASK, **fields})
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        events = events_of(answer.text)
        response = check_events(events)
        assert response == await get(calling, response["id"])
        for after in range(-1, len(events) + 1):
            rest = await stream(calling, response["id"], starting_after=after)
            assert rest == events[after + 1 :]
    assert [item["type"] for item in response["output"]] == kinds
    assert response["status"] == status


async def test_a_failure_ends_the_stream():
    def script(_: object) -> Any:
        yield ord("a")
        yield RuntimeError("secret")

    async with client_of(scripted_backend(script)) as calling:
        answer = await calling.post(PATH, json=ASK)
        response = check_events(events_of(answer.text))
        assert response == await get(calling, response["id"])
    assert response["status"] == "failed"
    assert response["error"]["code"] == "server_error"
    assert text_of(response) == "a"
    assert "secret" not in answer.text


async def test_a_stream_comes_token_by_token():
    gate = Gate()
    async with serving(scripted_backend(say("abc"), gate=gate), gate=gate) as (app, _):
        calling = Call(app, PATH, ASK)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(calling())
            await calling.until_shown(b"response.in_progress")
            for seen in (b'"delta": "a"', b'"delta": "b"', b'"delta": "c"'):
                assert seen not in calling.body
                gate.allow()
                await calling.until_shown(seen)
            gate.open()
    assert text_of(check_events(events_of(calling.body.decode()))) == "abc"


async def test_a_silent_stream_is_kept_alive():
    gate = Gate()
    backend = scripted_backend(say("a"), gate=gate)
    async with serving(backend, gate=gate, sse_keep_alive_s=0.01) as (app, _):
        calling = Call(app, PATH, ASK)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(calling())
            await calling.until_shown(b": ping\n\n: ping\n\n")
            gate.open()
    assert text_of(check_events(events_of(calling.body.decode()))) == "a"


async def test_a_stream_that_waits_for_its_turn_is_kept_alive():
    gate = Gate()
    backend = scripted_backend(say("a"), gate=gate, max_num_seqs=1)
    async with serving(backend, gate=gate, sse_keep_alive_s=0.01) as (app, engine):
        first, waiting = Call(app, PATH, ASK), Call(app, PATH, ASK)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(first())
            await entered(gate)
            tasks.create_task(waiting())
            await waiting.until_shown(b": ping\n\n: ping\n\n")
            assert engine.stats.num_waiting == 1
            gate.open()
    assert text_of(check_events(events_of(waiting.body.decode()))) == "a"


class ThreadRecordingTokenizer(ByteTokenizer):
    """Records on which threads tokens are decoded."""

    def __init__(self) -> None:
        super().__init__()
        self.on_main_thread: set[bool] = set()

    def token_text(self, token_id: int) -> str:
        self.on_main_thread.add(threading.current_thread() is threading.main_thread())
        return super().token_text(token_id)


async def test_events_before_the_cursor_are_skipped_on_another_thread():
    tokenizer = ThreadRecordingTokenizer()
    backend = replace(scripted_backend(say("hello" * 100)), tokenizer=tokenizer)
    async with serving(backend) as (app, _), client(app) as calling:
        response = await create(
            calling, max_output_tokens=400, include=["message.output_text.logprobs"]
        )
        whole = await stream(calling, response["id"])
        assert tokenizer.on_main_thread == {True, False}
        tokenizer.on_main_thread.clear()
        after = len(whole) - 3
        assert await stream(calling, response["id"], starting_after=after) == whole[after + 1 :]
        assert tokenizer.on_main_thread == {False}
        assert await get(calling, response["id"]) == response
        assert tokenizer.on_main_thread == {False}


async def test_the_setting_selects_the_event_types_of_reasoning():
    backend = scripted_backend(say("<think>hm</think>a"), reasons=True)
    async with client_of(backend, reasoning_events="open_responses") as calling:
        events = events_of((await calling.post(PATH, json=ASK)).text)
    check_events(events)
    assert "response.reasoning.delta" in [event["type"] for event in events]


# Disconnects.


@pytest.mark.parametrize("streams", [True, False])
async def test_a_response_is_cancelled_when_its_client_disconnects(streams: bool):
    gate = Gate()
    async with (
        serving(scripted_backend(say("x" * 1000), gate=gate), gate=gate) as (app, _),
        client(app) as calling,
    ):
        asking = Call(app, PATH, {"input": "hi", "stream": streams})
        task = asyncio.create_task(asking())
        await entered(gate)
        asking.leave()
        await asyncio.gather(task, return_exceptions=True)
        gate.open()
        registry = app.state.services.responses.registry.live
        await until(lambda: not registry.num_open)
        [response_id] = registry._ended
        response = check_response(await get(calling, response_id))
    assert response["status"] == "cancelled"
    assert response["usage"]["output_tokens"] < 1000


async def test_a_background_response_outlives_its_client():
    gate = Gate()
    async with (
        serving(scripted_backend(say("hello"), gate=gate), gate=gate) as (app, _),
        client(app) as calling,
    ):
        asking = Call(app, PATH, {**ASK, "background": True})
        task = asyncio.create_task(asking())
        await asking.until_shown(b"response.queued")
        asking.leave()
        await task
        [response_id] = app.state.services.responses.registry.live._open
        response = await get(calling, response_id)
        assert response["status"] in ("queued", "in_progress")
        gate.open()
        events = await stream(calling, response_id)
        assert check_events(events) == await get(calling, response_id)
    assert [event["type"] for event in events[:3]] == [
        "response.created",
        "response.queued",
        "response.in_progress",
    ]
    assert text_of(events[-1]["response"]) == "hello"


async def test_a_background_response_is_retrieved_and_streamed():
    gate = Gate()
    async with (
        serving(scripted_backend(say("hello"), gate=gate), gate=gate) as (app, _),
        client(app) as calling,
    ):
        response = await create(calling, background=True)
        assert (response["status"], response["background"]) == ("queued", True)
        path = f"{PATH}/{response['id']}"
        async with asyncio.TaskGroup() as tasks:
            readers = [
                tasks.create_task(
                    calling.get(path, params={"stream": True, "starting_after": after})
                )
                for after in (-1, 0, 1, 5)
            ]
            await entered(gate)
            gate.open()
        whole, *rests = [events_of(reader.result().text) for reader in readers]
    check_events(whole)
    assert rests == [whole[after + 1 :] for after in (0, 1, 5)]


async def test_cancelling_a_background_response_ends_it():
    gate = Gate()
    async with (
        serving(scripted_backend(say("x" * 1000), gate=gate), gate=gate) as (app, _),
        client(app) as calling,
    ):
        response_id = (await create(calling, background=True))["id"]
        async with asyncio.TaskGroup() as tasks:
            path = f"{PATH}/{response_id}"
            reader = tasks.create_task(calling.get(path, params={"stream": True}))
            await entered(gate)
            gate.allow(3)
            cancel = tasks.create_task(calling.post(f"{path}/cancel"))
            await until(
                lambda: not app.state.services.engine._thread._inbox.empty() or cancel.done()
            )
            gate.open()
        cancelled = check_response(cancel.result().json())
        assert cancelled["status"] == "cancelled"
        events = events_of(reader.result().text)
        assert check_events(events) == cancelled
        assert events[-1]["type"] == "response.incomplete"
        again = await calling.post(f"{path}/cancel")
        assert again.json() == cancelled


# Later.


@pytest.mark.slow
async def test_a_conversation_continues_after_a_restart(tmp_path: Path):
    settings: dict[str, Any] = {"data_dir": str(tmp_path)}
    script = "calling\n" + call("f", "{}")
    async with client_of(scripted_backend(say(script)), **settings) as calling:
        first = await create(calling, tools=[TOOL], instructions="be nice")
    output = {
        "type": "function_call_output",
        "call_id": first["output"][1]["call_id"],
        "output": "42",
    }
    async with client_of(scripted_backend(repeat_prompt), **settings) as calling:
        second = await create(calling, input=[output], previous_response_id=first["id"])
    assert second["previous_response_id"] == first["id"]
    assert second["instructions"] is None
    assert text_of(second) == f"user: hi\nassistant: {script}\ntool: 42\nassistant: "


async def test_calls_are_answered_by_their_ids():
    calls = "\n".join(call("f", arguments) for arguments in ('{"a": 1}', '{"a": 2}'))
    seen: list[str] = []

    def script(sequence: Any) -> bytes:
        seen.append(bytes(sequence.prompt_ids).decode())
        return (calls if len(seen) == 1 else "done").encode()

    async with client_of(scripted_backend(script)) as calling:
        first = await create(calling, tools=[TOOL])
        outputs = [
            {"type": "function_call_output", "call_id": item["call_id"], "output": str(number)}
            for number, item in enumerate(first["output"])
        ]
        fields = {"tools": [TOOL], "input": outputs}
        second = await create(calling, **fields, previous_response_id=first["id"])
        whole = [{"role": "user", "content": "hi"}, *first["output"], *outputs]
        third = await create(calling, tools=[TOOL], input=whole)
    assert text_of(second) == text_of(third) == "done"
    assert seen[1] == seen[2]
    assert seen[1].endswith("tool: 0\ntool: 1\nassistant: ")


async def test_an_old_response_can_be_retrieved_but_not_streamed(tmp_path: Path):
    async with (
        serving(scripted_backend(), data_dir=str(tmp_path), retention_s=0) as (app, _),
        client(app) as calling,
    ):
        response = await create(calling)
        await until(lambda: not app.state.services.responses.registry.live.num_open)
        assert await get(calling, response["id"]) == response
        refused = await calling.get(f"{PATH}/{response['id']}", params={"stream": True})
    assert error_of(refused) == (400, "stream_expired", "stream")


async def test_a_cursor_past_the_end_gets_no_events():
    async with client_of(scripted_backend(say("a"))) as calling:
        events = events_of((await calling.post(PATH, json=ASK)).text)
        response_id = events[0]["response"]["id"]
        for after in (events[-1]["sequence_number"], 10**6):
            assert await stream(calling, response_id, starting_after=after) == []


async def test_an_unstored_response_cannot_be_retrieved():
    async with client_of(scripted_backend()) as calling:
        response = await create(calling, store=False)
        assert response["store"] is False
        for query in ({}, {"stream": True}):
            fetched = await calling.get(f"{PATH}/{response['id']}", params=query)
            assert error_of(fetched) == (404, "response_not_found", "response_id")


async def test_a_deleted_response_is_gone(tmp_path: Path):
    async with client_of(scripted_backend(), data_dir=str(tmp_path)) as calling:
        response_id = (await create(calling))["id"]
        deleted = await calling.delete(f"{PATH}/{response_id}")
        assert deleted.json() == {"id": response_id, "object": "response", "deleted": True}
        for method in ("GET", "DELETE"):
            again = await calling.request(method, f"{PATH}/{response_id}")
            assert error_of(again) == (404, "response_not_found", "response_id")


@pytest.mark.pain(16)
async def test_another_callers_response_is_not_found():
    keys = ("one", "two")
    async with (
        serving(scripted_backend(), api_keys=keys) as (app, _),
        client(app) as calling,
    ):
        mine, other = ({"authorization": f"Bearer {key}"} for key in keys)
        created = await calling.post(PATH, json={"input": "hi"}, headers=mine)
        response_id, unknown_id = created.json()["id"], "resp_unknown"
        for method, end in (
            ("GET", ""),
            ("GET", "?stream=true"),
            ("GET", "/input_items"),
            ("POST", "/cancel"),
            ("DELETE", ""),
        ):
            answers = [
                await calling.request(method, f"{PATH}/{each}{end}", headers=other)
                for each in (response_id, unknown_id)
            ]
            assert [answer.status_code for answer in answers] == [404, 404]
            theirs, none = (answer.text for answer in answers)
            assert theirs.replace(response_id, unknown_id) == none
        body = {"input": "hi", "previous_response_id": response_id}
        refused = await calling.post(PATH, json=body, headers=other)
        assert error_of(refused)[1] == "previous_response_not_found"
        assert (await calling.get(f"{PATH}/{response_id}", headers=mine)).status_code == 200


@pytest.mark.pain(16)
async def test_no_list_shows_what_was_made():
    """Checks every route that needs no id, as the owner and as another caller."""
    gate = Gate()
    keys = [{"authorization": f"Bearer {key}"} for key in ("one", "two")]
    async with (
        serving(scripted_backend(gate=gate), gate=gate, api_keys=("one", "two")) as (app, _),
        client(app) as calling,
    ):
        body = {"input": "hi", "background": True}
        created = (await calling.post(PATH, json=body, headers=keys[0])).json()
        name = created["id"].rpartition("_")[2]
        assert len(name) >= 32
        paths = {str(route.path) for route in iter_route_contexts(app.routes)}
        for path in sorted(path for path in paths if "{" not in path):
            for headers in keys:
                answer = await calling.get(path, headers=headers)
                assert name not in answer.text, path
        fetched = await calling.get(f"{PATH}/{created['id']}", headers=keys[0])
        assert name in fetched.text


async def test_input_items_are_listed_in_pages():
    items = [{"role": "user", "content": str(number)} for number in range(5)]
    async with client_of(scripted_backend()) as calling:
        path = f"{(await create(calling, input=items))['id']}/input_items"
        newest = await get(calling, path, limit=2)
        assert [item["content"][0]["text"] for item in newest["data"]] == ["4", "3"]
        assert (newest["object"], newest["has_more"]) == ("list", True)
        assert (newest["first_id"], newest["last_id"]) == tuple(
            item["id"] for item in newest["data"]
        )
        rest = await get(calling, path, after=newest["last_id"])
        assert [item["content"][0]["text"] for item in rest["data"]] == ["2", "1", "0"]
        assert rest["has_more"] is False
        oldest = await get(calling, path, order="asc", limit=1)
        assert oldest["data"][0]["content"][0]["text"] == "0"
        last = await get(calling, path, after=rest["last_id"])
        assert last == {
            "object": "list",
            "data": [],
            "first_id": None,
            "last_id": None,
            "has_more": False,
        }


async def test_pages_of_input_items_end_if_an_id_is_used_twice():
    items = [{"role": "user", "content": str(number), "id": "msg_a"} for number in range(3)]
    async with client_of(scripted_backend()) as calling:
        path = f"{(await create(calling, input=items))['id']}/input_items"
        first = await get(calling, path, limit=1)
        assert (await get(calling, path, limit=1, after=first["last_id"]))["data"] == []


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("?stream=maybe", "stream"),
        ("?starting_after=1", "starting_after"),
        ("?stream=true&starting_after=-2", "starting_after"),
        ("?stream=true&starting_after=x", "starting_after"),
        ("/input_items?limit=0", "limit"),
        ("/input_items?limit=101", "limit"),
        ("/input_items?order=up", "order"),
        ("/input_items?after=nothing", "after"),
    ],
)
async def test_an_invalid_query_is_refused_with_its_name(query: str, param: str):
    async with client_of(scripted_backend()) as calling:
        response_id = (await create(calling))["id"]
        refused = await calling.get(f"{PATH}/{response_id}{query}")
    assert error_of(refused) == (422, "invalid_request", param)


async def test_input_tokens_are_counted():
    async with client_of(scripted_backend(max_model_len=120)) as calling:
        body = {"input": "x" * 100, "instructions": "be nice"}
        answer = await calling.post(f"{PATH}/input_tokens", json=body)
        assert answer.json() == {
            "object": "response.input_tokens",
            "input_tokens": len(f"system: be nice\nuser: {'x' * 100}\nassistant: "),
        }
        refused = await calling.post(f"{PATH}/input_tokens", json={})
        assert error_of(refused) == (422, "invalid_request", "input")


async def test_a_compacted_conversation_continues_from_its_summary():
    async with client_of(scripted_backend(say("ho", "They said hi."))) as calling:
        first = await create(calling)
        body = {"previous_response_id": first["id"], "input": "well"}
        compacted = (await calling.post(f"{PATH}/compact", json=body)).json()
        CompactResource.model_validate(compacted)
        assert [item["type"] for item in compacted["output"]] == ["message"] * 2 + ["compaction"]
        assert compacted["usage"]["output_tokens"] == len("They said hi.") + 1
        conversation = [*compacted["output"], {"role": "user", "content": "and?"}]
        asked = await calling.post(f"{PATH}/input_tokens", json={"input": conversation})
        prompt = (
            "system: What the conversation was about so far:\nThey said hi.\n"
            "user: and?\nassistant: "
        )
        assert asked.json()["input_tokens"] == len(prompt)
        assert (await create(calling, input=conversation))["status"] == "completed"


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({}, (422, "invalid_request", "input")),
        (
            {"input": [{"type": "compaction", "encrypted_content": "x"}]},
            (422, "invalid_request", "input[0].encrypted_content"),
        ),
        (
            {"input": [{"type": "item_reference", "id": "x"}]},
            (422, "invalid_request", "input[0].id"),
        ),
        (
            {"input": "a", "previous_response_id": "x"},
            (400, "previous_response_not_found", "previous_response_id"),
        ),
    ],
)
async def test_an_invalid_compaction_is_refused(body: Event, error: tuple[int, str, str]):
    async with client_of(scripted_backend()) as calling:
        refused = await calling.post(f"{PATH}/compact", json=body)
    assert error_of(refused) == error


async def test_a_summary_that_fails_is_an_http_error():
    async with client_of(scripted_backend(lambda _: [RuntimeError("no")])) as calling:
        refused = await calling.post(f"{PATH}/compact", json={"input": "a"})
    assert error_of(refused) == (500, "engine_error", None)


async def test_a_store_that_fails_is_reported_and_blocks_no_request(tmp_path: Path):
    async with (
        serving(scripted_backend(say("a")), data_dir=str(tmp_path)) as (app, _),
        client(app) as calling,
    ):
        await app.state.services.responses.registry._store.aclose()
        response = await create(calling)
        assert await get(calling, response["id"]) == response
        refused = await calling.get(f"{PATH}/resp_x")
        assert error_of(refused) == (503, "store_unavailable", None)


async def test_without_a_store_responses_are_in_memory():
    async with client_of(scripted_backend(), store_responses=False) as calling:
        response = await create(calling)
        assert await get(calling, response["id"]) == response
        refused = await calling.get(f"{PATH}/resp_x")
        assert error_of(refused) == (404, "response_not_found", "response_id")


def test_the_checker_of_events_notices_a_missing_end():
    with pytest.raises(AssertionError):
        check_events([])
    assert len(TERMINAL) == 3
