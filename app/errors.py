"""The table of every error that a client can see, on any transport.

A code never changes its meaning. Clients receive a code and a safe text; tracebacks go to the
server's log only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, NotRequired, Self

from pydantic import Field
from typing_extensions import TypedDict  # pydantic asks for this one before Python 3.12

from streaming.errors import StreamingError


@dataclass(frozen=True, slots=True)
class ErrorRow:
    """How each transport reports an error code.

    Attributes:
        http_status: status of a REST response or of a refused WebSocket handshake.
        type: OpenAI's error type.
        retryable: the same request may succeed later.
        close_code: code that the WebSocket is closed with (RFC 6455 §7.4.1); None leaves it open.
    """

    http_status: int
    type: str
    retryable: bool = False
    close_code: int | None = None


_INVALID, _AUTH = "invalid_request_error", "authentication_error"
_RATE, _SERVER = "rate_limit_error", "server_error"

ERRORS: dict[str, ErrorRow] = {
    "invalid_json": ErrorRow(400, _INVALID),
    "invalid_request": ErrorRow(422, _INVALID),
    "unknown_type": ErrorRow(400, _INVALID),
    "duplicate_id": ErrorRow(409, _INVALID),
    "unknown_id": ErrorRow(404, _INVALID),
    "generation_not_found": ErrorRow(404, _INVALID),
    "response_not_found": ErrorRow(404, _INVALID),
    "previous_response_not_found": ErrorRow(400, _INVALID),
    "stream_expired": ErrorRow(400, _INVALID),
    "unsupported_content": ErrorRow(400, _INVALID),
    "cursor_lost": ErrorRow(410, _INVALID),
    "no_token_allowed": ErrorRow(422, _INVALID),
    "nothing_to_resume": ErrorRow(400, _INVALID),
    "invalid_stream_id": ErrorRow(400, _INVALID),
    "websocket_stream_limit_reached": ErrorRow(400, _INVALID),
    "websocket_connection_limit_reached": ErrorRow(400, _INVALID, close_code=1001),
    "prompt_too_long": ErrorRow(413, _INVALID),
    "model_not_found": ErrorRow(404, _INVALID),
    "not_found": ErrorRow(404, _INVALID),
    "method_not_allowed": ErrorRow(405, _INVALID),
    "upgrade_required": ErrorRow(426, _INVALID),
    "malformed_http": ErrorRow(400, _INVALID),
    "headers_too_big": ErrorRow(431, _INVALID),
    "request_timeout": ErrorRow(408, _INVALID, retryable=True),
    "unsupported_media_type": ErrorRow(415, _INVALID),
    "message_too_big": ErrorRow(413, _INVALID, close_code=1009),
    "unauthorized": ErrorRow(401, _AUTH, close_code=1008),
    "forbidden_origin": ErrorRow(403, _AUTH, close_code=1008),
    "forbidden_host": ErrorRow(403, _AUTH),
    "rate_limited": ErrorRow(429, _RATE, retryable=True),
    "rate_limit_exceeded": ErrorRow(429, _RATE, retryable=True),
    "too_many_connections": ErrorRow(429, _RATE, retryable=True),
    "overloaded": ErrorRow(503, _SERVER, retryable=True),
    "shutting_down": ErrorRow(503, _SERVER, retryable=True),
    "store_unavailable": ErrorRow(503, _SERVER, retryable=True),
    "timeout": ErrorRow(504, _SERVER),
    "engine_error": ErrorRow(500, _SERVER, retryable=True),
    "internal_error": ErrorRow(500, _SERVER, retryable=True),
}


class ErrorEvent(TypedDict):
    """The `error` object of `WS /v1/stream`."""

    code: Annotated[
        str,
        Field(
            description="For programs; a code never changes its meaning.",
            json_schema_extra={"enum": [*ERRORS]},
        ),
    ]
    message: Annotated[str, Field(description="For people; safe to show.")]
    retryable: Annotated[bool, Field(description="The same request may succeed later.")]
    param: NotRequired[Annotated[str, Field(description="The field that caused the error.")]]
    retry_after_s: NotRequired[
        Annotated[float, Field(description="Seconds to wait before trying again.")]
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorInfo:
    """An error that is sent to a client.

    Attributes:
        code: a key of `ERRORS`.
        message: safe to show.
        param: the field that caused the error.
        retry_after_s: seconds to wait before trying again.
    """

    code: str
    message: str
    param: str | None = None
    retry_after_s: float | None = None

    @classmethod
    def of(cls, error: StreamingError) -> Self:
        """Convert an error of the engine."""
        return cls(
            code=error.code,
            message=str(error),
            param=error.param,
            retry_after_s=error.retry_after_s,
        )

    @property
    def row(self) -> ErrorRow:
        """How the transports report this error."""
        return ERRORS[self.code]

    def to_event(self) -> ErrorEvent:
        """Return the `error` object of a `WS /v1/stream` frame."""
        event: ErrorEvent = {
            "code": self.code,
            "message": self.message,
            "retryable": self.row.retryable,
        }
        if self.param is not None:
            event["param"] = self.param
        if self.retry_after_s is not None:
            event["retry_after_s"] = round(self.retry_after_s, 3)
        return event

    def to_openai(self) -> dict[str, Any]:
        """Return the body of a REST response, in OpenAI's form."""
        return {
            "error": {
                "message": self.message,
                "type": self.row.type,
                "param": self.param,
                "code": self.code,
            }
        }


class RequestRefused(Exception):
    """Raised in a route to answer with `info`.

    Args:
        info: the error that the client receives.
    """

    def __init__(self, info: ErrorInfo) -> None:
        self.info = info
        super().__init__(info.message)
