from __future__ import annotations

import pytest

from app.errors import ERRORS, ErrorInfo
from app.schemas.error import GENERATION_ERRORS, ErrorBody, error_responses


def test_codes_of_one_status_share_a_response():
    responses = error_responses("overloaded", "invalid_json", "shutting_down")
    assert responses == {
        400: {"model": ErrorBody, "description": "`invalid_json`"},
        503: {"model": ErrorBody, "description": "`overloaded`, `shutting_down`"},
    }
    assert list(responses) == [400, 503]


def test_an_unknown_code_cannot_be_documented():
    with pytest.raises(KeyError):
        error_responses("no_such_code")


@pytest.mark.parametrize("code", ERRORS)
def test_every_error_has_the_documented_body(code: str):
    body = ErrorInfo(code=code, message="no", param="n").to_openai()
    assert ErrorBody.model_validate(body, strict=True).model_dump() == body


def test_generation_errors_include_the_retryable_ones():
    """Except for those of the response routes and of the HTTP server."""
    others = {"request_timeout", "rate_limit_exceeded", "too_many_connections", "store_unavailable"}
    retryable = {code for code, row in ERRORS.items() if row.retryable}
    assert retryable - others <= set(GENERATION_ERRORS)
