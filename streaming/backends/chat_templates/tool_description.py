"""Tools, calls and results as text, for models whose template does not write them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from streaming.chat.messages import ToolCall
from streaming.chat.output_parser import ToolSyntax


def describe_tools(functions: Iterable[dict[str, Any]], syntax: ToolSyntax) -> str:
    """Return the instructions that a system turn gives.

    Args:
        functions: name, description and parameters of each tool.
    """
    lines = "\n".join(json.dumps(function, ensure_ascii=False) for function in functions)
    example = write_calls([ToolCall("", "NAME", '{"ARGUMENT": VALUE}')], syntax)
    return (
        "You are a function calling assistant. The functions are inside <tools></tools>, one on "
        f"each line:\n<tools>\n{lines}\n</tools>\n\n"
        f"Where a function can help, call it in this form and add nothing:\n{example}\n"
        "You are then given its result. Where no function can help, answer in words."
    )


def write_calls(calls: Iterable[ToolCall], syntax: ToolSyntax) -> str:
    """Return calls as the model writes them."""
    written = (
        f"{syntax.call_begin}{call.name}{syntax.call_middle}{call.arguments}{syntax.call_end}"
        for call in calls
    )
    return f"{syntax.section_begin}{syntax.separator.join(written)}{syntax.section_end}"


def write_result(content: str, *, name: str | None) -> str:
    """Return what a tool gave back, as the user tells it.

    In words: small models answer a result in tags with tags.
    """
    return f"Result of {name or 'the function'}:\n{content}"
