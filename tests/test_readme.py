"""What the README says of the code holds."""

from __future__ import annotations

import json
import re

import pytest
from pydantic import BaseModel

from app.json.json_object import parse_object
from app.openai.schemas.chat import ChatRequest
from app.openai.schemas.completions import CompletionRequest
from app.stream.parsing import to_message
from tests.readme_tables import README, TABLES, section

TEXT = README.read_text()
_BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_those_of_the_code(name: str):
    assert section(TEXT, name) == TABLES[name](), "run `python -m tests.readme_tables`"


def test_every_frame_that_a_client_is_shown_to_send_is_one():
    frames = [
        line
        for language, block in _BLOCKS
        if language == "json"
        for line in block.splitlines()
        if '"type": "generate"' in line or '"type": "resume"' in line
    ]
    assert len(frames) >= 2
    for frame in frames:
        to_message(parse_object(frame, what="frame"))


def test_the_curl_commands_send_valid_bodies():
    commands = [block for _, block in _BLOCKS if block.startswith("curl")]
    assert commands
    bodies: dict[str, type[BaseModel]] = {
        "/v1/completions": CompletionRequest,
        "/v1/chat/completions": ChatRequest,
    }
    for command in commands:
        found = re.search(r"8000(\S+) .*-d '(.*)'", command, re.DOTALL)
        assert found
        bodies[found[1]].model_validate(json.loads(found[2]))


def test_every_linked_file_is_there():
    links = re.findall(r"\]\(((?!http|#)[^)]+)\)", TEXT)
    assert links
    assert [link for link in links if not (README.parent / link).exists()] == []
