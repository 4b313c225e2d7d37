from __future__ import annotations

import pytest

from app.responses.unshown_tokens import UnshownTokens


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
    unshown = UnshownTokens()
    for number, each in enumerate(tokens):
        unshown.add(number, each)
    assert [tokens[number] for number in unshown.take(text)] == taken
    assert [tokens[number] for number in unshown.take("".join(left))] == left
    unshown.clear()
    assert unshown.take("") == []
