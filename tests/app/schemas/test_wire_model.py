from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from app.schemas.wire_model import WireModel


class Frame(WireModel):
    count: int
    inner: Frame | None = None


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"count": "1"}, "int_type"),
        ({"count": 1.0}, "int_type"),
        ({"count": 1, "cuont": 1}, "extra_forbidden"),
        ({"count": 1, "inner": {"count": 1, "x": 1}}, "extra_forbidden"),
    ],
)
def test_wrong_types_and_unknown_fields_are_errors(fields: dict[str, Any], kind: str):
    with pytest.raises(ValidationError) as caught:
        Frame.model_validate(fields)
    assert [error["type"] for error in caught.value.errors()] == [kind]


@pytest.mark.parametrize("is_inner", [False, True])
def test_fields_are_counted_before_any_is_validated(is_inner: bool):
    fields: dict[str, Any] = {"count": 1} | dict.fromkeys(map(str, range(100_000)), 1)
    with pytest.raises(ValidationError) as caught:
        Frame.model_validate({"count": 1, "inner": fields} if is_inner else fields)
    [error] = caught.value.errors()
    assert error["loc"] == (("inner",) if is_inner else ())
    assert error["msg"] == "must have at most 64 fields (got 100001)"


def test_as_many_fields_as_are_allowed_are_named_one_by_one():
    with pytest.raises(ValidationError) as caught:
        Frame.model_validate({"count": 1} | dict.fromkeys(map(str, range(63)), 1))
    assert {error["type"] for error in caught.value.errors()} == {"extra_forbidden"}
