"""Who gets a WebSocket, and what those hear who do not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import WebSocket

from app.auth import SUBPROTOCOL, bearer_key, is_origin_allowed, subprotocol_key
from app.dependencies import Services
from app.errors import ErrorInfo, RequestRefused
from app.http.error_handlers import error_response
from app.http.middleware.origin_check import FORBIDDEN_ORIGIN
from app.websocket.connection import Connection

_RETRY_AFTER_S = 1.0
_UNAUTHORIZED = ErrorInfo(
    code="unauthorized",
    message=(
        "A valid API key is needed: Authorization: Bearer KEY, or the subprotocol "
        "tokenwire.key.KEY with the key in base64url."
    ),
)
_SHUTTING_DOWN = ErrorInfo(
    code="shutting_down", message="The server is shutting down.", retry_after_s=_RETRY_AFTER_S
)
_NOT_READY = ErrorInfo(
    code="overloaded", message="The server is not ready.", retry_after_s=_RETRY_AFTER_S
)
_TOO_MANY = ErrorInfo(
    code="too_many_connections",
    message="The server has as many WebSockets open as it may.",
    retry_after_s=_RETRY_AFTER_S,
)
_TOO_MANY_OF_ONE = ErrorInfo(
    code="too_many_connections",
    message="You have as many WebSockets open as one caller may.",
    retry_after_s=_RETRY_AFTER_S,
)


async def serve_socket(
    websocket: WebSocket, services: Services, open_connection: Callable[[str], Connection[Any, Any]]
) -> None:
    """Let the caller in and serve its socket to the end, or tell it why not.

    Args:
        open_connection: returns what talks to the caller of this name.
    """
    try:
        caller = _admit(websocket, services)
    except RequestRefused as refused:
        await websocket.send_denial_response(error_response(refused.info))
        return
    connection = open_connection(caller)
    # Counted before it is accepted, so that handshakes at the same time cannot pass the limit.
    with services.connections.register(caller, connection):
        is_offered = SUBPROTOCOL in websocket.scope["subprotocols"]
        await websocket.accept(subprotocol=SUBPROTOCOL if is_offered else None)
        await connection.run()


def _admit(websocket: WebSocket, services: Services) -> str:
    """Return who calls.

    Raises:
        RequestRefused: the page, the caller or the moment is wrong.
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
    if services.connections.has_all_of_its_own(caller):
        raise RequestRefused(_TOO_MANY_OF_ONE)
    if services.connections.is_full_for(caller):
        raise RequestRefused(_TOO_MANY)
    return caller
