from __future__ import annotations

import re

import pytest

from app.openai.schemas.chat import ChatMessageAnswer, ChatRequest
from app.openai.schemas.choices import StreamOptions
from app.openai.schemas.completions import CompletionRequest
from app.schemas.unsupported import HINTS

FIELDS = {
    name
    for model in (ChatRequest, CompletionRequest, StreamOptions, ChatMessageAnswer)
    for name in model.model_fields
}
VALUES = {"json_schema"}
"""Names in hints that are values of a field."""


@pytest.mark.parametrize(("field", "hint"), HINTS.items())
def test_a_hint_names_other_fields_that_exist(field: str, hint: str):
    named = set(re.findall(r"[a-z]+_[a-z_]+", hint))
    assert named <= FIELDS | VALUES
    assert field not in named - VALUES


@pytest.mark.parametrize("field", HINTS)
def test_a_field_with_a_hint_takes_no_other_values_than_the_default(field: str):
    """A hint for a field that works would contradict the error about a wrong value."""
    name = field.rpartition(".")[2]
    for model in (ChatRequest, CompletionRequest, StreamOptions):
        if (info := model.model_fields.get(name)) is not None:
            assert info.description is not None
            assert info.description.startswith(("Only", "Not supported", "No effect"))
