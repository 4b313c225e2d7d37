from __future__ import annotations

from typing import Any

import pytest
from fastapi import FastAPI, Request
from starlette.responses import StreamingResponse

from app.http.middleware import add_middleware
from app.settings import Settings
from tests.app.serving import client


def make_app(seen: list[str]) -> FastAPI:
    app = FastAPI()
    add_middleware(app, Settings.model_validate({}))

    @app.get("/stream")
    async def stream(request: Request, *, fails: bool = False) -> StreamingResponse:
        request.state.exit_stack.callback(seen.append, "left")

        async def parts() -> Any:
            seen.append("first")
            yield b"a"
            if fails:
                raise RuntimeError("too late")
            seen.append("last")
            yield b"b"

        return StreamingResponse(parts())

    return app


async def test_the_exit_stack_is_closed_after_the_response():
    seen: list[str] = []
    async with client(make_app(seen)) as calling:
        assert (await calling.get("/stream")).text == "ab"
        assert (await calling.get("/stream")).text == "ab"
    assert seen == ["first", "last", "left"] * 2


async def test_the_exit_stack_is_closed_when_the_response_fails():
    seen: list[str] = []
    async with client(make_app(seen)) as calling:
        with pytest.raises(RuntimeError, match="too late"):
            await calling.get("/stream", params={"fails": True})
    assert seen == ["first", "left"]
