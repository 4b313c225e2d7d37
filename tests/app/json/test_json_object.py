from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import RequestRefused
from app.json.json_object import FieldsRefused, parse_object
from tests.support import property_test


def refusal(text: str | bytes) -> tuple[str, str | None, str]:
    with pytest.raises(RequestRefused) as caught:
        parse_object(text, what="note")
    info = caught.value.info
    return info.code, info.param, info.message


@pytest.mark.parametrize("text", ['{"a": [1, null, "é"]}', '{"a": [1, null, "é"]}'.encode()])
def test_an_object_is_parsed(text: str | bytes):
    assert parse_object(text, what="note") == {"a": [1, None, "é"]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "The note is not valid JSON: Expecting value: line 1 column 1 (char 0)."),
        ('{"a": NaN}', "The note is not valid JSON: NaN is not a JSON number."),
        ('{"a": -Infinity}', "The note is not valid JSON: -Infinity is not a JSON number."),
        (b'{"a": "\xff"}', "The note is not valid JSON."),
        (b'{"a": "\xed\xa0\x80"}', "The note is not valid JSON."),
        ('{"a": 1}'.encode("utf-16"), "The note is not valid JSON."),
        ("[" * 30_000, "The note is not valid JSON."),
        ("1" * 9_999, "The note is not valid JSON."),
    ],
    ids=lambda value: str(value)[:20],
)
def test_other_text_is_not_json(text: str | bytes, message: str):
    assert refusal(text) == ("invalid_json", None, message)


TOO_MANY = ("invalid_request", None, "The note must have at most 32768 arrays and objects.")


@pytest.mark.parametrize("part", ["[]", "{}", '{"b":1,"b":1}'])
def test_arrays_and_objects_are_counted_before_parsing(part: str):
    def text(num_parts: int) -> str:
        return f'{{"a": [{",".join([part] * num_parts)}], "c": "d"'

    assert refusal(text(2**15 - 1)) == TOO_MANY, "with the two around them"
    assert refusal(text(2**15 - 2) + "}}") != TOO_MANY


@property_test
@given(st.text('[{"\\\\a', min_size=1), st.booleans())
def test_brackets_in_strings_are_not_counted(part: str, too_many: bool):
    """Whatever the strings escape, and wherever they end."""
    note = {"x": [part] * 16, "y": [[]] * (2**15 - 3 + too_many), part: part}
    text = json.dumps(note)
    if too_many:
        assert refusal(text) == TOO_MANY
    else:
        assert parse_object(text, what="note") == note


@pytest.mark.parametrize("leaf", ["1", r'"\ud83d\ude00"'])
def test_nesting_that_could_not_be_serialized_again_is_refused(leaf: str):
    def nested(depth: int) -> str:
        return f'{{"[": {"[" * (depth - 1)}{leaf}{"]" * (depth - 1)}}}'

    json.dumps(parse_object(nested(512), what="note"))
    for depth in range(513, 1100):
        assert refusal(nested(depth)) == ("invalid_json", None, "The note is not valid JSON.")


@pytest.mark.parametrize("text", ["null", "[]", '"text"', "1", "true"])
def test_json_that_is_not_an_object(text: str):
    assert refusal(text) == ("invalid_request", None, "The note must be a JSON object.")


@pytest.mark.parametrize(
    ("text", "name", "rest"),
    [
        ('{"a": 1, "b": 2, "a": 1}', "a", {"b": 2}),
        ('{"a": {"b": 1, "b": 2, "c": 3}}', "b", {"a": {"c": 3}}),
        ('{"a": [{"b": 1, "b": 2}], "c": 1, "c": 2}', "b", {"a": [{}]}),
        ('{"\\ud800": 1, "\\ud800": 2}', "?", {}),
    ],
)
def test_a_field_given_twice_is_refused_by_name(text: str, name: str, rest: object):
    with pytest.raises(FieldsRefused) as caught:
        parse_object(text, what="note")
    assert (caught.value.info.code, caught.value.info.param) == ("invalid_request", name)
    assert caught.value.info.message == f"{name}: must be given only once"
    assert caught.value.fields == rest


@pytest.mark.parametrize(
    ("text", "param"),
    [
        (r'{"a": "\ud800"}', "a"),
        (r'{"a": 1, "b": [{"c": "x\uDFFFy"}]}', "b"),
        (r'{"a": {"\ud83d": 1}}', "a"),
        (r'{"\ud800": 1}', None),
    ],
)
def test_a_lone_surrogate_is_refused_by_field(text: str, param: str | None):
    code, refused_param, message = refusal(text)
    assert (code, refused_param) == ("invalid_request", param)
    assert "lone surrogate" in message


def test_a_surrogate_pair_is_one_character():
    assert parse_object(r'{"a": "\ud83d\ude00 \\ud800"}', what="note") == {"a": "😀 \\ud800"}


@pytest.mark.parametrize("number", ["1e999", "-1e999", "1" * 400 + ".5"])
def test_a_number_that_overflows_is_refused(number: str):
    """JSON could not carry it back to the client."""
    with pytest.raises(FieldsRefused) as caught:
        parse_object(f'{{"id": "a", "b": [{{"c": {number}}}]}}', what="note")
    assert (caught.value.info.code, caught.value.info.param) == ("invalid_request", "b")
    assert caught.value.info.message == "b: has a number beyond the range of a 64-bit float"
    assert caught.value.fields["id"] == "a"
