from __future__ import annotations

import gc
import json
import math

import pytest

from app.responses.dialect import ReasoningDialect
from app.responses.schemas.objects import EventObject
from app.responses.writer import ResponseWriter
from streaming import (
    Failed,
    Finished,
    FinishReason,
    Generation,
    Logprob,
    OutputFormat,
    Token,
    TokenLogprobs,
)
from streaming.errors import (
    DeadlineExceeded,
    EngineFailure,
    NoTokenAllowed,
    Overloaded,
    StreamingError,
)
from tests.app.response_events import check_events
from tests.app.responses.logs import (
    KEY,
    REASONING,
    TOOLS,
    append,
    call,
    finish,
    kinds,
    make_head,
    make_log,
    write,
)

BEGIN = ["created", "in_progress"]
TEXT = [
    "output_item.added",
    "content_part.added",
    "output_text.delta",
    "output_text.done",
    "content_part.done",
    "output_item.done",
]
REASONED = [
    "output_item.added",
    "content_part.added",
    "reasoning_text.delta",
    "reasoning_text.done",
    "content_part.done",
    "output_item.done",
]
CALL = [
    "output_item.added",
    "function_call_arguments.delta",
    "function_call_arguments.done",
    "output_item.done",
]
TWO_CALLS = call("f", '{"a": 1}') + "\n" + call("g", '{"b": "}"}')

LOGS: dict[str, tuple[Generation, list[str], str]] = {
    "text": (make_log("he", "", "llo", ""), [*TEXT, "completed"], "completed"),
    "no text": (
        make_log(""),
        [kind for kind in TEXT if kind != "output_text.delta"] + ["completed"],
        "completed",
    ),
    "length": (
        make_log("he", "llo", end=FinishReason.LENGTH),
        [*TEXT, "incomplete"],
        "incomplete",
    ),
    "length before any text": (make_log("", end=FinishReason.LENGTH), ["incomplete"], "incomplete"),
    "held text is let go": (
        make_log("he", tail="llo", end=FinishReason.CANCELLED),
        [*TEXT, "incomplete"],
        "cancelled",
    ),
    "cancelled": (make_log("he", end=FinishReason.CANCELLED), [*TEXT, "incomplete"], "cancelled"),
    "failed": (make_log("he", end=EngineFailure()), [*TEXT, "failed"], "failed"),
    "failed at once": (make_log(end=EngineFailure()), ["failed"], "failed"),
    "call": (
        make_log(*call("f", '{"a": 1}'), end=FinishReason.TOOL_CALLS, output_format=TOOLS),
        [*CALL, "completed"],
        "completed",
    ),
    "text and two calls": (
        make_log(*f"so: {TWO_CALLS}", end=FinishReason.TOOL_CALLS, output_format=TOOLS),
        [*TEXT, *CALL, *CALL, "completed"],
        "completed",
    ),
    "calls at once": (
        make_log(TWO_CALLS, end=FinishReason.TOOL_CALLS, output_format=TOOLS),
        [*CALL, *CALL, "completed"],
        "completed",
    ),
    "a call that is cut": (
        make_log(*call("f", '{"a": 1}')[:-20], end=FinishReason.LENGTH, output_format=TOOLS),
        [*CALL, "incomplete"],
        "incomplete",
    ),
    "reasoning, text and a call": (
        make_log(
            *f"<think>\nhm</think>\n\nso {call('f', '{}')}",
            end=FinishReason.TOOL_CALLS,
            output_format=REASONING,
        ),
        [*REASONED, *TEXT, *CALL, "completed"],
        "completed",
    ),
    "reasoning that is cut": (
        make_log(*"<think>hm", end=FinishReason.LENGTH, output_format=REASONING),
        [*REASONED, "incomplete"],
        "incomplete",
    ),
    "what looks like a call": (
        make_log(*"a < b <tool", end=FinishReason.STOP, output_format=TOOLS),
        [*TEXT, "completed"],
        "completed",
    ),
}
ALL_LOGS = pytest.mark.parametrize("name", LOGS)


@ALL_LOGS
def test_events_come_in_order_and_end_once(name: str):
    log, expected, status = LOGS[name]
    events = write(log)
    assert check_events(events)["status"] == status
    assert kinds(events) == BEGIN + expected
    assert events[-1]["response"]["usage"]["total_tokens"] == log.usage.total_tokens


@ALL_LOGS
def test_a_background_response_starts_as_queued(name: str):
    log, expected, status = LOGS[name]
    events = write(log, is_background=True)
    assert check_events(events)["status"] == status
    assert kinds(events) == ["created", "queued", "in_progress", *expected]
    statuses = [event["response"]["status"] for event in events[:3]]
    assert statuses == ["queued", "queued", "in_progress"]


