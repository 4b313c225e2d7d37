from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import RequestRefused
from app.json.json_object import parse_object
from app.stream.parsing import requested_stream_id, to_message
from app.stream.schemas.messages import CancelMessage, GenerateMessage, ResumeMessage
from tests.support import property_test


def parse(text: str) -> GenerateMessage | CancelMessage | ResumeMessage:
    return to_message(parse_object(text, what="frame"))


def refusal(text: str) -> tuple[str, str | None, str]:
    with pytest.raises(RequestRefused) as caught:
        parse(text)
    info = caught.value.info
    return info.code, info.param, info.message


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "generate",
        '{"type": "generate"} {}',
        "{'type': 'generate'}",
        '{"temperature": NaN}',
        '{"temperature": Infinity}',
        '{"temperature": -Infinity}',
        "[" * 30_000,
        "1" * 5000,
        '\ufeff{"type": "cancel"}',
    ],
)
def test_invalid_json(text: str) -> None:
    assert refusal(text)[0] == "invalid_json"


def test_the_error_says_where_the_json_is_invalid() -> None:
    assert refusal('{"type": }')[2] == (
        "The frame is not valid JSON: Expecting value: line 1 column 10 (char 9)."
    )


@pytest.mark.parametrize("text", ["null", "[]", '"generate"', "1", "true"])
def test_json_other_than_an_object(text: str) -> None:
    assert refusal(text)[:2] == ("invalid_request", None)


@pytest.mark.parametrize(
    ("text", "param"),
    [
        (r'{"type": "generate", "prompt": "\ud800"}', "prompt"),
        (r'{"type": "generate", "prompt": "a\uDFFFb"}', "prompt"),
        (r'{"type": "generate", "metadata": {"a": "\ud83d"}}', "metadata"),
        (r'{"type": "generate", "messages": [{"role": "user", "content": "\udc00"}]}', "messages"),
        (r'{"type": "\ud800"}', "type"),
        (r'{"\ud800": 1}', None),
    ],
)
def test_lone_surrogates_are_refused_by_field(text: str, param: str | None) -> None:
    code, refused_param, message = refusal(text)
    assert (code, refused_param) == ("invalid_request", param)
    assert "lone surrogate" in message


def test_a_surrogate_pair_is_one_character() -> None:
    message = parse(r'{"type": "generate", "prompt": "\ud83d\ude00 \\ud800"}')
    assert isinstance(message, GenerateMessage)
    assert message.prompt == "😀 \\ud800"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, "invalid_request"),
        ({"type": None}, "invalid_request"),
        ({"type": 5}, "invalid_request"),
        ({"type": ["generate"]}, "invalid_request"),
        ({"type": "Generate"}, "unknown_type"),
        ({"type": "x" * 5000}, "unknown_type"),
    ],
)
def test_wrong_types(fields: dict[str, Any], expected: str) -> None:
    code, param, message = refusal(json.dumps(fields))
    assert (code, param) == (expected, "type")
    assert len(message) < 500


