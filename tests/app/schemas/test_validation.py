from __future__ import annotations

import time
from typing import Any, Literal

import pytest
from pydantic import Field, TypeAdapter, ValidationError

from app.openai.schemas.completions import CompletionRequest
from app.schemas.sampling import SamplingFields
from app.schemas.validation import to_error_info
from app.schemas.wire_model import WireModel


class Inner(WireModel):
    size: int


class Outer(WireModel):
    name: str | list[str] | None = None
    inner: Inner | None = None
    choice: int | Inner | None = None
    many: list[Inner] = Field(default_factory=list)


def complaint(model: type[WireModel], fields: Any) -> tuple[str | None, str]:
    with pytest.raises(ValidationError) as invalid:
        model.model_validate(fields)
    info = to_error_info(invalid.value.errors())
    return info.param, info.message


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"name": 5}, "name", "name: Input should be a valid string"),
        ({"name": ["a", 5]}, "name[1]", "name[1]: Input should be a valid string"),
        ({"inner": {"size": "x"}}, "inner.size", "inner.size: Input should be a valid integer"),
        ({"inner": {}}, "inner.size", "inner.size: Field required"),
        ({"many": [{"size": 1}, {}]}, "many[1].size", "many[1].size: Field required"),
        ({"nme": 5}, "nme", "nme: unknown field"),
        ({"inner": 1, "name": 5}, "name", "name: Input should be a valid string"),
        ({str(i): i for i in range(65)}, None, "more than 64 fields"),
    ],
)
def test_first_complaint_names_the_field(fields: Any, param: str | None, message: str):
    assert complaint(Outer, fields) == (param, message)


class Elsewhere(WireModel):
    store: Literal[False] | None = None
    audio: None = None


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"typical_p": 1}, "typical_p", "is not supported: this sampler is not there"),
        ({"store": True}, "store", "Input should be False: nothing is kept"),
        ({"audio": {}}, "audio", "Input should be None: this server writes text"),
    ],
)
def test_what_is_right_elsewhere_is_refused_with_what_to_do(fields: Any, param: str, message: str):
    refused_param, refused_message = complaint(Elsewhere, fields)
    assert refused_param == param
    assert refused_message.startswith(f"{param}: {message}")


def test_a_hint_is_for_what_is_not_supported_only():
    class Store(WireModel):
        store: bool

    assert complaint(Store, {"store": 1})[1] == "store: Input should be a valid boolean"


def test_names_that_cannot_be_shown_are_mended():
    param, message = complaint(Outer, {"x" * 5000: 1})
    assert param == "x" * 100
    assert message == f"{param}: unknown field"
    info = to_error_info([{"loc": ("body", "a\ud800"), "type": "x", "msg": "bad"}])
    assert (info.param, info.message) == ("a?", "a?: bad")


def test_leading_parts_that_are_no_fields_are_left_out():
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
def test_many_errors_do_not_cost_more_than_one(fields: Any):
    """Collected one by one, these took up to four seconds of the event loop."""
    with pytest.raises(ValidationError) as invalid:
        SamplingFields.model_validate(fields)
    assert invalid.value.error_count() <= 2


def test_bad_prompt_has_one_error():
    started_at = time.monotonic()
    with pytest.raises(ValidationError) as invalid:
        CompletionRequest.model_validate({"prompt": [1] * 300_000 + ["a"]})
    assert invalid.value.error_count() == 1
    assert time.monotonic() - started_at < 1