@ALL_LOGS
def test_a_reader_at_any_cursor_gets_the_rest(name: str):
    log = LOGS[name][0]
    events = write(log)
    for after in range(-1, len(events) + 2):
        rest = write(log, after=after)
        assert rest == events[after + 1 :]
        check_events(rest, after=after, is_open=not rest)


@ALL_LOGS
def test_events_do_not_depend_on_when_the_log_is_read(name: str):
    """Compares a writer that reads after each record to one that reads now and then."""
    log = LOGS[name][0]
    copy = make_log(end=None, output_format=log.output_format)
    eager, lazy = (ResponseWriter(make_head(), copy) for _ in range(2))
    seen, seen_late = list(eager.events()), list(lazy.events())
    for number, record in enumerate(log.read_after(-1)):
        if isinstance(record, Finished | Failed):
            copy.end(record)
        else:
            copy.append(record)
        seen += eager.events()
        check_events(seen, is_open=not eager.is_done)
        if number % 3 == 0:
            seen_late += lazy.events()
    seen_late += lazy.events()
    assert seen[:-1] == seen_late[:-1] == write(log)[:-1]
    assert list(eager.events()) == []


@ALL_LOGS
def test_the_last_snapshot_is_that_of_the_last_event(name: str):
    log = LOGS[name][0]
    writer = ResponseWriter(make_head(), log)
    writer.advance()
    assert writer.snapshot() == write(log)[-1]["response"]
    assert writer.is_done


def test_an_open_response_shows_its_output_so_far():
    log = make_log(*"<think>hm</think>he", end=None, output_format=REASONING)
    writer = ResponseWriter(make_head(), log)
    writer.advance()
    reasoning, message = writer.snapshot()["output"]
    assert (reasoning["status"], reasoning["content"][0]["text"]) == ("completed", "hm")
    assert (message["status"], message["content"][0]["text"]) == ("in_progress", "he")
    append(log, "llo")
    writer.advance()
    assert writer.snapshot()["output"][1]["content"][0]["text"] == "hello"


def test_returned_events_do_not_change():
    """Later events do not change the snapshots and items of earlier ones."""
    log = make_log("he", end=None)
    writer = ResponseWriter(make_head(), log)
    events = list(writer.events())
    before = json.dumps(events)
    append(log, "llo")
    finish(log, FinishReason.STOP)
    events_after = list(writer.events())
    assert json.dumps(events) == before
    assert events_after[-1]["response"]["output"][0]["content"][0]["text"] == "hello"


def test_a_background_response_is_in_progress_once_it_has_started():
    log = make_log(end=None)
    log.started = None
    writer = ResponseWriter(make_head(is_background=True), log)
    assert kinds(writer.events()) == ["created", "queued"]
    assert list(writer.events()) == []
    log.start(cached_tokens=0, at=1.0)
    assert kinds(writer.events()) == ["in_progress"]
    assert list(writer.events()) == []


def test_ids_are_derived_from_the_responses_key():
    log = LOGS["reasoning, text and a call"][0]
    response = write(log)[-1]["response"]
    assert response["id"] == f"resp_{KEY}"
    assert [item["id"] for item in response["output"]] == [
        f"rs_{KEY}_0",
        f"msg_{KEY}_1",
        f"fc_{KEY}_2",
    ]
    assert response["output"][2]["call_id"] == f"call_{KEY}_2"


def test_usage_counts_reasoning_and_cached_tokens():
    log = make_log(*"<think>hm</think>ok", "", output_format=REASONING)
    assert write(log)[-1]["response"]["usage"] == {
        "input_tokens": 3,
        "output_tokens": len("<think>hm</think>ok") + 1,
        "total_tokens": 3 + len("<think>hm</think>ok") + 1,
        "input_tokens_details": {"cached_tokens": 2, "cache_write_tokens": 0},
        "output_tokens_details": {"reasoning_tokens": len("<think>hm</think>")},
    }


def test_an_answer_without_reasoning_has_no_reasoning_tokens():
    log = make_log("", "ok", output_format=REASONING)
    usage = write(log)[-1]["response"]["usage"]
    assert usage["output_tokens_details"] == {"reasoning_tokens": 0}


def test_completed_at_uses_the_clock_of_created_at():
    assert write(make_log("a"))[-1]["response"]["completed_at"] == 1_700_000_000 + 60


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (EngineFailure(), "server_error"),
        (DeadlineExceeded(timeout_s=5), "server_error"),
        (NoTokenAllowed(param="response_format", reason="no"), "invalid_prompt"),
        (Overloaded(num_waiting=1, max_waiting=1, retry_after_s=1), "rate_limit_exceeded"),
    ],
)
def test_a_failed_response_has_an_error_of_the_dialect(error: StreamingError, code: str):
    response = check_events(write(make_log("a", end=error)))
    assert response["error"] == {"code": code, "message": str(error)}
    assert response["output"][0]["status"] == "incomplete"


