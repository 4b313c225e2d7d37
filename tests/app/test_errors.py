"""Every error of the engine has a form on the wire."""

from __future__ import annotations

from app.errors import ERRORS
from streaming.errors import ModelLoadError, StreamingError


def leaves(cls: type[StreamingError]) -> set[type[StreamingError]]:
    children = cls.__subclasses__()
    return set().union(*map(leaves, children)) if children else {cls}


def test_every_error_of_the_engine_is_in_the_table():
    shown = leaves(StreamingError) - {ModelLoadError}  # which is told before anything is served
    assert {cls.code for cls in shown} <= set(ERRORS)


def test_a_request_that_is_at_fault_is_told_not_to_come_back():
    assert not ERRORS["no_token_allowed"].retryable
    assert 400 <= ERRORS["no_token_allowed"].http_status < 500
