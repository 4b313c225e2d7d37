"""One generation, as a client of each transport receives it.

Each transport is a function that sends a request, checks the rules of its own format (order,
sequence numbers, exactly one ending), and returns an `Outcome`. Outcomes must be equal on all
transports.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

import httpx

from tests.app.conversation import assert_conversation
from tests.app.conversation import text_of as native_text
from tests.app.response_events import TERMINAL, check_events, check_response
from tests.app.serving import chunks
from tests.app.sockets import StreamServer, receive_stream, send

QUESTION = "hi"
TOOL = {
    "name": "get_weather",
    "description": "Tell the weather.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}


@dataclass(frozen=True, slots=True)
class Asked:
    """A client's request.

    Attributes:
        prompt: the question after the chat template, for transports that take raw prompts.
        has_tool: the request offers `TOOL`.
    """

    prompt: str
    has_tool: bool = False
    max_tokens: int = 1000


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a client has received at the end.

    Attributes:
        finish: `stop`, `length`, `tool_calls`, `cancelled`, or `error`.
        usage: tokens of the prompt, of the answer, and of both; None after a failure.
    """

    text: str
    finish: str
    usage: tuple[int, int, int] | None
    reasoning: str = ""
    calls: tuple[tuple[str, str], ...] = ()


Transport = Callable[[StreamServer, Asked], Awaitable[Outcome]]

FAILED = Outcome("", "error", None)
"""A failure on a transport that does not stream."""


async def native(server: StreamServer, asked: Asked) -> Outcome:
    """`WS /v1/stream` with a raw prompt."""
    return await _native(server, prompt=asked.prompt, max_tokens=asked.max_tokens)


async def native_chat(server: StreamServer, asked: Asked) -> Outcome:
    """`WS /v1/stream` with chat messages."""
    assert not asked.has_tool, "the native dialect has no tools"
    messages = [{"role": "user", "content": QUESTION}]
    return await _native(server, messages=messages, max_tokens=asked.max_tokens)


async def _native(server: StreamServer, **fields: Any) -> Outcome:
    async with server.connect() as client:
        await send(client, type="generate", **fields)
        return native_outcome(await receive_stream(client))


def native_outcome(frames: list[dict[str, Any]]) -> Outcome:
    """Return the outcome of all frames of one generation."""
    assert_conversation(frames)
    last = frames[-1]
    if last["type"] == "error":
        assert last["error"]["code"] == "engine_error"
        return Outcome(native_text(frames), "error", None)
    usage = last["usage"]
    return Outcome(
        native_text(frames),
        last["finish_reason"],
        (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]),
    )


async def completions(server: StreamServer, asked: Asked) -> Outcome:
    """`POST /v1/completions`."""
    answer = await _post(server, "/v1/completions", **_completion_fields(asked))
    if answer is None:
        return FAILED
    [choice] = answer["choices"]
    return Outcome(choice["text"], choice["finish_reason"], _usage(answer["usage"]))


async def completions_stream(server: StreamServer, asked: Asked) -> Outcome:
    """`POST /v1/completions` with `stream`."""
    events = await _post_stream(server, "/v1/completions", **_completion_fields(asked))
    shown, usage = _choices(events)
    text = "".join(choice["text"] for choice in shown)
    return Outcome(text, _finish(shown, events), usage)


async def chat(server: StreamServer, asked: Asked) -> Outcome:
    """`POST /v1/chat/completions`."""
    answer = await _post(server, "/v1/chat/completions", **_chat_fields(asked))
    if answer is None:
        return FAILED
    [choice] = answer["choices"]
    message = choice["message"]
    calls = [call["function"] for call in message.get("tool_calls") or ()]
    return Outcome(
        message["content"] or "",
        choice["finish_reason"],
        _usage(answer["usage"]),
        reasoning=message.get("reasoning_content") or "",
        calls=tuple((call["name"], call["arguments"]) for call in calls),
    )


async def chat_stream(server: StreamServer, asked: Asked) -> Outcome:
    """`POST /v1/chat/completions` with `stream`."""
    events = await _post_stream(server, "/v1/chat/completions", **_chat_fields(asked))
    shown, usage = _choices(events)
    deltas = [choice["delta"] for choice in shown]
    assert [delta.get("role") for delta in deltas if "role" in delta] == ["assistant"]
    assert "role" in deltas[0]
    calls: list[list[str]] = []
    for piece in (piece for delta in deltas for piece in delta.get("tool_calls") or ()):
        if "id" in piece:
            assert piece["index"] == len(calls)
            calls.append([piece["function"]["name"], ""])
        calls[piece["index"]][1] += piece["function"]["arguments"]
    return Outcome(
        "".join(delta.get("content") or "" for delta in deltas),
        _finish(shown, events),
        usage,
        reasoning="".join(delta.get("reasoning_content") or "" for delta in deltas),
        calls=tuple((name, arguments) for name, arguments in calls),
    )


async def responses(server: StreamServer, asked: Asked) -> Outcome:
    """`POST /v1/responses`."""
    answer = await _post(server, "/v1/responses", **response_fields(asked))
    return FAILED if answer is None else response_outcome(check_response(answer))


async def responses_stream(server: StreamServer, asked: Asked) -> Outcome:
    """`POST /v1/responses` with `stream`."""
    events = await _post_stream(server, "/v1/responses", **response_fields(asked))
    return response_outcome(check_events(events))


