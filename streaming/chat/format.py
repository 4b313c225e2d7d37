"""Formats of tool calls and reasoning that models are trained on, one constant for each family.

`streaming.backends.chat_templates` finds the ones that a model's chat template uses.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from streaming.chat.messages import ToolMode
from streaming.chat.output_parser import OutputFormat, ReasoningSyntax, ToolSyntax
from streaming.request import ChatPrompt

HERMES = ToolSyntax(
    trigger="<tool_call>",
    call_begin='<tool_call>\n{"name": "',
    call_middle='", "arguments": ',
    call_end="}\n</tool_call>",
    separator="\n",
)
"""Hermes 2 Pro, Qwen 2.5, Qwen 3, QwQ."""
DEFAULT_TOOL_SYNTAX = replace(HERMES, prefers_single=True)
"""Syntax that the system prompt describes to models whose template has none. It prefers a single
call, since small models that are not trained on it repeat their call until the limit."""
LLAMA = ToolSyntax(
    trigger='{"name": "',
    call_begin='{"name": "',
    call_middle='", "parameters": ',
    call_end="}",
    is_only_at_start=True,
    allows_several=False,
)
"""Llama 3.1 to 3.3, user-defined functions."""
MISTRAL_LIST = ToolSyntax(
    trigger="[TOOL_CALLS]",
    section_begin="[TOOL_CALLS] [",
    call_begin='{"name": "',
    call_middle='", "arguments": ',
    call_end="}",
    separator=", ",
    section_end="]",
)
"""Mistral 7B v0.3, Mixtral 8x22B."""
MISTRAL_TIGHT_LIST = replace(MISTRAL_LIST, section_begin="[TOOL_CALLS][")
"""Mistral Nemo, Mistral Large 2407."""
MISTRAL_ARGS = ToolSyntax(
    trigger="[TOOL_CALLS]",
    call_begin="[TOOL_CALLS]",
    call_middle="[ARGS]",
    call_end="",
)
"""Mistral Small 3.2, Magistral, Devstral: version 11 and later of Mistral's tokenizers."""
DEEPSEEK_R1 = ToolSyntax(
    trigger="<｜tool▁calls▁begin｜>",
    section_begin="<｜tool▁calls▁begin｜>",
    call_begin="<｜tool▁call▁begin｜>function<｜tool▁sep｜>",
    call_middle="\n```json\n",
    call_end="\n```<｜tool▁call▁end｜>",
    separator="\n",
    section_end="<｜tool▁calls▁end｜>",
)
"""DeepSeek V3, R1, and models distilled from R1."""
DEEPSEEK_V3_1 = ToolSyntax(
    trigger="<｜tool▁calls▁begin｜>",
    section_begin="<｜tool▁calls▁begin｜>",
    call_begin="<｜tool▁call▁begin｜>",
    call_middle="<｜tool▁sep｜>",
    call_end="<｜tool▁call▁end｜>",
    section_end="<｜tool▁calls▁end｜>",
)
TOOL_SYNTAXES = (
    HERMES,
    LLAMA,
    MISTRAL_LIST,
    MISTRAL_TIGHT_LIST,
    MISTRAL_ARGS,
    DEEPSEEK_R1,
    DEEPSEEK_V3_1,
)
THINK = ReasoningSyntax("<think>", "</think>")
"""Qwen 3, QwQ, DeepSeek R1 and most other reasoning models."""
MAGISTRAL_THINK = ReasoningSyntax("[THINK]", "[/THINK]")
REASONING_SYNTAXES = (THINK, MAGISTRAL_THINK)


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """Tool-call and reasoning syntax of a model's chat template.

    Attributes:
        tools: the template's syntax, or `DEFAULT_TOOL_SYNTAX` if it has none.
        reasoning: delimiters of the reasoning; None if the model does not write any.
    """

    tools: ToolSyntax = DEFAULT_TOOL_SYNTAX
    reasoning: ReasoningSyntax | None = None

    @property
    def delimiters(self) -> tuple[str, ...]:
        """All delimiters of tool calls and reasoning."""
        return OutputFormat(self.tools, self.reasoning).delimiters

    def of_answer(self, prompt: ChatPrompt, *, text: str) -> OutputFormat:
        """Return the format of the answer to a prompt.

        Args:
            prompt: the conversation and its tools.
            text: the prompt as the template renders it, or its end.
        """
        tools = self.tools if may_call_tools(prompt) else None
        if self.reasoning is None:
            return OutputFormat(tools)
        end = text.rstrip()
        if end.endswith(self.reasoning.end):
            return OutputFormat(tools)
        starts_in_reasoning = end.endswith(self.reasoning.begin)
        if prompt.continue_final_message and prompt.messages:
            begun = prompt.messages[-1].content
            starts_in_reasoning |= (
                begun.lstrip().startswith(self.reasoning.begin) and self.reasoning.end not in begun
            )
        return OutputFormat(tools, self.reasoning, starts_in_reasoning)


def may_call_tools(prompt: ChatPrompt) -> bool:
    """Return whether the answer may call tools: there are some, and `tool_choice` allows it."""
    return bool(prompt.tools) and prompt.tool_choice.mode is not ToolMode.NONE
