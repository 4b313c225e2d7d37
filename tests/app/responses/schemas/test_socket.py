from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from app.responses.schemas.socket import (
    CONTROL_MESSAGE,
    CONTROL_TYPES,
    RESUME,
    CancelResponseMessage,
    ResumeResponseMessage,
    SteerMessage,
)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"type": "response.cancel", "stream_id": "a"},
            CancelResponseMessage(type="response.cancel", stream_id="a"),
        ),
        (
            {"type": RESUME, "response_id": "resp_1"},
            ResumeResponseMessage(
                type="tokenwire.response.resume", response_id="resp_1", starting_after=-1
            ),
        ),
        (
            {"type": "response.steer", "previous_response_id": "resp_1", "input": "x"},
            SteerMessage(type="response.steer", previous_response_id="resp_1", input="x"),
        ),
    ],
)
def test_the_type_selects_the_message(fields: dict[str, Any], message: Any):
    assert CONTROL_MESSAGE.validate_python(fields) == message
    assert fields["type"] in CONTROL_TYPES


@pytest.mark.parametrize(
    ("fields", "location"),
    [
        ({"type": "response.cancel", "stream_id": "a b"}, "stream_id"),
        ({"type": "response.cancel", "stream_id": "a\n"}, "stream_id"),
        ({"type": "response.cancel", "stream_id": "x" * 257}, "stream_id"),
        ({"type": "response.cancel", "id": "resp_1"}, "id"),
        ({"type": RESUME, "response_id": ""}, "response_id"),
        ({"type": RESUME, "response_id": "r", "starting_after": -2}, "starting_after"),
        ({"type": RESUME, "response_id": "r", "starting_after": "1"}, "starting_after"),
        ({"type": RESUME}, "response_id"),
        ({"type": "response.steer", "previous_response_id": "x" * 257, "input": ""}, None),
    ],
)
def test_an_invalid_field_is_refused_with_its_name(fields: dict[str, Any], location: str | None):
    with pytest.raises(ValidationError) as refused:
        CONTROL_MESSAGE.validate_python(fields)
    assert location is None or refused.value.errors()[0]["loc"][-1] == location
