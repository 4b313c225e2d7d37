"""Every error of the engine has an entry in the table."""

from __future__ import annotations

from app.errors import ERRORS
from streaming.errors import ModelLoadError, StreamingError


def leaves(cls: type[StreamingError]) -> set[type[StreamingError]]:
    children = cls.__subclasses__()
    return set().union(*map(leaves, children)) if children else {cls}


def test_every_error_of_the_engine_is_in_the_table():
    shown = leaves(StreamingError) - {ModelLoadError}  # ends the process before it serves
    assert {cls.code for cls in shown} <= set(ERRORS)


def test_an_error_of_the_request_is_not_retryable():
    assert not ERRORS["no_token_allowed"].retryable
    assert 400 <= ERRORS["no_token_allowed"].http_status < 500
