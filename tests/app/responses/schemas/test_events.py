from __future__ import annotations

import json

from app.responses.protocol.events import TERMINAL_TYPES
from app.responses.schemas.events import RESPONSE_EVENTS, ResponseBody, ResponseEvent
from streaming import FinishReason
from tests.app.responses.logs import REASONING, call, make_log, write

LOG = make_log(
    *f"<think>hm</think>so {call('f', '{}')}",
    end=FinishReason.TOOL_CALLS,
    output_format=REASONING,
    logprobs=True,
)


def test_the_models_accept_every_event_that_is_written():
    events = write(LOG, reports_logprobs=True, is_background=True)
    for event in events:
        model = RESPONSE_EVENTS[event["type"]].model_validate({**event, "stream_id": "a"})
        # Nothing is lost: the models know every field.
        dumped = json.loads(model.model_dump_json(by_alias=True, exclude_unset=True))
        assert dumped == json.loads(json.dumps({**event, "stream_id": "a"}))
    unwritten = {"response.incomplete", "response.failed"}
    assert {event["type"] for event in events} == set(RESPONSE_EVENTS) - unwritten


def test_the_terminal_events_come_last():
    assert set([*RESPONSE_EVENTS][-3:]) == TERMINAL_TYPES
    assert ResponseEvent.model_json_schema()["properties"]["type"]["enum"] == [*RESPONSE_EVENTS]


def test_each_event_has_its_own_name_and_description():
    names = {model.__name__ for model in RESPONSE_EVENTS.values()}
    assert len(names) == len(RESPONSE_EVENTS)
    assert RESPONSE_EVENTS["response.output_text.delta"].__name__ == "ResponseOutputTextDeltaEvent"
    assert all(model.__doc__ for model in RESPONSE_EVENTS.values())


def test_a_response_body_has_usage_at_its_end_only():
    first, last = write(LOG)[0]["response"], write(LOG)[-1]["response"]
    assert ResponseBody.model_validate(first).usage is None
    usage = ResponseBody.model_validate(last).usage
    assert usage is not None
    assert usage.input_tokens_details.cache_write_tokens == 0
