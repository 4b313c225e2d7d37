"""`GET /asyncapi.json`: describes the WebSockets, as `/openapi.json` describes the REST routes."""

from __future__ import annotations

from functools import cache
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse

from app.asyncapi.document import build_document, describe_server
from app.responses.asyncapi_channel import responses_channel
from app.stream.asyncapi_channel import stream_channel

router = APIRouter()


@router.get("/asyncapi.json", include_in_schema=False)
def get_asyncapi(request: Request) -> JSONResponse:
    """Return the AsyncAPI document. Runs in a worker thread: the first call builds all schemas."""
    servers = describe_server(
        host=request.url.netloc,
        protocol="wss" if request.url.scheme == "https" else "ws",
        pathname=request.scope.get("root_path", ""),
    )
    return JSONResponse({**asyncapi_document(request.app.version), "servers": servers})


@cache
def asyncapi_document(version: str) -> dict[str, Any]:
    """Return the document without `servers`; cached."""
    return build_document([stream_channel(), responses_channel()], version=version)
