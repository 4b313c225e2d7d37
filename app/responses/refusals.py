"""Errors of requests for a response that cannot be returned."""

from __future__ import annotations

from app.errors import ErrorInfo, RequestRefused

_MAX_SHOWN_CHARS = 100


def not_found(response_id: str) -> RequestRefused:
    """Return the error for a response that this caller cannot find, whatever the reason."""
    return RequestRefused(
        ErrorInfo(
            code="response_not_found",
            message=f"response_id: no response {response_id[:_MAX_SHOWN_CHARS]!r}; it may have "
            "expired, or had store: false.",
            param="response_id",
        )
    )


def previous_not_found(response_id: str) -> RequestRefused:
    """Return the error for a `previous_response_id` that this caller cannot find."""
    return RequestRefused(
        ErrorInfo(
            code="previous_response_not_found",
            message=f"Previous response with id {response_id[:_MAX_SHOWN_CHARS]!r} not found.",
            param="previous_response_id",
        )
    )


def stream_expired() -> RequestRefused:
    """Return the error for a response whose log is no longer in memory."""
    return RequestRefused(
        ErrorInfo(
            code="stream_expired",
            message="stream: this response ended too long ago to be streamed. "
            "Retrieve it without stream.",
            param="stream",
        )
    )


def store_unavailable() -> RequestRefused:
    """Return the error for a store that cannot be read or written."""
    return RequestRefused(
        ErrorInfo(
            code="store_unavailable",
            message="The store of responses is unavailable; the server's log has the reason.",
        )
    )
