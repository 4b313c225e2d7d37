from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from app.schemas.request_fields import (
    MAX_METADATA_KEY_CHARS,
    MAX_METADATA_PAIRS,
    MAX_METADATA_VALUE_CHARS,
    Metadata,
)
from app.schemas.validation import to_error_info

METADATA: TypeAdapter[dict[str, str]] = TypeAdapter(Metadata)


def test_metadata_up_to_its_limits():
    largest = {
        f"{number:0{MAX_METADATA_KEY_CHARS}}": "a" * MAX_METADATA_VALUE_CHARS
        for number in range(MAX_METADATA_PAIRS)
    }
    assert METADATA.validate_python(largest) == largest


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ("a", "must be an object (got a string)"),
        ({"a": None}, "a: must be a string (got null)"),
        ({"a": "b" * 513}, "a: must have at most 512 characters (got 513)"),
        ({str(number): "a" for number in range(17)}, "must have at most 16 pairs (got 17)"),
    ],
)
def test_metadata_beyond_them(metadata: Any, message: str):
    with pytest.raises(ValidationError) as caught:
        METADATA.validate_python(metadata, strict=True)
    assert to_error_info(caught.value.errors()).message == message


def test_pairs_are_counted_before_any_is_validated():
    with pytest.raises(ValidationError) as caught:
        METADATA.validate_python(dict.fromkeys(map(str, range(100_000)), 1))
    assert [error["type"] for error in caught.value.errors()] == ["too_many_pairs"]
