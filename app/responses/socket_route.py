"""The route `WS /v1/responses`, at the address of its REST twin."""

from __future__ import annotations

from fastapi import APIRouter, WebSocket

from app.dependencies import ServicesDependency
from app.responses.protocol.parsing import query_resumes
from app.responses.socket import ResponsesConnection
from app.websocket.handshake import serve_socket

router = APIRouter()


@router.websocket("/v1/responses")
async def responses(websocket: WebSocket, services: ServicesDependency) -> None:
    """Serve the Responses dialect to an authenticated caller.

    The query may have our extensions: `resume` with `starting_after` and `stream_id`, and
    `tokenwire_events=true` for events that are not OpenAI's.
    """
    query = websocket.query_params

    def open_connection(caller: str) -> ResponsesConnection:
        return ResponsesConnection(
            websocket,
            service=services.responses,
            caller=caller,
            settings=services.settings,
            large=services.large,
            resumes=query_resumes(
                query.getlist("resume"),
                query.getlist("starting_after"),
                query.getlist("stream_id"),
            ),
            warns_of_expiry=query.get("tokenwire_events") == "true",
        )

    await serve_socket(websocket, services, open_connection)
