"""`POST /v1/chat/completions` with the scripted backend.

Each answer passes the checks of `tests.app.chat_answers`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from typing import Any

import pytest

from app.openai.chat_route import EXAMPLES
from app.openai.schemas.chat import ChatRequest
from app.schemas.unsupported import HINTS
from streaming.backends.scripted import Gate, ScriptInput, repeat_prompt, say, scripted_backend
from tests.app.chat_answers import (
    PATH,
    ask,
    call,
    chat,
    check_chunks,
    joined,
    stream,
    tool,
)
from tests.app.serving import Call, chunks, client, client_of, serving, sse, until
from tests.support import WordCompiler, ended_logs, entered
from tests.watching_loop import WakingSemaphore

NO_DETAILS = {
    "prompt_tokens_details": {"cached_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 0},
}


CALL, CALL_G = call("f", "{}"), call("g", "{}")
CALL_A, CALL_LIST = call("f", '{"a": 1}'), call("f", '{"a": [1, 2]}')
CALL_PARIS = call("f", '{"city": "Paris"}')


def contents(answer: dict[str, Any]) -> list[str | None]:
    return [choice["message"]["content"] for choice in answer["choices"]]


def only(answer: dict[str, Any]) -> dict[str, Any]:
    [choice] = answer["choices"]
    message: dict[str, Any] = choice["message"]
    return message


# The whole answer.


async def test_answer_has_openais_form():
    async with client_of(scripted_backend(say("hello"))) as calling:
        answer = await chat(calling, model="scripted", user="me")
    assert answer.pop("id").startswith("chatcmpl-")
    assert answer.pop("created") > 1_600_000_000
    assert answer == {
        "object": "chat.completion",
        "model": "scripted",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "hello", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": len("user: hi\nassistant: "),
            "completion_tokens": 6,
            "total_tokens": 26,
            **NO_DETAILS,
        },
    }


CALLED = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
TEXT_PARTS = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]


@pytest.mark.parametrize(
    ("messages", "prompt"),
    [
        ([{"role": "system", "content": "be kind"}, *ask("hé")], "system: be kind\nuser: hé\n"),
        ([{"role": "developer", "content": "be kind"}, *ask()], "system: be kind\nuser: hi\n"),
        ([{"role": "user", "content": TEXT_PARTS, "name": "Ann"}], "user: one\ntwo\n"),
        ([{"role": "user", "content": []}], "user: \n"),
        (
            [*ask(), {"role": "assistant", "content": ""}, *ask()],
            "user: hi\nassistant: \nuser: hi\n",
        ),
        (
            [*ask(), {"role": "assistant", "content": TEXT_PARTS}],
            "user: hi\nassistant: one\ntwo\n",
        ),
        (
            [*ask(), {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}],
            "user: hi\nassistant: no\n",
        ),
        (
            [*ask(), {"role": "assistant", "content": None, "refusal": "I will not"}],
            "user: hi\nassistant: I will not\n",
        ),
        (
            [
                *ask(),
                {"role": "assistant", "content": None, "tool_calls": [CALLED]},
                {"role": "tool", "tool_call_id": "call_1", "content": TEXT_PARTS, "name": "f"},
            ],
            f"user: hi\nassistant: \n{CALL_A}\ntool: one\ntwo\n",
        ),
        (
            [
                *ask(),
                {
                    "role": "assistant",
                    "tool_calls": [
                        {"id": "call_1", "index": 0, "function": {"name": "f", "arguments": " "}}
                    ],
                },
            ],
            f"user: hi\nassistant: \n{CALL}\n",
        ),
    ],
)
async def test_every_form_of_message_is_rendered(messages: list[dict[str, Any]], prompt: str):
    async with client_of(scripted_backend(repeat_prompt)) as calling:
        answer = await chat(calling, messages=messages)
    assert only(answer)["content"] == f"{prompt}assistant: "


async def test_the_message_of_an_answer_can_be_sent_back():
    text = f"<think>hm</think>Look.{CALL}"
    async with client_of(scripted_backend(say(text, "done"), reasons=True)) as calling:
        first = only(await chat(calling, tools=[tool()]))
        null = {"annotations": None, "audio": None, "function_call": None}
        result = {"role": "tool", "tool_call_id": first["tool_calls"][0]["id"], "content": "ok"}
        second = await chat(calling, messages=[*ask(), first | null, result], tools=[tool()])
    assert (first["content"], first["reasoning_content"]) == ("Look.", "hm")
    assert only(second)["content"] == "done"


async def test_choices_share_the_prompt_and_count_it_once():
    async with client_of(scripted_backend(say("one", "three"), max_num_seqs=1)) as calling:
        answer = await chat(calling, n=2)
    assert contents(answer) == ["one", "three"]
    assert answer["usage"] == {
        "prompt_tokens": 20,
        "completion_tokens": 4 + 6,
        "total_tokens": 30,
        **NO_DETAILS,
    }


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
async def test_the_token_limit_has_two_names_and_no_default(name: str):
    async with client_of(scripted_backend(say("x" * 50))) as calling:
        free = await chat(calling)
        cut = await chat(calling, **{name: 7})
        both = await chat(calling, max_tokens=7, max_completion_tokens=7)
    assert free["choices"][0]["finish_reason"] == "stop"
    assert len(only(free)["content"]) == 50
    for answer in (cut, both):
        assert only(answer)["content"] == "x" * 7
        assert answer["choices"][0]["finish_reason"] == "length"


async def test_logprobs_have_an_entry_with_bytes_for_each_token():
    async with client_of(scripted_backend(say("aé"))) as calling:
        answer = await chat(calling, logprobs=True, top_logprobs=1)
        bare = await chat(calling, logprobs=True)
    entries = answer["choices"][0]["logprobs"]["content"]
    assert entries[0] == {
        "token": "a",
        "logprob": -0.5,
        "bytes": [97],
        "top_logprobs": [{"token": "a", "logprob": -0.5, "bytes": [97]}],
    }
    assert len(entries) == answer["usage"]["completion_tokens"]
    assert bytes(byte for each in entries[:-1] for byte in each["bytes"]).decode() == "aé"
    assert [each["top_logprobs"] for each in bare["choices"][0]["logprobs"]["content"]] == [[]] * 4


async def test_token_ids_are_reported_on_request():
    async with client_of(scripted_backend(say("ab"))) as calling:
        answer = await chat(calling, return_token_ids=True)
    assert answer["choices"][0]["token_ids"] == [97, 98, 256]


@pytest.mark.parametrize("example", EXAMPLES.values(), ids=EXAMPLES.keys())
async def test_examples_of_the_docs_page_work(example: dict[str, Any]):
    async with client_of(scripted_backend()) as calling:
        response = await calling.post(PATH, json=example["value"])
    assert response.status_code == 200


# Tools and reasoning.


async def test_a_tool_call_is_separate_from_the_text_before_it():
    script = say(f"Let me see. {CALL_PARIS}", CALL)
    async with client_of(scripted_backend(script)) as calling:
        with_text = await chat(calling, tools=[tool()])
        alone = await chat(calling, tools=[tool()])
    [made] = only(with_text)["tool_calls"]
    assert made["function"] == {"name": "f", "arguments": '{"city": "Paris"}'}
    assert with_text["choices"][0]["finish_reason"] == "tool_calls"
    assert only(with_text)["content"] == "Let me see."
    assert only(alone)["content"] is None


async def test_several_calls_have_ids_of_their_own():
    script = say(f"{CALL_A}\n{CALL_G}")
    async with client_of(scripted_backend(script, max_num_seqs=1)) as calling:
        answer = await chat(calling, tools=[tool("f"), tool("g")], n=2)
    calls = [made for choice in answer["choices"] for made in choice["message"]["tool_calls"]]
    assert [made["function"]["name"] for made in calls] == ["f", "g"] * 2
    assert len({made["id"] for made in calls}) == 4


async def test_a_truncated_tool_call_keeps_its_partial_arguments():
    text = CALL_PARIS
    async with client_of(scripted_backend(say(text))) as calling:
        answer = await chat(calling, tools=[tool()], max_tokens=text.index("Par") + 3)
    assert answer["choices"][0]["finish_reason"] == "length"
    [made] = only(answer)["tool_calls"]
    assert made["function"]["arguments"] == '{"city": "Par'


@pytest.mark.parametrize("choice", [None, "none"])
async def test_without_tools_a_call_is_text(choice: str | None):
    fields = {} if choice is None else {"tools": [tool()], "tool_choice": choice}
    async with client_of(scripted_backend(say(CALL))) as calling:
        answer = await chat(calling, **fields)
    assert only(answer)["content"] == CALL
    assert "tool_calls" not in only(answer)
    assert answer["choices"][0]["finish_reason"] == "stop"


ALLOWED = {
    "type": "allowed_tools",
    "allowed_tools": {"mode": "required", "tools": [tool("g"), tool("h")]},
}


async def test_tools_are_described_to_the_model():
    tools = [
        tool("f", description="Does.", parameters={"type": "object"}, strict=True),
        tool("g"),
    ]
    async with client_of(scripted_backend()) as calling:
        answer = await chat(calling, tools=tools)
    assert only(answer)["content"].startswith(
        'tool: f Does. {"type": "object"}\ntool: g  {"type": "object", "properties": {}}\nuser: hi'
    )


@pytest.mark.parametrize("starts_in_reasoning", [False, True])
async def test_reasoning_is_separated_and_counted(starts_in_reasoning: bool):
    text = "hm é</think>Yes."
    text = text if starts_in_reasoning else f"<think>{text}"
    backend = scripted_backend(say(text), reasons=True, starts_in_reasoning=starts_in_reasoning)
    async with client_of(backend) as calling:
        answer = await chat(calling)
    assert only(answer) == {
        "role": "assistant",
        "content": "Yes.",
        "refusal": None,
        "reasoning_content": "hm é",
    }
    details = answer["usage"]["completion_tokens_details"]
    assert details == {"reasoning_tokens": len(text.encode()) - len("Yes.")}


# The stream.

SAME: dict[str, tuple[str, dict[str, Any]]] = {
    "text": ("hello", {}),
    "characters": ("héllo 👩‍👧 日本", {}),
    "cut in a character": ("aé👧", {"max_tokens": 4}),
    "nothing": ("", {}),
    "choices": ("hello", {"n": 3}),
    "stop": ("one STOP two", {"stop": ["STOP"]}),
    "stop that is kept": (
        "one STOP two",
        {"stop": ["STOP"], "include_stop_str_in_output": True},
    ),
    "held and let go": ("one STO", {"stop": "STOP"}),
    "length": ("hello", {"max_tokens": 3}),
    "logprobs": ("héllo", {"logprobs": True, "top_logprobs": 2}),
    "logprobs behind a stop": ("a STOP", {"logprobs": True, "stop": "STOP"}),
    "token ids": ("hé", {"return_token_ids": True}),
    "call": (call("f", '{"a": "é}"}'), {"tools": [tool()]}),
    "text and calls": (
        f"Look: {CALL_LIST}\n{CALL_G}",
        {"tools": [tool("f"), tool("g")]},
    ),
    "call with all": (
        f"Look: {CALL}",
        {"tools": [tool()], "n": 2, "logprobs": True, "return_token_ids": True},
    ),
    "call that is cut": (CALL_PARIS, {"tools": [tool()], "max_tokens": 50}),
    "reasoning": ("<think>\nhm\n</think>\n\nYes.", {}),
    "reasoning that is cut": ("<think>hm, well", {"max_tokens": 10}),
    "reasoning and a call": (f"<think>hm</think>\n{CALL}", {"tools": [tool()]}),
}


@pytest.mark.parametrize(("text", "body"), SAME.values(), ids=SAME.keys())
async def test_a_stream_joins_to_the_whole_answer(text: str, body: dict[str, Any]):
    async with client_of(scripted_backend(say(text), reasons=True)) as calling:
        whole = await chat(calling, **body)
        parts = await stream(calling, **body, stream_options={"include_usage": True})
    assert _without_ids(joined(parts)) == _without_ids(whole["choices"])
    assert parts[-1]["usage"] == whole["usage"]
    num_tokens = [len(each.get("token_ids", ())) for each in whole["choices"]]
    assert sum(num_tokens) in (0, whole["usage"]["completion_tokens"])


@pytest.mark.parametrize(("text", "body"), SAME.values(), ids=SAME.keys())
async def test_a_stream_token_by_token_joins_to_the_whole_answer(text: str, body: dict[str, Any]):
    gate = Gate()
    gate.entered = WakingSemaphore()
    backend = scripted_backend(say(text), reasons=True, gate=gate)
    async with serving(backend, gate=gate) as (app, _):
        calling = Call(app, PATH, {"messages": ask(), **body, "stream": True})
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(calling())
            while not calling.is_complete:
                gate.allow()
                await until(lambda: calling.is_complete or gate.entered.acquire(blocking=False))
        parts = chunks(calling.body.decode())
        check_chunks(parts)
        gate.open()
        async with client(app) as asking:
            whole = await chat(asking, **body)
    assert _without_ids(joined(parts)) == _without_ids(whole["choices"])


def _without_ids(choices: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for choice in choices:
        for made in choice["message"].get("tool_calls", ()):
            del made["id"]
    return choices


async def test_stream_is_framed_as_openai_does():
    async with client_of(scripted_backend(say("hi"))) as calling:
        response = await calling.post(PATH, json={"messages": ask(), "stream": True})
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    parts = chunks(response.text)
    assert all(part.keys() == {"id", "object", "created", "model", "choices"} for part in parts)
    assert parts[0]["choices"][0] == {
        "index": 0,
        "delta": {"role": "assistant", "content": "", "refusal": None},
        "logprobs": None,
        "finish_reason": None,
    }
    assert parts[-1]["choices"][0] == {
        "index": 0,
        "delta": {},
        "logprobs": None,
        "finish_reason": "stop",
    }


async def test_the_name_of_a_call_is_streamed_before_its_arguments():
    gate = Gate()
    text = CALL_PARIS
    async with serving(scripted_backend(say(text), gate=gate), gate=gate) as (app, _):
        calling = Call(app, PATH, {"messages": ask(), "tools": [tool()], "stream": True})
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(calling())
            gate.allow(text.index('{"city') + 1)
            await calling.until_shown(b'"name":"f","arguments":""')
            assert b"Paris" not in calling.body
            gate.open()
    [choice] = joined(chunks(calling.body.decode()))
    assert choice["message"]["tool_calls"][0]["function"]["arguments"] == '{"city": "Paris"}'


async def test_call_ids_do_not_reveal_the_generation_id():
    """The id of a generation lets its reader resume it."""
    async with serving(scripted_backend(say(CALL))) as (app, engine):
        async with client(app) as calling:
            answer = await chat(calling, tools=[tool()])
        [log] = ended_logs(engine)
    [made] = only(answer)["tool_calls"]
    assert made["id"].startswith("call_")
    assert log.generation_id not in json.dumps(answer)


async def test_a_failure_ends_the_stream_with_an_error():
    def script(_):
        yield ord("a")
        yield RuntimeError("secret path /etc")

    async with client_of(scripted_backend(script)) as calling:
        response = await calling.post(PATH, json={"messages": ask(), "n": 2, "stream": True})
    *parts, error, done = sse(response.text)
    check_chunks([json.loads(part) for part in parts], has_failed=True)
    assert done == "[DONE]"
    assert json.loads(error)["error"] == {
        "message": "The model failed on this request. Try again, or see the server's log.",
        "type": "server_error",
        "param": None,
        "code": "engine_error",
    }
    assert "secret" not in response.text


async def test_a_failed_generation_is_an_http_error():
    def script(_):
        return [RuntimeError("secret")]

    async with client_of(scripted_backend(script)) as calling:
        response = await calling.post(PATH, json={"messages": ask()})
    assert (response.status_code, response.json()["error"]["code"]) == (500, "engine_error")


async def test_the_timeout_of_the_request_applies():
    gate = Gate()
    backend = scripted_backend(say("a"), gate=gate)
    async with client_of(backend, gate=gate) as calling:
        response = await calling.post(PATH, json={"messages": ask(), "timeout_s": 1e-9})
    assert (response.status_code, response.json()["error"]["code"]) == (504, "timeout")


# Fields.

FIELDS: list[tuple[str, Any, str, Any]] = [
    ("max_tokens", 5, "max_tokens", 5),
    ("max_completion_tokens", 5, "max_tokens", 5),
    ("min_tokens", 2, "min_tokens", 2),
    ("temperature", 0, "temperature", 0),
    ("temperature", None, "temperature", 1.0),
    ("top_p", 0.5, "top_p", 0.5),
    ("top_k", 3, "top_k", 3),
    ("min_p", 0.1, "min_p", 0.1),
    ("seed", 7, "seed", 7),
    ("presence_penalty", 0.5, "presence_penalty", 0.5),
    ("frequency_penalty", -0.5, "frequency_penalty", -0.5),
    ("repetition_penalty", 1.5, "repetition_penalty", 1.5),
    ("logit_bias", {"5": -100}, "logit_bias", {5: -100}),
    ("stop", "a", "stop", ("a",)),
    ("stop", ["a", "b"], "stop", ("a", "b")),
    ("stop", [], "stop", ()),
    ("stop_token_ids", [1, 2], "stop_token_ids", frozenset({1, 2})),
    ("include_stop_str_in_output", True, "include_stop_str_in_output", True),
    ("ignore_eos", True, "ignore_eos", True),
    ("logprobs", True, "logprobs", 0),
    ("logprobs", False, "logprobs", None),
]


@pytest.mark.parametrize(("name", "value", "param", "expected"), FIELDS)
async def test_a_field_reaches_the_engine(name: str, value: Any, param: str, expected: Any):
    seen: list[ScriptInput] = []

    def script(sequence: ScriptInput) -> bytes:
        seen.append(sequence)
        return b"x" * 20

    async with client_of(scripted_backend(script)) as calling:
        await chat(calling, **({"max_tokens": 9} if "max" not in name else {}), **{name: value})
    [sequence] = seen
    assert getattr(sequence.params, param) == expected


async def test_priority_and_labels_reach_the_engine():
    gate = Gate()
    async with serving(scripted_backend(gate=gate), gate=gate) as (app, engine):
        fields = {"priority": -7, "user": "me", "metadata": {"page": "1"}}
        answer = asyncio.create_task(chat(client(app), **fields))
        await entered(gate)
        [sequence] = engine._engine._scheduler.running
        gate.open()
        await answer
    assert sequence.priority == -7
    assert sequence.generation.metadata == {"user": "me", "page": "1"}


async def test_choices_of_a_seeded_request_have_seeds_of_their_own():
    seeds: list[int | None] = []

    def script(sequence: ScriptInput) -> bytes:
        seeds.append(sequence.params.seed)
        return b"x"

    async with client_of(scripted_backend(script)) as calling:
        await chat(calling, n=3, seed=7)
    assert seeds == [7, 8, 9]


@pytest.mark.parametrize(
    ("fields", "prompt"),
    [
        ({}, "user: hi\nassistant: "),
        ({"add_generation_prompt": True}, "user: hi\nassistant: "),
        ({"add_generation_prompt": False}, "user: hi\n"),
        (
            {
                "messages": [*ask(), {"role": "assistant", "content": "Well,"}],
                "continue_final_message": True,
            },
            "user: hi\nassistant: Well,",
        ),
        (
            {"chat_template_kwargs": {"b": [1], "a": "é"}},
            'template: {"b": [1], "a": "é"}\nuser: hi\nassistant: ',
        ),
        (
            {"reasoning_effort": "low"},
            'template: {"reasoning_effort": "low"}\nuser: hi\nassistant: ',
        ),
        (
            {"reasoning_effort": "none", "chat_template_kwargs": {"reasoning_effort": "x"}},
            'template: {"reasoning_effort": "x", "enable_thinking": false}\nuser: hi\nassistant: ',
        ),
        ({"chat_template_kwargs": {}, "reasoning_effort": None}, "user: hi\nassistant: "),
    ],
)
async def test_template_fields_reach_the_template(fields: dict[str, Any], prompt: str):
    async with client_of(scripted_backend()) as calling:
        answer = await chat(calling, **fields)
    assert only(answer)["content"] == prompt


WITHOUT_EFFECT: list[dict[str, Any]] = [
    {"user": "me"},
    {"safety_identifier": "me"},
    {"prompt_cache_key": "mine"},
    {"prompt_cache_retention": "in_memory"},
    {"metadata": {"a": "b"}},
    {"service_tier": "auto"},
    {"service_tier": "default"},
    {"store": False},
    {"modalities": ["text"]},
    {"verbosity": "medium"},
    {"prediction": {"type": "content", "content": "hello"}},
    {"prediction": {"type": "content", "content": TEXT_PARTS}},
    {"parallel_tool_calls": True},
    {"tools": []},
    {"tool_choice": "none"},
    {"tool_choice": "auto"},
    {"response_format": {"type": "text"}},
    {"add_special_tokens": False},
    {"stream_options": None},
    {name: None for name in ChatRequest.model_fields if name != "messages"},
    {name: None for name in HINTS if "." not in name},
]


@pytest.mark.parametrize("fields", WITHOUT_EFFECT, ids=lambda fields: str(fields)[:60])
async def test_a_field_without_effect(fields: dict[str, Any]):
    async with client_of(scripted_backend()) as calling:
        plain, other = await chat(calling), await chat(calling, **fields)
    assert (other["choices"], other["usage"]) == (plain["choices"], plain["usage"])


def with_message(**message: Any) -> dict[str, Any]:
    return {"messages": [*ask(), message]}


def calling_f(**function: Any) -> dict[str, Any]:
    made = {"id": "call_1", "type": "function", "function": {"name": "f", **function}}
    return with_message(role="assistant", tool_calls=[made])


IMAGE = {"type": "image_url", "image_url": {"url": "data:,"}}
BAD_FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"messages": None}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": ask() * 4097}, "messages"),
    ({"messages": ["hi"]}, "messages[0]"),
    (with_message(content="no role"), "messages[1]"),
    (with_message(role="bot", content="a"), "messages[1]"),
    (with_message(role="function", name="f", content="a"), "messages[1]"),
    (with_message(role="user"), "messages[1].content"),
    (with_message(role="user", content=None), "messages[1].content"),
    (with_message(role="user", content=5), "messages[1].content"),
    (with_message(role="user", content=[TEXT_PARTS[0], IMAGE]), "messages[1].content[1]"),
    (with_message(role="user", content=["a"]), "messages[1].content[0]"),
    (
        with_message(role="user", content=[{"type": "refusal", "refusal": "a"}]),
        "messages[1].content[0]",
    ),
    (
        with_message(role="user", content=[{"type": "input_audio", "input_audio": {}}]),
        "messages[1].content[0]",
    ),
    (with_message(role="user", content=[{"type": "text"}]), "messages[1].content[0].text"),
    (with_message(role="user", content="a", cache=1), "messages[1].cache"),
    (with_message(role="user", content="\ud800"), "messages"),
    (with_message(role="system", content="a", tool_call_id="a"), "messages[1].tool_call_id"),
    (with_message(role="tool", content="a"), "messages[1].tool_call_id"),
    (with_message(role="tool", tool_call_id="a"), "messages[1].content"),
    (with_message(role="assistant"), "messages[1].content"),
    (with_message(role="assistant", content=None, tool_calls=[]), "messages[1].content"),
    (
        with_message(role="assistant", content="a", function_call={"name": "f"}),
        "messages[1].function_call",
    ),
    (with_message(role="assistant", content="a", audio={"id": "a"}), "messages[1].audio"),
    (
        with_message(role="assistant", content="a", reasoning="a", reasoning_content="b"),
        "messages[1].reasoning",
    ),
    (calling_f(), "messages[1].tool_calls[0].function.arguments"),
    (calling_f(arguments={"a": 1}), "messages[1].tool_calls[0].function.arguments"),
    (calling_f(arguments="{"), "messages[1].tool_calls[0].function.arguments"),
    (calling_f(arguments="[1]"), "messages[1].tool_calls[0].function.arguments"),
    (calling_f(arguments="[" * 99_999), "messages[1].tool_calls[0].function.arguments"),
    (
        with_message(
            role="assistant",
            tool_calls=[{"id": "a", "type": "custom", "custom": {"name": "f", "input": "a"}}],
        ),
        "messages[1].tool_calls[0].type",
    ),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools[0].type"),
    ({"tools": [{"type": "function", "name": "f"}]}, "tools[0].function"),
    ({"tools": [tool("a b")]}, "tools[0].function.name"),
    ({"tools": [tool("f" * 65)]}, "tools[0].function.name"),
    ({"tools": [tool("f", parameters=[])]}, "tools[0].function.parameters"),
    ({"tools": [tool("f", returns={})]}, "tools[0].function.returns"),
    ({"tools": [tool("f"), tool("f")]}, "tools"),
    ({"tools": [tool(f"f{n}") for n in range(129)]}, "tools"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": tool("f")}, "tool_choice"),
    ({"tools": [tool("f")], "tool_choice": tool("g")}, "tool_choice"),
    ({"tools": [tool("f")], "tool_choice": "any"}, "tool_choice"),
    ({"tools": [tool("f")], "tool_choice": {"type": "custom"}}, "tool_choice"),
    ({"tools": [tool("f")], "tool_choice": {"type": "function"}}, "tool_choice.function"),
    (
        {"tools": [tool("g")], "tool_choice": ALLOWED},
        "tool_choice",
    ),
    ({"parallel_tool_calls": 1}, "parallel_tool_calls"),
    ({"temprature": 1}, "temprature"),
    ({"prompt": "a"}, "prompt"),
    ({"model": 5}, "model"),
    ({"n": 0}, "n"),
    ({"n": 129}, "n"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_completion_tokens": 0}, "max_completion_tokens"),
    ({"max_tokens": 1, "max_completion_tokens": 2}, "max_completion_tokens"),
    ({"max_tokens": 1, "min_tokens": 2}, "min_tokens"),
    ({"temperature": 2.1}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_k": -1}, "top_k"),
    ({"min_p": 2}, "min_p"),
    ({"presence_penalty": 3}, "presence_penalty"),
    ({"frequency_penalty": -3}, "frequency_penalty"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"stop": ["a"] * 17}, "stop"),
    ({"stop_token_ids": [1000]}, "stop_token_ids"),
    ({"logit_bias": {"5000": 1}}, "logit_bias"),
    ({"logprobs": 2}, "logprobs"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"logprobs": False, "top_logprobs": 2}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": -1}, "top_logprobs"),
    ({"priority": 101}, "priority"),
    ({"priority": 0.5}, "priority"),
    ({"timeout_s": 0}, "timeout_s"),
    ({"timeout_s": "1"}, "timeout_s"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
    (
        {"stream": True, "stream_options": {"include_obfuscation": True}},
        "stream_options.include_obfuscation",
    ),
    ({"response_format": {"type": "xml"}}, "response_format"),
    # The scripted backend supports no grammar.
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"chat_template_kwargs": []}, "chat_template_kwargs"),
    ({"reasoning_effort": "huge"}, "reasoning_effort"),
    ({"continue_final_message": True}, "continue_final_message"),
    (
        with_message(role="assistant", content="a")
        | {"continue_final_message": True, "add_generation_prompt": True},
        "continue_final_message",
    ),
    ({"metadata": {"a": 1}}, "metadata.a"),
    ({"metadata": {str(n): "a" for n in range(17)}}, "metadata"),
    ({"add_special_tokens": True}, "add_special_tokens"),
]
UNSUPPORTED: list[tuple[dict[str, Any], str]] = [
    ({"store": True}, "store"),
    ({"service_tier": "flex"}, "service_tier"),
    ({"service_tier": "priority"}, "service_tier"),
    ({"verbosity": "low"}, "verbosity"),
    ({"prompt_cache_retention": "24h"}, "prompt_cache_retention"),
    ({"audio": {"voice": "alloy", "format": "wav"}}, "audio"),
    *(
        ({name: 1}, name)
        for name in sorted(HINTS.keys() - ChatRequest.model_fields.keys())
        if "." not in name
    ),
]


@pytest.mark.pain(13)
@pytest.mark.parametrize(
    ("body", "param"), [*BAD_FIELDS, *UNSUPPORTED], ids=lambda value: repr(value)[:60]
)
async def test_a_bad_field_is_refused_by_name(body: dict[str, Any], param: str):
    async with serving(scripted_backend()) as (app, engine), client(app) as calling:
        response = await calling.post(
            PATH,
            content=json.dumps({"messages": ask(), **body}),
            headers={"content-type": "application/json"},
        )
        assert engine._store.num_open + engine._store.num_ended == 0
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (
        422,
        "invalid_request",
        param,
    ), error
    assert error["type"] == "invalid_request_error"
    assert error["message"].startswith(f"{param}: ")


@pytest.mark.parametrize(("body", "param"), UNSUPPORTED, ids=lambda value: repr(value)[:60])
async def test_an_unsupported_field_is_refused_with_its_hint(body: dict[str, Any], param: str):
    async with client_of(scripted_backend()) as calling:
        response = await calling.post(PATH, json={"messages": ask(), **body})
    assert response.json()["error"]["message"].endswith(HINTS[param])


async def test_model_and_length_have_errors_of_their_own():
    async with client_of(scripted_backend(max_model_len=64)) as calling:
        other = await calling.post(PATH, json={"messages": ask(), "model": "gpt-4"})
        long = await calling.post(PATH, json={"messages": ask("x" * 60)})
    assert (other.status_code, other.json()["error"]["code"]) == (404, "model_not_found")
    assert (long.status_code, long.json()["error"]["param"]) == (413, "messages")


async def test_a_model_without_a_chat_template_refuses_messages():
    async with client_of(scripted_backend(has_chat_template=False)) as calling:
        response = await calling.post(PATH, json={"messages": ask()})
    assert (response.status_code, response.json()["error"]["param"]) == (422, "messages")


async def test_a_response_format_constrains_the_answer():
    backend = dataclasses.replace(scripted_backend(say("ab{")), grammars=WordCompiler())
    async with client_of(backend) as calling:
        answer = await chat(calling, response_format={"type": "regex", "pattern": "ab"})
    assert only(answer)["content"] == "ab"


@pytest.mark.pain(14)
async def test_requests_of_one_batch_keep_their_own_parameters():
    gate = Gate()
    seen: dict[bytes, ScriptInput] = {}

    def script(sequence: ScriptInput) -> bytes:
        seen[bytes(sequence.prompt_ids)] = sequence
        return b"one STOP two"

    rules: list[dict[str, Any]] = [
        {"temperature": 0, "seed": 1, "stop": "STOP"},
        {"temperature": 2, "top_p": 0.5, "seed": 2, "max_tokens": 3},
        {},
    ]
    async with serving(scripted_backend(script, gate=gate), gate=gate) as (app, engine):
        calling = client(app)
        async with asyncio.TaskGroup() as tasks:
            first = tasks.create_task(chat(calling, messages=ask("first")))
            await entered(gate)
            answers = [
                tasks.create_task(chat(calling, messages=ask(str(place)), **fields))
                for place, fields in enumerate(rules)
            ]
            await until(lambda: engine.stats.num_waiting == len(rules))
            gate.open()
    assert contents(first.result()) == ["one STOP two"]
    assert [contents(answer.result()) for answer in answers] == [
        ["one "],
        ["one"],
        ["one STOP two"],
    ]
    for place, fields in enumerate(rules):
        params = seen[f"user: {place}\nassistant: ".encode()].params
        expected = {"temperature": 1.0, "top_p": 1.0, **fields}
        assert (params.temperature, params.top_p) == (expected["temperature"], expected["top_p"])
        assert params.seed == fields.get("seed", params.seed)


# Load, and clients that disconnect.


async def test_all_choices_are_admitted_or_none():
    gate = Gate()
    backend = scripted_backend(gate=gate, max_num_seqs=1)
    async with serving(backend, gate=gate, max_waiting_requests=2) as (app, engine):
        calling = client(app)
        async with asyncio.TaskGroup() as tasks:
            first = tasks.create_task(chat(calling))
            await entered(gate)
            waiting = tasks.create_task(chat(calling))
            await until(lambda: engine.stats.num_waiting == 1)
            refused = await calling.post(PATH, json={"messages": ask(), "n": 2})
            assert engine.stats.num_waiting == 1
            gate.open()
        assert first.result()["choices"] == waiting.result()["choices"]
        never = await calling.post(PATH, json={"messages": ask(), "n": 3})
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "overloaded")
    assert int(refused.headers["retry-after"]) >= 1
    assert (never.status_code, never.json()["error"]["param"]) == (422, "n")


@pytest.mark.parametrize("streams", [False, True], ids=["whole", "stream"])
async def test_a_disconnect_cancels_running_and_waiting_choices(streams: bool):
    gate = Gate()
    backend = scripted_backend(say("x" * 4000), gate=gate, max_num_seqs=1)
    async with serving(backend, gate=gate) as (app, engine):
        calling = Call(app, PATH, {"messages": ask(), "n": 3, "stream": streams})
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(calling())
            await entered(gate)
            await until(lambda: engine.stats.num_waiting == 2)
            calling.leave()
        gate.allow(2)
        await until(lambda: not engine._store.num_open)
        logs = ended_logs(engine)
    assert sum(log.usage.completion_tokens for log in logs) <= 2
    assert [log.num_subscribers for log in logs] == [0, 0, 0]


async def test_a_slow_client_gets_larger_chunks():
    gate = Gate()
    async with serving(scripted_backend(say("abcdef"), gate=gate), gate=gate) as (app, engine):
        calling = Call(app, PATH, {"messages": ask(), "stream": True}, takes=0)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(calling())
            await entered(gate)
            gate.open()
            await until(lambda: not engine._store.num_open)
            calling.read_on()
    parts = chunks(calling.body.decode())
    check_chunks(parts)
    assert [part["choices"][0]["delta"].get("content") for part in parts] == ["", "abcdef", None]


async def test_a_large_backlog_is_split_into_chunks():
    gate = Gate()
    backend = scripted_backend(say("x" * 600), gate=gate)
    async with serving(backend, gate=gate) as (app, engine):
        body = {"messages": ask(), "logprobs": True, "stream": True}
        calling = Call(app, PATH, body, takes=0)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(calling())
            await entered(gate)
            gate.open()
            await until(lambda: not engine._store.num_open)
            calling.read_on()
    parts = chunks(calling.body.decode())
    check_chunks(parts)
    logprobs = [part["choices"][0]["logprobs"] or {"content": []} for part in parts]
    assert [len(each["content"]) for each in logprobs] == [0, 256, 256, 89, 0]
