"""Chat messages, and the tools that the answer may call."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from streaming.errors import InvalidRequest

MAX_TOOLS = 128
MAX_TOOLS_CHARS = 262_144
"""Most characters in all names, descriptions and schemas together."""
MAX_PARALLEL_CALLS = 16
"""Most calls in one answer; a small model may otherwise repeat its call until the token limit."""
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool call in an assistant message.

    Attributes:
        call_id: id that the tool's result refers to.
        name: name of the tool.
        arguments: a JSON object, as text.
    """

    call_id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One message of a conversation.

    Attributes:
        role: system, user, assistant or tool.
        content: its text.
        tool_calls: calls in an assistant message.
        tool_call_id: in a tool message, id of the call that it answers.
        name: in a tool message, name of the tool.
        reasoning: in an assistant message, reasoning before the content; few templates render it.
    """

    role: str
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
    reasoning: str | None = None

    @property
    def texts(self) -> tuple[str, ...]:
        """All texts of the message that a template may render."""
        calls = (text for call in self.tool_calls for text in (call.name, call.arguments))
        own = (self.role, self.content, self.name, self.reasoning)
        return (*(text for text in own if text is not None), *calls)


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call.

    Attributes:
        name: 1 to 64 of a-z, A-Z, 0-9, _ and -.
        description: text for the model.
        parameters: JSON schema of the arguments, as text; the arguments of a call conform to it.
    """

    name: str
    description: str
    parameters: str


class ToolMode(StrEnum):
    """Whether the answer may (`auto`), must (`required`) or must not (`none`) call tools."""

    NONE = "none"
    AUTO = "auto"
    REQUIRED = "required"


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """Which tools the answer may or must call.

    Attributes:
        mode: whether it may, must or must not call tools.
        names: the tools that it may call; None allows all.
    """

    mode: ToolMode = ToolMode.AUTO
    names: frozenset[str] | None = None


ANY_TOOL = ToolChoice()
"""The model may call any tool or none."""


def check_tools(tools: Sequence[Tool], choice: ToolChoice) -> None:
    """Check the number, size and names of tools, and that the choice refers to them.

    Raises:
        InvalidRequest: there are too many tools, they are too large, a name is invalid or used
            twice, or the choice names a tool that does not exist.
    """
    if len(tools) > MAX_TOOLS:
        raise InvalidRequest(
            param="tools", reason=f"must have at most {MAX_TOOLS} tools (got {len(tools)})"
        )
    num_chars = sum(len(tool.name + tool.description + tool.parameters) for tool in tools)
    if num_chars > MAX_TOOLS_CHARS:
        raise InvalidRequest(
            param="tools",
            reason=f"names, descriptions and schemas must have at most {MAX_TOOLS_CHARS} "
            f"characters together (got {num_chars})",
        )
    names: set[str] = set()
    for tool in tools:
        if not _NAME.fullmatch(tool.name):
            raise InvalidRequest(
                param="tools",
                reason=f"{tool.name[:80]!r} is not a valid tool name; use 1 to 64 characters of "
                "a-z, A-Z, 0-9, _ and -",
            )
        if tool.name in names:
            raise InvalidRequest(param="tools", reason=f"more than one tool is named {tool.name!r}")
        names.add(tool.name)
    if choice.mode is ToolMode.REQUIRED and not tools:
        raise InvalidRequest(param="tool_choice", reason="requires a tool call, but tools is empty")
    if choice.names is None:
        return
    if not choice.names:
        raise InvalidRequest(param="tool_choice", reason="must allow at least one tool")
    if missing := sorted(choice.names - names):
        raise InvalidRequest(
            param="tool_choice", reason=f"names the tool {missing[0][:80]!r}, which is not in tools"
        )
