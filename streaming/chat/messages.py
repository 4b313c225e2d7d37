"""A conversation, and the tools that its answer may call."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from streaming.errors import InvalidRequest

MAX_TOOLS = 128
MAX_TOOLS_CHARS = 262_144
"""Of all names, descriptions and schemas together."""
MAX_PARALLEL_CALLS = 16
"""In one answer; a small model may never have enough."""
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the assistant has made.

    Attributes:
        call_id: ties the tool's result to it.
        arguments: a JSON object, as text.
    """

    call_id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One turn.

    Attributes:
        role: system, user, assistant or tool.
        tool_calls: what the assistant called in this turn.
        tool_call_id: of a turn of the role tool, the call that it answers.
        name: of a turn of the role tool, the tool that it comes from.
        reasoning: what the assistant thought before it spoke; few templates write it.
    """

    role: str
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
    reasoning: str | None = None

    @property
    def texts(self) -> tuple[str, ...]:
        """All that a template may write of it."""
        calls = (text for call in self.tool_calls for text in (call.name, call.arguments))
        own = (self.role, self.content, self.name, self.reasoning)
        return (*(text for text in own if text is not None), *calls)


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call.

    Attributes:
        parameters: a JSON schema of the arguments, as text; a call's arguments are valid by it.
    """

    name: str
    description: str
    parameters: str


class ToolMode(StrEnum):
    NONE = "none"
    AUTO = "auto"
    REQUIRED = "required"


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """Whether the answer calls a tool, and which.

    Attributes:
        names: the tools that may be called; None is all of them.
    """

    mode: ToolMode = ToolMode.AUTO
    names: frozenset[str] | None = None


ANY_TOOL = ToolChoice()
"""The model may call any tool, or none."""


def check_tools(tools: Sequence[Tool], choice: ToolChoice) -> None:
    """Refuse tools that cannot be offered, and a choice that does not fit them.

    Raises:
        InvalidRequest: there are too many or too large ones, a name is no name or used twice, or
            the choice asks for what is not there.
    """
    if len(tools) > MAX_TOOLS:
        raise InvalidRequest(
            param="tools", reason=f"there are {len(tools)}; at most {MAX_TOOLS} are taken"
        )
    num_chars = sum(len(tool.name + tool.description + tool.parameters) for tool in tools)
    if num_chars > MAX_TOOLS_CHARS:
        raise InvalidRequest(
            param="tools",
            reason=f"they have {num_chars} characters; at most {MAX_TOOLS_CHARS} are taken",
        )
    names: set[str] = set()
    for tool in tools:
        if not _NAME.fullmatch(tool.name):
            raise InvalidRequest(
                param="tools",
                reason=f"{tool.name[:80]!r} is no name: 1 to 64 of a-z, A-Z, 0-9, _ and -",
            )
        if tool.name in names:
            raise InvalidRequest(param="tools", reason=f"two are named {tool.name!r}")
        names.add(tool.name)
    if choice.mode is ToolMode.REQUIRED and not tools:
        raise InvalidRequest(param="tool_choice", reason="there are no tools to call")
    if choice.names is None:
        return
    if not choice.names:
        raise InvalidRequest(param="tool_choice", reason="allows no tool")
    if missing := sorted(choice.names - names):
        raise InvalidRequest(param="tool_choice", reason=f"there is no tool {missing[0][:80]!r}")
