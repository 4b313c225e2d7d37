"""Detects what a chat template can render, by rendering probe conversations.

Only the rendered text counts. A template may read tool calls and render them in an unknown syntax,
or accept tools and leave them out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from streaming.backends.chat_templates.chat_turns import Turn
from streaming.chat.format import REASONING_SYNTAXES, TOOL_SYNTAXES
from streaming.chat.output_parser import ReasoningSyntax, ToolSyntax

Render = Callable[[list[Turn], list[Turn]], str]
"""Renders turns and tools with the template; returns an empty text if the template refuses them."""

_CALL_ID = re.compile(r"\[CALL_ID\]\w+")
"""The id in a call of Mistral's version 11. It is optional, so the known syntax leaves it out."""
_PROBE_IDS = ("c1", "call_0123456789")
"""A short and a long call id."""


@dataclass(frozen=True, slots=True)
class TemplateCapabilities:
    """What a template can render.

    Attributes:
        syntax: the syntax of its tool calls; None if it does not render calls and their results, or
            uses an unknown syntax.
        takes_text: whether it needs a call's arguments as JSON text instead of an object.
        takes_any_id: whether it accepts any call id, or only 9 letters and digits.
        writes_tools: whether it renders the tools.
        writes_system: whether it renders system turns.
    """

    syntax: ToolSyntax | None = None
    takes_text: bool = False
    takes_any_id: bool = True
    writes_tools: bool = False
    writes_system: bool = False


def detect_capabilities(render: Render) -> TemplateCapabilities:
    """Return what a template can render."""
    writes_system = "PROBE_S" in render([_SYSTEM, _USER], [])
    for takes_text in (False, True):
        arguments: Any = '{"PROBE_K": "PROBE_V"}'
        if not takes_text:
            arguments = json.loads(arguments)
        text = render(_call_turns(arguments, call_id="PROBEid12"), [_TOOL])
        if "PROBE_R" not in text or (syntax := _find_syntax(text)) is None:
            continue
        return TemplateCapabilities(
            syntax=syntax,
            takes_text=takes_text,
            takes_any_id=all(
                render(_call_turns(arguments, call_id=call_id), [_TOOL]) for call_id in _PROBE_IDS
            ),
            # Some templates render the tools only if the last turn is the user's.
            writes_tools="PROBE_T" in text + render([_USER], [_TOOL]),
            writes_system=writes_system,
        )
    return TemplateCapabilities(writes_system=writes_system)


def detect_reasoning(templates: Sequence[str]) -> ReasoningSyntax | None:
    """Return the first reasoning syntax whose end mark is in the source of one of the templates.

    Templates contain it to strip reasoning from earlier turns, or to render it.
    """
    text = "\n".join(templates)
    return next((syntax for syntax in REASONING_SYNTAXES if syntax.end in text), None)


_SYSTEM: Turn = {"role": "system", "content": "PROBE_S"}
_USER: Turn = {"role": "user", "content": "PROBE_U"}
_TOOL: Turn = {
    "type": "function",
    "function": {
        "name": "PROBE_F",
        "description": "PROBE_T",
        "parameters": {
            "type": "object",
            "properties": {"PROBE_K": {"type": "string", "description": "PROBE_K"}},
            "required": ["PROBE_K"],
        },
    },
}


def _call_turns(arguments: Any, *, call_id: str) -> list[Turn]:
    """Return a conversation of a question, a tool call and its result."""
    function = {"name": "PROBE_F", "arguments": arguments}
    calls = [{"id": call_id, "type": "function", "function": function}]
    result = {"role": "tool", "tool_call_id": call_id, "name": "PROBE_F", "content": "PROBE_R"}
    return [_USER, {"role": "assistant", "content": "", "tool_calls": calls}, result]


def _find_syntax(text: str) -> ToolSyntax | None:
    """Return the syntax in which a rendered text has the probe's call, or None if unknown."""
    text = _CALL_ID.sub("", text)
    for syntax in TOOL_SYNTAXES:
        begin = f"{syntax.section_begin}{syntax.call_begin}PROBE_F{syntax.call_middle}"
        _, found, rest = text.partition(begin)
        if found and re.match(r'\{\s*"PROBE_K"\s*:\s*"PROBE_V"\s*\}', rest):
            return syntax
    return None
