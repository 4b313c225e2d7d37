"""Every transport returns the same text, usage and finish reason for one generation."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import httpx
import pytest

from streaming.backends.scripted import Gate, Script, ScriptInput, scripted_backend
from tests.app import transports
from tests.app.conversation import text_of
from tests.app.response_events import check_events
from tests.app.sockets import (
    StreamServer,
    receive,
    receive_stream,
    receive_until,
    send,
    stream_server,
)
from tests.app.transports import (
    CHAT,
    RAW,
    WHOLE,
    Asked,
    Outcome,
    Transport,
    get_events,
    native_chat,
    receive_turn,
    response_fields,
    response_outcome,
)
from tests.support import entered, yield_to_loop

PROMPT = "user: hi\nassistant: "
TOOL_PROMPT = (
    "tool: get_weather Tell the weather. "
    '{"type": "object", "properties": {"city": {"type": "string"}}}\n' + PROMPT
)
TEXT = "Grüße, 世界 😀!"
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rom"}}\n</tool_call>'
THOUGHT = "<think>Easy.</think>Paris."


def num_bytes(text: str) -> int:
    return len(text.encode())


def usage(prompt: str, answer: str, *, has_end: bool = True) -> tuple[int, int, int]:
    """Return the scripted model's token counts: one a byte, and one for the end of the answer."""
    prompt_tokens, tokens = num_bytes(prompt), num_bytes(answer) + has_end
    return prompt_tokens, tokens, prompt_tokens + tokens


def script_of(*parts: str | Exception) -> Script:
    def script(_: ScriptInput) -> Iterable[int | Exception]:
        for part in parts:
            yield from part.encode() if isinstance(part, str) else [part]

    return script


ASKED = Asked(PROMPT)
CUT = TEXT[:10]
SHORT = Asked(PROMPT, max_tokens=num_bytes(CUT) + 1)
"""Ends in the middle of a character, whose first bytes count but are not shown."""
TOOLED = Asked(TOOL_PROMPT, has_tool=True)

TABLE: dict[str, tuple[Script, Asked, Outcome, Outcome]] = {
    "text": (
        script_of(TEXT),
        ASKED,
        Outcome(TEXT, "stop", usage(PROMPT, TEXT)),
        Outcome(TEXT, "stop", usage(PROMPT, TEXT)),
    ),
    "no text": (
        script_of(),
        ASKED,
        Outcome("", "stop", usage(PROMPT, "")),
        Outcome("", "stop", usage(PROMPT, "")),
    ),
    "length": (
        script_of(TEXT),
        SHORT,
        Outcome(CUT, "length", usage(PROMPT, CUT)),
        Outcome(CUT, "length", usage(PROMPT, CUT)),
    ),
    "tool call": (
        script_of(CALL),
        TOOLED,
        Outcome(CALL, "stop", usage(TOOL_PROMPT, CALL)),
        Outcome(
            "",
            "tool_calls",
            usage(TOOL_PROMPT, CALL),
            calls=(("get_weather", '{"city": "Rom"}'),),
        ),
    ),
    "text and two calls": (
        script_of("Let me look.", CALL, "\n", CALL),
        TOOLED,
        Outcome(
            f"Let me look.{CALL}\n{CALL}",
            "stop",
            usage(TOOL_PROMPT, f"Let me look.{CALL}\n{CALL}"),
        ),
        Outcome(
            "Let me look.",
            "tool_calls",
            usage(TOOL_PROMPT, f"Let me look.{CALL}\n{CALL}"),
            calls=(("get_weather", '{"city": "Rom"}'),) * 2,
        ),
    ),
    "reasoning": (
        script_of(THOUGHT),
        ASKED,
        Outcome(THOUGHT, "stop", usage(PROMPT, THOUGHT)),
        Outcome("Paris.", "stop", usage(PROMPT, THOUGHT), reasoning="Easy."),
    ),
    "error": (
        script_of("Par", RuntimeError("the model broke")),
        ASKED,
        Outcome("Par", "error", None),
        Outcome("Par", "error", None),
    ),
}
"""Scenario: the model's output, the request, and the outcomes on the RAW and CHAT transports."""


