"""The JSON objects of the Responses dialect as typed dictionaries: items, content parts, events.

They are plain dictionaries at run time: stored, merged and sent as they are, and never changed once
made. `schemas/events.py` and `schemas/socket_events.py` describe the same objects to clients.
"""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypeAlias, TypedDict


class TokenLogprobObject(TypedDict):
    """The log probability of one token, in nats."""

    token: str
    bytes: list[int]
    logprob: float


class ChosenLogprobObject(TokenLogprobObject):
    """The log probability of a generated token, with its most likely alternatives."""

    top_logprobs: list[TokenLogprobObject]


class InputTextObject(TypedDict):
    """A text part of the input."""

    type: Literal["input_text"]
    text: str


class OutputTextObject(TypedDict):
    """A text part of an assistant's message."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[ChosenLogprobObject]


class RefusalObject(TypedDict):
    """A refusal as part of an assistant's message; only clients send it."""

    type: Literal["refusal"]
    refusal: str


class ReasoningTextObject(TypedDict):
    """The text of a reasoning item."""

    type: Literal["reasoning_text"]
    text: str


class SummaryTextObject(TypedDict):
    """A summary of a reasoning item; only clients send it."""

    type: Literal["summary_text"]
    text: str


ContentObject: TypeAlias = InputTextObject | OutputTextObject | RefusalObject
"""A part of a message."""


class MessageObject(TypedDict):
    """A message of any role."""

    id: str
    type: Literal["message"]
    status: str
    role: Literal["user", "assistant", "system", "developer"]
    content: list[ContentObject]
    phase: NotRequired[str]


class FunctionCallObject(TypedDict):
    """A function call of the assistant; `arguments` is a JSON object as text."""

    id: str
    type: Literal["function_call"]
    status: str
    call_id: str
    name: str
    arguments: str


class FunctionCallOutputObject(TypedDict):
    """The result of a function call."""

    id: str
    type: Literal["function_call_output"]
    call_id: str
    output: str | list[InputTextObject]
    status: str


class ReasoningObject(TypedDict):
    """Reasoning of the assistant."""

    id: str
    type: Literal["reasoning"]
    status: NotRequired[str]
    summary: list[SummaryTextObject]
    content: list[ReasoningTextObject]


class CompactionObject(TypedDict):
    """A summary that replaces all earlier items, encoded by `encode_summary`."""

    id: str
    type: Literal["compaction"]
    encrypted_content: str


class ReferenceObject(TypedDict):
    """The id of an item of an earlier response, to be replaced by that item."""

    id: str
    type: Literal["item_reference"]


OutputItemObject: TypeAlias = MessageObject | FunctionCallObject | ReasoningObject
"""An item of a response's `output`."""

Item: TypeAlias = OutputItemObject | FunctionCallOutputObject | CompactionObject | ReferenceObject
"""An item of a conversation, in the form in which it is stored and shown."""

ResponseObject: TypeAlias = dict[str, Any]
"""A response as clients see it; `ResponseBody` describes its fields."""


class ContentFields(TypedDict, total=False):
    """The fields of an event about an item's content."""

    part: OutputTextObject | ReasoningTextObject
    delta: str
    text: str
    arguments: str
    logprobs: list[ChosenLogprobObject]


class ItemFields(ContentFields, total=False):
    """The fields of an event about an item, beside its id and index."""

    content_index: int


class EventFields(ItemFields, total=False):
    """The fields of an event beside its type and number; each type of event has some of them."""

    response: ResponseObject
    item: OutputItemObject
    item_id: str
    output_index: int
    stream_id: str


class EventObject(EventFields):
    """One event of a response, ready for JSON; `schemas/events.py` describes each type."""

    type: str
    sequence_number: int
