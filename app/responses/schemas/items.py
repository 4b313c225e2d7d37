"""Items of a Responses conversation, as clients send them.

What a client got as output it may send back as input, so keys that we do not know are skipped here.
Content that we cannot serve is refused by its place, such as `input[0].content[1]`.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

from app.errors import ErrorInfo, RequestRefused
from app.responses.schemas.summary import decode_summary
from app.schemas.wire_model import WireModel

MAX_ITEMS = 4096
_MAX_SHOWN_CHARS = 64

Item = dict[str, Any]
"""An item in the form in which it is kept and shown; never changed once made."""

_TEXT_PARTS = ("input_text", "output_text", "refusal")
_ITEMS = (
    "message",
    "function_call",
    "function_call_output",
    "reasoning",
    "compaction",
    "item_reference",
)

_Id = Annotated[str, Field(min_length=1, max_length=128)]
_CallId = Annotated[str, Field(min_length=1, max_length=64)]
_ToolName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


class _Part(WireModel):
    """A part of a client's item: unknown keys are skipped."""

    model_config = ConfigDict(extra="ignore", strict=True)


class InputText(_Part):
    type: Literal["input_text"]
    text: str


class OutputText(_Part):
    type: Literal["output_text"]
    text: str


class Refusal(_Part):
    type: Literal["refusal"]
    refusal: str

    @property
    def text(self) -> str:
        return self.refusal


class SummaryText(_Part):
    type: Literal["summary_text"]
    text: str


class ReasoningContent(_Part):
    type: Literal["reasoning_text"]
    text: str


def _tag_of(name: str, types: tuple[str, ...], default: str | None = None) -> Discriminator:
    def tag(value: Any) -> str | None:
        given = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
        kind = default if given is None else given
        return f"{name}[{kind}]" if kind in types else None

    return Discriminator(
        tag,
        custom_error_type=f"{name}_type",
        custom_error_message=f"must be an object whose type is one of {', '.join(types)}",
    )


TextPart = Annotated[
    Annotated[InputText, Tag("part[input_text]")]
    | Annotated[OutputText, Tag("part[output_text]")]
    | Annotated[Refusal, Tag("part[refusal]")],
    _tag_of("part", _TEXT_PARTS),
]
_Parts = Annotated[list[TextPart], Field(fail_fast=True, max_length=MAX_ITEMS)]


class MessageItem(_Part):
    """A turn. `developer` is written as `system`."""

    type: Literal["message"] | None = None
    id: _Id | None = None
    role: Literal["user", "assistant", "system", "developer"]
    content: str | _Parts
    phase: Literal["commentary", "final_answer"] | None = Field(
        None, description="Given back as it came; the model does not see it."
    )

    def to_item(self, key: str) -> Item:
        written: list[Item] = []
        for part in _as_parts(self.content):
            if isinstance(part, Refusal):
                written.append({"type": "refusal", "refusal": part.refusal})
            elif self.role == "assistant":
                written.append(output_text(part.text))
            else:
                written.append({"type": "input_text", "text": part.text})
        item = {
            "id": self.id or f"msg_{key}",
            "type": "message",
            "status": "completed",
            "role": self.role,
            "content": written,
        }
        return item if self.phase is None else {**item, "phase": self.phase}


def _check_arguments(text: str) -> str:
    text = text.strip() or "{}"
    try:
        is_object = isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        is_object = False
    if not is_object:
        raise PydanticCustomError("arguments", "must be a JSON object, as text")
    return text


class FunctionCallItem(_Part):
    """A call that the assistant has made."""

    type: Literal["function_call"]
    id: _Id | None = None
    call_id: _CallId
    name: _ToolName
    arguments: Annotated[str, AfterValidator(_check_arguments)] = Field(
        description="A JSON object, as text."
    )

    def to_item(self, key: str) -> Item:
        return {
            "id": self.id or f"fc_{key}",
            "type": "function_call",
            "call_id": self.call_id,
            "name": self.name,
            "arguments": self.arguments,
            "status": "completed",
        }


