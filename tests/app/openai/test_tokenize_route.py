"""`POST /v1/tokenize` and `POST /v1/detokenize` with the scripted backend."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import threading
from typing import Any

import pytest

from app.openai.tokenize_route import DETOKENIZE_EXAMPLES, TOKENIZE_EXAMPLES
from streaming.backends.scripted import ByteTokenizer, repeat_prompt, scripted_backend
from tests.app.chat_answers import ask, chat, tool
from tests.app.serving import KEY, client_of
from tests.support import entered

TOKENIZE, DETOKENIZE = "/v1/tokenize", "/v1/detokenize"


async def test_a_prompt_is_tokenized():
    async with client_of(scripted_backend()) as calling:
        answer = (await calling.post(TOKENIZE, json={"prompt": "hé"})).json()
        shown = (
            await calling.post(TOKENIZE, json={"prompt": "hé", "return_token_strs": True})
        ).json()
    assert answer == {"count": 3, "max_model_len": 4096, "tokens": [104, 195, 169]}
    assert shown == {**answer, "token_strs": ["h", "\ufffd", "\ufffd"]}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"tools": [tool("f", description="Does.")]},
        {"tools": [tool("f")], "tool_choice": "none"},
        {"add_generation_prompt": False},
        {"chat_template_kwargs": {"a": 1}, "reasoning_effort": "low"},
        {
            "messages": [*ask(), {"role": "assistant", "content": "Well,"}],
            "continue_final_message": True,
        },
    ],
)
async def test_a_conversation_has_the_tokens_of_a_chat(fields: dict[str, Any]):
    body = {"messages": ask(), **fields}
    async with client_of(scripted_backend(repeat_prompt)) as calling:
        told = (await calling.post(TOKENIZE, json=body)).json()
        generated = await chat(calling, **body)
        text = (await calling.post(DETOKENIZE, json={"tokens": told["tokens"]})).json()
    assert told["count"] == generated["usage"]["prompt_tokens"]
    assert text == {"prompt": generated["choices"][0]["message"]["content"]}


async def test_a_prompt_may_be_longer_than_the_context():
    class WideTokenizer(ByteTokenizer):
        max_chars_per_token = 4

    backend = dataclasses.replace(scripted_backend(max_model_len=8), tokenizer=WideTokenizer())
    async with client_of(backend) as calling:
        fits = (await calling.post(TOKENIZE, json={"prompt": "x" * 32})).json()
        never = await calling.post(TOKENIZE, json={"prompt": "x" * 33})
    assert (fits["count"], fits["max_model_len"]) == (32, 8)
    assert (never.status_code, never.json()["error"]["code"]) == (413, "prompt_too_long")


@pytest.mark.parametrize(("tokens", "text"), [([104, 195, 169, 256], "hé"), ([], "")])
async def test_tokens_are_detokenized(tokens: list[int], text: str):
    async with client_of(scripted_backend()) as calling:
        response = await calling.post(DETOKENIZE, json={"tokens": tokens, "model": "scripted"})
    assert response.json() == {"prompt": text}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (TOKENIZE, {}, "prompt"),
        (TOKENIZE, {"prompt": ""}, "prompt"),
        (TOKENIZE, {"prompt": 5}, "prompt"),
        (TOKENIZE, {"prompt": "\ud800"}, "prompt"),
        (TOKENIZE, {"prompt": "a", "messages": ask()}, "messages"),
        (TOKENIZE, {"messages": []}, "messages"),
        (TOKENIZE, {"messages": [{"role": "user"}]}, "messages[0].content"),
        (TOKENIZE, {"messages": ask(), "tool_choice": "required"}, "tool_choice"),
        (TOKENIZE, {"messages": ask(), "add_special_tokens": True}, "add_special_tokens"),
        (TOKENIZE, {"prompt": "a", "add_special_tokens": False}, "add_special_tokens"),
        (TOKENIZE, {"prompt": "a", "temperature": 1}, "temperature"),
        (DETOKENIZE, {}, "tokens"),
        (DETOKENIZE, {"tokens": "a"}, "tokens"),
        (DETOKENIZE, {"tokens": ["a"]}, "tokens[0]"),
        (DETOKENIZE, {"tokens": [1, 257]}, "tokens"),
        (DETOKENIZE, {"tokens": [-1]}, "tokens"),
        (DETOKENIZE, {"tokens": [1], "skip_special_tokens": False}, "skip_special_tokens"),
    ],
    ids=lambda value: repr(value)[:50],
)
async def test_a_bad_field_is_refused_by_name(path: str, body: dict[str, Any], param: str):
    async with client_of(scripted_backend()) as calling:
        response = await calling.post(
            path, content=json.dumps(body), headers={"content-type": "application/json"}
        )
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (422, "invalid_request", param)


@pytest.mark.parametrize(
    ("path", "body"), [(TOKENIZE, {"prompt": "a"}), (DETOKENIZE, {"tokens": [1]})]
)
async def test_another_model_is_not_found(path: str, body: dict[str, Any]):
    async with client_of(scripted_backend()) as calling:
        response = await calling.post(path, json={**body, "model": "gpt-4"})
    assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize(
    ("path", "example"),
    [
        *((TOKENIZE, example) for example in TOKENIZE_EXAMPLES.values()),
        *((DETOKENIZE, example) for example in DETOKENIZE_EXAMPLES.values()),
    ],
)
async def test_examples_of_the_docs_page_work(path: str, example: dict[str, Any]):
    async with client_of(scripted_backend()) as calling:
        response = await calling.post(path, json=example["value"])
    assert response.status_code == 200


class HeldTokenizer(ByteTokenizer):
    """Encodes after `open` is called."""

    def __init__(self) -> None:
        super().__init__()
        self.entered = threading.Semaphore(0)
        self._is_open = threading.Event()

    def encode(self, text: str) -> list[int]:
        self.entered.release()
        self._is_open.wait()
        return super().encode(text)

    def open(self) -> None:
        self._is_open.set()


async def test_tokenization_counts_as_waiting_and_does_not_block_the_loop():
    tokenizer = HeldTokenizer()
    backend = dataclasses.replace(scripted_backend(), tokenizer=tokenizer)
    async with client_of(backend, max_waiting_requests=1) as calling:
        async with asyncio.TaskGroup() as tasks:
            first = tasks.create_task(calling.post(TOKENIZE, json={"prompt": "a"}))
            await entered(tokenizer)
            assert (await calling.get("/health")).status_code == 200
            refused = [
                await calling.post(TOKENIZE, json={"prompt": "b"}),
                await calling.post(DETOKENIZE, json={"tokens": [1]}),
            ]
            tokenizer.open()
        assert first.result().json()["tokens"] == [97]
    assert [response.status_code for response in refused] == [503, 503]


@pytest.mark.parametrize(
    ("path", "body"), [(TOKENIZE, {"prompt": "a"}), (DETOKENIZE, {"tokens": [1]})]
)
async def test_the_key_is_required(path: str, body: dict[str, Any]):
    async with client_of(scripted_backend(), api_keys=("secret",)) as calling:
        assert (await calling.post(path, json=body)).status_code == 401
        assert (await calling.post(path, json=body, headers=KEY)).status_code == 200
