"""What a chat template can write, found out by letting it write.

Only what comes out counts: a template may know of calls and write them in a way that is not known
here, or take tools and leave them out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from streaming.chat.format import REASONING_SYNTAXES, TOOL_SYNTAXES
from streaming.chat.output_parser import ReasoningSyntax, ToolSyntax

Turn = dict[str, Any]
Write = Callable[[list[Turn], list[Turn]], str]
"""Returns what the template makes of turns and tools; nothing where it refuses them."""

_CALL_ID = re.compile(r"\[CALL_ID\]\w+")
"""Version 11 of Mistral's tokenizers; nothing is lost where a call goes without."""
_NEEDED_IDS = ("c1", "call_0123456789")
"""Of calls: a short one and a long one."""


@dataclass(frozen=True, slots=True)
class Abilities:
    """What a template can write.

    Attributes:
        syntax: of the calls that it writes; None where it writes none, or their results, or in a
            syntax that is not known.
        takes_text: it wants a call's arguments as text, not as an object.
        takes_any_id: as the id of a call; otherwise, only 9 letters and digits.
        writes_tools: what the tools are.
        writes_system: turns of the role system.
    """

    syntax: ToolSyntax | None = None
    takes_text: bool = False
    takes_any_id: bool = True
    writes_tools: bool = False
    writes_system: bool = False


def find_abilities(write: Write) -> Abilities:
    """Return what a template can write."""
    writes_system = "PROBE_S" in write([_SYSTEM, _USER], [])
    for takes_text in (False, True):
        arguments: Any = '{"PROBE_K": "PROBE_V"}'
        if not takes_text:
            arguments = json.loads(arguments)
        text = write(_call_turns(arguments, call_id="PROBEid12"), [_TOOL])
        if "PROBE_R" not in text or (syntax := _find_syntax(text)) is None:
            continue
        return Abilities(
            syntax=syntax,
            takes_text=takes_text,
            takes_any_id=all(
                write(_call_turns(arguments, call_id=call_id), [_TOOL]) for call_id in _NEEDED_IDS
            ),
            # Some write the tools into the last turn, if that is the user's.
            writes_tools="PROBE_T" in text + write([_USER], [_TOOL]),
            writes_system=writes_system,
        )
    return Abilities(writes_system=writes_system)


def find_reasoning(templates: Sequence[str]) -> ReasoningSyntax | None:
    """Return the syntax of reasoning whose end a template knows, to cut it off or to write it."""
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
    function = {"name": "PROBE_F", "arguments": arguments}
    calls = [{"id": call_id, "type": "function", "function": function}]
    result = {"role": "tool", "tool_call_id": call_id, "name": "PROBE_F", "content": "PROBE_R"}
    return [_USER, {"role": "assistant", "content": "", "tool_calls": calls}, result]


def _find_syntax(text: str) -> ToolSyntax | None:
    """Return the syntax that the probe's call has been written in."""
    text = _CALL_ID.sub("", text)
    for syntax in TOOL_SYNTAXES:
        begin = f"{syntax.section_begin}{syntax.call_begin}PROBE_F{syntax.call_middle}"
        _, found, rest = text.partition(begin)
        if found and re.match(r'\{\s*"PROBE_K"\s*:\s*"PROBE_V"\s*\}', rest):
            return syntax
    return None
