"""Events and errors of `WS /v1/responses`, besides the events of the responses themselves."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

from app.errors import ErrorInfo
from app.responses.schemas.objects import EventObject
from app.responses.schemas.socket_events import (
    ConnectionExpiringEvent,
    ResponsesErrorDetail,
    ResponsesErrorEvent,
    SteerFailedEvent,
)

Event: TypeAlias = EventObject | ResponsesErrorEvent | SteerFailedEvent | ConnectionExpiringEvent
"""A frame of this dialect to a client, ready for JSON."""

TERMINAL_TYPES = frozenset({"response.completed", "response.incomplete", "response.failed"})

IMMEDIATE_CODES = frozenset(
    {"rate_limit_exceeded", "websocket_stream_limit_reached", "invalid_stream_id"}
)
"""Errors that are sent at once; all others are sent in the turn's place on its stream."""

CONNECTION_EXPIRED = ErrorInfo(
    code="websocket_connection_limit_reached",
    message="This connection has reached its maximum age; open a new one.",
)
NOTHING_TO_RESUME = ErrorInfo(
    code="nothing_to_resume",
    message="starting_after: this was the response's last event; there is nothing to resume.",
    param="starting_after",
)


def on_stream(event: EventObject, stream_id: str | None) -> EventObject:
    """Return the event with its stream's id; events of the default stream have none."""
    return event if stream_id is None else {**event, "stream_id": stream_id}


def error_event(info: ErrorInfo, stream_id: str | None) -> ResponsesErrorEvent:
    """Return an error, which ends the stream's turn or concerns the connection."""
    status = info.row.http_status
    if status == 422:
        status = 400  # the dialect has one status for invalid values and invalid requests
    error: ResponsesErrorDetail = {
        "message": info.message,
        "type": info.row.type,
        "param": info.param,
        "code": info.code,
    }
    if info.retry_after_s is not None:
        error["headers"] = {"retry-after": str(max(1, math.ceil(info.retry_after_s)))}
    event: ResponsesErrorEvent = {"type": "error", "status": status, "error": error}
    if stream_id is not None:
        event["stream_id"] = stream_id
    return event


def too_many_messages(retry_after_s: float) -> ErrorInfo:
    """Return the error of a client that exceeds the message rate."""
    message = f"Too many messages; try again in {retry_after_s:.2f} s."
    return ErrorInfo(code="rate_limit_exceeded", message=message, retry_after_s=retry_after_s)


def is_capacity_error(info: ErrorInfo) -> bool:
    """Return whether the same request may succeed later, because it was never processed."""
    return info.row.http_status in (429, 503)


def steer_failed_event(
    previous_response_id: str,
    steer_input: str | list[Any],
    *,
    sequence_number: int,
    stream_id: str | None,
) -> SteerFailedEvent:
    """Return the refusal of a steer, with its input, so that the client can send it otherwise.

    Args:
        previous_response_id: the response that it was for.
        steer_input: its input.
        sequence_number: that of the response's newest event, so that a client that takes its cursor
            from every event keeps the right one.
        stream_id: the stream of the response.
    """
    event: SteerFailedEvent = {
        "type": "response.steer.failed",
        "sequence_number": sequence_number,
        "error": {
            "type": "invalid_request_error",
            "code": "steering_not_supported",
            "message": "The model does not support steering.",
        },
        "steer": {"previous_response_id": previous_response_id, "input": steer_input},
    }
    if stream_id is not None:
        event["stream_id"] = stream_id
    return event


def expiring_event(expires_in_s: float) -> ConnectionExpiringEvent:
    """Return the warning that the connection will expire, for clients that ask for it."""
    return {
        "type": "tokenwire:connection.expiring",
        "sequence_number": 0,
        "expires_in_s": round(expires_in_s, 3),
    }
