"""Checks for every answer of `/v1/chat/completions`, whole or streamed.

The models of OpenAI's SDK accept almost anything. These checks are strict about types, require the
keys that OpenAI's API always sends, and allow no keys beyond those that we document.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import httpx
from openai import BaseModel
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from tests.app.serving import chunks

PATH = "/v1/chat/completions"
OUR_FIELDS = {"reasoning_content", "token_ids"}
ALWAYS: dict[str, set[str]] = {
    "ChatCompletion": {"id", "object", "created", "model", "choices", "usage"},
    "ChatCompletionChunk": {"id", "object", "created", "model", "choices"},
    "Choice": {"index", "logprobs", "finish_reason"},
    "ChatCompletionMessage": {"role", "content", "refusal"},
    "ChatCompletionMessageFunctionToolCall": {"id", "type", "function"},
    "Function": {"name", "arguments"},
    "ChoiceLogprobs": {"content", "refusal"},
    "ChatCompletionTokenLogprob": {"token", "logprob", "bytes", "top_logprobs"},
    "TopLogprob": {"token", "logprob", "bytes"},
    "CompletionUsage": {
        *("prompt_tokens", "completion_tokens", "total_tokens"),
        *("prompt_tokens_details", "completion_tokens_details"),
    },
}


async def chat(calling: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    """Return the whole answer, after checking it."""
    response = await calling.post(PATH, json={"messages": ask(), **body})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    check_completion(answer)
    return answer


async def stream(calling: httpx.AsyncClient, **body: Any) -> list[dict[str, Any]]:
    """Return the chunks of a streamed answer, after checking them."""
    body = {"messages": ask(), **body, "stream": True}
    response = await calling.post(PATH, json=body)
    assert response.status_code == 200, response.text
    parts = chunks(response.text)
    check_chunks(parts)
    return parts


def ask(text: str = "hi") -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def call(name: str, arguments: str) -> str:
    """Return a tool call as the scripted model writes it."""
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


def tool(name: str = "f", **function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **function}}


def check_completion(answer: dict[str, Any]) -> None:
    _check_model(ChatCompletion.model_validate(answer, strict=True), answer)
    assert [choice["index"] for choice in answer["choices"]] == list(range(len(answer["choices"])))
    for choice in answer["choices"]:
        message = choice["message"]
        calls = message.get("tool_calls")
        assert calls is None or calls, "calls are left out where there are none"
        assert message["content"] is not None or calls
        _check_calls(calls or [], choice["finish_reason"])
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def check_chunks(parts: Sequence[dict[str, Any]], *, has_failed: bool = False) -> None:
    """Check each chunk, and the order for each choice: role, pieces, one finish reason."""
    assert len({(part["id"], part["created"], part["model"]) for part in parts}) == 1
    for part in parts:
        _check_model(ChatCompletionChunk.model_validate(part, strict=True), part)
        assert len(part["choices"]) == 1 or (part is parts[-1] and part["usage"])
    if any("usage" in part for part in parts):
        assert all("usage" in part for part in parts)
        assert [part["usage"] for part in parts[:-1]] == [None] * (len(parts) - 1)
    by_index: dict[int, list[dict[str, Any]]] = {}
    for part in parts:
        for choice in part["choices"]:
            by_index.setdefault(choice["index"], []).append(choice)
    for index in sorted(by_index):
        first, *others = by_index[index]
        assert first["delta"] == {"role": "assistant", "content": "", "refusal": None}
        assert not any("role" in choice["delta"] for choice in others)
        reasons = [choice["finish_reason"] for choice in by_index[index]]
        assert not any(reasons[:-1])
        if not has_failed:
            assert reasons[-1]
            assert by_index[index][-1]["delta"] == {}
        for choice in others[:-1]:
            assert len(choice["delta"]) <= 1, "one piece each"
            assert choice["delta"] or choice["logprobs"] or choice.get("token_ids")
            assert "" not in (
                choice["delta"].get(name) for name in ("content", "reasoning_content")
            )


def joined(parts: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the choices that the chunks join to, in the form of a whole answer."""
    choices: dict[int, dict[str, Any]] = {}
    for part in parts:
        for piece in part["choices"]:
            choice = choices.setdefault(
                piece["index"],
                {
                    "index": piece["index"],
                    "message": {"role": "assistant", "content": "", "refusal": None},
                    "logprobs": None,
                    "finish_reason": None,
                },
            )
            _add_delta(choice["message"], piece["delta"])
            choice["finish_reason"] = piece["finish_reason"]
            if piece["logprobs"] is not None:
                logprobs = choice["logprobs"] or {"content": [], "refusal": None}
                logprobs["content"] += piece["logprobs"]["content"]
                choice["logprobs"] = logprobs
            if "token_ids" in piece:
                choice.setdefault("token_ids", []).extend(piece["token_ids"])
    for choice in choices.values():
        if choice["message"].get("tool_calls") and not choice["message"]["content"]:
            choice["message"]["content"] = None
    return [choices[index] for index in sorted(choices)]


def _add_delta(message: dict[str, Any], delta: dict[str, Any]) -> None:
    for name in ("content", "reasoning_content"):
        if name in delta:
            message[name] = message.get(name, "") + delta[name]
    for piece in delta.get("tool_calls", []):
        calls = message.setdefault("tool_calls", [])
        if piece["index"] == len(calls):
            assert piece.keys() == {"index", "id", "type", "function"}
            assert piece["function"]["arguments"] == ""
            calls.append({name: piece[name] for name in ("id", "type", "function")})
        else:
            assert piece["index"] == len(calls) - 1, "calls come one after the other"
            assert piece.keys() == {"index", "function"}
            assert piece["function"].keys() == {"arguments"}
            calls[-1]["function"]["arguments"] += piece["function"]["arguments"]


def _check_calls(calls: list[dict[str, Any]], finish_reason: str) -> None:
    assert len({each["id"] for each in calls}) == len(calls)
    assert all(each["id"].startswith("call_") for each in calls)
    if finish_reason == "tool_calls":
        assert calls
        for each in calls:
            assert isinstance(json.loads(each["function"]["arguments"]), dict)


def _check_model(model: BaseModel, value: dict[str, Any]) -> None:
    """Assert that the SDK knows each key, and that all required keys are present."""
    name = type(model).__name__
    unknown = set(model.model_extra or {}) - OUR_FIELDS
    assert not unknown, f"{name} has {unknown}"
    missing = ALWAYS.get(name, set()) - value.keys()
    assert not missing, f"{name} lacks {missing}"
    for field in type(model).model_fields:
        inner, raw = getattr(model, field), value.get(field)
        if isinstance(inner, BaseModel):
            assert isinstance(raw, dict)
            _check_model(inner, raw)
        elif isinstance(inner, list):
            assert isinstance(raw, list)
            for each, raw_each in zip(inner, raw, strict=True):
                if isinstance(each, BaseModel):
                    _check_model(each, raw_each)
