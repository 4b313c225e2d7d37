"""Sends requests generated from the OpenAPI document, and compares the answers with it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import settings
from schemathesis import Case
from schemathesis.checks import positive_data_acceptance

from app.main import create_app
from app.settings import Settings
from streaming.backends.scripted import scripted_backend
from tests.app.serving import live

pytest_plugins = ["schemathesis.pytest.plugin"]

REFUSALS = ["400", "401", "404", "405", "413", "415", "422"]
CONFIG = schemathesis.Config.from_dict(
    {
        "seed": 1,
        "auth": {"openapi": {"HTTPBearer": {"bearer": "secret"}}},
        "checks": {"negative_data_rejection": {"expected-statuses": REFUSALS}},
        "operations": [
            # GET and DELETE treat the last part of these paths as the id of a response.
            {"include-path": path, "checks": {"allow_header_conformance": {"enabled": False}}}
            for path in ("/v1/responses/input_tokens", "/v1/responses/compact")
        ],
    }
)
# The server also refuses what the document does not describe, such as contradictory fields.
EXCLUDED = [positive_data_acceptance]


def without_long_lists(schema: Any) -> Any:
    """Return the schema without the limits of long lists, which have tests of their own."""
    if isinstance(schema, list):
        return [without_long_lists(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: without_long_lists(part)
        for key, part in schema.items()
        if key != "maxItems" or not isinstance(part, int) or part < 100
    }


api = schemathesis.openapi.from_dict(
    without_long_lists(create_app(Settings()).openapi()), config=CONFIG
)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with live(scripted_backend(), api_keys=("secret",), max_requests_per_s=1e6) as url:
        yield url


@pytest.mark.slow
@api.parametrize()
@settings(max_examples=30, derandomize=True, deadline=None)
def test_every_answer_matches_the_document(case: Case[Any], url: str) -> None:
    case.call_and_validate(base_url=url, excluded_checks=EXCLUDED)
