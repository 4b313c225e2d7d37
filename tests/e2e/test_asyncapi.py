"""The AsyncAPI document, as the standard's own parser judges it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from streaming.backends.scripted import scripted_backend
from tests.app.serving import client_of
from tests.e2e.node import run_script

pytestmark = [pytest.mark.node, pytest.mark.timeout(120)]

NEWER_VERSION_EXISTS = "asyncapi-latest-version"


def judge(document: dict[str, Any]) -> tuple[bool, list[dict[str, Any]]]:
    """Return whether it is valid, and what there is to say about it."""
    verdict = json.loads(run_script("validate_asyncapi.js", stdin=json.dumps(document)))
    complaints = [each for each in verdict["complaints"] if each["code"] != NEWER_VERSION_EXISTS]
    return verdict["isValid"], complaints


async def test_the_document_is_valid() -> None:
    async with client_of(scripted_backend()) as calling:
        document = (await calling.get("/asyncapi.json")).json()
    assert judge(document) == (True, [])
    document["operations"]["stream.generate"]["action"] = "listen"
    is_valid, complaints = judge(document)
    assert not is_valid
    assert complaints[0]["path"] == "operations.stream.generate.action"
