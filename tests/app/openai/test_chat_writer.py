from __future__ import annotations

import json
import re
from typing import Any

from app.openai.chat_writer import ChatWriter, call_id
from app.openai.schemas.chat import ChatRequest
from streaming import AsyncEngine, Delta, Event, Generation, Started, Token, Tokens
from streaming.backends.scripted import say, scripted_backend
from tests.app.chat_answers import ask, call, tool
from tests.support import collect, make_generation, running_engine

STARTED = Started(prompt_tokens=1, cached_tokens=0, at=0.0)
HALF_CHARACTER = Delta(0, "", Tokens.of([Token(195, "", at=0.0)]))


def request_of(**fields: Any) -> ChatRequest:
    return ChatRequest.model_validate({"messages": ask(), **fields})


async def finished(engine: AsyncEngine, body: ChatRequest) -> tuple[Generation, list[Event]]:
    """Return the generation of a request, and all its events as one reader gets them."""
    [generation] = await engine.submit_all(body.to_requests(caller="me", max_choices=1))
    await collect(engine, generation)
    with engine.subscribe(generation, include_empty_deltas=True) as reader:
        return generation, reader.read()


def choices_of(chunks: list[str]) -> list[dict[str, Any]]:
    return [json.loads(chunk)["choices"][0] for chunk in chunks]


def test_a_call_id_is_unique_and_stable():
    logs = [make_generation("gen_1"), make_generation("gen_2")]
    ids = [call_id(log, index) for log in logs for index in range(3)]
    assert len(set(ids)) == 6
    assert ids == [call_id(log, index) for log in logs for index in range(3)]
    assert all(re.fullmatch("call_[0-9a-f]{24}", each) for each in ids)


async def test_a_delta_of_several_pieces_has_a_chunk_for_each_and_its_tokens_once():
    body = request_of(tools=[tool()], return_token_ids=True)
    text = f"<think>hm</think>Look.{call('f', '{}')}"
    async with running_engine(scripted_backend(say(text), reasons=True)) as engine:
        generation, events = await finished(engine, body)
        choices = choices_of(list(ChatWriter(body, engine, [generation]).chunks(0, events)))
    function = {"name": "f", "arguments": ""}
    start = {"index": 0, "id": call_id(generation, 0), "type": "function", "function": function}
    assert [choice["delta"] for choice in choices] == [
        {"role": "assistant", "content": "", "refusal": None},
        {"reasoning_content": "hm"},
        {"content": "Look."},
        {"tool_calls": [start]},
        {"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]},
        {},
    ]
    assert [choice["token_ids"] for choice in choices] == [[], generation.tokens.ids, *[[]] * 4]
    assert [choice["finish_reason"] for choice in choices] == [*[None] * 5, "tool_calls"]


async def test_the_role_waits_for_the_first_token():
    body = request_of()
    async with running_engine(scripted_backend(say("a"))) as engine:
        generation, events = await finished(engine, body)
        writer = ChatWriter(body, engine, [generation])
        before = list(writer.chunks(0, [STARTED]))
        after = choices_of(list(writer.chunks(0, events)))
    assert before == []
    assert [choice["delta"].get("content") for choice in after] == ["", "a", None]


async def test_a_token_without_text_has_a_chunk_only_if_the_chunk_reports_the_token():
    async with running_engine(scripted_backend(say("a"))) as engine:
        chunks = {}
        for with_ids in (False, True):
            body = request_of(return_token_ids=with_ids)
            generation, _ = await finished(engine, body)
            writer = ChatWriter(body, engine, [generation])
            assert writer.include_empty_deltas is with_ids
            chunks[with_ids] = choices_of(list(writer.chunks(0, [HALF_CHARACTER])))
    assert [choice["delta"].get("role") for choice in chunks[False]] == ["assistant"]
    assert [choice["token_ids"] for choice in chunks[True]] == [[], [195]]


async def test_unrequested_fields_are_absent_from_the_whole_answer():
    body = request_of()
    async with running_engine(scripted_backend(say("a"))) as engine:
        generation, _ = await finished(engine, body)
        answer = json.loads(ChatWriter(body, engine, [generation]).whole())
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "a", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
