from __future__ import annotations

from typing import Any

import pytest

from app.errors import ErrorInfo, RequestRefused
from app.websocket.protocol.parsing import Parsed, parse_frame, peek_fields

REFUSAL = ErrorInfo(code="unknown_type", message="no", param="type")


def to_message(fields: dict[str, Any]) -> str:
    """Return the `text` field, and refuse an object without one."""
    if "text" not in fields:
        raise RequestRefused(REFUSAL)
    return str(fields["text"])


@pytest.mark.parametrize("frame", ['{"text": "é"}', '{"text": "é"}'.encode()])
def test_a_frame_is_parsed_to_a_message(frame: str | bytes) -> None:
    expected = Parsed("é", fields={"text": "é"}, num_chars=len(frame))
    assert parse_frame(frame, to_message) == expected


def test_a_refused_message_keeps_its_fields() -> None:
    assert parse_frame('{"id": "a"}', to_message) == Parsed(None, REFUSAL, {"id": "a"})


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        ("{", "invalid_json"),
        (b"\xff", "invalid_json"),
        ("[]", "invalid_request"),
    ],
)
def test_a_frame_without_an_object_has_no_fields(frame: str | bytes, code: str) -> None:
    parsed = parse_frame(frame, to_message)
    assert parsed.refusal is not None
    assert (parsed.message, parsed.refusal.code, parsed.fields) == (None, code, {})


def test_a_duplicate_field_is_refused_and_left_out() -> None:
    parsed = parse_frame('{"id": "a", "text": "b", "text": "c"}', to_message)
    assert parsed.refusal is not None
    assert (parsed.message, parsed.refusal.param, parsed.fields) == (None, "text", {"id": "a"})


def test_an_error_in_the_conversion_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        parse_frame("{}", lambda _: 1 // 0)


@pytest.mark.parametrize(
    ("frame", "fields"),
    [
        ('{"id": "a"}', {"id": "a"}),
        (b'{"id": "a"}', {"id": "a"}),
        ('{"id": "a"}' + " " * 4085, {"id": "a"}),
        ('{"id": "a"}' + " " * 4086, {}),
        ("{", {}),
        ("[]", {}),
        ('{"id": "a", "id": "b"}', {}),
    ],
)
def test_only_short_valid_frames_are_peeked_into(
    frame: str | bytes, fields: dict[str, Any]
) -> None:
    assert peek_fields(frame) == fields
