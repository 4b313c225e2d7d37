"""`WS /v1/stream`, and the answers to WebSocket handshakes at unknown addresses."""

from __future__ import annotations

from fastapi import APIRouter, WebSocket
from starlette.responses import Response

from app.dependencies import ServicesDependency
from app.errors import ErrorInfo
from app.http.error_handlers import error_response
from app.stream.socket import StreamConnection
from app.websocket.handshake import serve_socket

_UPGRADE_REQUIRED = ErrorInfo(
    code="upgrade_required",
    message="This address accepts WebSockets only; connect with ws: or wss:.",
)

router = APIRouter()
fallback_router = APIRouter()
"""Refuses handshakes at unknown paths. Include it after all other routers."""


@router.websocket("/v1/stream")
async def stream(websocket: WebSocket, services: ServicesDependency) -> None:
    """Serve `WS /v1/stream` after the handshake."""

    def open_connection(caller: str) -> StreamConnection:
        return StreamConnection(
            websocket,
            engine=services.engine,
            caller=caller,
            settings=services.settings,
            large=services.large,
        )

    await serve_socket(websocket, services, open_connection)


@router.get("/v1/stream", include_in_schema=False)
async def refuse_plain_http() -> Response:
    """Answer plain HTTP with 426 Upgrade Required (RFC 9110 §15.5.22)."""
    headers = {"upgrade": "websocket", "connection": "upgrade"}
    return error_response(_UPGRADE_REQUIRED, headers=headers)


@fallback_router.websocket("/{path:path}")
async def refuse_unknown_path(websocket: WebSocket, path: str) -> None:
    """Refuse the handshake with 404."""
    info = ErrorInfo(code="not_found", message=f"There is no WebSocket at /{path[:200]}.")
    await websocket.send_denial_response(error_response(info))
