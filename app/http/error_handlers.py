"""Exception handlers of REST requests; every error response has OpenAI's body."""

from __future__ import annotations

import math
from collections.abc import Mapping

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Match

from app.errors import ErrorInfo, RequestRefused
from app.schemas.validation import to_error_info
from streaming.errors import StreamingError

INTERNAL_ERROR = ErrorInfo(
    code="internal_error",
    message="The server failed to answer the request; its log has the details.",
)

_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_CLIENT_CLOSED_REQUEST = 499
"""nginx's status for a client that disconnected; it is never received."""


def error_response(info: ErrorInfo, *, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Return the response for an error, with `Retry-After` or `WWW-Authenticate` if they apply."""
    response = JSONResponse(info.to_openai(), info.row.http_status, dict(headers or {}))
    if info.retry_after_s is not None:
        response.headers["retry-after"] = str(max(1, math.ceil(info.retry_after_s)))
    if info.code == "unauthorized":
        response.headers["www-authenticate"] = "Bearer"
    return response


def add_exception_handlers(app: FastAPI) -> None:
    """Handle the exceptions that routes raise on purpose; `ErrorBoundary` handles the others."""
    app.add_exception_handler(StreamingError, _on_streaming_error)
    app.add_exception_handler(RequestRefused, _on_refused)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(ClientDisconnect, _on_disconnect)


async def _on_streaming_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, StreamingError)
    return error_response(ErrorInfo.of(error))


async def _on_refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestRefused)
    return error_response(error.info)


async def _on_invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return error_response(to_error_info(error.errors()))


async def _on_http_error(request: Request, error: Exception) -> Response:
    """Handle the framework's own errors; most of them mean that no route matches."""
    assert isinstance(error, HTTPException)
    path = request.url.path[:200]
    headers = error.headers
    match error.status_code:
        case 405:
            headers = {"allow": ", ".join(_allowed_methods(request))}
            info = ErrorInfo(
                code="method_not_allowed", message=f"{path} does not support {request.method}."
            )
        case 401 | 404:  # 401: a static file without read permission
            info = ErrorInfo(code="not_found", message=f"{path} was not found.")
        case status if status < 500:
            info = ErrorInfo(code="invalid_request", message=str(error.detail))
        case _:
            info = INTERNAL_ERROR
    return error_response(info, headers=headers)


def _allowed_methods(request: Request) -> list[str]:
    """Return the methods of all routes at this path (RFC 9110 §15.5.6).

    Starlette's own `Allow` header has those of one route only.
    """
    return [
        method
        for method in _METHODS
        if any(
            route.matches({**request.scope, "method": method})[0] is Match.FULL
            for route in request.app.routes
        )
    ]


async def _on_disconnect(_: Request, __: Exception) -> Response:
    return Response(status_code=_CLIENT_CLOSED_REQUEST)
