"""What the server says of a response: on `WS /v1/responses`, and in the streams of `/v1/responses`.

These are the open standard's events, with what OpenAI's dialect adds to them: the name of a lane,
raw reasoning under its own name, and values that the standard's lists lack.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from openresponses_types import types as standard
from pydantic import BaseModel, ConfigDict, Field, create_model

from app.schemas.request_fields import ReasoningEffort

_LANE = "The lane of the turn; left out on the lane without a name, and in event streams."


class ResponseReasoningItem(standard.ReasoningBody):
    """What the model thought, as it is."""

    status: Literal["in_progress", "completed", "incomplete"]


OutputItem = standard.Message | standard.FunctionCall | ResponseReasoningItem
OutputPart = standard.OutputTextContent | standard.ReasoningTextContent


class ResponseInputTokens(standard.InputTokensDetails):
    """The prompt's tokens."""

    cache_write_tokens: int = Field(description="Always 0: filling the cache costs nothing.")


class ResponseUsage(standard.Usage):
    """Tokens of the whole response."""

    input_tokens_details: ResponseInputTokens


class ResponseReasoning(standard.Reasoning):
    """As it was asked for."""

    effort: ReasoningEffort | None  # type: ignore[assignment]  # the standard's list is shorter


class ResponseJsonSchemaFormat(standard.JsonSchemaResponseFormat):
    """As it was asked for."""

    # The standard says that it is null.
    schema_: Annotated[dict[str, Any], Field(alias="schema")]  # type: ignore[assignment]


class ResponseText(standard.TextField):
    """As it was asked for."""

    format: (
        standard.TextResponseFormat | standard.JsonObjectResponseFormat | ResponseJsonSchemaFormat
    )


class ResponseBody(standard.ResponseResource):
    """A response as it stands, with what was asked for."""

    output: list[OutputItem]  # type: ignore[assignment]  # with calls of ours
    reasoning: ResponseReasoning | None
    text: ResponseText
    usage: ResponseUsage | None = Field(description="null until the end.")


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
    """Return the standard's event with its type's name, our words, and the lane."""
    return create_model(
        "".join(part.title() for part in kind.replace(".", "_").split("_")) + "Event",
        __base__=base,
        __doc__=meaning,
        type=(Literal[kind], ...),  # type: ignore[arg-type]  # made at run time
        stream_id=(Annotated[str, Field(description=_LANE)] | None, None),
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
            "The response exists. Its id is the handle to resume with.",
            {"response": _RESPONSE},
        ),
        (
            "response.queued",
            standard.ResponseQueuedStreamingEvent,
            "A background response waits for its turn.",
            {"response": _RESPONSE},
        ),
        (
            "response.in_progress",
            standard.ResponseInProgressStreamingEvent,
            "The model is at work.",
            {"response": _RESPONSE},
        ),
        (
            "response.output_item.added",
            standard.ResponseOutputItemAddedStreamingEvent,
            "An item of the output begins: a message, a call of a function, or reasoning.",
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
            "More reasoning. A server that is set to the open standard's dialect calls it "
            "`response.reasoning.delta`.",
            {},
        ),
        (
            "response.reasoning_text.done",
            _ReasoningTextDone,
            "The whole reasoning; `response.reasoning.done` in the open standard's dialect.",
            {},
        ),
        (
            "response.content_part.done",
            standard.ResponseContentPartDoneStreamingEvent,
            "The text of a message or of reasoning has ended.",
            {"part": _PART},
        ),
        (
            "response.function_call_arguments.delta",
            standard.ResponseFunctionCallArgumentsDeltaStreamingEvent,
            "More of the arguments of a call, which are JSON.",
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
            "An item has ended. One that was cut is `incomplete`.",
            {"item": _ITEM},
        ),
        (
            "response.completed",
            standard.ResponseCompletedStreamingEvent,
            "The end of a response that said all that it had to.",
            {"response": _RESPONSE},
        ),
        (
            "response.incomplete",
            standard.ResponseIncompleteStreamingEvent,
            "The end of a response that was cut, for the reason in `incomplete_details`; or that "
            "was cancelled, which its `status` tells.",
            {"response": _RESPONSE},
        ),
        (
            "response.failed",
            standard.ResponseFailedStreamingEvent,
            "The end of a response that failed once it had begun.",
            {"response": _RESPONSE},
        ),
    )
}
"""By type, in the order in which they come."""


class ResponseEvent(BaseModel):
    """Any of the events, which `/asyncapi.json` describes one by one."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(json_schema_extra={"enum": [*RESPONSE_EVENTS]})
    sequence_number: int = Field(description="From 0 on, without a gap.")
