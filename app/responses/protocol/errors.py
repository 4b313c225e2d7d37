"""Errors that a `ResponsesProtocol` finds by itself, and what they mean for the turn."""

from __future__ import annotations

from app.errors import ErrorInfo

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


def too_many_messages(retry_after_s: float) -> ErrorInfo:
    """Return the error of a client that exceeds the message rate."""
    message = f"Too many messages; try again in {retry_after_s:.2f} s."
    return ErrorInfo(code="rate_limit_exceeded", message=message, retry_after_s=retry_after_s)


def is_capacity_error(info: ErrorInfo) -> bool:
    """Return whether the same request may succeed later, because it was never processed."""
    return info.row.http_status in (429, 503)
