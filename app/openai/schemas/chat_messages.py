"""Messages of a conversation in OpenAI's form, plus the reasoning fields of other servers."""

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
    """A text part of a message."""

    type: Literal["text"]
    text: str


class RefusalPart(WireModel):
    """A refusal, as a part of an assistant message."""

    type: Literal["refusal"]
    refusal: str


def _part_tag(value: Any) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return f"part[{kind}]" if kind in ("text", "refusal") else None


_TEXT_ONLY = "must be an object whose type is text: this server reads no images, audio or files"
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
    """Instructions for the model. `developer` is the newer name of the role."""

    role: Literal["system", "developer"]
    content: Content = Field(description="Text, or parts, which are joined with line breaks.")
    name: Name | None = Field(None, description="Few chat templates use it.")

    def to_message(self, param: str) -> ChatMessage:
        """Return the message for the engine."""
        return ChatMessage("system", join_content(self.content), name=self.name)


class UserMessage(WireModel):
    """A message of the user."""

    role: Literal["user"]
    content: Content = Field(description="Text, or parts, which are joined with line breaks.")
    name: Name | None = Field(None, description="Few chat templates use it.")

    def to_message(self, param: str) -> ChatMessage:
        """Return the message for the engine."""
        return ChatMessage("user", join_content(self.content), name=self.name)


class FunctionCall(WireModel):
    """The function of an earlier tool call."""

    name: Name
    arguments: str = Field(description="A JSON object as a string. An empty string means `{}`.")


class MessageToolCall(WireModel):
    """A tool call of an earlier assistant message."""

    id: Name
    type: Literal["function"] = "function"
    function: FunctionCall
    index: int | None = Field(None, description="No effect: calls keep the order of the array.")


class AssistantMessage(WireModel):
    """A message of the model. The message of an answer can be sent back unchanged."""

    role: Literal["assistant"]
    content: AssistantContent | None = Field(
        None, description="Required unless there are `tool_calls` or a `refusal`."
    )
    tool_calls: (
        Annotated[list[MessageToolCall], Field(fail_fast=True, max_length=MAX_CALLS)] | None
    ) = None
    refusal: str | None = Field(None, description="Used as the content if there is none.")
    reasoning_content: str | None = Field(
        None, description="The model's reasoning. Few chat templates use it."
    )
    reasoning: str | None = Field(None, description="Another name of `reasoning_content`.")
    name: Name | None = Field(None, description="Few chat templates use it.")
    annotations: list[Any] | None = Field(
        None, description="No effect: chat templates write no citations."
    )
    audio: None = Field(None, description="Not supported: only `null`.")
    function_call: None = Field(None, description="Not supported: only `null`; use `tool_calls`.")

    def to_message(self, param: str) -> ChatMessage:
        """Return the message for the engine. `param` is its path, such as `messages[0]`.

        Raises:
            InvalidRequest: the message is empty, or the arguments of a call are not a JSON object.
        """
        calls = tuple(
            _to_tool_call(call, param=f"{param}.tool_calls[{index}]")
            for index, call in enumerate(self.tool_calls or ())
        )
        content = self.content if self.content is not None else self.refusal
        if content is None and not calls:
            raise InvalidRequest(
                param=f"{param}.content", reason="is required without tool_calls or a refusal"
            )
        if self.reasoning is not None and self.reasoning_content is not None:
            raise InvalidRequest(
                param=f"{param}.reasoning", reason="must be omitted if reasoning_content is given"
            )
        return ChatMessage(
            "assistant",
            join_content(content or ""),
            tool_calls=calls,
            name=self.name,
            reasoning=self.reasoning_content or self.reasoning,
        )


class ToolMessage(WireModel):
    """The result of a tool call."""

    role: Literal["tool"]
    content: Content = Field(description="Text, or parts, which are joined with line breaks.")
    tool_call_id: Name
    name: Name | None = Field(
        None, description="The tool. The default is the one that `tool_call_id` called."
    )

    def to_message(self, param: str) -> ChatMessage:
        """Return the message for the engine."""
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
    """Return a conversation for the engine. Errors name the messages by the field `param`.

    Raises:
        InvalidRequest: an assistant message is empty, or the arguments of a call are not a JSON
            object.
    """
    return tuple(message.to_message(f"{param}[{index}]") for index, message in enumerate(messages))


def join_content(content: str | Sequence[TextPart | RefusalPart]) -> str:
    """Return the text of a message, its parts joined with line breaks."""
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
            param=f"{param}.function.arguments", reason="must be a JSON object, encoded as a string"
        )
    return ToolCall(call.id, call.function.name, arguments)