class FunctionCallOutputItem(_Part):
    """What a call returned."""

    type: Literal["function_call_output"]
    id: _Id | None = None
    call_id: _CallId
    output: str | _Parts

    def to_item(self, key: str) -> Item:
        output: str | list[Item]
        if isinstance(self.output, str):
            output = self.output
        else:
            output = [{"type": "input_text", "text": part.text} for part in self.output]
        return {
            "id": self.id or f"fco_{key}",
            "type": "function_call_output",
            "call_id": self.call_id,
            "output": output,
            "status": "completed",
        }


class ReasoningItem(_Part):
    """What the assistant thought; for templates that write it."""

    type: Literal["reasoning"]
    id: _Id | None = None
    summary: Annotated[list[SummaryText], Field(fail_fast=True, max_length=MAX_ITEMS)] = Field(
        default_factory=list
    )
    content: (
        Annotated[list[ReasoningContent], Field(fail_fast=True, max_length=MAX_ITEMS)] | None
    ) = None
    encrypted_content: str | None = Field(
        None, description="Not read: our reasoning items carry their text in `content`."
    )

    def to_item(self, key: str) -> Item:
        return {
            "id": self.id or f"rs_{key}",
            "type": "reasoning",
            "summary": [{"type": "summary_text", "text": part.text} for part in self.summary],
            "content": [
                {"type": "reasoning_text", "text": part.text} for part in self.content or ()
            ],
        }


def _check_content(content: str) -> str:
    decode_summary(content)
    return content


class CompactionItem(_Part):
    """A summary of all that came before it, as `/v1/responses/compact` has made it.

    The model reads it in the place of what came before; what the system said stays.
    """

    type: Literal["compaction"]
    id: _Id | None = None
    encrypted_content: Annotated[str, AfterValidator(_check_content)]

    def to_item(self, key: str) -> Item:
        return {
            "id": self.id or f"cmp_{key}",
            "type": "compaction",
            "encrypted_content": self.encrypted_content,
        }


class ItemReference(_Part):
    """An item of an earlier response, instead of which its id is sent."""

    type: Literal["item_reference"]
    id: _Id

    def to_item(self, key: str) -> Item:
        return {"id": self.id, "type": "item_reference"}


def _as_parts(content: str | list[TextPart]) -> list[TextPart]:
    if isinstance(content, str):
        return [InputText(type="input_text", text=content)]
    return content


InputItem = Annotated[
    Annotated[MessageItem, Tag("item[message]")]
    | Annotated[FunctionCallItem, Tag("item[function_call]")]
    | Annotated[FunctionCallOutputItem, Tag("item[function_call_output]")]
    | Annotated[ReasoningItem, Tag("item[reasoning]")]
    | Annotated[CompactionItem, Tag("item[compaction]")]
    | Annotated[ItemReference, Tag("item[item_reference]")],
    _tag_of("item", _ITEMS, default="message"),
]


def output_text(text: str, logprobs: list[Item] | None = None) -> Item:
    """Return a part of an assistant's message."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs or []}


def refuse_unsupported(value: Any, *, param: str = "input") -> None:
    """Refuse items and parts of kinds that a text model cannot take.

    Raises:
        RequestRefused: with the code `unsupported_content` and the place of the first one.
    """
    if not isinstance(value, list):
        return
    for index, item in enumerate(value):
        if not isinstance(item, dict):
            continue
        kind = item.get("type")
        if isinstance(kind, str) and kind not in _ITEMS:
            raise unsupported(f"{param}[{index}]", f"items of the type {_shown(kind)}")
        for name in ("content", "output"):
            parts = item.get(name) if kind != "reasoning" else None
            for at, part in enumerate(parts if isinstance(parts, list) else ()):
                part_kind = part.get("type") if isinstance(part, dict) else None
                if isinstance(part_kind, str) and part_kind not in _TEXT_PARTS:
                    raise unsupported(
                        f"{param}[{index}].{name}[{at}]", f"parts of the type {_shown(part_kind)}"
                    )


def unsupported(param: str, what: str) -> RequestRefused:
    """Return the error for content that this server does not take."""
    return RequestRefused(
        ErrorInfo(
            code="unsupported_content",
            message=f"{param}: {what} are not supported here.",
            param=param,
        )
    )


def _shown(kind: str) -> str:
    return repr(kind[:_MAX_SHOWN_CHARS].encode(errors="replace").decode())
