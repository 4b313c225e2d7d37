from __future__ import annotations

import pytest

from app.responses.truncation import shorten
from streaming import ChatMessage, ChatPrompt, GenerationRequest, ToolCall
from streaming.errors import PromptTooLong


def turn(name: str) -> ChatMessage:
    """Return a message of ten characters; its first letter is its role's."""
    role = {"s": "system", "u": "user", "a": "assistant", "c": "assistant", "t": "tool"}[name[0]]
    calls = (ToolCall("", "", ""),) if name[0] == "c" else ()
    return ChatMessage(role, name.ljust(20 - len(role), "."), tool_calls=calls)


def names(request: GenerationRequest | None) -> str | None:
    if request is None:
        return None
    assert isinstance(request.prompt, ChatPrompt)
    return " ".join(message.content.rstrip(".") for message in request.prompt.messages)


def request_of(conversation: str) -> GenerationRequest:
    messages = tuple(turn(name) for name in conversation.split())
    return GenerationRequest(prompt=ChatPrompt(messages))


@pytest.mark.parametrize(
    ("conversation", "num_too_many", "left"),
    [
        ("s1 u1 a1 u2 a2 u3", 1, "s1 u2 a2 u3"),
        ("s1 u1 a1 u2 a2 u3", 2, "s1 u2 a2 u3"),
        ("s1 u1 a1 u2 a2 u3", 3, "s1 u3"),
        ("s1 u1 a1 u2 a2 u3", 5, "s1 u3"),
        ("s1 u1", 1, None),
        ("s1", 1, None),
        ("u1 c1 t1 u2", 1, "u2"),
        ("a0 u1 a1 u2", 1, "u1 a1 u2"),
        ("u1 s2 a1 u2", 1, "s2 u2"),
        ("s1 u1 c1 t1 t2 c2 t3 c3 t4", 1, "s1 u1 c2 t3 c3 t4"),
        ("s1 u1 c1 t1 t2 c2 t3 c3 t4", 4, "s1 u1 c3 t4"),
        ("u1 a1 u2 c1 t1 c2 t2", 3, "u2 c2 t2"),
        ("u1 c1 t1", 1, None),
        ("a1 a2", 1, "a2"),
    ],
)
def test_the_oldest_turns_are_dropped_first(conversation: str, num_too_many: int, left: str | None):
    size = 20 * len(conversation.split())
    error = PromptTooLong(size=size, limit=size - 20 * num_too_many)
    assert names(shorten(request_of(conversation), error)) == left


def test_a_long_conversation_is_shortened_in_one_pass():
    request = request_of(" ".join(f"u{n}" for n in range(4000)))
    shorter = shorten(request, PromptTooLong(size=80_000, limit=20))
    assert names(shorter) == "u3999"
