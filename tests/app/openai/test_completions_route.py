"""`POST /v1/completions` with the scripted backend."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from typing import Any

import httpx
import pytest

from app.openai.completions_route import EXAMPLES
from streaming.backends.scripted import Gate, repeat_prompt, say, scripted_backend
from streaming.errors import NoTokenAllowed
from tests.app.serving import Call, chunks, client, client_of, serving, sse, until
from tests.support import WordCompiler, ended_logs, entered

PATH = "/v1/completions"
NO_DETAILS = {
    "prompt_tokens_details": {"cached_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 0},
}


async def complete(calling: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    response = await calling.post(PATH, json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def choice(index: int, text: str, finish_reason: str | None, **more: Any) -> dict[str, Any]:
    return {
        "index": index,
        "text": text,
        "logprobs": None,
        "finish_reason": finish_reason,
        **more,
    }


def texts_by_index(parts: list[dict[str, Any]]) -> dict[int, str]:
    texts: dict[int, str] = {}
    for part in parts:
        for each in part["choices"]:
            texts[each["index"]] = texts.get(each["index"], "") + each["text"]
    return texts


# The whole answer.


async def test_answer_has_openais_form():
    async with client_of(scripted_backend(say("hello"))) as calling:
        answer = await complete(calling, prompt="say it", model="scripted", user="me")
    assert answer.pop("id").startswith("cmpl-")
    assert answer.pop("created") > 1_600_000_000
    assert answer == {
        "object": "text_completion",
        "model": "scripted",
        "choices": [choice(0, "hello", "stop")],
        "usage": {
            "prompt_tokens": 6,
            "completion_tokens": 6,
            "total_tokens": 12,
            **NO_DETAILS,
        },
    }


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("one", ["one"]),
        (["one", "two", "three"], ["one", "two", "three"]),
        ([104, 105], ["hi"]),
        ([[104, 105], [111, 107]], ["hi", "ok"]),
    ],
)
async def test_every_form_of_prompt_comes_back_in_order(prompt: object, texts: list[str]):
    async with client_of(scripted_backend(repeat_prompt)) as calling:
        answer = await complete(calling, prompt=prompt)
    assert answer["choices"] == [choice(i, text, "stop") for i, text in enumerate(texts)]


async def test_each_prompt_has_n_choices_and_counts_once():
    async with client_of(scripted_backend(repeat_prompt, max_num_seqs=3)) as calling:
        answer = await complete(calling, prompt=["ab", "cde"], n=3, best_of=3)
    texts = ["ab", "ab", "ab", "cde", "cde", "cde"]
    assert answer["choices"] == [choice(i, text, "stop") for i, text in enumerate(texts)]
    assert answer["usage"] == {
        "prompt_tokens": 2 + 3,
        "completion_tokens": 3 * (2 + 1) + 3 * (3 + 1),
        "total_tokens": 5 + 21,
        **NO_DETAILS,
    }


@pytest.mark.parametrize(
    ("seed", "expected"), [(7, [7, 8]), (-1, [-1, 0]), (2**63 - 1, [2**63 - 1, -(2**63)])]
)
async def test_choices_of_a_seeded_request_have_seeds_of_their_own(seed: int, expected: list[int]):
    seeds: list[int | None] = []

    def script(sequence):
        seeds.append(sequence.params.seed)
        return b"x"

    async with client_of(scripted_backend(script)) as calling:
        await complete(calling, prompt=["a", "b"], n=2, seed=seed)
    assert seeds == expected * 2


async def test_max_tokens_is_16_by_default():
    async with client_of(scripted_backend(say("x" * 50))) as calling:
        default = await complete(calling, prompt="a")
        null = await complete(calling, prompt="a", max_tokens=None)
        more = await complete(calling, prompt="a", max_tokens=20)
    assert [each["choices"][0] for each in (default, null, more)] == [
        choice(0, "x" * 16, "length"),
        choice(0, "x" * 16, "length"),
        choice(0, "x" * 20, "length"),
    ]


@pytest.mark.parametrize("stop", ["lo", ["nothing", "lo"]])
async def test_stop_strings_end_the_text_and_are_not_in_it(stop: object):
    async with client_of(scripted_backend(say("hello"))) as calling:
        answer = await complete(calling, prompt="a", stop=stop)
    assert answer["choices"] == [choice(0, "hel", "stop")]
    assert answer["usage"]["completion_tokens"] == len("hello")


@pytest.mark.parametrize("prompt", [["ab", "c"], [[97, 98], [99]]])
async def test_echo_puts_the_prompt_first(prompt: object):
    async with client_of(scripted_backend(say("!"))) as calling:
        answer = await complete(calling, prompt=prompt, echo=True)
    assert [each["text"] for each in answer["choices"]] == ["ab!", "c!"]


async def test_logprobs_have_one_entry_for_each_token():
    async with client_of(scripted_backend(say("aé"))) as calling:
        answer = await complete(calling, prompt="x", logprobs=2)
    logprobs = answer["choices"][0]["logprobs"]
    assert logprobs == {
        "tokens": ["a", "\ufffd", "\ufffd", "<eos>"],
        "token_logprobs": [-0.5] * 4,
        "top_logprobs": [
            {"a": -0.5, "b": -1.5},
            {"\ufffd": -0.5},
            {"\ufffd": -0.5},
            {"<eos>": -0.5, "\x00": -1.5},
        ],
        "text_offset": [0, 1, 1, 2],
    }


async def test_echo_with_logprobs_begins_with_those_of_the_prompt():
    async with client_of(scripted_backend(say("é"))) as calling:
        answer = await complete(calling, prompt="aé", echo=True, logprobs=1, max_tokens=2)
    assert answer["choices"] == [
        choice(
            0,
            "aéé",
            "length",
            logprobs={
                "tokens": ["a", "\ufffd", "\ufffd", "\ufffd", "\ufffd"],
                "token_logprobs": [None, -0.5, -0.5, -0.5, -0.5],
                "top_logprobs": [None, *[{"\ufffd": -0.5}] * 4],
                "text_offset": [0, 1, 1, 2, 2],
            },
        )
    ]


@pytest.mark.parametrize("logprobs", [None, 0])
async def test_zero_tokens_with_echo_return_the_prompt_alone(logprobs: int | None):
    body = {"prompt": [[97, 98], [99]], "n": 2, "echo": True, "logprobs": logprobs, "max_tokens": 0}
    async with client_of(scripted_backend(say("xyz"))) as calling:
        answer = await complete(calling, **body, return_token_ids=True)
        response = await calling.post(PATH, json={**body, "stream": True})
    assert [each["text"] for each in answer["choices"]] == ["ab", "ab", "c", "c"]
    assert {each["finish_reason"] for each in answer["choices"]} == {"length"}
    assert [each["token_ids"] for each in answer["choices"]] == [[]] * 4
    assert answer["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 0,
        "total_tokens": 3,
        **NO_DETAILS,
    }
    assert texts_by_index(chunks(response.text)) == {0: "ab", 1: "ab", 2: "c", 3: "c"}
    if logprobs is not None:
        assert [each["logprobs"]["token_logprobs"] for each in answer["choices"]] == [
            [None, -0.5],
            [None, -0.5],
            [None],
            [None],
        ]


async def test_an_evaluation_harness_can_score_a_continuation():
    """lm-eval sends context and continuation as one prompt, and reads all but the last token."""
    async with client_of(scripted_backend(say("?"))) as calling:
        answer = await complete(
            calling,
            model="scripted",
            prompt=[list(b"One and one is two")],
            temperature=0,
            max_tokens=1,
            logprobs=1,
            seed=1234,
            echo=True,
        )
    logprobs = answer["choices"][0]["logprobs"]
    num_context = len("One and one is ")
    continuation = logprobs["token_logprobs"][num_context:-1]
    assert sum(continuation) == -0.5 * len("two")
    for token, top in zip(
        logprobs["tokens"][num_context:-1], logprobs["top_logprobs"][num_context:-1], strict=True
    ):
        assert max(top, key=top.get) == token


async def test_token_ids_are_reported_on_request():
    async with client_of(scripted_backend(say("ab"))) as calling:
        answer = await complete(calling, prompt="x", return_token_ids=True)
        response = await calling.post(
            PATH, json={"prompt": "x", "return_token_ids": True, "stream": True}
        )
    assert answer["choices"] == [choice(0, "ab", "stop", token_ids=[97, 98, 256])]
    parts = chunks(response.text)
    streamed = [token_id for part in parts for token_id in part["choices"][0]["token_ids"]]
    assert streamed == [97, 98, 256]


async def test_a_stop_string_is_included_on_request():
    async with client_of(scripted_backend(say("one END two"))) as calling:
        answer = await complete(calling, prompt="x", stop="END", include_stop_str_in_output=True)
    assert answer["choices"] == [choice(0, "one END", "stop")]


async def test_priority_and_label_reach_the_engine():
    gate = Gate()
    backend = scripted_backend(gate=gate)
    async with serving(backend, gate=gate, max_priority=100) as (app, engine):
        fields = {"prompt": "a", "priority": 100, "timeout_s": 5, "user": "me"}
        answer = asyncio.create_task(complete(client(app), **fields))
        await entered(gate)
        [sequence] = engine._engine._scheduler.running
        gate.open()
        await answer
    assert (sequence.priority, dict(sequence.generation.metadata)) == (100, {"user": "me"})
    assert sequence.deadline_at - sequence.generation.submitted_at == 5


async def test_null_is_accepted_for_unsupported_fields():
    async with client_of(scripted_backend()) as calling:
        answer = await complete(calling, prompt="a", suffix=None, audio=None, typical_p=None)
    assert answer["choices"] == [choice(0, "a", "stop")]


async def test_no_alternatives_still_report_the_chosen_token():
    async with client_of(scripted_backend(say("a"))) as calling:
        answer = await complete(calling, prompt="x", logprobs=0, max_tokens=1)
    assert answer["choices"][0]["logprobs"]["top_logprobs"] == [{"a": -0.5}]


@pytest.mark.parametrize("example", EXAMPLES.values(), ids=EXAMPLES.keys())
async def test_examples_of_the_docs_page_work(example: dict[str, Any]):
    async with client_of(scripted_backend()) as calling:
        response = await calling.post(PATH, json=example["value"])
    assert response.status_code == 200


# The stream.


async def test_stream_is_framed_as_openai_does():
    async with client_of(scripted_backend(say("hi"))) as calling:
        response = await calling.post(PATH, json={"prompt": "a", "stream": True})
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    parts = chunks(response.text)
    assert len({(part.pop("id"), part.pop("created")) for part in parts}) == 1
    assert all(part.keys() == {"object", "model", "choices"} for part in parts)
    assert texts_by_index(parts) == {0: "hi"}
    reasons = [part["choices"][0]["finish_reason"] for part in parts]
    assert reasons == [None] * (len(parts) - 1) + ["stop"]


async def test_stream_comes_token_by_token():
    gate = Gate()
    async with serving(scripted_backend(say("abc"), gate=gate), gate=gate) as (app, _):
        call = Call(app, PATH, {"prompt": "x", "stream": True})
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(call())
            for seen in (b'"a"', b'"b"', b'"c"'):
                assert seen not in call.body
                gate.allow()
                await call.until_shown(seen)
            gate.open()
    assert call.is_complete
    assert texts_by_index(chunks(call.body.decode())) == {0: "abc"}


async def test_streamed_choices_each_end_once():
    async with client_of(scripted_backend(repeat_prompt, max_num_seqs=2)) as calling:
        body = {"prompt": ["one", "three"], "n": 2, "stream": True}
        parts = chunks((await calling.post(PATH, json=body)).text)
    assert texts_by_index(parts) == {0: "one", 1: "one", 2: "three", 3: "three"}
    ends = [c["index"] for part in parts for c in part["choices"] if c["finish_reason"]]
    assert sorted(ends) == [0, 1, 2, 3]
    for index in range(4):
        mine = [c for part in parts for c in part["choices"] if c["index"] == index]
        assert [c["finish_reason"] for c in mine][-1] == "stop"


async def test_running_choices_interleave():
    gate = Gate()
    async with serving(scripted_backend(repeat_prompt, gate=gate), gate=gate) as (app, _):
        call = Call(app, PATH, {"prompt": ["abc", "xyz"], "stream": True})
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(call())
            for _ in range(3):
                num_messages = len(call.messages)
                gate.allow()
                await call.until_more_than(max(num_messages, 1))
            gate.open()
    order = [part["choices"][0]["index"] for part in chunks(call.body.decode())]
    assert order != sorted(order)


async def test_include_usage_adds_one_last_chunk():
    async with client_of(scripted_backend(say("hi"))) as calling:
        body = {"prompt": "abc", "n": 2, "stream": True, "stream_options": {"include_usage": True}}
        *parts, last = chunks((await calling.post(PATH, json=body)).text)
    assert [part["usage"] for part in parts] == [None] * len(parts)
    assert last["choices"] == []
    assert last["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 6,
        "total_tokens": 9,
        **NO_DETAILS,
    }


@pytest.mark.pain(11)
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"n": 3},
        {"stop": "END"},
        {"stop": "END", "n": 2, "prompt": ["a", "b"]},
        {"max_tokens": 6},  # cuts inside a character
        {"stop": "nowhere", "n": 2},
    ],
    ids=repr,
)
async def test_usage_equals_the_number_of_token_ids(fields: dict[str, Any]):
    body = {"prompt": "a", "max_tokens": 100, "return_token_ids": True, **fields}
    stream = {"stream": True, "stream_options": {"include_usage": True}}
    async with client_of(scripted_backend(lambda _: "one 😀 and END two".encode())) as calling:
        whole = await complete(calling, **body)
        *parts, last = chunks((await calling.post(PATH, json={**body, **stream})).text)
    num_ids = sum(len(each["token_ids"]) for each in whole["choices"])
    num_streamed = sum(len(each["token_ids"]) for part in parts for each in part["choices"])
    assert num_streamed == num_ids == whole["usage"]["completion_tokens"]
    assert last["usage"] == whole["usage"]


async def test_echo_is_the_first_chunk():
    async with client_of(scripted_backend(say("!"))) as calling:
        body = {"prompt": ["ab", "c"], "echo": True, "stream": True}
        parts = chunks((await calling.post(PATH, json=body)).text)
    assert [part["choices"][0] for part in parts[:2]] == [
        choice(0, "ab", None),
        choice(1, "c", None),
    ]
    assert texts_by_index(parts) == {0: "ab!", 1: "c!"}


async def test_streamed_logprobs_join_to_the_whole():
    body = {"prompt": "x", "logprobs": 1, "stop": "zz"}
    async with client_of(scripted_backend(say("aézb"))) as calling:
        whole = (await complete(calling, **body))["choices"][0]["logprobs"]
        response = await calling.post(PATH, json={**body, "stream": True})
    joined: dict[str, list[Any]] = {name: [] for name in whole}
    for part in chunks(response.text):
        for name, values in (part["choices"][0]["logprobs"] or {}).items():
            joined[name] += values
    assert joined == whole
    assert len(whole["tokens"]) == len("aézb".encode()) + 1


async def test_streamed_echo_with_logprobs_joins_to_the_whole():
    body = {"prompt": ["ab", "cé"], "n": 2, "logprobs": 1, "echo": True, "max_tokens": 3}
    async with client_of(scripted_backend(say("xéz"))) as calling:
        whole = await complete(calling, **body)
        response = await calling.post(PATH, json={**body, "stream": True})
    parts = chunks(response.text)
    assert texts_by_index(parts) == {each["index"]: each["text"] for each in whole["choices"]}
    for each in whole["choices"]:
        joined: dict[str, list[Any]] = {name: [] for name in each["logprobs"]}
        for part in parts:
            [piece] = part["choices"]
            if piece["index"] == each["index"]:
                for name, values in (piece["logprobs"] or {}).items():
                    joined[name] += values
        assert joined == each["logprobs"]


async def test_a_long_prompt_is_echoed_with_logprobs_in_parts():
    body = {"prompt": "x" * 600, "echo": True, "logprobs": 0, "max_tokens": 1, "stream": True}
    async with client_of(scripted_backend()) as calling:
        parts = chunks((await calling.post(PATH, json=body)).text)
    pieces = [part["choices"][0] for part in parts]
    assert [len(piece["text"]) for piece in pieces] == [256, 256, 88, 1]
    offsets = [offset for piece in pieces for offset in piece["logprobs"]["text_offset"]]
    assert offsets == list(range(601))


async def test_a_failure_before_the_prompt_is_scored_hides_the_prompt():
    def script(_):
        return [RuntimeError("no")]

    async with client_of(scripted_backend(script)) as calling:
        response = await calling.post(
            PATH, json={"prompt": "a", "echo": True, "logprobs": 1, "stream": True}
        )
    error, done = sse(response.text)
    assert (json.loads(error)["error"]["code"], done) == ("engine_error", "[DONE]")


async def test_a_failure_ends_the_stream_with_an_error():
    def script(_):
        yield ord("a")
        yield RuntimeError("secret path /etc")

    async with client_of(scripted_backend(script)) as calling:
        response = await calling.post(PATH, json={"prompt": "x", "n": 2, "stream": True})
    *_, error, done = sse(response.text)
    assert done == "[DONE]"
    assert json.loads(error)["error"] == {
        "message": "The model failed on this request. Try again, or see the server's log.",
        "type": "server_error",
        "param": None,
        "code": "engine_error",
    }
    assert "secret" not in response.text


async def test_parameters_that_allow_no_token_are_a_request_error():
    """The request is at fault, not the server: a retry would fail again."""

    def script(_):
        yield ord("a")
        yield NoTokenAllowed(param="response_format", reason="the grammar allows no token here")

    expected = {
        "message": "response_format: the grammar allows no token here",
        "type": "invalid_request_error",
        "param": "response_format",
        "code": "no_token_allowed",
    }
    async with client_of(scripted_backend(script)) as calling:
        whole = await calling.post(PATH, json={"prompt": "x"})
        stream = await calling.post(PATH, json={"prompt": "x", "stream": True})
    assert (whole.status_code, whole.json()) == (422, {"error": expected})
    *_, error, done = sse(stream.text)
    assert (json.loads(error)["error"], done) == (expected, "[DONE]")


async def test_a_silent_stream_is_kept_alive():
    gate = Gate()
    backend = scripted_backend(say("a"), gate=gate)
    async with serving(backend, gate=gate, sse_keep_alive_s=0.01) as (app, _):
        call = Call(app, PATH, {"prompt": "x", "stream": True})
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(call())
            await call.until_shown(b": ping\n\n: ping\n\n")
            gate.open()
    assert texts_by_index(chunks(call.body.decode())) == {0: "a"}


# Failures of the whole answer.


async def test_a_failed_generation_is_an_http_error():
    def script(_):
        return [RuntimeError("secret")]

    async with client_of(scripted_backend(script)) as calling:
        response = await calling.post(PATH, json={"prompt": "x"})
    assert (response.status_code, response.json()["error"]["code"]) == (500, "engine_error")


async def test_one_failed_choice_ends_the_others():
    gate = Gate()

    def script(sequence):
        return [RuntimeError("no")] if sequence.prompt_ids == (98,) else b"x" * 4000

    backend = scripted_backend(script, gate=gate, max_num_seqs=1)
    async with serving(backend, gate=gate) as (app, engine), client(app) as calling:
        async with asyncio.TaskGroup() as tasks:
            answer = tasks.create_task(calling.post(PATH, json={"prompt": ["b", "a", "a"]}))
            await entered(gate)
            gate.allow()
            response = await answer
        assert response.status_code == 500
        gate.open()
        await until(lambda: not engine._store.num_open)
        logs = ended_logs(engine)
    assert sum(log.usage.completion_tokens for log in logs) < 4000


async def test_a_generation_past_its_deadline_is_a_timeout():
    gate = Gate()
    backend = scripted_backend(say("a"), gate=gate)
    async with client_of(backend, gate=gate, request_timeout_s=1e-9) as calling:
        response = await calling.post(PATH, json={"prompt": "x"})
    assert (response.status_code, response.json()["error"]["code"]) == (504, "timeout")


# Refused requests.

BAD_FIELDS = [
    ({}, "prompt"),
    ({"prompt": None}, "prompt"),
    ({"prompt": 5}, "prompt"),
    ({"prompt": ""}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": ["a", ""]}, "prompt"),
    ({"prompt": [[]]}, "prompt"),
    ({"prompt": [1, "a"]}, "prompt"),
    ({"prompt": [True]}, "prompt"),
    ({"prompt": [[1], "a"]}, "prompt"),
    ({"prompt": [300]}, "prompt"),
    ({"prompt": [-1]}, "prompt"),
    ({"prompt": "\ud800"}, "prompt"),
    ({"prompt": ["a", "\udfff"]}, "prompt"),
    ({"prompt": "a", "temprature": 1}, "temprature"),
    ({"prompt": "a", "\ud800": 1}, None),
    ({"prompt": "a", **{f"x{i}": 1 for i in range(100)}}, None),
    ({"prompt": "a", "model": 5}, "model"),
    ({"prompt": "a", "model": "\ud800"}, "model"),
    ({"prompt": "a", "model": "m" * 1000}, "model"),
    ({"prompt": "a", "n": 0}, "n"),
    ({"prompt": "a", "n": "2"}, "n"),
    ({"prompt": "a", "n": 1.5}, "n"),
    ({"prompt": "a", "n": True}, "n"),
    ({"prompt": "a", "n": 129}, "n"),
    ({"prompt": ["a"] * 129}, "prompt"),
    ({"prompt": ["a"] * 65, "n": 2}, "n"),
    ({"prompt": "a", "n": 2, "best_of": 3}, "best_of"),
    ({"prompt": "a", "best_of": 2}, "best_of"),
    ({"prompt": "a", "suffix": "b"}, "suffix"),
    ({"prompt": "a", "suffix": ""}, "suffix"),
    ({"prompt": "a", "echo": 1}, "echo"),
    ({"prompt": "a", "echo": True, "logprobs": 21}, "logprobs"),
    ({"prompt": "a", "echo": True, "max_tokens": -1}, "max_tokens"),
    ({"prompt": "a", "echo": False, "max_tokens": 0}, "max_tokens"),
    ({"prompt": "a", "add_special_tokens": False}, "add_special_tokens"),
    ({"prompt": "a", "return_token_ids": 1}, "return_token_ids"),
    ({"prompt": "a", "priority": -101}, "priority"),
    ({"prompt": "a", "timeout_s": -1}, "timeout_s"),
    ({"prompt": "a", "prompt_logprobs": 1}, "prompt_logprobs"),
    ({"prompt": "a", "messages": []}, "messages"),
    ({"prompt": "a", "logprobs": 21}, "logprobs"),
    ({"prompt": "a", "logprobs": -1}, "logprobs"),
    ({"prompt": "a", "logprobs": True}, "logprobs"),
    ({"prompt": "a", "stream": "yes"}, "stream"),
    ({"prompt": "a", "stream_options": {"include_usage": True}}, "stream_options"),
    ({"prompt": "a", "stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
    (
        {"prompt": "a", "stream": True, "stream_options": {"include_usage": 1}},
        "stream_options.include_usage",
    ),
    ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
    ({"prompt": "a", "min_tokens": 17}, "min_tokens"),
    ({"prompt": "a", "temperature": 2.1}, "temperature"),
    ({"prompt": "a", "temperature": -0.1}, "temperature"),
    ({"prompt": "a", "temperature": "hot"}, "temperature"),
    ({"prompt": "a", "top_p": 0}, "top_p"),
    ({"prompt": "a", "top_k": -1}, "top_k"),
    ({"prompt": "a", "min_p": 2}, "min_p"),
    ({"prompt": "a", "seed": 2**63}, "seed"),
    ({"prompt": "a", "presence_penalty": 3}, "presence_penalty"),
    ({"prompt": "a", "frequency_penalty": -3}, "frequency_penalty"),
    ({"prompt": "a", "repetition_penalty": 0}, "repetition_penalty"),
    ({"prompt": "a", "stop": ""}, "stop"),
    ({"prompt": "a", "stop": 5}, "stop"),
    ({"prompt": "a", "stop": ["a", 5]}, "stop[1]"),
    ({"prompt": "a", "stop": ["a"] * 17}, "stop"),
    ({"prompt": "a", "stop": "\ud800"}, "stop"),
    ({"prompt": "a", "stop_token_ids": ["a"]}, "stop_token_ids[0]"),
    ({"prompt": "a", "stop_token_ids": [1000]}, "stop_token_ids"),
    ({"prompt": "a", "logit_bias": {"x": 1}}, "logit_bias"),
    ({"prompt": "a", "logit_bias": {"\ud800": 1}}, "logit_bias"),
    ({"prompt": "a", "logit_bias": {"5": "x"}}, "logit_bias"),
    ({"prompt": "a", "logit_bias": {"5": 101}}, "logit_bias"),
    ({"prompt": "a", "logit_bias": {"5000": 1}}, "logit_bias"),
    ({"prompt": "a", "logit_bias": [1]}, "logit_bias"),
    ({"prompt": "a", "user": 5}, "user"),
    ({"prompt": "a", "response_format": {"type": "xml"}}, "response_format"),
    # The scripted backend supports no grammar.
    ({"prompt": "a", "response_format": {"type": "json_object"}}, "response_format"),
]


async def test_a_grammar_ends_the_text_and_an_invalid_one_is_refused():
    backend = dataclasses.replace(scripted_backend(say("ab{", "ab{")), grammars=WordCompiler())
    async with client_of(backend) as calling:
        answer = await complete(
            calling, prompt="a", n=2, response_format={"type": "regex", "pattern": "ab"}
        )
        refused = await calling.post(
            PATH, json={"prompt": "a", "response_format": {"type": "regex", "pattern": "("}}
        )
    assert answer["choices"] == [choice(0, "ab", "stop"), choice(1, "ab", "stop")]
    assert refused.status_code == 422
    assert refused.json()["error"]["message"] == "response_format: unclosed group"


@pytest.mark.pain(13)
@pytest.mark.parametrize(("body", "param"), BAD_FIELDS, ids=lambda value: repr(value)[:60])
async def test_a_bad_field_is_refused_by_name(body: dict[str, Any], param: str | None):
    async with serving(scripted_backend()) as (app, engine), client(app) as calling:
        response = await calling.post(
            PATH, content=json.dumps(body), headers={"content-type": "application/json"}
        )
        assert engine._store.num_open + engine._store.num_ended == 0
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (
        422,
        "invalid_request",
        param,
    ), error
    assert error["type"] == "invalid_request_error"
    assert param is None or error["message"].startswith(f"{param}: ")


BAD_BODIES = [
    (b"", 400, "invalid_json", None),
    (b"{", 400, "invalid_json", None),
    (b"{'prompt': 'a'}", 400, "invalid_json", None),
    (b'{"prompt": "\xff"}', 400, "invalid_json", None),
    (b"[" * 30_000, 400, "invalid_json", None),
    (b'{"prompt": "a", "temperature": NaN}', 400, "invalid_json", None),
    (b'{"prompt": "a", "temperature": -Infinity}', 400, "invalid_json", None),
    (b'{"prompt": "a", "max_tokens": ' + b"9" * 5000 + b"}", 400, "invalid_json", None),
    (b'{"prompt": "a", "temperature": 1e999}', 422, "invalid_request", "temperature"),
    (b'{"prompt": "a", "n": 1, "n": 2}', 422, "invalid_request", "n"),
    (b'{"prompt": "a", "\\ud800": 1, "\\ud800": 2}', 422, "invalid_request", "?"),
    (b"[]", 422, "invalid_request", None),
    (b"null", 422, "invalid_request", None),
    (b'"prompt"', 422, "invalid_request", None),
    (b'{"prompt": "a", "model": "other"}', 404, "model_not_found", "model"),
    (b'{"prompt": "%s"}' % (b"a" * 4096), 413, "prompt_too_long", "prompt"),
    (b'{"prompt": [%s1]}' % (b"1," * 5000), 413, "prompt_too_long", "prompt"),
    (b'{"prompt": "%s"}' % (b"a" * 2**20), 413, "message_too_big", None),
]


@pytest.mark.parametrize(
    ("body", "status", "code", "param"), BAD_BODIES, ids=lambda value: repr(value)[:40]
)
async def test_a_bad_body_is_refused(body: bytes, status: int, code: str, param: str | None):
    async with client_of(scripted_backend()) as calling:
        response = await calling.post(
            PATH, content=body, headers={"content-type": "application/json"}
        )
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (status, code, param), error


@pytest.mark.parametrize(
    "content_type",
    ["text/plain", "application/x-www-form-urlencoded", "application/jsonx", "", "/"],
)
async def test_a_body_of_another_content_type_is_refused(content_type: str):
    async with client_of(scripted_backend()) as calling:
        response = await calling.post(
            PATH, content=b'{"prompt": "a"}', headers={"content-type": content_type}
        )
    assert (response.status_code, response.json()["error"]["code"]) == (
        415,
        "unsupported_media_type",
    )


@pytest.mark.pain(13)
async def test_one_bad_prompt_refuses_the_whole_batch():
    async with serving(scripted_backend(max_model_len=10)) as (app, engine):
        async with client(app) as calling:
            response = await calling.post(PATH, json={"prompt": ["ok", "x" * 10]})
        assert engine._store.num_open + engine._store.num_ended == 0
    assert (response.status_code, response.json()["error"]["code"]) == (413, "prompt_too_long")