@pytest.mark.slow
@pytest.mark.pain(4)
@pytest.mark.pain(11)
@pytest.mark.pain(12)
@pytest.mark.parametrize("scenario", TABLE)
async def test_the_outcome_is_the_same_on_every_transport(scenario: str) -> None:
    script, asked, raw_outcome, chat_outcome = TABLE[scenario]
    chats = () if asked.has_tool else (native_chat,)
    expected = {
        **dict.fromkeys((*RAW, *chats), raw_outcome),
        **dict.fromkeys(CHAT, chat_outcome),
    }
    if raw_outcome.finish == "error":
        expected |= dict.fromkeys(WHOLE, transports.FAILED)
    async with stream_server(scripted_backend(script, reasons=True)) as server:
        outcomes = {transport: await transport(server, asked) for transport in expected}
    assert outcomes == expected


# Cancel.


def endless(_: ScriptInput) -> Iterable[int]:
    return itertools.cycle(b"abc")


LONG = Asked(PROMPT, max_tokens=10_000)


async def cancel_native(server: StreamServer, gate: Gate) -> Outcome:
    async with server.connect() as client:
        await send(client, type="generate", id="a", prompt=PROMPT, max_tokens=LONG.max_tokens)
        gate.allow(3)
        frames: list[dict[str, Any]] = []
        while text_of(frames) != "abc":
            frames.append(await receive(client))
        await send(client, type="cancel", id="a")
        await send(client, type="nonsense")  # answered after the cancel
        frames += await receive_until(client, "error")
        gate.open()
        return transports.native_outcome(frames + await receive_stream(client))


async def cancel_on_socket(server: StreamServer, gate: Gate) -> Outcome:
    async with server.connect("/v1/responses") as client:
        await send(client, type="response.create", **response_fields(LONG))
        gate.allow(3)
        events: list[dict[str, Any]] = []
        while "".join(event.get("delta", "") for event in events) != "abc":
            events.append(await receive(client))
        await send(client, type="response.cancel")
        await send(client, type="nonsense")
        *more, error = await receive_until(client, "error")
        assert error["error"]["code"] == "unknown_type"
        gate.open()
        events += more + await receive_turn(client)
        return response_outcome(check_events(events))


async def cancel_in_background(server: StreamServer, gate: Gate) -> Outcome:
    fields = {**response_fields(LONG), "background": True, "stream": True}
    async with (
        httpx.AsyncClient(base_url=server.http_url, timeout=None) as client,
        client.stream("POST", "/v1/responses", json=fields) as answer,
    ):
        lines = answer.aiter_lines()
        created = json.loads((await anext(lines, "") and await anext(lines))[len("data: ") :])
        gate.allow(3)
        while "response.output_text.delta" not in await anext(lines):
            pass
        path = f"/v1/responses/{created['response']['id']}/cancel"
        cancelling = asyncio.create_task(client.post(path))
        while not cancelling.done():
            gate.allow()  # the generation ends at a step, and the response waits for that
            await yield_to_loop()
        cancelled = (await cancelling).json()
    events = await get_events(server, cancelled["id"])
    assert check_events(events) == cancelled
    return response_outcome(cancelled)


@pytest.mark.pain(11)
@pytest.mark.pain(12)
@pytest.mark.parametrize("cancel", [cancel_native, cancel_on_socket, cancel_in_background])
async def test_a_cancelled_generation_keeps_its_text_and_usage(
    cancel: Callable[[StreamServer, Gate], Awaitable[Outcome]],
) -> None:
    gate = Gate()
    backend = scripted_backend(endless, max_model_len=2 * LONG.max_tokens, gate=gate)
    async with stream_server(backend, gate=gate) as server:
        outcome = await cancel(server, gate)
    assert outcome.usage is not None
    num_prompt_tokens, num_tokens, total_tokens = outcome.usage
    assert 3 <= num_tokens < LONG.max_tokens
    assert outcome.text == ("abc" * num_tokens)[:num_tokens]
    assert (num_prompt_tokens, total_tokens) == (
        num_bytes(PROMPT),
        num_bytes(PROMPT) + num_tokens,
    )
    assert outcome.finish == "cancelled"


