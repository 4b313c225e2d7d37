"""The h11 connection of `HttpProtocol`: counts body chunks and records parse errors."""

from __future__ import annotations

from typing import Any

import h11

from app.errors import ErrorInfo

MAX_HEADER_BYTES = 32 * 1024
"""Limit of one request's headers and first line; h11 may accept slightly more."""

NOT_HTTP = ErrorInfo(code="malformed_http", message="This is not a valid HTTP request.")
HEADERS_TOO_BIG = ErrorInfo(
    code="headers_too_big",
    message=f"The request's headers must not exceed {MAX_HEADER_BYTES} bytes.",
)


class H11Connection(h11.Connection):
    """The server's side of a connection.

    h11 raises an error where the next event is read, deep inside uvicorn, which would answer it in
    plain text. Here the error is recorded, so that `HttpProtocol` can answer it in OpenAI's form.

    Attributes:
        num_chunks: chunks of bodies so far.
        request_error: why the request is not valid; nothing is parsed after it.
    """

    num_chunks = 0
    request_error: ErrorInfo | None = None

    def __init__(self) -> None:
        super().__init__(h11.SERVER, MAX_HEADER_BYTES)

    def next_event(self) -> Any:
        """Return the next event; `NEED_DATA` once the request has proved invalid."""
        if self.request_error is not None:
            return h11.NEED_DATA
        try:
            event = super().next_event()
            self.num_chunks += isinstance(event, h11.Data)
            return event
        except h11.RemoteProtocolError as error:
            is_size = error.error_status_hint == 431
            self.request_error = HEADERS_TOO_BIG if is_size else NOT_HTTP
            return h11.NEED_DATA
