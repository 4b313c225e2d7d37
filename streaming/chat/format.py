"""How a model writes what is more than text: calls of tools, and reasoning."""

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
"""What models without a syntax of their own are told to write. Where nothing has taught a small one
when to end, it repeats its call for as long as it may."""
LLAMA = ToolSyntax(
    trigger='{"name": "',
    call_begin='{"name": "',
    call_middle='", "parameters": ',
    call_end="}",
    is_only_at_start=True,
    allows_several=False,
)
"""Llama 3.1 to 3.3, functions of the caller's own."""
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
"""DeepSeek V3 and R1, and the models that were distilled from it."""
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
"""Qwen 3, QwQ, DeepSeek R1 and most others that reason."""
MAGISTRAL_THINK = ReasoningSyntax("[THINK]", "[/THINK]")
REASONING_SYNTAXES = (THINK, MAGISTRAL_THINK)


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """What a model's chat template teaches it to write.

    Attributes:
        tools: the template's own syntax, or the one that a model without any is told to use.
        reasoning: None where the model does not reason aloud.
    """

    tools: ToolSyntax = DEFAULT_TOOL_SYNTAX
    reasoning: ReasoningSyntax | None = None

    @property
    def marks(self) -> tuple[str, ...]:
        """All texts that set calls and reasoning off from the answer."""
        return OutputFormat(self.tools, self.reasoning).marks

    def of_answer(self, prompt: ChatPrompt, *, text: str) -> OutputFormat:
        """Return what to look for in the answer to a prompt.

        Args:
            text: the prompt as the template has written it, or its end.
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
    return bool(prompt.tools) and prompt.tool_choice.mode is not ToolMode.NONE
