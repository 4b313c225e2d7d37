"""Admission, back-pressure and disconnection, the same for both routes with choices.

Most tests use `/v1/completions`; the chat route shares the code.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from streaming.backends.scripted import Gate, say, scripted_backend
from tests.app.serving import Call, chunks, client, client_of, serving, until
from tests.support import ended_logs, entered

PATH = "/v1/completions"


def choice(index: int, text: str, finish_reason: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": finish_reason}


# Load.


async def test_an_overloaded_server_says_when_to_retry():
    gate = Gate()
    backend = scripted_backend(gate=gate, max_num_seqs=1)
    async with serving(backend, gate=gate, max_waiting_requests=3) as (app, engine):
        calling = client(app)
        async with asyncio.TaskGroup() as tasks:
            answers = [tasks.create_task(calling.post(PATH, json={"prompt": "first"}))]
            await entered(gate)
            batch = {"prompt": ["a", "b"]}
            answers.append(tasks.create_task(calling.post(PATH, json=batch)))
            await until(lambda: engine.stats.num_waiting == 2)
            too_many = await calling.post(PATH, json=batch)
            answers.append(tasks.create_task(calling.post(PATH, json={"prompt": "last"})))
            await until(lambda: engine.stats.num_waiting == 3)
            one_more = await calling.post(PATH, json={"prompt": "no", "stream": True})
            assert engine.stats.num_waiting == 3
            gate.open()
    assert [answer.result().status_code for answer in answers] == [200, 200, 200]
    for refused in (too_many, one_more):
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "overloaded")
        assert int(refused.headers["retry-after"]) >= 1


async def test_a_batch_larger_than_the_queue_is_not_told_to_retry():
    async with client_of(scripted_backend(), max_waiting_requests=2) as calling:
        response = await calling.post(PATH, json={"prompt": ["a", "b", "c"]})
    assert (response.status_code, response.json()["error"]["param"]) == (422, "prompt")


async def test_a_draining_server_refuses_requests():
    async with serving(scripted_backend()) as (app, engine), client(app) as calling:
        await engine.drain(deadline_s=1)
        response = await calling.post(PATH, json={"prompt": "a"})
    assert (response.status_code, response.json()["error"]["code"]) == (503, "shutting_down")
    assert response.headers["retry-after"] == "1"


# Clients that disconnect.


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_a_disconnect_cancels_running_and_waiting_choices(stream: bool):
    gate = Gate()
    backend = scripted_backend(say("x" * 4000), gate=gate, max_num_seqs=1)
    async with serving(backend, gate=gate) as (app, engine):
        body = {"prompt": ["a", "b"], "n": 2, "max_tokens": 4000, "stream": stream}
        call = Call(app, PATH, body)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(call())
            await entered(gate)
            await until(lambda: engine.stats.num_waiting == 3)
            call.leave()
        gate.allow(2)
        await until(lambda: not engine._store.num_open)
        logs = ended_logs(engine)
        assert sum(log.usage.completion_tokens for log in logs) <= 2
        assert [log.num_subscribers for log in logs] == [0, 0, 0, 0]
    assert not call.is_complete or call.status == 499


@pytest.mark.pain(2)
async def test_a_waiting_request_whose_client_disconnects_never_runs():
    gate = Gate()
    backend = scripted_backend(gate=gate, max_num_seqs=1)
    async with serving(backend, gate=gate) as (app, engine), client(app) as calling:
        async with asyncio.TaskGroup() as tasks:
            first = tasks.create_task(calling.post(PATH, json={"prompt": "first"}))
            await entered(gate)
            call = Call(app, PATH, {"prompt": "gone", "stream": True})
            leaving = tasks.create_task(call())
            await until(lambda: engine.stats.num_waiting == 1)
            call.leave()
            await leaving
            gate.open()
        assert first.result().status_code == 200
        await until(lambda: not engine._store.num_open)
        started = [log.started is not None for log in ended_logs(engine)]
    assert sorted(started) == [False, True]


async def test_a_disconnect_before_the_stream_sends_nothing():
    gate = Gate()
    async with serving(scripted_backend(gate=gate), gate=gate) as (app, engine):
        call = Call(app, PATH, {"prompt": "a", "stream": True}, takes=0)
        call.leave()
        await call()
        gate.open()
        await until(lambda: not engine._store.num_open)
    assert call.messages == []


async def test_a_client_that_stops_reading_is_disconnected():
    backend = scripted_backend(say("x" * 4000))
    async with serving(backend, stall_timeout_s=0.01) as (app, engine):
        call = Call(app, PATH, {"prompt": "a", "max_tokens": 4000, "stream": True}, takes=2)
        await call()
        await until(lambda: not engine._store.num_open)
    assert not call.is_complete


async def test_a_slow_client_gets_larger_chunks():
    gate = Gate()
    async with serving(scripted_backend(say("abcdef"), gate=gate), gate=gate) as (app, engine):
        call = Call(app, PATH, {"prompt": "x", "stream": True}, takes=0)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(call())
            await entered(gate)
            gate.open()
            await until(lambda: not engine._store.num_open)
            call.read_on()
    assert [c["choices"] for c in chunks(call.body.decode())] == [[choice(0, "abcdef", "stop")]]


@pytest.mark.pain(10)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_closed_socket_stops_the_generation(live_server: Callable[..., str], stream: bool):
    gate = Gate()
    url = httpx.URL(live_server(scripted_backend(say("x" * 4000), gate=gate)))
    body = json.dumps({"prompt": "a", "max_tokens": 4000, "stream": stream}).encode()
    with socket.create_connection((url.host, url.port)) as connection:
        connection.sendall(
            b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (PATH.encode(), len(body), body)
        )
        gate.entered.acquire()
    num_steps = 0
    with httpx.Client(base_url=url) as calling:
        while calling.get("/health").json()["active"]:
            gate.allow()
            num_steps += 1
    gate.open()
    assert num_steps < 4000
