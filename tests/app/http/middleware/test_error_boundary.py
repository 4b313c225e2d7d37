from __future__ import annotations

import logging
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.responses import StreamingResponse

from app.http.error_handlers import INTERNAL_ERROR
from app.http.middleware import add_middleware
from app.settings import Settings
from tests.app.serving import client


@pytest.fixture
def app() -> FastAPI:
    """Routes that fail before and during their response."""
    app = FastAPI()
    add_middleware(app, Settings.model_validate({}))

    @app.get("/before")
    async def before() -> None:
        raise RuntimeError("a secret path")

    @app.get("/during")
    async def during() -> StreamingResponse:
        async def parts() -> Any:
            yield b"a"
            raise RuntimeError("too late")

        return StreamingResponse(parts())

    return app


async def test_an_unexpected_exception_is_answered_safely_and_logged(
    app: FastAPI, caplog: pytest.LogCaptureFixture
):
    async with client(app) as calling:
        response = await calling.get("/before")
    assert (response.status_code, response.json()) == (500, INTERNAL_ERROR.to_openai())
    assert response.headers["x-content-type-options"] == "nosniff"
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.getMessage() == "GET /before failed"
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "a secret path"


async def test_an_error_during_the_response_is_raised(app: FastAPI):
    async with client(app) as calling:
        with pytest.raises(RuntimeError, match="too late"):
            await calling.get("/during")
