"""The API's description, and the page that shows it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import sync_playwright

from app.errors import ERRORS
from app.routes.completions import EXAMPLES
from app.schemas.completions import CompletionRequest
from streaming.backends.scripted import say, scripted_backend
from tests.app.serving import client_of


@pytest.fixture
async def document() -> dict[str, Any]:
    async with client_of(scripted_backend()) as calling:
        answer: dict[str, Any] = (await calling.get("/openapi.json")).json()
    return answer


async def test_the_body_is_described_with_examples(document: dict[str, Any]):
    body = document["paths"]["/v1/completions"]["post"]["requestBody"]["content"]
    assert body["application/json"]["examples"] == EXAMPLES
    schema = document["components"]["schemas"]["CompletionRequest"]
    assert schema["properties"].keys() == CompletionRequest.model_fields.keys()
    assert schema["required"] == ["prompt"]
    assert schema["additionalProperties"] is False
    assert all("description" in field for field in schema["properties"].values())
    forms = [form.get("type") for form in schema["properties"]["prompt"]["anyOf"]]
    assert forms == ["string", "array", "array", "array"]


async def test_the_key_is_asked_for_where_it_is_needed(document: dict[str, Any]):
    assert document["components"]["securitySchemes"]["HTTPBearer"]["scheme"] == "bearer"
    for path, methods in document["paths"].items():
        for operation in methods.values():
            assert bool(operation.get("security")) == path.startswith("/v1/"), path


async def test_all_errors_have_openais_form(document: dict[str, Any]):
    statuses = {str(row.http_status) for row in ERRORS.values()}
    for path, methods in document["paths"].items():
        if not path.startswith("/v1/"):
            continue
        for operation in methods.values():
            errors = {k: v for k, v in operation["responses"].items() if not k.startswith("2")}
            assert errors.keys() <= statuses
            for error in errors.values():
                [content] = error["content"].values()
                assert content["schema"]["$ref"].endswith("/ErrorBody")
    assert "HTTPValidationError" not in document["components"]["schemas"]


@pytest.mark.browser
def test_the_page_tries_a_request_under_its_own_policy(live_server: Callable[..., str]):
    url = live_server(scripted_backend(say("hello")), api_keys=("secret",))
    complaints: list[str] = []
    asked: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = browser.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"{url}/docs")
        page.click(".authorize")
        page.fill(".auth-container input", "secret")
        page.click(".auth-btn-wrapper .authorize")
        page.click(".btn-done")
        page.click("[id*=create_completion] .opblock-summary-control")
        page.click(".execute")
        page.wait_for_selector(".live-responses-table .response-col_status >> text=200")
        shown = page.inner_text(".live-responses-table")
        browser.close()
    assert '"text": "hello"' in shown
    assert complaints == []
    assert [address for address in asked if not address.startswith((url, "data:"))] == []