@pytest.mark.parametrize(
    "transport",
    [
        *(transports.completions, transports.completions_stream),
        *(transports.chat, transports.chat_stream),
        *(transports.responses, transports.responses_stream),
    ],
)
async def test_a_disconnect_cancels_over_http(transport: Transport) -> None:
    gate = Gate()
    backend = scripted_backend(endless, max_model_len=2 * LONG.max_tokens, gate=gate)
    async with stream_server(backend, gate=gate) as server:

        async def ask() -> None:
            await transport(server, LONG)

        asking = asyncio.create_task(ask())
        await entered(gate)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        while server.engine.stats.num_running:
            gate.allow()  # the generation ends at a step
            await yield_to_loop()
        stats = server.engine.stats
        assert (stats.num_running, stats.num_waiting) == (0, 0)


# Resume.


async def resume_native(server: StreamServer) -> None:
    async with server.connect() as client:
        await send(client, type="generate", prompt=TOOL_PROMPT, max_tokens=1000)
        frames = await receive_stream(client)
    handle, last_seq = frames[0]["generation_id"], frames[-1]["seq"]
    whole = transports.native_outcome(frames)
    async with server.connect() as client:
        for after in range(-1, last_seq):
            await send(client, type="resume", generation_id=handle, after=after)
            resumed = transports.native_outcome(await receive_stream(client))
            shown = whole.text.encode()[: after + 1].decode(errors="ignore")
            assert shown + resumed.text == whole.text
            assert (resumed.finish, resumed.usage) == (whole.finish, whole.usage)


async def resume_background(server: StreamServer) -> None:
    async with httpx.AsyncClient(base_url=server.http_url, timeout=None) as client:
        fields = {**response_fields(TOOLED), "background": True}
        begun = (await client.post("/v1/responses", json=fields)).json()
    whole = await get_events(server, begun["id"])
    check_events(whole)
    for after in range(-1, len(whole)):
        resumed = await get_events(server, begun["id"], starting_after=after)
        assert resumed == whole[after + 1 :]


async def resume_on_socket(server: StreamServer) -> None:
    whole = await _turn_on_socket(server)
    fields = {"type": "tokenwire.response.resume", "response_id": whole[0]["response"]["id"]}
    for after in range(-1, len(whole) - 1):
        async with server.connect("/v1/responses") as client:
            await send(client, **fields, starting_after=after)
            assert await receive_turn(client) == whole[after + 1 :]


async def resume_by_handshake(server: StreamServer) -> None:
    whole = await _turn_on_socket(server)
    query = f"resume={whole[0]['response']['id']}"
    for after in range(-1, len(whole) - 1):
        path = f"/v1/responses?{query}&starting_after={after}"
        async with server.connect(path) as client:
            assert await receive_turn(client) == whole[after + 1 :]


async def _turn_on_socket(server: StreamServer) -> list[dict[str, Any]]:
    async with server.connect("/v1/responses") as client:
        await send(client, type="response.create", **response_fields(TOOLED))
        events = await receive_turn(client)
    check_events(events)
    return events


@pytest.mark.slow
@pytest.mark.pain(12)
@pytest.mark.parametrize(
    "resume", [resume_native, resume_background, resume_on_socket, resume_by_handshake]
)
async def test_a_resume_from_any_cursor_neither_loses_nor_repeats_text(
    resume: Callable[[StreamServer], Awaitable[None]],
) -> None:
    backend = scripted_backend(script_of(f"{TEXT}{CALL}\n{CALL}"))
    async with stream_server(backend, max_messages_per_s=1000) as server:
        await resume(server)
