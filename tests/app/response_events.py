"""Assertions about every response and its events, on every transport."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import openresponses_types.types as standard
from openai.types.responses import Response, ResponseStreamEvent
from openresponses_types import ResponseResource
from pydantic import BaseModel, TypeAdapter

from tests.app.described import assert_described

Event = Mapping[str, Any]
ResponseFields = dict[str, Any]

TERMINAL = ("response.completed", "response.incomplete", "response.failed")
_SNAPSHOTS = ("response.created", "response.queued", "response.in_progress", *TERMINAL)

_STANDARD: dict[str, type[BaseModel]] = {
    "response.created": standard.ResponseCreatedStreamingEvent,
    "response.queued": standard.ResponseQueuedStreamingEvent,
    "response.in_progress": standard.ResponseInProgressStreamingEvent,
    "response.completed": standard.ResponseCompletedStreamingEvent,
    "response.incomplete": standard.ResponseIncompleteStreamingEvent,
    "response.failed": standard.ResponseFailedStreamingEvent,
    "response.output_item.added": standard.ResponseOutputItemAddedStreamingEvent,
    "response.output_item.done": standard.ResponseOutputItemDoneStreamingEvent,
    "response.content_part.added": standard.ResponseContentPartAddedStreamingEvent,
    "response.content_part.done": standard.ResponseContentPartDoneStreamingEvent,
    "response.output_text.delta": standard.ResponseOutputTextDeltaStreamingEvent,
    "response.output_text.done": standard.ResponseOutputTextDoneStreamingEvent,
    "response.function_call_arguments.delta": (
        standard.ResponseFunctionCallArgumentsDeltaStreamingEvent
    ),
    "response.function_call_arguments.done": (
        standard.ResponseFunctionCallArgumentsDoneStreamingEvent
    ),
    "response.reasoning.delta": standard.ResponseReasoningDeltaStreamingEvent,
    "response.reasoning.done": standard.ResponseReasoningDoneStreamingEvent,
}
_ONLY_OPENAI = ("response.reasoning_text.delta", "response.reasoning_text.done")
_ONLY_STANDARD = ("response.reasoning.delta", "response.reasoning.done")

_OPENAI: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)

_TEXT_EVENTS = {
    "message": ("response.output_text",),
    "reasoning": ("response.reasoning_text", "response.reasoning"),
    "function_call": ("response.function_call_arguments",),
}
_DONE_FIELDS = {"message": "text", "reasoning": "text", "function_call": "arguments"}


def check_response(response: ResponseFields) -> ResponseFields:
    """Assert that a response is valid for OpenAI's clients and by the standard; return it."""
    ResponseResource.model_validate(_without_schema(response))
    Response.model_validate(response)
    ended = response["status"] not in ("queued", "in_progress")
    assert (response["usage"] is not None) == ended
    assert (response["completed_at"] is not None) == (response["status"] == "completed")
    assert (response["error"] is not None) == (response["status"] == "failed")
    for item in response["output"]:
        assert ended is False or item["status"] != "in_progress"
    return response


def check_events(
    events: Sequence[Event], *, after: int = -1, is_open: bool = False
) -> ResponseFields:
    """Assert that one reader's events are valid, and return the last snapshot.

    Every event is valid by its type, the numbers have no gaps, and the only terminal event is the
    last one. Items do not overlap, and the deltas of an item join to its text in later events.

    Args:
        events: all events of the reader, in order, without fields that the transport adds.
        after: the reader's cursor; with one, items are not checked.
        is_open: the reader stopped before the end.
    """
    assert events or is_open
    for event in events:
        check_event(event)
    numbers = [event["sequence_number"] for event in events]
    assert numbers == list(range(after + 1, after + 1 + len(events)))
    kinds = [event["type"] for event in events]
    terminal = [kind for kind in kinds if kind in TERMINAL]
    assert terminal == ([] if is_open else kinds[-1:]), kinds
    snapshots = [event["response"] for event in events if event["type"] in _SNAPSHOTS]
    assert len({snapshot["id"] for snapshot in snapshots}) <= 1
    if after == -1:
        _check_order(kinds)
        items = _check_items(events, is_open=is_open)
        if not is_open:
            assert snapshots[-1]["output"] == items
            assert snapshots[-1]["status"] not in ("queued", "in_progress")
    return snapshots[-1] if snapshots else {}


def check_event(event: Event) -> None:
    """Assert that an event is valid by its type."""
    kind = event["type"]
    if kind not in _ONLY_OPENAI:
        assert kind in _STANDARD, f"the standard has no {kind}"
        _STANDARD[kind].model_validate(_without_schema(event))
    if kind not in _ONLY_STANDARD:
        assert_described("responses", event)
        assert _OPENAI.validate_python(event).type == kind
    if kind in _SNAPSHOTS:
        check_response(event["response"])


def _check_order(kinds: list[str]) -> None:
    begin = ["response.created", "response.in_progress"]
    if kinds[1:2] == ["response.queued"]:
        begin.insert(1, "response.queued")
    assert kinds[: len(begin)] == begin[: len(kinds)]
    assert not set(kinds[len(begin) :]) & set(begin)


def _check_items(events: Sequence[Event], *, is_open: bool) -> list[Event]:
    """Return the items in their final form."""
    done: list[Event] = []
    open_events: list[Event] = []
    for event in events:
        if event["type"] in _SNAPSHOTS:
            continue
        assert event["output_index"] == len(done), "items do not overlap"
        assert bool(open_events) != (event["type"] == "response.output_item.added")
        open_events.append(event)
        if event["type"] == "response.output_item.done":
            done.append(_check_item(open_events))
            open_events = []
    assert is_open or not open_events
    return done


def _check_item(events: list[Event]) -> Event:
    first, last = events[0]["item"], events[-1]["item"]
    kind = last["type"]
    assert first["status"] == "in_progress"
    assert last["status"] in ("completed", "incomplete")
    assert {event.get("item_id", last["id"]) for event in events} == {first["id"]} == {last["id"]}
    inner = events[1:-1]
    if kind != "function_call":
        added, *inner, part_done = inner
        assert (added["type"], added["content_index"]) == ("response.content_part.added", 0)
        assert added["part"]["text"] == ""
        assert part_done["type"] == "response.content_part.done"
        assert first["content"] == []
        assert last["content"] == [part_done["part"]]
    *deltas, text_done = inner
    name = text_done["type"].removesuffix(".done")
    assert name in _TEXT_EVENTS[kind]
    assert all(delta["type"] == f"{name}.delta" and delta["delta"] for delta in deltas)
    text = "".join(delta["delta"] for delta in deltas)
    assert text_done[_DONE_FIELDS[kind]] == text
    shown = last["arguments"] if kind == "function_call" else last["content"][0]["text"]
    assert shown == text
    if kind == "message":
        logprobs = [each for delta in deltas for each in delta["logprobs"]]
        assert text_done["logprobs"] == last["content"][0]["logprobs"] == logprobs
    if kind == "function_call":
        assert first["arguments"] == ""
        assert (first["call_id"], first["name"]) == (last["call_id"], last["name"])
    return dict(last)


def _without_schema(value: Event) -> Event:
    """Return it without the schema of a text format, which the standard's types do not allow."""
    response = value.get("response", value)
    text = response.get("text")
    if not isinstance(text, dict) or text["format"].get("schema") is None:
        return value
    cleared: dict[str, Any] = copy.deepcopy(dict(value))
    cleared.get("response", cleared)["text"]["format"]["schema"] = None
    return cleared
