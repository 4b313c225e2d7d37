"""Schemas of a response and its events, on `WS /v1/responses` and in event streams.

They are those of the open standard, with OpenAI's additions: `stream_id`, raw reasoning under
OpenAI's event types, and values that the standard's enumerations lack.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from openresponses_types import types as standard
from pydantic import BaseModel, ConfigDict, Field, create_model

from app.schemas.request_fields import ReasoningEffort

_STREAM_ID = "The stream of the turn; omitted on the default stream, and over HTTP."


class ResponseReasoningItem(standard.ReasoningBody):
    """Raw reasoning of the model."""

    status: Literal["in_progress", "completed", "incomplete"]


OutputItem = standard.Message | standard.FunctionCall | ResponseReasoningItem
OutputPart = standard.OutputTextContent | standard.ReasoningTextContent


class ResponseInputTokens(standard.InputTokensDetails):
    """Details on the prompt's tokens."""

    cache_write_tokens: int = Field(description="Always 0: cache writes are free.")


class ResponseUsage(standard.Usage):
    """Numbers of tokens of the whole response."""

    input_tokens_details: ResponseInputTokens


class ResponseReasoning(standard.Reasoning):
    """As requested."""

    effort: ReasoningEffort | None  # type: ignore[assignment]  # the standard's list is shorter


class ResponseJsonSchemaFormat(standard.JsonSchemaResponseFormat):
    """As requested."""

    # The standard says that it is null.
    schema_: Annotated[dict[str, Any], Field(alias="schema")]  # type: ignore[assignment]


class ResponseText(standard.TextField):
    """As requested."""

    format: (
        standard.TextResponseFormat | standard.JsonObjectResponseFormat | ResponseJsonSchemaFormat
    )


class ResponseBody(standard.ResponseResource):
    """A response as it stands, with the fields of its request."""

    output: list[OutputItem]  # type: ignore[assignment]  # reasoning with a status
    reasoning: ResponseReasoning | None
    text: ResponseText
    usage: ResponseUsage | None = Field(description="null until the response ends.")


class _ReasoningTextEvent(BaseModel):
    sequence_number: int
    item_id: str
    output_index: int
    content_index: int


class _ReasoningTextDelta(_ReasoningTextEvent):
    delta: str


class _ReasoningTextDone(_ReasoningTextEvent):
    text: str


def _event(kind: str, base: type[BaseModel], meaning: str, **fields: Any) -> type[BaseModel]:
    """Return the standard's event with a name, a description, and `stream_id`."""
    return create_model(
        "".join(part.title() for part in kind.replace(".", "_").split("_")) + "Event",
        __base__=base,
        __doc__=meaning,
        type=(Literal[kind], ...),  # type: ignore[arg-type]  # made at run time
        stream_id=(Annotated[str, Field(description=_STREAM_ID)] | None, None),
        **fields,
    )


_RESPONSE: Any = (ResponseBody, ...)
_ITEM: Any = (OutputItem, ...)
_PART: Any = (OutputPart, ...)

RESPONSE_EVENTS: dict[str, type[BaseModel]] = {
    kind: _event(kind, base, meaning, **fields)
    for kind, base, meaning, fields in (
        (
            "response.created",
            standard.ResponseCreatedStreamingEvent,
            "The response was created. Resume it by its id.",
            {"response": _RESPONSE},
        ),
        (
            "response.queued",
            standard.ResponseQueuedStreamingEvent,
            "A background response waits in the queue.",
            {"response": _RESPONSE},
        ),
        (
            "response.in_progress",
            standard.ResponseInProgressStreamingEvent,
            "The response is being generated.",
            {"response": _RESPONSE},
        ),
        (
            "response.output_item.added",
            standard.ResponseOutputItemAddedStreamingEvent,
            "An output item begins: a message, a function call, or reasoning.",
            {"item": _ITEM},
        ),
        (
            "response.content_part.added",
            standard.ResponseContentPartAddedStreamingEvent,
            "The text of a message or of reasoning begins.",
            {"part": _PART},
        ),
        (
            "response.output_text.delta",
            standard.ResponseOutputTextDeltaStreamingEvent,
            "More text of a message.",
            {},
        ),
        (
            "response.output_text.done",
            standard.ResponseOutputTextDoneStreamingEvent,
            "The whole text of a message.",
            {},
        ),
        (
            "response.reasoning_text.delta",
            _ReasoningTextDelta,
            "More reasoning; `response.reasoning.delta` with the setting "
            "`reasoning_events=open_responses`.",
            {},
        ),
        (
            "response.reasoning_text.done",
            _ReasoningTextDone,
            "The whole reasoning; `response.reasoning.done` with `open_responses`.",
            {},
        ),
        (
            "response.content_part.done",
            standard.ResponseContentPartDoneStreamingEvent,
            "The text of a message or of reasoning is complete.",
            {"part": _PART},
        ),
        (
            "response.function_call_arguments.delta",
            standard.ResponseFunctionCallArgumentsDeltaStreamingEvent,
            "More of a call's arguments, which are JSON.",
            {},
        ),
        (
            "response.function_call_arguments.done",
            standard.ResponseFunctionCallArgumentsDoneStreamingEvent,
            "The whole arguments of a call.",
            {},
        ),
        (
            "response.output_item.done",
            standard.ResponseOutputItemDoneStreamingEvent,
            "An item is complete; an item that was cut off is `incomplete`.",
            {"item": _ITEM},
        ),
        (
            "response.completed",
            standard.ResponseCompletedStreamingEvent,
            "The response is complete.",
            {"response": _RESPONSE},
        ),
        (
            "response.incomplete",
            standard.ResponseIncompleteStreamingEvent,
            "The response was cut off, for the reason in `incomplete_details`; or it was "
            "cancelled, and its `status` says so.",
            {"response": _RESPONSE},
        ),
        (
            "response.failed",
            standard.ResponseFailedStreamingEvent,
            "The response failed after it was created.",
            {"response": _RESPONSE},
        ),
    )
}
"""The events by type, in the order in which they are sent."""


class ResponseEvent(BaseModel):
    """Any event; `/asyncapi.json` describes each type."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(json_schema_extra={"enum": [*RESPONSE_EVENTS]})
    sequence_number: int = Field(description="Starts at 0, without gaps.")
