"""A conversation, and the tools that its answer may call."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


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
