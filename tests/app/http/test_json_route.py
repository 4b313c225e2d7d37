from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI
from pydantic import BaseModel

from app.http.error_handlers import add_exception_handlers
from app.http.json_route import JSONRoute
from streaming.backends.scripted import scripted_backend
from tests.app.serving import Call, client, client_of, serving


class Thing(BaseModel):
    a: Any


@pytest.fixture
def calling() -> httpx.AsyncClient:
    app, router = FastAPI(), APIRouter(route_class=JSONRoute)
    add_exception_handlers(app)

    @router.post("/echo")
    async def echo(thing: Thing) -> Any:
        return thing.a

    @router.post("/empty")
    async def empty() -> str:
        return "fine"

    app.include_router(router)
    return client(app)


@pytest.mark.parametrize(
    "content_type",
    ["application/json", "Application/JSON; charset=utf-8", "application/merge-patch+json"],
)
async def test_json_is_read(calling: httpx.AsyncClient, content_type: str):
    response = await calling.post(
        "/echo", content='{"a": {"b": [1, "é"]}}'.encode(), headers={"content-type": content_type}
    )
    assert (response.status_code, response.json()) == (200, {"b": [1, "é"]})


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ('{"a": {"b": 1, "b": 1}}', 422, "b: must be given only once"),
        ('{"a": [NaN]}', 400, "The body is not valid JSON: NaN is not a JSON number."),
        ('{"a": -Infinity}', 400, "The body is not valid JSON: -Infinity is not a JSON number."),
        ("[]", 422, "The body must be a JSON object."),
        ("1", 422, "The body must be a JSON object."),
        ('{"a": 1', 400, "The body is not valid JSON: Expecting ',' delimiter: line 1 column 8"),
        ('{"a": ' + "[" * 29_999, 400, "The body is not valid JSON."),
        ('{"a": ' + "1" * 9_999 + "}", 400, "The body is not valid JSON."),
    ],
    ids=lambda value: str(value)[:20],
)
async def test_a_body_that_is_not_a_strict_json_object_is_refused(
    calling: httpx.AsyncClient, body: str, status: int, message: str
):
    response = await calling.post(
        "/echo", content=body, headers={"content-type": "application/json"}
    )
    assert response.status_code == status
    assert response.json()["error"]["message"].startswith(message)


async def test_a_route_without_a_body_ignores_it(calling: httpx.AsyncClient):
    response = await calling.post("/empty", content=b"not json")
    assert (response.status_code, response.json()) == (200, "fine")


async def test_without_a_key_the_body_is_not_read():
    """Parsing a megabyte of JSON would delay other requests."""
    async with serving(scripted_backend(), api_keys="secret") as (app, _):
        call = Call(app, "/v1/completions", [b"{"])
        await call()
    assert (call.status, call.num_received) == (401, 0)


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"prompt": "hi"}, 200),
        ({"prompt": "hi", "n": 0}, 422),
        ({"prompt": [1, "a"]}, 422),
        ({"prompt": "hi", "nonsense": 1}, 422),
        ([1], 422),
    ],
    ids=str,
)
async def test_a_large_body_gets_the_same_answer_as_a_small_one(fields: Any, status: int):
    """A large body is parsed and validated off the event loop."""
    async with client_of(scripted_backend()) as calling:
        small, large = [
            await calling.post(
                "/v1/completions",
                content=json.dumps(fields) + padding,
                headers={"content-type": "application/json"},
            )
            for padding in ("", " " * 2**17)
        ]
    assert (small.status_code, large.status_code) == (status, status)
    assert small.json().get("error") == large.json().get("error")
