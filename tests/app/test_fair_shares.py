"""Fairness between two API keys: one uses all it can get, the other sends one request."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Iterable
from contextlib import AsyncExitStack
from dataclasses import replace
from hashlib import sha256
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import InvalidStatus

from streaming import Backend
from streaming.backend import CacheGeometry
from streaming.backends.scripted import Gate, ScriptedRunner, ScriptInput, say, scripted_backend
from tests.app.serving import client_of, serving, until
from tests.app.sockets import (
    StreamServer,
    receive_stream,
    receive_until,
    receive_until_closed,
    send,
    stream_server,
)
from tests.support import entered, yield_to_loop

KEYS: dict[str, Any] = {"api_keys": ("greedy", "modest")}
GREEDY = {"authorization": "Bearer greedy"}
MODEST = {"authorization": "Bearer modest"}

MAX_STEPS = 6
"""Steps until the new caller is served: the current one, one in which both are level, its own, and
some to spare."""


def repeat_for_ever(_: ScriptInput) -> Iterable[int]:
    return itertools.repeat(ord("a"))


def endless_backend(gate: Gate, *, max_num_seqs: int = 2, has_cache: bool = True) -> Backend:
    cache = CacheGeometry(num_blocks=4096, block_size=4, max_batch_tokens=64)
    runner = ScriptedRunner(
        repeat_for_ever, max_num_seqs=max_num_seqs, cache=cache if has_cache else None, gate=gate
    )
    return replace(scripted_backend(max_model_len=4096), runner=runner)


async def fill(client: ClientConnection, *numbers: int) -> None:
    """Open an endless stream for each number and wait until it is accepted."""
    for n in numbers:
        await send(client, type="generate", id=str(n), prompt=f"{n}", max_tokens=4000)
        await receive_until(client, "accepted", stream_id=str(n))


# Running and waiting requests.


async def test_a_socket_of_a_new_caller_is_served_at_once():
    """One caller uses the whole batch and queue; another sends one request."""
    gate = Gate()
    limits: dict[str, Any] = {
        **KEYS,
        "max_waiting_requests": 4,
        "max_waiting_requests_per_caller": 4,
        "max_generations_per_caller": 6,
    }
    async with (
        stream_server(endless_backend(gate), gate=gate, **limits) as server,
        server.connect(additional_headers=GREEDY) as greedy,
        server.connect(additional_headers=MODEST) as modest,
    ):
        await fill(greedy, 0)
        await entered(gate)
        await fill(greedy, 1, 2, 3, 4)  # queued
        await send(modest, type="generate", id="one", prompt="hi", max_tokens=10)
        await receive_until(modest, "accepted")
        gate.allow(MAX_STEPS)
        await receive_until(modest, "delta")
        [refused] = [
            frame for frame in await receive_until(greedy, "error") if frame["type"] == "error"
        ]
        assert refused["id"] == "4", "its newest request"
        assert refused["error"]["code"] == "overloaded"
        assert refused["error"]["retryable"] is True
        assert refused["error"]["retry_after_s"] > 0
        assert "a caller with fewer" in refused["error"]["message"]


async def post(calling: httpx.AsyncClient, key: dict[str, str], **body: Any) -> httpx.Response:
    return await calling.post("/v1/completions", json={"prompt": "hi", **body}, headers=key)


async def test_a_rest_request_of_a_new_caller_is_served_at_once():
    gate = Gate()
    limits: dict[str, Any] = {
        **KEYS,
        "max_waiting_requests": 3,
        "max_waiting_requests_per_caller": 3,
        "max_generations_per_caller": 5,
    }
    async with serving(endless_backend(gate), gate=gate, **limits) as (app, engine):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as calling:
            running = [asyncio.create_task(post(calling, GREEDY, max_tokens=4000))]
            await entered(gate)
            for _ in range(3):
                num_open = engine._store.num_open
                running.append(asyncio.create_task(post(calling, GREEDY, max_tokens=4000)))
                while engine._store.num_open == num_open:
                    await yield_to_loop()
            modest = asyncio.create_task(post(calling, MODEST, max_tokens=1))
            await until(lambda: engine._store.num_open == 5)  # including the one that is displaced
            gate.allow(MAX_STEPS)
            answer = await modest
            assert answer.status_code == 200
            assert answer.json()["choices"][0]["text"] == "a"
            displaced = await running[-1]
            assert displaced.status_code == 503
            assert displaced.json()["error"]["code"] == "overloaded"
            assert int(displaced.headers["retry-after"]) >= 1
            for task in running[:-1]:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)


async def test_a_caller_at_its_own_limit_gets_the_same_error_on_both_transports():
    gate = Gate()
    limits: dict[str, Any] = {**KEYS, "max_waiting_requests": 4}  # so each may have two
    async with (
        stream_server(endless_backend(gate, max_num_seqs=1), gate=gate, **limits) as server,
        server.connect(additional_headers=GREEDY) as greedy,
        server.connect(additional_headers=MODEST) as modest,
        httpx.AsyncClient(base_url=server.http_url, timeout=None) as calling,
    ):
        await fill(greedy, 0)
        await entered(gate)
        await send(modest, type="generate", id="one", prompt="hi", max_tokens=10)
        await receive_until(modest, "accepted")
        # The request in the blocked step has started.
        gate.allow()
        await entered(gate)
        await fill(greedy, 1, 2)
        await send(greedy, type="generate", id="more", prompt="x")
        frame = (await receive_until(greedy, "error", stream_id="more"))[-1]
        answer = await post(calling, GREEDY)
        assert frame["error"]["code"] == answer.json()["error"]["code"] == "rate_limited"
        assert frame["error"]["retry_after_s"] > 0
        assert (answer.status_code, int(answer.headers["retry-after"]) >= 1) == (429, True)
        assert "(limit for one caller: 2)" in answer.json()["error"]["message"]


async def test_without_preemption_a_caller_is_next_when_one_ends():
    """A runner with its own cache cannot preempt; the new caller is queued all the same."""
    gate = Gate()
    limits: dict[str, Any] = {
        **KEYS,
        "max_waiting_requests": 3,
        "max_waiting_requests_per_caller": 3,
        "max_generations_per_caller": 4,
    }
    backend = endless_backend(gate, max_num_seqs=1, has_cache=False)
    async with (
        stream_server(backend, gate=gate, **limits) as server,
        server.connect(additional_headers=GREEDY) as greedy,
        server.connect(additional_headers=MODEST) as modest,
    ):
        await fill(greedy, 0)
        await entered(gate)
        gate.allow()
        await entered(gate)
        await fill(greedy, 1, 2, 3)
        await send(modest, type="generate", id="one", prompt="hi", max_tokens=2)
        await receive_until(modest, "accepted")
        gate.allow()
        await entered(gate)  # from here on, the new caller has been served less
        await receive_until(greedy, "error", stream_id="3")  # displaced
        await send(greedy, type="cancel", id="0")
        await send(greedy, type="cancel", id="nobody")
        # An error for an unknown stream: the cancel before it has been handled.
        await receive_until(greedy, "error")
        gate.allow(MAX_STEPS)
        assert (await receive_stream(modest))[-1]["type"] == "done"


# WebSockets.


async def test_a_caller_may_open_half_of_the_sockets():
    async with stream_server(scripted_backend(), max_connections=4, **KEYS) as server:
        async with AsyncExitStack() as stack:
            for _ in range(2):
                await stack.enter_async_context(server.connect(additional_headers=GREEDY))
            assert await refusal_of(server, GREEDY) == (429, "too_many_connections")
            async with server.connect(additional_headers=MODEST):
                pass
        await server.until_left()


async def refusal_of(server: StreamServer, key: dict[str, str]) -> tuple[int, str]:
    with pytest.raises(InvalidStatus) as caught:
        async with server.connect(additional_headers=key):
            pass
    response = caught.value.response
    return response.status_code, json.loads(response.body)["error"]["code"]


async def test_a_new_caller_displaces_a_socket_whose_generation_continues():
    gate = Gate()
    limits: dict[str, Any] = {**KEYS, "max_connections": 2, "max_connections_per_caller": 2}
    backend = scripted_backend(say("hello"), gate=gate)
    async with (
        stream_server(backend, gate=gate, **limits) as server,
        server.connect(additional_headers=GREEDY) as first,
        server.connect(additional_headers=GREEDY) as second,
    ):
        await send(second, type="generate", id="s", prompt="hi")
        accepted = (await receive_until(second, "accepted"))[-1]
        async with server.connect(additional_headers=MODEST) as modest:
            await receive_until_closed(second)
            assert second.close_code == 1013
            gate.open()
            await send(modest, type="generate", id="m", prompt="hi")
            assert (await receive_stream(modest))[-1]["type"] == "done"
            await send(
                first, type="resume", id="r", generation_id=accepted["generation_id"], after=-1
            )
            frames = await receive_stream(first)
            assert "".join(frame.get("text", "") for frame in frames) == "hello"
            assert await refusal_of(server, GREEDY) == (429, "too_many_connections")


# Request rate.


async def test_each_caller_has_its_own_rate_of_rest_requests():
    limits: dict[str, Any] = {**KEYS, "max_requests_per_s": 0.01, "max_generations_per_caller": 2}
    async with client_of(scripted_backend(say("x")), **limits) as calling:
        answers = [await post(calling, GREEDY) for _ in range(2)]
        answers += [
            await calling.get("/v1/models", headers=GREEDY),
            await post(calling, GREEDY),
            await calling.post("/v1/tokenize", json={"prompt": "a"}, headers=GREEDY),
            await calling.get("/v1/responses/resp_1", headers=GREEDY),
        ]
        assert [answer.status_code for answer in answers] == [200, 200, 429, 429, 429, 429]
        assert {answer.json()["error"]["code"] for answer in answers[2:]} == {"rate_limited"}
        assert all(90 <= int(answer.headers["retry-after"]) <= 100 for answer in answers[2:])
        assert (await post(calling, MODEST)).status_code == 200
        assert (await calling.get("/health")).status_code == 200
        assert (await post(calling, {"authorization": "Bearer wrong"})).status_code == 401


async def test_without_keys_each_address_has_its_own_rate():
    limits: dict[str, Any] = {"max_requests_per_s": 0.01, "max_generations_per_caller": 1}
    async with serving(scripted_backend(say("x")), **limits) as (app, _):
        statuses = []
        for host in ("10.0.0.1", "10.0.0.1", "10.0.0.2"):
            transport = httpx.ASGITransport(app, client=(host, 1))
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as each:
                statuses.append((await each.get("/v1/models")).status_code)
    assert statuses == [200, 429, 200]


async def test_a_request_counts_as_open_until_it_is_answered():
    """Also a request without a generation, and one whose client disconnects."""
    gate = Gate()
    limits: dict[str, Any] = {**KEYS, "max_open_requests_per_caller": 2}
    backend = endless_backend(gate)
    async with serving(backend, gate=gate, **limits) as (app, _):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as calling:
            open_requests = [asyncio.create_task(post(calling, GREEDY)) for _ in range(2)]
            await entered(gate)
            requests = app.state.services.request_limiter
            await until(lambda: requests.is_full_for("key_" + sha256(b"greedy").hexdigest()[:16]))
            refused = await calling.get("/v1/models", headers=GREEDY)
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
            assert refused.json()["error"]["code"] == "rate_limited"
            assert (await calling.get("/v1/models", headers=MODEST)).status_code == 200
            for task in open_requests:
                task.cancel()
            await asyncio.gather(*open_requests, return_exceptions=True)
            assert (await calling.get("/v1/models", headers=GREEDY)).status_code == 200


# Priority.


async def test_a_priority_above_0_is_refused_by_default():
    async with (
        stream_server(scripted_backend(say("x"))) as server,
        httpx.AsyncClient(base_url=server.http_url) as calling,
        server.connect() as client,
    ):
        answer = await calling.post("/v1/completions", json={"prompt": "a", "priority": 1})
        lower = await calling.post("/v1/completions", json={"prompt": "a", "priority": -1})
        await send(client, type="generate", id="s", prompt="a", priority=1)
        frame = (await receive_stream(client))[-1]
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (422, "priority")
    assert error["message"] == "priority: must be at most 0 on this server (got 1)"
    assert (frame["error"]["code"], frame["error"]["param"]) == ("invalid_request", "priority")
    assert lower.status_code == 200


async def test_a_priority_up_to_max_priority_is_accepted():
    async with client_of(scripted_backend(say("x")), max_priority=5) as calling:
        for priority, status in ((5, 200), (6, 422)):
            body = {"prompt": "a", "priority": priority}
            assert (await calling.post("/v1/completions", json=body)).status_code == status


# Batches.


async def test_a_batch_that_can_never_be_admitted_is_not_retryable():
    limits: dict[str, Any] = {**KEYS, "max_waiting_requests": 6}
    async with client_of(scripted_backend(say("x")), **limits) as calling:
        assert (await post(calling, GREEDY, n=4)).status_code == 422
        assert (await post(calling, GREEDY, n=3)).status_code == 200
