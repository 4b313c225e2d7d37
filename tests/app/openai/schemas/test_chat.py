"""The limits of a chat request, and the prompt that its fields make."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from app.openai.schemas.chat import MAX_PIECES, ChatRequest

QUESTION = {"role": "user", "content": "a"}


def calls(num_calls: int) -> dict[str, Any]:
    return {
        "role": "assistant",
        "tool_calls": [
            {"id": str(number), "type": "function", "function": {"name": "f", "arguments": "{}"}}
            for number in range(num_calls)
        ],
    }


def parts(num_parts: int) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "text", "text": "a"}] * num_parts}


def test_the_most_calls_and_parts_are_accepted() -> None:
    messages = [QUESTION, *[calls(128)] * (MAX_PIECES // 256), parts(MAX_PIECES // 2)]
    assert len(ChatRequest.model_validate({"model": "m", "messages": messages}).messages) == 18


@pytest.mark.parametrize(
    "messages",
    [
        [QUESTION, *[calls(128)] * (MAX_PIECES // 128), calls(1)],
        [parts(MAX_PIECES), parts(1)],
        [QUESTION, calls(1), parts(MAX_PIECES)],
    ],
    ids=["calls", "parts", "both"],
)
def test_more_are_refused_before_any_is_validated(messages: list[Any]) -> None:
    messages.append({"role": "nobody"})
    with pytest.raises(ValidationError) as caught:
        ChatRequest.model_validate({"model": "m", "messages": messages})
    [error] = caught.value.errors()
    assert error["loc"] == ("messages",)
    assert error["msg"] == (
        f"must have at most {MAX_PIECES} tool calls and content parts in total "
        f"(got {MAX_PIECES + 1})"
    )


@pytest.mark.parametrize("messages", ["a", [3], [{"content": 3, "tool_calls": "b"}]])
def test_other_types_have_errors_of_their_own(messages: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        ChatRequest.model_validate({"model": "m", "messages": messages})
    assert "too_many_pieces" not in {error["type"] for error in caught.value.errors()}
