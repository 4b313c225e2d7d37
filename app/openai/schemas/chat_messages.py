"""A conversation in OpenAI's form, with reasoning as other servers have it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from app.openai.schemas.choices import Name
from app.schemas.wire_model import WireModel
from streaming import ChatMessage, ToolCall
from streaming.errors import InvalidRequest

MAX_PARTS = 4096
MAX_CALLS = 128


class TextPart(WireModel):
    type: Literal["text"]
    text: str


class RefusalPart(WireModel):
    type: Literal["refusal"]
    refusal: str


def _part_tag(value: Any) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return f"part[{kind}]" if kind in ("text", "refusal") else None


_TEXT_ONLY = "is not supported: all parts are objects with the type text"
_TextPart = Annotated[
    Annotated[TextPart, Tag("part[text]")],
    Discriminator(_part_tag, custom_error_type="part", custom_error_message=_TEXT_ONLY),
]
_AssistantPart = Annotated[
    Annotated[TextPart, Tag("part[text]")] | Annotated[RefusalPart, Tag("part[refusal]")],
    Discriminator(_part_tag, custom_error_type="part", custom_error_message=_TEXT_ONLY),
]

Content = str | Annotated[list[_TextPart], Field(fail_fast=True, max_length=MAX_PARTS)]
AssistantContent = (
    str | Annotated[list[_AssistantPart], Field(fail_fast=True, max_length=MAX_PARTS)]
)


class SystemMessage(WireModel):
    """What the model is told before the conversation; a developer's message is the same."""

    role: Literal["system", "developer"]
    content: Content = Field(description="Text; parts are joined with line breaks.")
    name: Name | None = Field(None, description="Few chat templates write it.")

    def to_message(self, param: str) -> ChatMessage:
        return ChatMessage("system", join_content(self.content), name=self.name)


class UserMessage(WireModel):
    role: Literal["user"]
    content: Content = Field(description="Text; parts are joined with line breaks.")
    name: Name | None = Field(None, description="Few chat templates write it.")

    def to_message(self, param: str) -> ChatMessage:
        return ChatMessage("user", join_content(self.content), name=self.name)


class FunctionCall(WireModel):
    name: Name
    arguments: str = Field(description="A JSON object, as text; empty text is an empty object.")


class MessageToolCall(WireModel):
    id: Name
    type: Literal["function"] = "function"
    function: FunctionCall
    index: int | None = Field(
        None, description="Makes no difference: calls are taken in their order."
    )


class AssistantMessage(WireModel):
    """What the model said; an answer can be sent back as it came."""

    role: Literal["assistant"]
    content: AssistantContent | None = Field(
        None, description="May be left out where there are calls or a refusal."
    )
    tool_calls: (
        Annotated[list[MessageToolCall], Field(fail_fast=True, max_length=MAX_CALLS)] | None
    ) = None
    refusal: str | None = Field(None, description="Stands for the content where there is none.")
    reasoning_content: str | None = Field(
        None, description="What it thought; few chat templates write it."
    )
    reasoning: str | None = Field(None, description="Another name of `reasoning_content`.")
    name: Name | None = Field(None, description="Few chat templates write it.")
    annotations: list[Any] | None = Field(
        None, description="Makes no difference: citations of an answer, which no template writes."
    )
    audio: None = Field(None, description="Not supported: only `null`.")
    function_call: None = Field(None, description="Not supported: only `null`; use `tool_calls`.")

    def to_message(self, param: str) -> ChatMessage:
        """Return the engine's form.

        Raises:
            InvalidRequest: it says nothing, or a call's arguments are no JSON object.
        """
        calls = tuple(
            _to_tool_call(call, param=f"{param}.tool_calls[{place}]")
            for place, call in enumerate(self.tool_calls or ())
        )
        content = self.content if self.content is not None else self.refusal
        if content is None and not calls:
            raise InvalidRequest(
                param=f"{param}.content", reason="must be given where there are no tool_calls"
            )
        if self.reasoning is not None and self.reasoning_content is not None:
            raise InvalidRequest(
                param=f"{param}.reasoning", reason="excludes reasoning_content: give one of them"
            )
        return ChatMessage(
            "assistant",
            join_content(content or ""),
            tool_calls=calls,
            name=self.name,
            reasoning=self.reasoning_content or self.reasoning,
        )


class ToolMessage(WireModel):
    """What a tool returned."""

    role: Literal["tool"]
    content: Content = Field(description="Text; parts are joined with line breaks.")
    tool_call_id: Name
    name: Name | None = Field(
        None, description="The tool; without it, the one that `tool_call_id` called."
    )

    def to_message(self, param: str) -> ChatMessage:
        return ChatMessage(
            "tool",
            join_content(self.content),
            tool_call_id=self.tool_call_id,
            name=self.name,
        )


_ROLES = ("system", "developer", "user", "assistant", "tool")


def _role_tag(value: Any) -> str | None:
    role = value.get("role") if isinstance(value, dict) else getattr(value, "role", None)
    if role not in _ROLES:
        return None
    return "message[system]" if role == "developer" else f"message[{role}]"


Message = Annotated[
    Annotated[SystemMessage, Tag("message[system]")]
    | Annotated[UserMessage, Tag("message[user]")]
    | Annotated[AssistantMessage, Tag("message[assistant]")]
    | Annotated[ToolMessage, Tag("message[tool]")],
    Discriminator(
        _role_tag,
        custom_error_type="message_role",
        custom_error_message=f"must be an object whose role is one of {', '.join(_ROLES)}",
    ),
]


def to_chat_messages(messages: Sequence[Message], *, param: str) -> tuple[ChatMessage, ...]:
    """Return the engine's form of a conversation.

    Args:
        param: the field that it came in.

    Raises:
        InvalidRequest: a message of the assistant says nothing, or a call's arguments are no
            JSON object.
    """
    return tuple(message.to_message(f"{param}[{place}]") for place, message in enumerate(messages))


def join_content(content: str | Sequence[TextPart | RefusalPart]) -> str:
    """Return the text of a message; parts are lines of their own."""
    if isinstance(content, str):
        return content
    return "\n".join(part.text if isinstance(part, TextPart) else part.refusal for part in content)


def _to_tool_call(call: MessageToolCall, *, param: str) -> ToolCall:
    arguments = call.function.arguments.strip() or "{}"
    try:
        is_object = isinstance(json.loads(arguments), dict)
    except (ValueError, RecursionError):
        is_object = False
    if not is_object:
        raise InvalidRequest(
            param=f"{param}.function.arguments", reason="must be a JSON object, as text"
        )
    return ToolCall(call.id, call.function.name, arguments)
