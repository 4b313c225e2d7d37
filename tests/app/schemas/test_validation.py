from __future__ import annotations

import time
from typing import Any, Literal

import pytest
from pydantic import Field, TypeAdapter, ValidationError, model_validator

from app.errors import ErrorInfo
from app.openai.schemas.completions import CompletionRequest
from app.schemas.sampling import SamplingFields
from app.schemas.validation import api_error, to_error_info
from app.schemas.wire_model import WireModel


class Inner(WireModel):
    size: int


class Outer(WireModel):
    name: str | list[str] | None = None
    inner: Inner | None = None
    choice: int | Inner | None = None
    many: list[Inner] = Field(default_factory=list)


def refused(model: type[WireModel], fields: Any) -> tuple[str | None, str]:
    with pytest.raises(ValidationError) as invalid:
        model.model_validate(fields)
    info = to_error_info(invalid.value.errors())
    return info.param, info.message


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"name": 5}, "name", "name: must be a string or an array (got 5)"),
        ({"name": ["a", 5]}, "name[1]", "name[1]: must be a string (got 5)"),
        ({"inner": {"size": "x"}}, "inner.size", "inner.size: must be an integer (got a string)"),
        ({"inner": {}}, "inner.size", "inner.size: is required"),
        ({"many": [{"size": 1}, {}]}, "many[1].size", "many[1].size: is required"),
        ({"nme": 5}, "nme", "nme: unknown field"),
        ({"inner": 1, "name": 5}, "name", "name: must be a string or an array (got 5)"),
        ({str(i): i for i in range(65)}, None, "must have at most 64 fields (got 65)"),
    ],
)
def test_the_message_names_the_first_field_at_fault(fields: Any, param: str | None, message: str):
    assert refused(Outer, fields) == (param, message)


class Limits(WireModel):
    count: int = Field(1, ge=0, le=9)
    ratio: float = Field(0.5, gt=0, lt=1)
    name: str = Field("a", min_length=1, max_length=3, pattern="^[a-z]*$")
    words: list[str] = Field(["a", "b"], min_length=2, max_length=3)
    mode: Literal["fast", "slow"] = "fast"
    inner: Inner | None = None
    is_on: bool = False


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"count": 10}, "count: must be at most 9 (got 10)"),
        ({"count": -1}, "count: must be at least 0 (got -1)"),
        ({"count": True}, "count: must be an integer (got true)"),
        ({"count": None}, "count: must be an integer (got null)"),
        ({"count": 10**50}, f"count: must be at most 9 (got 1{'0' * 39}…)"),
        ({"ratio": 0}, "ratio: must be greater than 0 (got 0)"),
        ({"ratio": 1.5}, "ratio: must be less than 1 (got 1.5)"),
        ({"name": ""}, "name: must not be empty"),
        ({"name": "abcd"}, "name: must have at most 3 characters (got 4)"),
        ({"name": "a1"}, 'name: must match ^[a-z]*$ (got "a1")'),
        ({"name": "\ud800"}, "name: must be valid Unicode"),
        ({"words": ["a"]}, "words: must have at least 2 items (got 1)"),
        ({"words": ["a"] * 4}, "words: must have at most 3 items (got 4)"),
        ({"words": "a, b"}, "words: must be an array (got a string)"),
        ({"mode": "é" * 50}, f'mode: must be "fast" or "slow" (got "{"é" * 40}…")'),
        ({"inner": []}, "inner: must be an object (got an array)"),
        ({"is_on": "yes"}, "is_on: must be true or false (got a string)"),
    ],
)
def test_the_message_says_what_is_allowed_and_what_was_given(fields: Any, message: str):
    assert refused(Limits, fields) == (message.partition(":")[0], message)


def test_a_string_of_the_wrong_type_is_not_quoted():
    """It may be a prompt or a key, and the message may be logged."""
    assert "secret" not in refused(Limits, {"count": "secret"})[1]


def test_other_messages_are_passed_on():
    errors = [{"loc": ("port",), "type": "value_error", "msg": "Value error, is taken", "input": 1}]
    assert to_error_info(errors).message == "port: is taken"


class Elsewhere(WireModel):
    store: Literal[False] | None = None
    audio: None = None


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"typical_p": 1}, "typical_p", "is not supported: use temperature"),
        ({"store": True}, "store", "must be false (got true): use /v1/responses"),
        ({"audio": {}}, "audio", "must be null (got an object): this server generates text only"),
    ],
)
def test_an_unsupported_field_is_refused_with_a_hint(fields: Any, param: str, message: str):
    refused_param, refused_message = refused(Elsewhere, fields)
    assert refused_param == param
    assert refused_message.startswith(f"{param}: {message}")


def test_a_wrong_type_of_a_supported_field_has_no_hint():
    class Store(WireModel):
        store: bool

    assert refused(Store, {"store": 1})[1] == "store: must be true or false (got 1)"


def test_unprintable_names_are_shortened_and_replaced():
    param, message = refused(Outer, {"x" * 5000: 1})
    assert param == "x" * 100
    assert message == f"{param}: unknown field"
    info = to_error_info([{"loc": ("body", "a\ud800"), "type": "x", "msg": "bad"}])
    assert (info.param, info.message) == ("a?", "a?: bad")


def test_leading_parts_that_are_not_fields_are_skipped():
    with pytest.raises(ValidationError) as invalid:
        TypeAdapter(dict[str, Inner]).validate_python({"generate": {}})
    assert to_error_info(invalid.value.errors(), skip=("generate",)).param == "size"


@pytest.mark.parametrize(
    "fields",
    [
        {"stop": [1] * 300_000},
        {"stop_token_ids": ["a"] * 300_000},
        {"logit_bias": dict.fromkeys(map(str, range(80_000)), "a")},
        dict.fromkeys(map(str, range(80_000)), 1),
    ],
    ids=["stop", "stop_token_ids", "logit_bias", "unknown"],
)
def test_validation_stops_at_the_first_of_many_errors(fields: Any):
    """Collected one by one, these took up to four seconds of the event loop."""
    with pytest.raises(ValidationError) as invalid:
        SamplingFields.model_validate(fields)
    assert invalid.value.error_count() <= 2


def test_a_bad_prompt_has_one_error():
    started_at = time.monotonic()
    with pytest.raises(ValidationError) as invalid:
        CompletionRequest.model_validate({"prompt": [1] * 300_000 + ["a"]})
    assert invalid.value.error_count() == 1
    assert time.monotonic() - started_at < 1


class Refusing(WireModel):
    """Refuses a part of itself with an error of the API."""

    parts: list[str]

    @model_validator(mode="before")
    @classmethod
    def _refuse(cls, fields: Any) -> Any:
        raise api_error("unsupported_content", "parts[1]", f"{fields['parts'][1]} is not text")


@pytest.mark.parametrize("part", ["image", "{message}", "{param}", "x" * 1000])
def test_a_validator_can_raise_an_error_of_the_api(part: str):
    with pytest.raises(ValidationError) as invalid:
        Refusing.model_validate({"parts": ["a", part]})
    assert to_error_info(invalid.value.errors()) == ErrorInfo(
        code="unsupported_content",
        message=f"parts[1]: {part} is not text",
        param="parts[1]",
    )
