"""`/asyncapi.json`: what `/openapi.json` is for the routes, for the WebSockets."""

from __future__ import annotations

from functools import cache
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse

from app.asyncapi.document import build_document, server_of
from app.responses.asyncapi_channel import responses_channel
from app.stream.asyncapi_channel import stream_channel

router = APIRouter()


@router.get("/asyncapi.json", include_in_schema=False)
def get_asyncapi(request: Request) -> JSONResponse:
    """Describe the WebSockets. On a worker thread, because the schemas take their time once."""
    servers = server_of(
        host=request.url.netloc,
        protocol="wss" if request.url.scheme == "https" else "ws",
        pathname=request.scope.get("root_path", ""),
    )
    return JSONResponse({**build(request.app.version), "servers": servers})


@cache
def build(version: str) -> dict[str, Any]:
    """Return the document without its servers."""
    return build_document([stream_channel(), responses_channel()], version=version)
