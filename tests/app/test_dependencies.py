"""Who calls, and how often: `get_caller` as routes depend on it."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest
from fastapi import FastAPI, Request

from app.auth import Authenticator
from app.dependencies import Services, get_caller, get_services
from app.errors import RequestRefused
from streaming import ANYONE
from streaming.backends.scripted import scripted_backend
from tests.app.serving import serving


def make_request(app: FastAPI, *, key: str | None = None, host: str = "10.0.0.1") -> Request:
    """Return a request whose exit stack stands for `RequestScope`."""
    headers = [] if key is None else [(b"authorization", f"Bearer {key}".encode())]
    scope = {"type": "http", "app": app, "headers": headers, "client": (host, 1)}
    request = Request(scope)
    request.state.exit_stack = ExitStack()
    return request


def ask(app: FastAPI, **values: Any) -> str:
    """Answer one request and return its caller."""
    request = make_request(app, **values)
    with request.state.exit_stack:
        return get_caller(request, get_services(request))


def refusal_of(app: FastAPI, **values: Any) -> dict[str, Any]:
    with pytest.raises(RequestRefused) as refused:
        ask(app, **values)
    info = refused.value.info
    return {"code": info.code, "message": info.message, "retry_after_s": info.retry_after_s}


async def test_a_key_names_its_caller():
    async with serving(scripted_backend(), api_keys=("one", "two")) as (app, _):
        assert ask(app, key="one") == Authenticator(("one",)).identify("one")
        assert ask(app, key="one") != ask(app, key="two")
        for key in (None, "three"):
            assert refusal_of(app, key=key) == {
                "code": "unauthorized",
                "message": "A valid API key is required: Authorization: Bearer KEY.",
                "retry_after_s": None,
            }


async def test_without_keys_each_address_has_its_own_rate():
    limits: dict[str, Any] = {"max_requests_per_s": 0.01, "max_generations_per_caller": 1}
    async with serving(scripted_backend(), **limits) as (app, _):
        assert ask(app, host="10.0.0.1") == ask(app, host="10.0.0.2") == ANYONE
        refused = refusal_of(app, host="10.0.0.1")
        assert refused["code"] == "rate_limited"
        assert refused["message"].startswith("Too many requests; try again in ")
        assert 99 < refused["retry_after_s"] <= 100


async def test_a_wrong_key_uses_up_no_rate():
    limits: dict[str, Any] = {"max_requests_per_s": 0.01, "max_generations_per_caller": 1}
    async with serving(scripted_backend(), api_keys="one", **limits) as (app, _):
        assert refusal_of(app, key="two")["code"] == "unauthorized"
        assert ask(app, key="one")


async def test_a_request_is_open_until_its_exit_stack_is_closed():
    async with serving(scripted_backend(), max_open_requests_per_caller=1) as (app, _):
        first = make_request(app)
        with first.state.exit_stack:
            get_caller(first, get_services(first))
            assert refusal_of(app) == {
                "code": "rate_limited",
                "message": "Too many requests are open; try again in 1.00 s.",
                "retry_after_s": 1.0,
            }
        assert ask(app) == ANYONE


async def test_a_request_is_counted_once_however_often_its_caller_is_asked_for():
    limits: dict[str, Any] = {"max_requests_per_s": 0.01, "max_generations_per_caller": 2}
    async with serving(scripted_backend(), **limits) as (app, _):
        request = make_request(app)
        with request.state.exit_stack:
            assert {get_caller(request, get_services(request)) for _ in range(5)} == {ANYONE}
        assert ask(app) == ANYONE


async def test_the_services_are_those_of_the_application():
    async with serving(scripted_backend()) as (app, engine):
        services = get_services(make_request(app))
    assert isinstance(services, Services)
    assert services.engine is engine