@pytest.mark.parametrize(
    ("kind", "fields", "param"),
    [
        ("generate", {"prompt": 5}, "prompt"),
        ("generate", {"prompt": ["a"]}, "prompt[0]"),
        ("generate", {"temperatur": 1}, "temperatur"),
        ("generate", {"stream": True}, "stream"),
        ("generate", {"temperature": "1"}, "temperature"),
        ("generate", {"max_tokens": 1.5}, "max_tokens"),
        ("generate", {"max_tokens": True}, "max_tokens"),
        ("generate", {"logprobs": True}, "logprobs"),
        ("generate", {"return_token_ids": 1}, "return_token_ids"),
        ("generate", {"stop": 1}, "stop"),
        ("generate", {"model": "m" * 300}, "model"),
        ("generate", {"messages": "hi"}, "messages"),
        ("generate", {"messages": [{"role": "user"}]}, "messages[0].content"),
        ("generate", {"messages": [{"role": "tool", "content": ""}]}, "messages[0].role"),
        ("generate", {"messages": [{"role": "user", "content": ""}] * 4097}, "messages"),
        ("generate", {"id": ""}, "id"),
        ("generate", {"id": "a b"}, "id"),
        ("generate", {"id": "a\n"}, "id"),
        ("generate", {"id": "é"}, "id"),
        ("generate", {"id": "a" * 65}, "id"),
        ("generate", {"id": 1}, "id"),
        ("cancel", {}, "id"),
        ("cancel", {"id": None}, "id"),
        ("cancel", {"id": "a", "after": 1}, "after"),
        ("resume", {"after": 0}, "generation_id"),
        ("resume", {"generation_id": "g"}, "after"),
        ("resume", {"generation_id": "g", "after": -2}, "after"),
        ("resume", {"generation_id": "g", "after": "0"}, "after"),
        ("resume", {"generation_id": "g", "after": 0.0}, "after"),
        ("resume", {"generation_id": "g" * 300, "after": 0}, "generation_id"),
        ("resume", {"generation_id": "g", "after": 0, "logprobs": 1}, "logprobs"),
    ],
)
def test_wrong_fields_are_refused_by_name(kind: str, fields: dict[str, Any], param: str) -> None:
    code, refused_param, message = refusal(json.dumps({"type": kind, **fields}))
    assert (code, refused_param) == ("invalid_request", param)
    assert message.startswith(param)
    assert len(message) < 500


@pytest.mark.parametrize(
    "metadata",
    [
        {f"key{index}": "" for index in range(17)},
        {f"key{index}": 5 for index in range(50_000)},
        {"k" * 65: ""},
        {"key": "v" * 513},
        {"key": 5},
        ["key"],
    ],
)
def test_metadata_beyond_its_limits(metadata: object) -> None:
    text = json.dumps({"type": "generate", "prompt": "a", "metadata": metadata})
    code, param, _ = refusal(text)
    assert code == "invalid_request"
    assert (param or "").startswith("metadata")
    assert len(param or "") <= 64


def test_metadata_at_its_limits() -> None:
    metadata = {f"{index:02}".ljust(64, "k"): "v" * 512 for index in range(16)}
    message = to_message({"type": "generate", "prompt": "a", "metadata": metadata})
    assert isinstance(message, GenerateMessage)
    assert message.metadata == metadata


def test_each_type_of_message() -> None:
    assert isinstance(to_message({"type": "generate", "prompt": [1, 2]}), GenerateMessage)
    assert to_message({"type": "cancel", "id": "a.B-1_"}) == CancelMessage(
        type="cancel", id="a.B-1_"
    )
    assert to_message({"type": "resume", "generation_id": "g", "after": -1}) == ResumeMessage(
        type="resume", generation_id="g", after=-1
    )


@pytest.mark.parametrize(
    ("fields", "stream_id"),
    [
        ({"type": "generate", "id": "a", "prompt": 1}, "a"),
        ({"type": "resume", "id": "a"}, "a"),
        ({"type": "cancel", "id": "a"}, None),
        ({"type": "generate"}, None),
        ({"type": "generate", "id": 5}, None),
        ({"type": "generate", "id": "a b"}, None),
        ({"type": "generate", "id": "a\n"}, None),
        ({"type": ["generate"], "id": "a"}, None),
        ({}, None),
    ],
)
def test_requested_stream_id(fields: dict[str, Any], stream_id: str | None) -> None:
    assert requested_stream_id(fields) == stream_id


@property_test
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists) | st.text())
def test_any_value_is_accepted_or_refused_with_an_error_that_can_be_sent(value: object) -> None:
    for text in (str(value), json.dumps(value), json.dumps({"type": value, str(value): value})):
        try:
            parse(text)
        except RequestRefused as refused:
            json.dumps(refused.info.to_event(), ensure_ascii=False).encode()
