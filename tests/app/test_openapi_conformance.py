"""Requests made up from the OpenAPI document: none fails, and each answer is as documented."""

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

CONFIG = schemathesis.Config.from_dict(
    {"auth": {"openapi": {"HTTPBearer": {"bearer": "secret"}}}, "seed": 1}
)
api = schemathesis.openapi.from_dict(create_app(Settings()).openapi(), config=CONFIG)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with live(scripted_backend(), api_keys=("secret",)) as url:
        yield url


@api.parametrize()
@settings(max_examples=30, derandomize=True, deadline=None)
def test_every_answer_is_as_documented(case: Case[Any], url: str) -> None:
    case.call_and_validate(base_url=url, excluded_checks=[positive_data_acceptance])
