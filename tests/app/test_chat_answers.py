"""Each check of `tests.app.chat_answers` finds the mistake that it is for."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest

from streaming.backends.scripted import say, scripted_backend
from tests.app.chat_answers import call, chat, check_chunks, check_completion, joined, stream, tool
from tests.app.serving import client_of

Spoil = Callable[[Any], object]
BODY: dict[str, Any] = {
    "tools": [tool()],
    "logprobs": True,
    "stream_options": None,
}


async def answers() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    async with client_of(scripted_backend(say("Look." + call("f", "{}")))) as calling:
        whole = await chat(calling, **BODY)
        parts = await stream(calling, **BODY | {"stream_options": {"include_usage": True}})
    return whole, parts


@pytest.mark.parametrize(
    "spoil",
    [
        lambda answer: answer.pop("usage"),
        lambda answer: answer.update(extra=1),
        lambda answer: answer.update(created="1"),
        lambda answer: answer["choices"][0]["message"].pop("refusal"),
        lambda answer: answer["choices"][0]["message"].update(content=None, tool_calls=None),
        lambda answer: answer["choices"][0]["message"].update(tool_calls=[]),
        lambda answer: answer["choices"][0].update(finish_reason="done"),
        lambda answer: answer["choices"][0].update(index=1),
        lambda answer: answer["choices"][0]["message"]["tool_calls"][0].pop("id"),
        lambda answer: answer["choices"][0]["message"]["tool_calls"][0]["function"].update(
            arguments="{"
        ),
        lambda answer: answer["choices"][0]["logprobs"]["content"][0].pop("bytes"),
        lambda answer: answer["usage"].update(total_tokens=0),
    ],
)
async def test_a_wrong_answer_is_found(spoil: Spoil):
    answer, _ = await answers()
    spoiled = deepcopy(answer)
    spoil(spoiled)
    check_completion(answer)
    with pytest.raises((AssertionError, ValueError)):
        check_completion(spoiled)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda parts: parts[1].update(id="other"),
        lambda parts: parts[1].update(extra=1),
        lambda parts: parts[1].pop("usage"),
        lambda parts: parts[1].update(choices=[]),
        lambda parts: parts.pop(0),
        lambda parts: parts.pop(-2),
        lambda parts: parts.insert(1, parts[0]),
        lambda parts: parts.insert(1, parts[-2]),
        lambda parts: parts[1]["choices"][0]["delta"].update(content=""),
        lambda parts: parts[1]["choices"][0]["delta"].update(reasoning_content="x"),
    ],
)
async def test_a_wrong_stream_is_found(spoil: Spoil):
    _, parts = await answers()
    spoiled = deepcopy(parts)
    spoil(spoiled)
    check_chunks(parts)
    with pytest.raises((AssertionError, ValueError)):
        check_chunks(spoiled)


async def test_wrong_call_indices_are_found():
    _, parts = await answers()
    joined(parts)
    begun = next(part for part in parts if part["choices"][0]["delta"].get("tool_calls"))
    begun["choices"][0]["delta"]["tool_calls"][0]["index"] = 1
    with pytest.raises(AssertionError):
        joined(parts)
