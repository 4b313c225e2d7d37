"""How a model writes what is more than text: calls of tools, and reasoning."""

from __future__ import annotations

from dataclasses import dataclass

from streaming.chat import ToolMode
from streaming.output_parser import OutputFormat, ReasoningSyntax, ToolSyntax
from streaming.request import ChatPrompt

HERMES = ToolSyntax(
    trigger="<tool_call>",
    call_begin='<tool_call>\n{"name": "',
    call_middle='", "arguments": ',
    call_end="}\n</tool_call>",
    separator="\n",
)
THINK = ReasoningSyntax("<think>", "</think>")


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """What a model's chat template teaches it to write.

    Attributes:
        tools: the template's own syntax, or the one that a model without any is told to use.
        reasoning: None where the model does not reason aloud.
    """

    tools: ToolSyntax = HERMES
    reasoning: ReasoningSyntax | None = None

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
