"""Items of a conversation as clients send them in `input`.

A client may send output back as input, so unknown keys are ignored. Unsupported content is refused
with its location, such as `input[0].content[1]`.
"""

from __future__ import annotations

import base64
import binascii
import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

from app.responses.schemas.objects import (
    ChosenLogprobObject,
    CompactionObject,
    ContentObject,
    FunctionCallObject,
    FunctionCallOutputObject,
    InputTextObject,
    MessageObject,
    OutputTextObject,
    ReasoningObject,
    ReferenceObject,
)
from app.schemas.validation import api_error
from app.schemas.wire_model import WireModel

MAX_ITEMS = 4096
_MAX_SHOWN_CHARS = 64

_TEXT_PARTS = ("input_text", "output_text", "refusal")
_ITEMS = (
    "message",
    "function_call",
    "function_call_output",
    "reasoning",
    "compaction",
    "item_reference",
)

_SUMMARY_PREFIX = "tokenwire.summary.v1."
_NOT_A_SUMMARY = "was not made by this server's /v1/responses/compact"

_Id = Annotated[str, Field(min_length=1, max_length=128)]
_CallId = Annotated[str, Field(min_length=1, max_length=64)]
_ToolName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


class _Part(WireModel):
    """An item or a content part; unknown keys are ignored."""

    model_config = ConfigDict(extra="ignore", strict=True)


class InputText(_Part):
    """Text of the user or the system."""

    type: Literal["input_text"]
    text: str


class OutputText(_Part):
    """Text of the assistant."""

    type: Literal["output_text"]
    text: str


class RefusalPart(_Part):
    """A refusal of the assistant; this server's models never write one."""

    type: Literal["refusal"]
    refusal: str

    @property
    def text(self) -> str:
        """The refusal as text, as the other parts have it."""
        return self.refusal


class SummaryText(_Part):
    """A summary of reasoning."""

    type: Literal["summary_text"]
    text: str


class ReasoningContent(_Part):
    """The reasoning itself."""

    type: Literal["reasoning_text"]
    text: str


def _discriminator(name: str, types: tuple[str, ...], default: str | None = None) -> Discriminator:
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
    | Annotated[RefusalPart, Tag("part[refusal]")],
    _discriminator("part", _TEXT_PARTS),
]
_Parts = Annotated[list[TextPart], Field(fail_fast=True, max_length=MAX_ITEMS)]


class MessageItem(_Part):
    """A message. `developer` is treated as `system`."""

    type: Literal["message"] | None = None
    id: _Id | None = None
    role: Literal["user", "assistant", "system", "developer"]
    content: str | _Parts
    phase: Literal["commentary", "final_answer"] | None = Field(
        None, description="Returned unchanged; the model does not see it."
    )

    def to_item(self, key: str) -> MessageObject:
        """Return the item as it is stored; `key` makes its id if it has none."""
        content: list[ContentObject] = []
        for part in _as_parts(self.content):
            if isinstance(part, RefusalPart):
                content.append({"type": "refusal", "refusal": part.refusal})
            elif self.role == "assistant":
                content.append(to_output_text(part.text))
            else:
                content.append({"type": "input_text", "text": part.text})
        item: MessageObject = {
            "id": self.id or f"msg_{key}",
            "type": "message",
            "status": "completed",
            "role": self.role,
            "content": content,
        }
        if self.phase is not None:
            item["phase"] = self.phase
        return item


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
    """A function call of the assistant."""

    type: Literal["function_call"]
    id: _Id | None = None
    call_id: _CallId
    name: _ToolName
    arguments: Annotated[str, AfterValidator(_check_arguments)] = Field(
        description="A JSON object, as text."
    )

    def to_item(self, key: str) -> FunctionCallObject:
        """Return the item as it is stored; `key` makes its id if it has none."""
        return {
            "id": self.id or f"fc_{key}",
            "type": "function_call",
            "call_id": self.call_id,
            "name": self.name,
            "arguments": self.arguments,
            "status": "completed",
        }


