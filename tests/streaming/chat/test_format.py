"""The format of an answer depends on the model, the request and the end of the prompt."""

from __future__ import annotations

import pytest

from streaming.chat.format import HERMES, THINK, ChatFormat, may_call_tools
from streaming.chat.messages import ChatMessage, Tool, ToolChoice, ToolMode
from streaming.chat.output_parser import PLAIN, OutputFormat
from streaming.request import ChatPrompt

TOOL = Tool("f", "", "{}")
ASK = (ChatMessage("user", "?"),)
NEVER = ToolChoice(ToolMode.NONE)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        (ChatPrompt(ASK), False),
        (ChatPrompt(ASK, tools=(TOOL,)), True),
        (ChatPrompt(ASK, tools=(TOOL,), tool_choice=NEVER), False),
        (ChatPrompt(ASK, tools=(TOOL,), tool_choice=ToolChoice(ToolMode.REQUIRED)), True),
    ],
)
def test_calls_are_parsed_only_if_tools_may_be_called(prompt: ChatPrompt, expected: bool):
    assert may_call_tools(prompt) == expected
    answer = ChatFormat(HERMES).of_answer(prompt, text="assistant: ")
    assert answer == (OutputFormat(HERMES) if expected else PLAIN)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("assistant: ", OutputFormat(reasoning=THINK)),
        (
            "assistant: <think>\n",
            OutputFormat(reasoning=THINK, starts_in_reasoning=True),
        ),
        ("assistant: <think>\n\n</think>\n\n", PLAIN),
    ],
)
def test_the_end_of_the_prompt_decides_whether_reasoning_has_begun(
    text: str, expected: OutputFormat
):
    assert ChatFormat(reasoning=THINK).of_answer(ChatPrompt(ASK), text=text) == expected


@pytest.mark.parametrize(
    ("begun", "is_inside"),
    [
        ("<think>Well", True),
        ("<think>a</think>b", False),
        ("The mark <think> is", False),
        ("b", False),
    ],
)
def test_a_continued_message_may_end_inside_the_reasoning(begun: str, is_inside: bool):
    prompt = ChatPrompt(
        (*ASK, ChatMessage("assistant", begun)),
        add_generation_prompt=False,
        continue_final_message=True,
    )
    answer = ChatFormat(reasoning=THINK).of_answer(prompt, text=f"assistant: {begun}")
    assert answer.starts_in_reasoning == is_inside
