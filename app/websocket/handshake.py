"""The WebSocket handshake: checks origin, API key and limits, then serves or refuses the socket."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import WebSocket

from app.auth import (
    FORBIDDEN_ORIGIN,
    SUBPROTOCOL,
    bearer_key,
    is_origin_allowed,
    subprotocol_key,
)
from app.dependencies import Services
from app.errors import ErrorInfo, RequestRefused
from app.http.error_handlers import error_response
from app.websocket.connection import Connection

_RETRY_AFTER_S = 1.0
_UNAUTHORIZED = ErrorInfo(
    code="unauthorized",
    message=(
        "A valid API key is required: send Authorization: Bearer KEY, or the subprotocol "
        "tokenwire.key.KEY with the key in base64url."
    ),
)
_SHUTTING_DOWN = ErrorInfo(
    code="shutting_down", message="The server is shutting down.", retry_after_s=_RETRY_AFTER_S
)
_NOT_READY = ErrorInfo(
    code="overloaded", message="The server is not ready.", retry_after_s=_RETRY_AFTER_S
)
_SERVER_FULL = ErrorInfo(
    code="too_many_connections",
    message="The server has reached its limit of open WebSockets; try again later.",
    retry_after_s=_RETRY_AFTER_S,
)
_CALLER_FULL = ErrorInfo(
    code="too_many_connections",
    message="You have reached the limit of open WebSockets for one caller; close one first.",
    retry_after_s=_RETRY_AFTER_S,
)


async def serve_socket(
    websocket: WebSocket, services: Services, open_connection: Callable[[str], Connection[Any, Any]]
) -> None:
    """Accept the handshake and serve the socket until it closes, or refuse with an HTTP error.

    Args:
        websocket: not accepted yet.
        services: authenticator, limits and engine state to check.
        open_connection: creates the connection for the caller of the given name.
    """
    try:
        caller = _admit(websocket, services)
    except RequestRefused as refused:
        await websocket.send_denial_response(error_response(refused.info))
        return
    connection = open_connection(caller)
    # Register before the accept, so that concurrent handshakes cannot exceed the limit.
    with services.connections.register(caller, connection):
        is_offered = SUBPROTOCOL in websocket.scope["subprotocols"]
        await websocket.accept(subprotocol=SUBPROTOCOL if is_offered else None)
        await connection.run()


def _admit(websocket: WebSocket, services: Services) -> str:
    """Return the caller's name.

    Raises:
        RequestRefused: the origin or key is not allowed, a limit is reached, or the server is not
            ready.
    """
    headers = websocket.headers
    if not is_origin_allowed(
        headers.get("origin"),
        host=headers.get("host"),
        allowed=services.settings.allowed_origins,
    ):
        raise RequestRefused(FORBIDDEN_ORIGIN)
    key = bearer_key(headers.get("authorization")) or subprotocol_key(
        websocket.scope["subprotocols"]
    )
    caller = services.authenticator.identify(key)
    if caller is None:
        raise RequestRefused(_UNAUTHORIZED)
    if services.connections.is_draining or services.engine.is_shutting_down:
        raise RequestRefused(_SHUTTING_DOWN)
    if not services.engine.is_ready:
        raise RequestRefused(_NOT_READY)
    if services.connections.is_at_caller_limit(caller):
        raise RequestRefused(_CALLER_FULL)
    if services.connections.is_full_for(caller):
        raise RequestRefused(_SERVER_FULL)
    return caller
