from __future__ import annotations

import h11
import pytest

from app.errors import ErrorInfo
from app.transport.h11_connection import (
    HEADERS_TOO_BIG,
    MAX_HEADER_BYTES,
    NOT_HTTP,
    H11Connection,
)

CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


def events_of(connection: H11Connection, data: bytes) -> list[type]:
    """Return the types of all events in the data."""
    connection.receive_data(data)
    found = []
    while (event := connection.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
        found.append(type(event))
    return found


def test_chunks_of_a_body_are_counted():
    connection = H11Connection()
    assert events_of(connection, CHUNKED + b"1\r\na\r\n2\r\nbc\r\n") == [
        *(h11.Request, h11.Data, h11.Data),
    ]
    assert connection.num_chunks == 2
    assert events_of(connection, b"0\r\n\r\n") == [h11.EndOfMessage]
    assert (connection.num_chunks, connection.request_error) == (2, None)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"nonsense\r\n\r\n", NOT_HTTP),
        (b"GET / HTTP/1.1\r\n\r\n", NOT_HTTP),  # no host
        (b"GET / HTTP/1.1\r\nX: " + b"a" * (MAX_HEADER_BYTES + 1), HEADERS_TOO_BIG),
    ],
    ids=["nonsense", "no host", "headers"],
)
def test_an_error_is_recorded_and_nothing_is_parsed_after_it(data: bytes, error: ErrorInfo):
    connection = H11Connection()
    assert events_of(connection, data) == []
    assert connection.request_error == error
    assert events_of(connection, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n") == []


def test_an_error_in_the_body_is_recorded_after_the_request():
    connection = H11Connection()
    assert events_of(connection, CHUNKED + b"x\r\n") == [h11.Request]
    assert connection.request_error == NOT_HTTP