async def responses_background(server: StreamServer, asked: Asked) -> Outcome:
    """`POST /v1/responses` with `background`, then its events from the beginning."""
    begun = await _post(server, "/v1/responses", **response_fields(asked), background=True)
    assert begun is not None
    events = await get_events(server, begun["id"])
    outcome = response_outcome(check_events(events))
    async with _client(server) as client:
        kept = (await client.get(f"/v1/responses/{begun['id']}")).json()
    assert response_outcome(check_response(kept)) == outcome
    return outcome


async def responses_socket(server: StreamServer, asked: Asked) -> Outcome:
    """`WS /v1/responses`."""
    async with server.connect("/v1/responses") as client:
        await send(client, type="response.create", **response_fields(asked))
        return response_outcome(check_events(await receive_turn(client)))


RAW: tuple[Transport, ...] = (native, completions, completions_stream)
"""Transports that return the text as the model wrote it."""
CHAT: tuple[Transport, ...] = (
    *(chat, chat_stream),
    *(responses, responses_stream, responses_background, responses_socket),
)
"""Transports that separate reasoning and tool calls from the text."""
WHOLE: tuple[Transport, ...] = (completions, chat, responses)
"""Transports that answer once, at the end."""


def response_fields(asked: Asked) -> dict[str, Any]:
    """Return the request's fields in the Responses dialect."""
    tools = {"tools": [{"type": "function", **TOOL}]} if asked.has_tool else {}
    return {"input": QUESTION, "max_output_tokens": asked.max_tokens, **tools}


def response_outcome(response: dict[str, Any]) -> Outcome:
    """Return the outcome of a finished response."""
    items = response["output"]
    usage = response["usage"]
    tokens = (usage["input_tokens"], usage["output_tokens"], usage["total_tokens"])
    calls = [(item["name"], item["arguments"]) for item in items if item["type"] == "function_call"]
    match response["status"]:
        case "completed":
            finish = "tool_calls" if calls else "stop"
        case "incomplete":
            assert response["incomplete_details"] == {"reason": "max_output_tokens"}
            finish = "length"
        case "failed":
            assert response["error"]["code"] == "server_error"
            finish = "error"
        case status:
            finish = status
    return Outcome(
        _text_of(items, "message"),
        finish,
        None if finish == "error" else tokens,
        reasoning=_text_of(items, "reasoning"),
        calls=tuple(calls),
    )


async def get_events(
    server: StreamServer, response_id: str, *, starting_after: int = -1
) -> list[dict[str, Any]]:
    """Return a response's events after a cursor."""
    path = f"/v1/responses/{response_id}?stream=true&starting_after={starting_after}"
    async with _client(server) as client:
        answer = await client.get(path)
    assert answer.status_code == 200
    return _events(answer.text)


async def receive_turn(client: Any) -> list[dict[str, Any]]:
    """Return the events of the only open turn, up to its last."""
    events = [json.loads(await client.recv())]
    while events[-1]["type"] not in (*TERMINAL, "error"):
        events.append(json.loads(await client.recv()))
    return events


def _text_of(items: Iterable[dict[str, Any]], kind: str) -> str:
    parts = (part for item in items if item["type"] == kind for part in item["content"])
    return "".join(part["text"] for part in parts)


def _completion_fields(asked: Asked) -> dict[str, Any]:
    return {"prompt": asked.prompt, "max_tokens": asked.max_tokens}


def _chat_fields(asked: Asked) -> dict[str, Any]:
    tools = {"tools": [{"type": "function", "function": TOOL}]} if asked.has_tool else {}
    messages = [{"role": "user", "content": QUESTION}]
    return {"messages": messages, "max_completion_tokens": asked.max_tokens, **tools}


def _client(server: StreamServer) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=server.http_url, timeout=None)


async def _post(server: StreamServer, path: str, **fields: Any) -> dict[str, Any] | None:
    """Return the response's body, or None if the engine failed."""
    async with _client(server) as client:
        response = await client.post(path, json=fields)
    answer: dict[str, Any] = response.json()
    if response.status_code == 500:
        assert answer["error"]["code"] == "engine_error"
        return None
    assert response.status_code == 200, answer
    return answer


async def _post_stream(server: StreamServer, path: str, **fields: Any) -> list[dict[str, Any]]:
    """Return the data of an event stream."""
    if "input" not in fields:
        fields["stream_options"] = {"include_usage": True}
    async with _client(server) as client:
        response = await client.post(path, json={**fields, "stream": True})
    assert response.status_code == 200, response.text
    return _events(response.text)


def _events(body: str) -> list[dict[str, Any]]:
    lines = [line for line in body.splitlines() if line and not line.startswith("event: ")]
    return chunks("".join(f"{line}\n\n" for line in lines))


def _usage(usage: dict[str, int]) -> tuple[int, int, int]:
    return usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]


def _choices(
    events: list[dict[str, Any]],
) -> tuple[list[dict[str, Any]], tuple[int, int, int] | None]:
    """Return the choices of all chunks, and the usage of the last."""
    *shown, last = events
    assert len({chunk["id"] for chunk in shown}) <= 1
    assert all(chunk.get("usage") is None for chunk in shown)
    usage = None if "error" in last else _usage(last["usage"])
    assert "error" in last or last["choices"] == []
    return [choice for chunk in shown for choice in chunk["choices"]], usage


def _finish(choices: list[dict[str, Any]], events: list[dict[str, Any]]) -> str:
    """Return the one finish reason."""
    reasons = [choice["finish_reason"] for choice in choices if choice["finish_reason"]]
    if "error" in events[-1]:
        assert events[-1]["error"]["code"] == "engine_error"
        reasons.append("error")
    [reason] = reasons
    assert reason == "error" or choices[-1]["finish_reason"] == reason
    return str(reason)
