from __future__ import annotations

from collections.abc import Callable

import pytest

from app.errors import RequestRefused
from app.responses.refusals import (
    not_found,
    previous_not_found,
    store_unavailable,
    stream_expired,
)


@pytest.mark.parametrize(
    ("refused", "http_status", "code", "param"),
    [
        (not_found("resp_1"), 404, "response_not_found", "response_id"),
        (
            previous_not_found("resp_1"),
            400,
            "previous_response_not_found",
            "previous_response_id",
        ),
        (stream_expired(), 400, "stream_expired", "stream"),
        (store_unavailable(), 503, "store_unavailable", None),
    ],
)
def test_each_has_its_status_and_field(
    refused: RequestRefused, http_status: int, code: str, param: str | None
):
    info = refused.info
    assert (info.row.http_status, info.code, info.param) == (http_status, code, param)


@pytest.mark.parametrize("refuse", [not_found, previous_not_found])
def test_a_long_id_is_cut_off_and_quoted(refuse: Callable[[str], RequestRefused]):
    message = str(refuse("\n" + "x" * 5000))
    assert r"'\nxxx" in message
    assert "x" * 99 in message
    assert "x" * 100 not in message
