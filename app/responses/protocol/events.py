"""What the server says on `WS /v1/responses` beside the events of the responses themselves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from app.errors import ErrorInfo
from app.responses.schemas.socket_events import (
    ConnectionExpiringEvent,
    ResponsesErrorDetail,
    ResponsesErrorEvent,
    SteerFailedEvent,
)

Event = Mapping[str, Any]
"""A JSON object of this dialect on its way to a client."""

TERMINAL_TYPES = frozenset({"response.completed", "response.incomplete", "response.failed"})


def on_lane(event: Event, lane: str | None) -> Event:
    """Return the event as it is said on a lane; the default lane has no name to be said."""
    return event if lane is None else {**event, "stream_id": lane}


def error_event(info: ErrorInfo, lane: str | None) -> ResponsesErrorEvent:
    """Return an error: it ends the lane's turn, or concerns the connection."""
    status = info.row.http_status
    if status == 422:
        status = 400  # the dialect does not tell a wrong value from a wrong request
    error: ResponsesErrorDetail = {
        "message": info.message,
        "type": info.row.type,
        "param": info.param,
        "code": info.code,
    }
    if info.retry_after_s is not None:
        error["headers"] = {"retry-after": str(max(1, math.ceil(info.retry_after_s)))}
    event: ResponsesErrorEvent = {"type": "error", "status": status, "error": error}
    if lane is not None:
        event["stream_id"] = lane
    return event


def steer_failed_event(
    previous_response_id: str, given: str | list[Any], *, sequence_number: int, lane: str | None
) -> SteerFailedEvent:
    """Return the refusal of a steer, with its input for the client to use elsewhere.

    Args:
        given: the input.
        sequence_number: of the response's newest event, so that a client that takes every number
            for its cursor keeps the right one.
    """
    event: SteerFailedEvent = {
        "type": "response.steer.failed",
        "sequence_number": sequence_number,
        "error": {
            "type": "invalid_request_error",
            "code": "steering_not_supported",
            "message": "The model does not support steering.",
        },
        "steer": {"previous_response_id": previous_response_id, "input": given},
    }
    if lane is not None:
        event["stream_id"] = lane
    return event


def expiring_event(expires_in_s: float) -> ConnectionExpiringEvent:
    """Return the warning before the connection's age ends it; for clients that asked for it."""
    return {
        "type": "tokenwire:connection.expiring",
        "sequence_number": 0,
        "expires_in_s": round(expires_in_s, 3),
    }
