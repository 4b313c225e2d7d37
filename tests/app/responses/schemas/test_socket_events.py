from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from app.errors import ERRORS, ErrorInfo
from app.responses.protocol.events import error_event, expiring_event, steer_failed_event
from app.responses.schemas.socket_events import (
    ConnectionExpiringEvent,
    ResponsesErrorEvent,
    SteerFailedEvent,
)

ERROR: TypeAdapter[ResponsesErrorEvent] = TypeAdapter(ResponsesErrorEvent)
STEER: TypeAdapter[SteerFailedEvent] = TypeAdapter(SteerFailedEvent)
EXPIRING: TypeAdapter[ConnectionExpiringEvent] = TypeAdapter(ConnectionExpiringEvent)


@pytest.mark.parametrize("code", ERRORS)
@pytest.mark.parametrize("stream_id", [None, "a"])
def test_an_error_of_each_code_has_the_declared_form(code: str, stream_id: str | None):
    event = error_event(ErrorInfo(code=code, message="m", retry_after_s=1.5), stream_id)
    assert ERROR.validate_python(event, strict=True) == event


def test_the_schema_lists_every_code():
    detail = ERROR.json_schema()["$defs"]["ResponsesErrorDetail"]
    assert detail["properties"]["code"]["enum"] == [*ERRORS]


def test_other_events_have_the_declared_form():
    steer = steer_failed_event("resp_1", [{"role": "user"}], sequence_number=3, stream_id="a")
    assert STEER.validate_python(steer, strict=True) == steer
    expiring = expiring_event(60.0)
    assert EXPIRING.validate_python(expiring, strict=True) == expiring


@pytest.mark.parametrize(
    "change", [{"status": "400"}, {"error": {"message": "m"}}, {"type": "response.error"}]
)
def test_an_object_of_another_form_is_invalid(change: dict[str, Any]):
    event = error_event(ErrorInfo(code="invalid_request", message="m"), None)
    with pytest.raises(ValidationError):
        ERROR.validate_python({**event, **change}, strict=True)
