"""The API's description, and the page that shows it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import sync_playwright
from starlette.testclient import TestClient

from app.errors import ERRORS
from app.openai import chat_route as chat
from app.openai import completions_route as completions
from app.openai import tokenize_route as tokenize
from app.openai.schemas.chat import ChatRequest
from app.openai.schemas.completions import CompletionRequest
from app.openai.schemas.tokenize import DetokenizeRequest, TokenizeRequest
from app.responses.routes import EXAMPLES as RESPONSES_EXAMPLES
from app.responses.schemas.request import ResponseRequest
from app.schemas.wire_model import WireModel
from streaming.backends.scripted import say, scripted_backend
from tests.app.serving import make_app


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """The description, which takes half a second to make; not to be changed."""
    app, _ = make_app(scripted_backend())
    with TestClient(app, base_url="http://localhost") as calling:
        answer: dict[str, Any] = calling.get("/openapi.json").json()
    return answer


BODIES: dict[str, tuple[type[WireModel], dict[str, Any], list[str]]] = {
    "/v1/chat/completions": (ChatRequest, chat.EXAMPLES, ["messages"]),
    "/v1/completions": (CompletionRequest, completions.EXAMPLES, ["prompt"]),
    "/v1/tokenize": (TokenizeRequest, tokenize.TOKENIZE_EXAMPLES, []),
    "/v1/detokenize": (DetokenizeRequest, tokenize.DETOKENIZE_EXAMPLES, ["tokens"]),
}


@pytest.mark.parametrize("path", BODIES)
async def test_the_body_is_described_with_examples(document: dict[str, Any], path: str):
    model, examples, required = BODIES[path]
    body = document["paths"][path]["post"]["requestBody"]["content"]
    assert body["application/json"]["examples"] == examples
    schema = document["components"]["schemas"][model.__name__]
    assert schema["properties"].keys() == model.model_fields.keys()
    assert schema.get("required", []) == required
    assert schema["additionalProperties"] is False
    assert [
        name for name, field in schema["properties"].items() if "description" not in field
    ] == []


async def test_every_form_of_a_prompt_is_described(document: dict[str, Any]):
    schema = document["components"]["schemas"]["CompletionRequest"]
    forms = [form.get("type") for form in schema["properties"]["prompt"]["anyOf"]]
    assert forms == ["string", "array", "array", "array"]


async def test_the_answers_of_a_chat_are_described(document: dict[str, Any]):
    answer = document["paths"]["/v1/chat/completions"]["post"]["responses"]["200"]["content"]
    assert answer["application/json"]["schema"]["$ref"].endswith("/ChatCompletion")
    event = answer["text/event-stream"]["itemSchema"]["properties"]["data"]["anyOf"]
    assert event[0]["contentSchema"]["title"] == "ChatCompletionChunk"


async def test_responses_are_described(document: dict[str, Any]):
    operation = document["paths"]["/v1/responses"]["post"]
    body = operation["requestBody"]["content"]["application/json"]
    assert body["examples"] == RESPONSES_EXAMPLES
    schema = document["components"]["schemas"]["ResponseRequest"]
    assert schema["properties"].keys() == ResponseRequest.model_fields.keys()
    assert "required" not in schema
    assert all("description" in field for field in schema["properties"].values())
    answers = operation["responses"]["200"]["content"]
    assert answers.keys() == {"application/json", "text/event-stream"}
    assert answers["application/json"]["schema"]["$ref"].endswith("/ResponseBody")


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
