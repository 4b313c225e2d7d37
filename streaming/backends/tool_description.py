"""Tools, calls and results as text, for models whose template does not write them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from streaming.chat import ToolCall
from streaming.output_parser import ToolSyntax


def describe_tools(functions: Iterable[dict[str, Any]], syntax: ToolSyntax) -> str:
    """Return the instructions that a system turn gives.

    Args:
        functions: name, description and parameters of each tool.
    """
    lines = "\n".join(json.dumps(function, ensure_ascii=False) for function in functions)
    example = write_calls([ToolCall("", "NAME", '{"ARGUMENT": VALUE}')], syntax)
    return (
        "You can call these tools, one on each line, to look things up or to get things done:\n"
        f"{lines}\n\n"
        "To call a tool, write nothing but its name and its arguments, like this:\n"
        f"{example}\n"
        "The result then comes back to you. Where no tool helps, answer in plain words."
    )


def write_calls(calls: Iterable[ToolCall], syntax: ToolSyntax) -> str:
    """Return calls as the model writes them."""
    written = (
        f"{syntax.call_begin}{call.name}{syntax.call_middle}{call.arguments}{syntax.call_end}"
        for call in calls
    )
    return f"{syntax.section_begin}{syntax.separator.join(written)}{syntax.section_end}"


def write_result(content: str) -> str:
    """Return what a tool gave back, as the user tells it."""
    return f"<tool_response>\n{content}\n</tool_response>"