def test_only_an_answer_at_its_limit_has_incomplete_details():
    details = [
        write(make_log("a", end=end))[-1]["response"]["incomplete_details"]
        for end in (FinishReason.LENGTH, FinishReason.CANCELLED, FinishReason.STOP)
    ]
    assert details == [{"reason": "max_output_tokens"}, None, None]


def test_reasoning_can_use_the_event_types_of_the_open_standard():
    log = LOGS["reasoning, text and a call"][0]
    events = write(log, reasoning_dialect=ReasoningDialect.OPEN_RESPONSES)
    ours = write(log)
    check_events(events)
    assert "reasoning.delta" in kinds(events)
    assert len(events) == len(ours)
    assert [kind.replace("reasoning_text", "reasoning") for kind in kinds(ours)] == kinds(events)


# Log probabilities.


def logprobs_of(events: list[EventObject]) -> list[str]:
    [message] = (item for item in events[-1]["response"]["output"] if item["type"] == "message")
    return [each["token"] for each in message["content"][0]["logprobs"]]


@pytest.mark.parametrize(
    ("texts", "output_format", "tokens"),
    [
        (["he", "", "llo", ""], None, ["h", "\0", "l"]),
        ([*"a<b"], TOOLS, ["a", "<", "b"]),
        ([*"<think>hm</think>\nhi"], REASONING, ["h", "i"]),
        (["<think>x</think>y", "z"], REASONING, ["<", "z"]),
        ([*f"ok\n{call('f', '{}')}"], TOOLS, ["o", "k"]),
    ],
)
def test_log_probabilities_are_those_of_the_answer(
    texts: list[str], output_format: OutputFormat | None, tokens: list[str]
):
    log = make_log(*texts, output_format=output_format, logprobs=True)
    events = write(log, reports_logprobs=True)
    check_events(events)
    assert logprobs_of(events) == tokens


def test_a_log_probability_has_its_bytes_and_alternatives():
    log = make_log("é", logprobs=True)
    message = write(log, reports_logprobs=True)[-1]["response"]["output"][0]
    each = {"token": "é", "bytes": [0xC3, 0xA9], "logprob": -0.5}
    assert message["content"][0]["logprobs"] == [{**each, "top_logprobs": [each]}]


def test_an_infinite_log_probability_is_clamped():
    log = make_log(end=None)
    log.append(Token(97, "a", at=1.0, logprobs=TokenLogprobs(Logprob(97, -math.inf))))
    finish(log, FinishReason.STOP)
    message = write(log, reports_logprobs=True)[-1]["response"]["output"][0]
    assert message["content"][0]["logprobs"][0]["logprob"] == -9999.0


def tracked_objects() -> int:
    gc.collect()
    return len(gc.get_objects())


@pytest.mark.parametrize("end", [None, FinishReason.STOP])
@pytest.mark.slow
def test_a_writer_has_no_objects_per_token(end: FinishReason | None):
    log = make_log(*"abcdefgh" * 250, end=end, logprobs=True)
    before = tracked_objects()
    writer = ResponseWriter(make_head(reports_logprobs=True), log)
    num_events = sum(1 for _ in writer.events())
    assert tracked_objects() - before < 50
    assert num_events > 2000


def test_the_text_of_a_token_is_cached():
    asked: list[int] = []

    def token_text(token_id: int) -> str:
        asked.append(token_id)
        return chr(token_id)

    log = make_log(*"abab", logprobs=True)
    write(log, reports_logprobs=True, token_text=token_text)
    assert asked == [97, 98]


def test_log_probabilities_are_omitted_by_default():
    assert logprobs_of(write(make_log("a", logprobs=True))) == []


@pytest.mark.parametrize(
    ("end", "status"),
    [
        (FinishReason.LENGTH, "completed"),
        (FinishReason.STOP, "completed"),
        (FinishReason.CANCELLED, "cancelled"),
        (EngineFailure(), "failed"),
    ],
)
def test_a_warm_up_has_no_output(end: FinishReason | StreamingError, status: str):
    events = write(make_log("a", end=end), is_warm_up=True)
    assert len(events) == 3
    response = check_events(events)
    assert (response["status"], response["output"]) == (status, [])
    assert (response["usage"]["input_tokens"], response["usage"]["output_tokens"]) == (3, 0)
