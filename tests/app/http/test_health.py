"""`GET /health`, `/livez` and `/readyz`."""

from __future__ import annotations

import asyncio
from importlib.metadata import version
from pathlib import Path

import pytest

from streaming.backend import Backend, Batch, FailedRow, SampledToken
from streaming.backends.scripted import EOS, Gate, say, scripted_backend
from tests.app.serving import client, client_of, serving, until
from tests.support import entered


async def test_health_describes_the_server():
    backend = scripted_backend(max_model_len=99, has_chat_template=False)
    async with client_of(backend) as calling:
        response = await calling.get("/health")
    health = response.json()
    assert response.status_code == 200
    assert health.pop("uptime_s") >= 0
    assert health == {
        "status": "ok",
        "model_loaded": True,
        "model": "scripted",
        "version": version("tokenwire"),
        "active": 0,
        "queued": 0,
        "connections": 0,
        "backend": "scripted",
        "dtype": "none",
        "device": "none",
        "max_model_len": 99,
        "has_chat_template": False,
        "batch_invariant": True,
        "attention": None,
        "store": {"status": "ok", "reason": None},
    }


async def test_health_counts_running_and_queued_generations():
    gate = Gate()
    backend = scripted_backend(say("a"), gate=gate, max_num_seqs=1)
    async with client_of(backend, gate=gate) as calling, asyncio.TaskGroup() as tasks:
        tasks.create_task(calling.post("/v1/completions", json={"prompt": "a", "n": 3}))
        await entered(gate)
        health = (await calling.get("/health")).json()
        gate.open()
    assert (health["active"], health["queued"]) == (1, 2)


@pytest.mark.pain(15)
async def test_a_draining_engine_is_alive_but_not_ready():
    async with serving(scripted_backend()) as (app, engine), client(app) as calling:
        before = await calling.get("/readyz")
        await engine.drain(deadline_s=1)
        after = await calling.get("/readyz")
        alive = await calling.get("/livez")
        health = await calling.get("/health")
    assert (before.status_code, before.json()) == (200, {"status": "ok"})
    assert (after.status_code, after.json()) == (503, {"status": "draining"})
    assert after.headers["retry-after"] == "1"
    assert (alive.status_code, alive.json()) == (200, {"status": "ok"})
    assert (health.status_code, health.json()["status"]) == (503, "draining")
    assert health.json()["model_loaded"]


async def test_draining_sockets_end_readiness():
    async with serving(scripted_backend()) as (app, _), client(app) as calling:
        app.state.services.connections.drain()
        response = await calling.get("/readyz")
    assert (response.status_code, response.json()) == (503, {"status": "draining"})


class BrokenRunner:
    """Fails to release a sequence, which the engine cannot recover from."""

    max_num_seqs = 1
    cache = None

    def run(self, batch: Batch) -> list[SampledToken | FailedRow]:
        return [SampledToken(EOS) for _ in batch.chunks]

    def release(self, generation_id: str) -> None:
        raise RuntimeError("stuck")

    def close(self) -> None:
        pass


async def test_a_failed_engine_is_reported():
    whole = scripted_backend()
    backend = Backend(info=whole.info, tokenizer=whole.tokenizer, runner=BrokenRunner())
    async with serving(backend) as (app, engine), client(app) as calling:
        await calling.post("/v1/completions", json={"prompt": "a"})
        refused = await calling.post("/v1/completions", json={"prompt": "a"})
        await until(lambda: engine.has_failed)
        health = await calling.get("/health")
        alive = await calling.get("/livez")
    assert (refused.status_code, refused.json()["error"]["code"]) == (500, "engine_error")
    assert (health.status_code, health.json()["status"]) == (503, "failed")
    assert not health.json()["model_loaded"]
    assert (alive.status_code, alive.json()) == (503, {"status": "failed"})


async def test_an_engine_that_has_not_started_is_loading():
    async with serving(scripted_backend()) as (app, engine), client(app) as calling:
        loop, engine._loop = engine._loop, None
        response = await calling.get("/readyz")
        engine._loop = loop
    assert (response.status_code, response.json()) == (503, {"status": "loading"})


async def test_an_unavailable_store_is_reported_and_does_not_end_readiness(tmp_path: Path):
    folder = tmp_path / "data"
    async with (
        serving(scripted_backend(say("a")), data_dir=str(folder)) as (app, _),
        client(app) as calling,
    ):
        folder.rename(tmp_path / "moved")
        refused = await calling.get("/v1/responses/resp_x")
        unavailable = await calling.get("/health")
        answer = await calling.post("/v1/responses", json={"input": "hi"})
        (tmp_path / "moved").rename(folder)
        app.state.services.responses.registry._store._file._retry_at = 0.0  # as after a second
        found = await calling.get("/v1/responses/resp_x")
        available = await calling.get("/health")
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "store_unavailable")
    assert unavailable.status_code == 200
    assert unavailable.json()["store"] == {"status": "unavailable", "reason": "removed"}
    assert (answer.status_code, answer.json()["store"]) == (200, False)
    assert (found.status_code, found.json()["error"]["code"]) == (404, "response_not_found")
    assert available.json()["store"] == {"status": "ok", "reason": None}


async def test_health_reports_that_there_is_no_store():
    async with client_of(scripted_backend(), store_responses=False) as calling:
        health = (await calling.get("/health")).json()
    assert health["store"] == {"status": "off", "reason": None}


@pytest.mark.parametrize("path", ["/health", "/livez", "/readyz"])
async def test_health_checks_answer_head(path: str):
    """Many health checks use HEAD, and RFC 9110 §9.1 requires it of every server."""
    async with client_of(scripted_backend()) as calling:
        assert (await calling.head(path)).status_code == 200
