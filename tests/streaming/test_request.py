"""What a prompt says of itself."""

from __future__ import annotations

import pytest

from streaming.chat import ChatMessage, Tool, ToolCall
from streaming.request import (
    ANYONE,
    ChatPrompt,
    GenerationRequest,
    Prompt,
    TextPrompt,
    TokenPrompt,
)
from streaming.sampling_params import SamplingParams


@pytest.mark.parametrize(
    ("prompt", "param", "texts"),
    [
        (TextPrompt("hi"), "prompt", ("hi",)),
        (TokenPrompt((1, 2)), "prompt", ()),
        (
            ChatPrompt((ChatMessage("system", "be kind"), ChatMessage("user", "hi"))),
            "messages",
            ("system", "be kind", "user", "hi"),
        ),
        (
            ChatPrompt(
                (ChatMessage("assistant", "", (ToolCall("call_1", "add", "{}"),)),),
                tools=(Tool("add", "Adds.", '{"type": "object"}'),),
                template_kwargs='{"mood": "glad"}',
            ),
            "messages",
            (
                *("assistant", "", "add", "{}"),
                *("add", "Adds.", '{"type": "object"}', '{"mood": "glad"}'),
            ),
        ),
    ],
)
def test_a_prompt_knows_its_field_and_all_its_texts(
    prompt: Prompt, param: str, texts: tuple[str, ...]
):
    assert (prompt.param, prompt.texts) == (param, texts)


def test_equal_prompts_are_one_key():
    """A batch has a prompt that it repeats tokenised once."""
    prompts = [
        *(TextPrompt("hi") for _ in range(2)),
        *(TokenPrompt((1,)) for _ in range(2)),
        *(ChatPrompt((ChatMessage("user", "hi"),)) for _ in range(2)),
    ]
    assert len(set(prompts)) == 3


def test_a_request_asks_for_the_served_model_as_anyone():
    request = GenerationRequest(prompt=TextPrompt("hi"))
    assert (request.owner, request.model, request.params) == (ANYONE, None, SamplingParams())
    assert dict(request.metadata) == {}
