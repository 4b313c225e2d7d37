"""Why a response cannot be given."""

from __future__ import annotations

from app.errors import ErrorInfo, RequestRefused

_MAX_SHOWN_CHARS = 100


def not_found(response_id: str) -> RequestRefused:
    """Return the error for a response that is not there for this caller, whatever the reason."""
    return RequestRefused(
        ErrorInfo(
            code="response_not_found",
            message=f"response_id: no response {response_id[:_MAX_SHOWN_CHARS]!r}; it may have "
            "expired, or was not to be stored.",
            param="response_id",
        )
    )


def previous_not_found(response_id: str) -> RequestRefused:
    """Return the error for a response to go on from that is not there for this caller."""
    return RequestRefused(
        ErrorInfo(
            code="previous_response_not_found",
            message=f"Previous response with id {response_id[:_MAX_SHOWN_CHARS]!r} not found.",
            param="previous_response_id",
        )
    )


def stream_expired() -> RequestRefused:
    """Return the error for a log that is not in memory any more."""
    return RequestRefused(
        ErrorInfo(
            code="stream_expired",
            message="This response can no longer be streamed: it has ended some time ago. "
            "Fetch it without stream.",
            param="stream",
        )
    )


def store_unavailable() -> RequestRefused:
    return RequestRefused(
        ErrorInfo(
            code="store_unavailable",
            message="The store of responses cannot be used now; the server's log says why.",
        )
    )
