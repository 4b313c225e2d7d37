from __future__ import annotations

import pytest

from app.responses.logprobs import PendingTokens


@pytest.mark.parametrize(
    ("tokens", "text", "taken", "left"),
    [
        (["a"], "a", ["a"], []),
        (["a", "b"], "ab", ["a", "b"], []),
        (["</think>", "\n", "hi"], "hi", ["hi"], []),
        (["x</think>h", "i"], "hi", ["x</think>h", "i"], []),
        (["", "é"], "é", ["", "é"], []),
        (["<", "t", "o"], "<to", ["<", "t", "o"], []),
        (["hi <tool", "_call"], "hi", ["hi <tool"], ["_call"]),
        (["hi", " ", "<tool"], "hi", ["hi"], [" ", "<tool"]),
        (["ab", "ab"], "ab", ["ab"], []),
    ],
)
def test_the_tokens_of_a_text_are_taken(
    tokens: list[str], text: str, taken: list[str], left: list[str]
):
    pending = PendingTokens()
    for number, each in enumerate(tokens):
        pending.add(number, each)
    assert [tokens[number] for number in pending.take(text)] == taken
    assert [tokens[number] for number in pending.take("".join(left))] == left
    pending.clear()
    assert pending.take("") == []