class FunctionCallOutputItem(_Part):
    """The result of a function call."""

    type: Literal["function_call_output"]
    id: _Id | None = None
    call_id: _CallId
    output: str | _Parts

    def to_item(self, key: str) -> FunctionCallOutputObject:
        """Return the item as it is stored; `key` makes its id if it has none."""
        output: str | list[InputTextObject]
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
    """Reasoning of the assistant; used by chat templates that show it to the model."""

    type: Literal["reasoning"]
    id: _Id | None = None
    summary: Annotated[list[SummaryText], Field(fail_fast=True, max_length=MAX_ITEMS)] = Field(
        default_factory=list
    )
    content: (
        Annotated[list[ReasoningContent], Field(fail_fast=True, max_length=MAX_ITEMS)] | None
    ) = None
    encrypted_content: str | None = Field(
        None, description="Ignored: this server's reasoning items have their text in `content`."
    )

    def to_item(self, key: str) -> ReasoningObject:
        """Return the item as it is stored; `key` makes its id if it has none."""
        return {
            "id": self.id or f"rs_{key}",
            "type": "reasoning",
            "summary": [{"type": "summary_text", "text": part.text} for part in self.summary],
            "content": [
                {"type": "reasoning_text", "text": part.text} for part in self.content or ()
            ],
        }


def encode_summary(summary: str) -> str:
    """Return the `encrypted_content` of a compaction item.

    The dialect calls it encrypted; here it is only base64. It holds nothing that its client has not
    sent or received, and a forged summary can tell the model no more than a message could.
    """
    return _SUMMARY_PREFIX + base64.urlsafe_b64encode(summary.encode()).decode()


def decode_summary(content: str) -> str:
    """Return the summary in the `encrypted_content` of a compaction item.

    Raises:
        ValueError: `encode_summary` did not make the content.
    """
    if not content.startswith(_SUMMARY_PREFIX):
        raise ValueError(_NOT_A_SUMMARY)
    try:
        return base64.b64decode(
            content.removeprefix(_SUMMARY_PREFIX).encode(), altchars=b"-_", validate=True
        ).decode()
    except (binascii.Error, UnicodeError) as error:
        raise ValueError(_NOT_A_SUMMARY) from error


def _check_summary(content: str) -> str:
    decode_summary(content)
    return content


class CompactionItem(_Part):
    """A summary of all earlier items, made by `/v1/responses/compact`.

    The model reads it in place of the earlier items; system messages stay.
    """

    type: Literal["compaction"]
    id: _Id | None = None
    encrypted_content: Annotated[str, AfterValidator(_check_summary)]

    def to_item(self, key: str) -> CompactionObject:
        """Return the item as it is stored; `key` makes its id if it has none."""
        return {
            "id": self.id or f"cmp_{key}",
            "type": "compaction",
            "encrypted_content": self.encrypted_content,
        }


class ItemReference(_Part):
    """The id of an item of an earlier response, sent instead of the item."""

    type: Literal["item_reference"]
    id: _Id

    def to_item(self, key: str) -> ReferenceObject:
        """Return the reference, which `resolve` replaces by its item; `key` is not used."""
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
    _discriminator("item", _ITEMS, default="message"),
]


def to_output_text(
    text: str, logprobs: list[ChosenLogprobObject] | None = None
) -> OutputTextObject:
    """Return a text part of an assistant's message."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs or []}


def check_supported_content(value: Any) -> None:
    """Check that `input` has only items and parts of types that a text model can read.

    Call it in a validator, on the unvalidated value.

    Raises:
        PydanticCustomError: an item or part has another type; with the location of the first one.
    """
    if not isinstance(value, list):
        return
    for index, item in enumerate(value):
        if not isinstance(item, dict):
            continue
        kind = item.get("type")
        if isinstance(kind, str) and kind not in _ITEMS:
            raise unsupported(f"input[{index}]", f"items of the type {_shown(kind)}")
        for name in ("content", "output"):
            parts = item.get(name) if kind != "reasoning" else None
            for at, part in enumerate(parts if isinstance(parts, list) else ()):
                part_kind = part.get("type") if isinstance(part, dict) else None
                if isinstance(part_kind, str) and part_kind not in _TEXT_PARTS:
                    raise unsupported(
                        f"input[{index}].{name}[{at}]", f"parts of the type {_shown(part_kind)}"
                    )


def unsupported(param: str, what: str) -> PydanticCustomError:
    """Return the error, for a validator to raise, that refuses content of this kind."""
    return api_error("unsupported_content", param, f"{what} are not supported here.")


def _shown(kind: str) -> str:
    return repr(kind[:_MAX_SHOWN_CHARS].encode(errors="replace").decode())
