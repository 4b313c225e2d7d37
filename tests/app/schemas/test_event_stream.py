from __future__ import annotations

import json

from jsonschema import Draft202012Validator
from pydantic import BaseModel

from app.schemas.event_stream import event_stream


class Part(BaseModel):
    text: str


class Chunk(BaseModel):
    parts: list[Part]


def test_an_event_is_a_chunk_an_error_or_the_end() -> None:
    item = event_stream(Chunk)["text/event-stream"]["itemSchema"]
    Draft202012Validator.check_schema(item)
    chunk, error, end = item["properties"]["data"]["anyOf"]
    assert end == {"const": "[DONE]"}
    assert "$ref" not in json.dumps(item)
    assert "$defs" not in json.dumps(item)
    for described, valid, wrong in (
        (chunk, {"parts": [{"text": "a"}]}, {"parts": [{"text": 1}]}),
        (
            error,
            {"error": {"message": "m", "type": "t", "param": None, "code": "c"}},
            {"error": {"message": "m"}},
        ),
    ):
        assert described["contentMediaType"] == "application/json"
        validator = Draft202012Validator(described["contentSchema"])
        assert (validator.is_valid(valid), validator.is_valid(wrong)) == (True, False)
