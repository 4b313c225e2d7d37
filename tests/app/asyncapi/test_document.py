"""The AsyncAPI document of all channels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from app.asyncapi.document import SECURITY_SCHEMES, describe_server
from app.errors import ERRORS
from tests.app.described import DOCUMENT, assert_described

MESSAGES: dict[str, dict[str, Any]] = DOCUMENT["components"]["messages"]
EXAMPLES = [
    pytest.param(name, example["payload"], id=f"{name}-{example['name']}")
    for name, message in MESSAGES.items()
    for example in message["examples"]
]


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, part in value.items():
            if key == "$ref":
                yield part
            else:
                yield from references(part)
    elif isinstance(value, list):
        for part in value:
            yield from references(part)


def test_every_reference_resolves() -> None:
    for reference in set(references(DOCUMENT)):
        found: Any = DOCUMENT
        for part in reference.removeprefix("#/").split("/"):
            found = found[part]
        assert found


@pytest.mark.parametrize(("name", "payload"), EXAMPLES)
def test_every_example_matches_its_schema(name: str, payload: dict[str, Any]) -> None:
    channel, _, kind = name.partition(".")
    assert payload["type"].replace(":", ".") == kind
    assert_described(channel, payload)


@pytest.mark.parametrize("name", MESSAGES)
def test_every_message_has_a_description_and_an_example(name: str) -> None:
    message = MESSAGES[name]
    schema = message["payload"]["$ref"].rpartition("/")[2]
    assert DOCUMENT["components"]["schemas"][schema]["description"]
    assert message["examples"]


def test_every_message_is_part_of_an_operation() -> None:
    found: set[str] = set()
    for operation in DOCUMENT["operations"].values():
        found |= set(references(operation["messages"]))
        found |= set(references(operation.get("reply", {}).get("messages", [])))
    expected = {
        f"#/channels/{name}/messages/{message}"
        for name, channel in DOCUMENT["channels"].items()
        for message in channel["messages"]
    }
    assert found == expected


def test_the_document_lists_all_errors() -> None:
    listed = {row["code"]: (row["httpStatus"], row["retryable"]) for row in DOCUMENT["x-errors"]}
    assert listed == {code: (row.http_status, row.retryable) for code, row in ERRORS.items()}
    assert DOCUMENT["components"]["securitySchemes"] == SECURITY_SCHEMES


def test_a_server_behind_a_path_prefix_has_a_pathname() -> None:
    assert "pathname" not in describe_server(host="h", protocol="ws", pathname="")["tokenwire"]
    assert describe_server(host="h", protocol="ws", pathname="/a")["tokenwire"]["pathname"] == "/a"


def test_assert_described_refuses_other_messages() -> None:
    frame = {"type": "queued", "id": "a", "position": 0, "estimated_wait_s": None}
    assert_described("stream", frame)
    for wrong in ({"position": "0"}, {"more": 1}):
        with pytest.raises(AssertionError, match=r"stream\.queued"):
            assert_described("stream", {**frame, **wrong})
    with pytest.raises(KeyError):
        assert_described("stream", {"type": "unknown"})
