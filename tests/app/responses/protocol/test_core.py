"""The protocol core, without a socket, a clock or an engine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import ErrorInfo
from app.responses.protocol.commands import (
    CancelResponse,
    CreateResponse,
    ResumeResponse,
)
from app.responses.protocol.connection_age import GRACE_S, ConnectionAge
from app.responses.protocol.core import MAX_ENDED_IDS, ResponsesProtocol
from app.responses.protocol.turn import RejectedRequest, Resume
from app.responses.protocol.turn_scheduler import MAX_RUNNING_TURNS, MAX_STREAMS, MAX_WAITING_CHARS
from app.responses.schemas.objects import EventObject
from app.responses.schemas.request import ResponseRequest
from app.websocket.protocol.frames import Close
from tests.app.responses_conversation import (
    Frame,
    assert_responses_conversation,
    endings,
    text_of,
)
from tests.support import property_test

MAX_S = 3600.0
EXPIRED = Close(1001, "the connection has reached its maximum age")


@dataclass(frozen=True)
class Known:
    """The part of a response that the core reads."""

    response_id: str
    num_bytes: int = 100


NOT_FOUND = ErrorInfo(
    code="previous_response_not_found", message="not found", param="previous_response_id"
)
OVERLOADED = ErrorInfo(code="overloaded", message="later", retry_after_s=2.5)


class Talk:
    """A core with its output so far."""

    def __init__(
        self,
        *,
        max_turns: int = 64,
        max_messages_per_s: float = 1e6,
        resumes: Sequence[tuple[str | None, Resume | RejectedRequest]] = (),
        warns_of_expiry: bool = False,
    ) -> None:
        self.core: ResponsesProtocol[Known] = ResponsesProtocol(
            age=ConnectionAge(opened_at=0.0, max_s=MAX_S),
            max_turns=max_turns,
            max_messages_per_s=max_messages_per_s,
            resumes=resumes,
            warns_of_expiry=warns_of_expiry,
        )
        self.now = 0.0
        self.frames: list[Frame] = []
        self.next_number: dict[str, int] = {}

    def say(self, **fields: Any) -> list[Any]:
        self.core.receive_text(json.dumps(fields), now=self.now)
        return self.core.commands()

    def create(self, stream_id: str | None = None, **fields: Any) -> list[Any]:
        named = {} if stream_id is None else {"stream_id": stream_id}
        return self.say(**{"type": "response.create", "input": "hi", **named, **fields})

    def created(self, turn_id: str, response_id: str, *, after: int = -1) -> list[Any]:
        self.next_number[turn_id] = after + 1
        self.core.receive_created(turn_id, Known(response_id))
        return self.core.commands()

    def tell(self, turn_id: str, *kinds: str, response_id: str = "") -> list[Any]:
        """Pass these events of a turn's response to the core."""
        for kind in kinds:
            number = self.next_number[turn_id]
            self.next_number[turn_id] += 1
            event: EventObject = {"type": f"response.{kind}", "sequence_number": number}
            if response_id:
                event["response"] = {"id": response_id}
            if kind == "output_text.delta":
                event["delta"] = "x"
            self.core.receive_events(turn_id, [event], now=self.now)
        return self.core.commands()

    def run(self, turn_id: str, response_id: str, ending: str = "completed") -> list[Any]:
        """Run a turn from the first to the last event of its response."""
        self.created(turn_id, response_id)
        return self.tell(turn_id, "created", "in_progress", "output_text.delta", ending)

    def turn(self, response_id: str, stream_id: str | None = None, **fields: Any) -> None:
        """Create a turn and run it to a successful end."""
        [command] = self.create(stream_id, **fields)
        self.run(command.turn_id, response_id)

    def pass_to(self, now: float) -> list[Any]:
        self.now = now
        self.core.handle_timeout(now=now)
        return self.core.commands()

    def commands(self) -> list[Any]:
        return list(self.core.commands())

    def heard(self) -> list[Frame]:
        """Return the new frames."""
        frames: list[Frame] = [{**frame} for frame in self.core.frames_to_send()]
        self.frames += frames
        return frames

    def error(self) -> tuple[str, str | None, str | None]:
        """Return code, param and stream of the only new frame, an error."""
        [frame] = self.heard()
        assert frame["type"] == "error"
        return frame["error"]["code"], frame["error"]["param"], frame.get("stream_id")


@pytest.fixture
def talk() -> Talk:
    return Talk()


# response.create


def test_a_create_becomes_a_command(talk: Talk) -> None:
    commands = talk.create(model="m", store=False, stream=True, client_metadata={"a": 1})
    body = ResponseRequest(input="hi", model="m", store=False, stream=True)
    assert commands == [CreateResponse("turn_1", body, None)]
    assert talk.heard() == []


def test_a_binary_frame_is_read_as_text(talk: Talk) -> None:
    talk.core.receive_bytes('{"type": "response.create", "input": "é"}'.encode(), now=0.0)
    [command] = talk.commands()
    assert command == CreateResponse("turn_1", ResponseRequest(input="é"), None)
    talk.core.receive_bytes(b"\xff", now=0.0)
    assert talk.error() == ("invalid_json", None, None)


def test_a_whole_turn(talk: Talk) -> None:
    talk.turn("resp_1")
    frames = talk.heard()
    assert [frame["type"].removeprefix("response.") for frame in frames] == [
        "created",
        "in_progress",
        "output_text.delta",
        "completed",
    ]
    assert_responses_conversation(frames)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": "warm"}, "temperature"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, None),
        ({"tools": [{"type": "web_search"}]}, None),
        ({"background": True}, "background"),
        ({"input": "\ud800"}, "input"),
    ],
)
def test_a_bad_create_is_an_error_of_its_stream(
    talk: Talk, fields: dict[str, Any], param: str | None
) -> None:
    for stream_id in (None, "a"):
        assert talk.create(stream_id, **fields) == []
    frames = talk.heard()
    assert [frame["status"] for frame in frames] == [400, 400]
    assert [frame.get("stream_id") for frame in frames] == [None, "a"]
    if param is not None:
        assert frames[0]["error"]["param"] == param
    assert_responses_conversation(frames)


def test_a_turn_that_is_refused_after_it_was_submitted(talk: Talk) -> None:
    [command] = talk.create("a")
    talk.core.receive_refused(command.turn_id, OVERLOADED)
    [frame] = talk.heard()
    assert frame == {
        "type": "error",
        "status": 503,
        "stream_id": "a",
        "error": {
            "type": "server_error",
            "code": "overloaded",
            "message": "later",
            "param": None,
            "headers": {"retry-after": "3"},
        },
    }
    assert_responses_conversation([frame])
    assert len(talk.create("a")) == 1


@pytest.mark.parametrize("ending", ["completed", "incomplete", "failed"])
def test_the_next_turn_starts_with_the_ending_of_the_one_before(talk: Talk, ending: str) -> None:
    [first] = talk.create()
    talk.run(first.turn_id, "resp_1", ending)
    # The terminal event has not been sent yet.
    [second] = talk.create(previous_response_id="resp_1")
    assert second.parent == (None if ending == "failed" else Known("resp_1"))


def test_frames_that_begin_no_turn(talk: Talk) -> None:
    frames = [
        ("", "invalid_json", None),
        ("[]", "invalid_request", None),
        ('{"type": "response.create", "temperature": NaN}', "invalid_json", None),
        ('{"stream_id": "a"}', "unknown_type", "type"),
        ('{"type": "response.inject", "stream_id": "a"}', "unknown_type", "type"),
        ('{"type": ["response.create"]}', "unknown_type", "type"),
        ('{"type": "response.cancel", "stream_id": "a", "x": 1}', "invalid_request", "x"),
        ('{"type": "response.cancel", "response_id": 1}', "invalid_request", "response_id"),
        ('{"type": "response.steer", "input": "x"}', "invalid_request", "previous_response_id"),
    ]
    for text, code, param in frames:
        talk.core.receive_text(text, now=0.0)
        assert talk.error() == (code, param, None)
    assert talk.commands() == []
    assert_responses_conversation(talk.frames)


# The order of turns


def test_a_stream_runs_one_turn_at_a_time_in_order(talk: Talk) -> None:
    [first] = talk.create(metadata={"n": "1"})
    assert talk.create(metadata={"n": "2"}) == []
    assert talk.create(metadata={"n": "3"}) == []
    [second] = talk.run(first.turn_id, "resp_1")
    assert second.body.metadata == {"n": "2"}
    talk.core.receive_refused(second.turn_id, NOT_FOUND)
    [third] = talk.commands()
    assert third.body.metadata == {"n": "3"}
    talk.run(third.turn_id, "resp_3")
    frames = talk.heard()
    assert endings(frames) == ["completed", "previous_response_not_found", "completed"]
    assert_responses_conversation(frames)


def test_a_bad_create_is_refused_in_its_turn(talk: Talk) -> None:
    [first] = talk.create()
    talk.create(input=7)
    talk.create()
    assert talk.heard() == []
    [third] = talk.run(first.turn_id, "resp_1")
    talk.run(third.turn_id, "resp_3")
    frames = talk.heard()
    assert endings(frames) == ["completed", "invalid_request", "completed"]
    assert_responses_conversation(frames)


def test_streams_run_concurrently_and_their_events_have_their_id(talk: Talk) -> None:
    turns = {}
    for stream_id in ("a", "b", None):
        [command] = talk.create(stream_id)
        turns[stream_id] = command.turn_id
        talk.created(command.turn_id, f"resp_{stream_id}")
    for kind in ("created", "in_progress", "output_text.delta", "completed"):
        for turn_id in turns.values():
            talk.tell(turn_id, kind)
    frames = talk.heard()
    assert [frame.get("stream_id") for frame in frames[:3]] == ["a", "b", None]
    assert all("stream_id" not in frame for frame in frames[2::3])
    for stream_id in turns:
        assert text_of(frames, stream_id) == "x"
    assert_responses_conversation(frames)


def test_the_number_of_running_turns_is_limited(talk: Talk) -> None:
    turns = [talk.create(f"a{index}")[0].turn_id for index in range(MAX_RUNNING_TURNS)]
    assert talk.create("a0", metadata={"n": "same stream"}) == []
    assert talk.create("x", metadata={"n": "x"}) == []
    assert talk.create("y", metadata={"n": "y"}) == []
    [next_one] = talk.run(turns[3], "resp_3")
    assert next_one.body.metadata == {"n": "x"}
    [next_one] = talk.run(turns[0], "resp_0")
    assert next_one.body.metadata == {"n": "same stream"}


def test_a_bad_create_does_not_count_as_running(talk: Talk) -> None:
    for index in range(MAX_RUNNING_TURNS):
        talk.create(f"a{index}")
    talk.create("x", input=7)
    assert talk.error() == ("invalid_request", "input", "x")


@pytest.mark.parametrize("stream_id", ["", "a b", "ä", "a" * 257, 7, ["a"]])
def test_an_invalid_stream_id_is_refused(talk: Talk, stream_id: Any) -> None:
    assert talk.say(type="response.create", input="hi", stream_id=stream_id) == []
    assert talk.error() == ("invalid_stream_id", "stream_id", None)


def test_no_stream_id_is_the_default_stream(talk: Talk) -> None:
    [command] = talk.say(type="response.create", input="hi", stream_id=None)
    talk.run(command.turn_id, "resp_1")
    assert all("stream_id" not in frame for frame in talk.heard())


def test_the_number_of_streams_is_limited(talk: Talk) -> None:
    for index in range(MAX_STREAMS):
        talk.turn(f"resp_{index}", f"a{index}")
    talk.heard()
    assert talk.create("x") == []
    assert talk.error() == ("websocket_stream_limit_reached", "stream_id", "x")
    assert len(talk.create("a0")) == 1
    assert len(talk.create()) == 1


def test_the_number_of_turns_is_limited() -> None:
    talk = Talk(max_turns=2)
    [first] = talk.create()
    talk.create()
    assert talk.create("a") == []
    [frame] = talk.heard()
    assert (frame["error"]["code"], frame["status"]) == ("rate_limit_exceeded", 429)
    assert (frame["stream_id"], frame["error"]["headers"]) == ("a", {"retry-after": "1"})
    talk.create(input=7)
    assert talk.error() == ("rate_limit_exceeded", None, None)  # and it may not wait
    talk.run(first.turn_id, "resp_1")
    assert len(talk.create("a")) == 1
    assert_responses_conversation(talk.frames)


def test_the_size_of_waiting_frames_is_limited(talk: Talk) -> None:
    talk.create()
    half = "x" * (MAX_WAITING_CHARS // 2)
    talk.create(input=half)
    talk.create(input=half)
    assert talk.error() == ("rate_limit_exceeded", None, None)
    talk.create(input="x")
    assert talk.heard() == []


def test_one_frame_may_wait_whatever_its_size(talk: Talk) -> None:
    talk.create()
    talk.create(input="x" * MAX_WAITING_CHARS)
    assert talk.heard() == []


def test_too_many_messages() -> None:
    talk = Talk(max_turns=1, max_messages_per_s=2)
    for _ in range(2):
        talk.say(type="response.cancel")
    assert talk.create("a") == []
    [frame] = talk.heard()
    assert (frame["error"]["code"], frame["stream_id"]) == ("rate_limit_exceeded", "a")
    assert frame["error"]["headers"] == {"retry-after": "1"}
    talk.create("a", input="x" * 5000)
    assert talk.error() == ("rate_limit_exceeded", None, None)
    talk.core.receive_bytes(b"{", now=0.0)
    assert talk.error() == ("rate_limit_exceeded", None, None)
    talk.now = 0.5
    assert len(talk.create("a")) == 1


# Continuations


def test_a_stream_can_continue_only_its_latest_response(talk: Talk) -> None:
    talk.turn("resp_1")
    talk.turn("resp_2", previous_response_id="resp_1")
    [command] = talk.create(previous_response_id="resp_1")
    assert command.parent is None
    talk.core.receive_refused(command.turn_id, NOT_FOUND)
    [command] = talk.create(previous_response_id="resp_2")
    assert command.parent == Known("resp_2")


def test_a_waiting_turn_can_continue_the_one_before_it(talk: Talk) -> None:
    [first] = talk.create()
    talk.created(first.turn_id, "resp_1")
    talk.tell(first.turn_id, "created")
    assert talk.create(previous_response_id="resp_1") == []
    [second] = talk.tell(first.turn_id, "in_progress", "completed")
    assert second.parent == Known("resp_1")


def test_a_stream_that_starts_over_forgets_its_conversation(talk: Talk) -> None:
    talk.turn("resp_1", "a")
    talk.turn("resp_2", "a")
    [command] = talk.create("b", previous_response_id="resp_1")
    assert command.parent is None


def test_a_failed_continuation_evicts_its_parent(talk: Talk) -> None:
    for refuse in (
        lambda command: talk.core.receive_refused(command.turn_id, NOT_FOUND),
        lambda command: talk.run(command.turn_id, "resp_2", "failed"),
    ):
        talk.turn("resp_1", "a")
        [command] = talk.create("a", previous_response_id="resp_1")
        assert command.parent == Known("resp_1")
        refuse(command)
        [command] = talk.create("a", previous_response_id="resp_1")
        assert command.parent is None
        talk.core.receive_refused(command.turn_id, NOT_FOUND)


def test_a_waiting_turn_loses_a_parent_that_was_evicted(talk: Talk) -> None:
    talk.turn("resp_1")
    [first] = talk.create(previous_response_id="resp_1")
    assert talk.create(previous_response_id="resp_1") == []
    talk.core.receive_refused(first.turn_id, NOT_FOUND)
    [second] = talk.commands()
    assert second.parent is None


def test_an_invalid_continuation_evicts_its_parent(talk: Talk) -> None:
    talk.turn("resp_1")
    talk.create(previous_response_id="resp_1", input=7)
    [command] = talk.create(previous_response_id="resp_1")
    assert command.parent is None


def test_a_continuation_refused_for_capacity_can_be_tried_again(talk: Talk) -> None:
    talk.turn("resp_1")
    [command] = talk.create(previous_response_id="resp_1")
    talk.core.receive_refused(command.turn_id, OVERLOADED)
    [command] = talk.create(previous_response_id="resp_1")
    assert command.parent == Known("resp_1")


def test_an_incomplete_response_can_be_continued(talk: Talk) -> None:
    [command] = talk.create()
    talk.run(command.turn_id, "resp_1", "incomplete")
    [command] = talk.create(previous_response_id="resp_1")
    assert command.parent == Known("resp_1")


def test_a_failed_fork_does_not_evict_its_parent(talk: Talk) -> None:
    talk.turn("resp_1", "a")
    [fork] = talk.create("b", previous_response_id="resp_1")
    assert fork.parent == Known("resp_1")
    talk.core.receive_refused(fork.turn_id, NOT_FOUND)
    [command] = talk.create("a", previous_response_id="resp_1")
    assert command.parent == Known("resp_1")


def test_a_waiting_fork_keeps_its_parent(talk: Talk) -> None:
    talk.turn("resp_1", "a")
    [running] = talk.create("b")
    assert talk.create("b", previous_response_id="resp_1") == []
    talk.turn("resp_2", "a", previous_response_id="resp_1")
    [fork] = talk.run(running.turn_id, "resp_b")
    assert fork.parent == Known("resp_1")


# Cancel


def test_cancel_of_a_running_response(talk: Talk) -> None:
    [default], [named] = talk.create(), talk.create("a")
    talk.created(default.turn_id, "resp_1")
    talk.created(named.turn_id, "resp_2")
    for fields, turn_id in (
        ({}, default.turn_id),
        ({"stream_id": "a"}, named.turn_id),
        ({"response_id": "resp_2"}, named.turn_id),
        ({"response_id": "resp_2"}, named.turn_id),
        ({"response_id": "resp_1", "stream_id": "a"}, default.turn_id),
    ):
        assert talk.say(type="response.cancel", **fields) == [CancelResponse(turn_id)]
    assert talk.heard() == []


def test_cancel_before_the_response_is_created(talk: Talk) -> None:
    [command] = talk.create()
    assert talk.say(type="response.cancel") == []
    assert talk.created(command.turn_id, "resp_1") == [CancelResponse(command.turn_id)]


def test_cancel_of_a_resume_before_its_response_is_found(talk: Talk) -> None:
    [command] = talk.say(type="tokenwire.response.resume", response_id="resp_1", starting_after=7)
    assert talk.say(type="response.cancel", response_id="resp_1") == []
    assert talk.heard() == []
    assert talk.created(command.turn_id, "resp_1", after=7) == [CancelResponse(command.turn_id)]


def test_cancel_of_a_stream_whose_turn_waits_for_others(talk: Talk) -> None:
    turns = [talk.create(f"a{index}")[0].turn_id for index in range(MAX_RUNNING_TURNS)]
    assert talk.create("b") == []
    assert talk.say(type="response.cancel", stream_id="b") == []
    [command] = talk.run(turns[0], "resp_1")
    assert talk.created(command.turn_id, "resp_2") == [CancelResponse(command.turn_id)]


def test_a_late_cancel_is_no_error(talk: Talk) -> None:
    talk.turn("resp_1")
    talk.heard()
    for fields in ({}, {"stream_id": "a"}, {"response_id": "resp_1"}):
        assert talk.say(type="response.cancel", **fields) == []
    assert talk.heard() == []


def test_cancel_of_an_unknown_response(talk: Talk) -> None:
    talk.create()
    assert talk.say(type="response.cancel", response_id="resp_x") == []
    assert talk.error() == ("response_not_found", "response_id", None)


def test_ended_responses_are_remembered_up_to_a_limit(talk: Talk) -> None:
    for index in range(MAX_ENDED_IDS + 1):
        talk.turn(f"resp_{index}")
    talk.heard()
    talk.say(type="response.cancel", response_id="resp_1")
    assert talk.heard() == []
    talk.say(type="response.cancel", response_id="resp_0")
    assert talk.error()[0] == "response_not_found"


# Steer


def test_steer_is_refused_in_its_own_form(talk: Talk) -> None:
    [command] = talk.create("a")
    talk.created(command.turn_id, "resp_1")
    talk.tell(command.turn_id, "created", "in_progress")
    talk.heard()
    talk.say(type="response.steer", previous_response_id="resp_1", input="faster")
    talk.say(type="response.steer", previous_response_id="resp_x", input=[{"role": "user"}])
    [known, unknown] = talk.heard()
    assert known == {
        "type": "response.steer.failed",
        "sequence_number": 1,
        "stream_id": "a",
        "error": {
            "type": "invalid_request_error",
            "code": "steering_not_supported",
            "message": "The model does not support steering.",
        },
        "steer": {"previous_response_id": "resp_1", "input": "faster"},
    }
    assert (unknown["sequence_number"], "stream_id" in unknown) == (0, False)
    assert unknown["steer"]["input"] == [{"role": "user"}]
    assert talk.tell(command.turn_id, "completed") == []
    assert_responses_conversation(talk.frames + talk.heard(), open_streams=())


# Resume


def resume(talk: Talk, response_id: str = "resp_1", **fields: Any) -> list[Any]:
    return talk.say(type="tokenwire.response.resume", response_id=response_id, **fields)


def test_a_resume_becomes_a_command(talk: Talk) -> None:
    assert resume(talk) == [ResumeResponse("turn_1", "resp_1", -1)]
    assert resume(talk, starting_after=7, stream_id="a") == [ResumeResponse("turn_2", "resp_1", 7)]
    assert resume(talk, "resp_2") == []  # in its turn


def test_a_resumed_response_starts_after_the_cursor_and_can_be_continued(talk: Talk) -> None:
    [command] = resume(talk, starting_after=1, stream_id="a")
    talk.created(command.turn_id, "resp_1", after=1)
    talk.tell(command.turn_id, "output_text.delta", "completed")
    frames = talk.heard()
    assert [frame["sequence_number"] for frame in frames] == [2, 3]
    assert_responses_conversation(frames)
    [command] = talk.create("a", previous_response_id="resp_1")
    assert command.parent == Known("resp_1")


def test_a_resumed_response_that_failed_cannot_be_continued(talk: Talk) -> None:
    [command] = resume(talk)
    talk.run(command.turn_id, "resp_1", "failed")
    [command] = talk.create(previous_response_id="resp_1")
    assert command.parent is None


def test_a_resume_without_new_events_allows_to_continue_the_response(talk: Talk) -> None:
    [command] = resume(talk, starting_after=9)
    talk.core.receive_up_to_date(command.turn_id, Known("resp_1"))
    assert talk.error() == ("nothing_to_resume", "starting_after", None)
    [command] = talk.create(previous_response_id="resp_1")
    assert command.parent == Known("resp_1")


def test_a_resume_without_new_events_of_a_failed_response(talk: Talk) -> None:
    [command] = resume(talk, starting_after=9)
    talk.core.receive_up_to_date(command.turn_id, None)
    assert talk.error()[0] == "nothing_to_resume"
    [command] = talk.create(previous_response_id="resp_1")
    assert command.parent is None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "response_id"),
        ({"response_id": "r", "starting_after": -2}, "starting_after"),
        ({"response_id": "r", "starting_after": "7"}, "starting_after"),
        ({"response_id": "r", "after": 7}, "after"),
    ],
)
def test_a_bad_resume_ends_its_turn(talk: Talk, fields: dict[str, Any], param: str) -> None:
    talk.say(type="tokenwire.response.resume", stream_id="a", **fields)
    assert talk.error() == ("invalid_request", param, "a")


def test_the_handshake_may_resume() -> None:
    bad = ErrorInfo(code="invalid_request", message="bad", param="starting_after")
    requests = (Resume("resp_1", 4), RejectedRequest(bad), Resume("resp_2", -1))
    talk = Talk(resumes=[(None, request) for request in requests], max_turns=3)
    [first] = talk.commands()
    assert first == ResumeResponse("turn_1", "resp_1", 4)
    talk.created(first.turn_id, "resp_1", after=4)
    [third] = talk.tell(first.turn_id, "completed")
    assert third == ResumeResponse("turn_3", "resp_2", -1)
    assert endings(talk.heard()) == ["completed", "invalid_request"]


def test_the_handshake_resumes_each_response_on_its_stream() -> None:
    talk = Talk(resumes=[(stream_id, Resume(f"resp_{stream_id}", 0)) for stream_id in "ab"])
    for command, stream_id in zip(talk.commands(), "ab", strict=True):
        talk.created(command.turn_id, f"resp_{stream_id}", after=0)
        talk.tell(command.turn_id, "completed")
    for stream_id in "ab":
        [command] = talk.create(stream_id, previous_response_id=f"resp_{stream_id}")
        assert command.parent == Known(f"resp_{stream_id}")
        talk.run(command.turn_id, f"resp_{stream_id}2")
    assert_responses_conversation(talk.heard())


def test_the_number_of_resumes_in_the_handshake_is_limited() -> None:
    talk = Talk(resumes=[(stream_id, Resume("resp_1", 4)) for stream_id in "ab"], max_turns=1)
    assert talk.error() == ("rate_limit_exceeded", None, "b")
    assert len(talk.commands()) == 1


# The age of the connection


def test_an_expired_idle_connection_is_closed_with_an_error(talk: Talk) -> None:
    assert talk.core.next_timeout_at == MAX_S - 60
    assert talk.pass_to(MAX_S - 0.01) == []
    assert talk.heard() == []
    assert talk.core.next_timeout_at == MAX_S
    assert talk.pass_to(MAX_S) == [EXPIRED]
    assert talk.error() == ("websocket_connection_limit_reached", None, None)
    assert talk.create() == []
    assert talk.pass_to(MAX_S + GRACE_S) == []
    assert talk.heard() == []


def test_the_expiry_warning_is_sent_on_request() -> None:
    talk = Talk(warns_of_expiry=True)
    talk.pass_to(MAX_S - 50)
    assert talk.heard() == [
        {"type": "tokenwire:connection.expiring", "sequence_number": 0, "expires_in_s": 50.0}
    ]
    assert_responses_conversation(talk.frames, accepts_extensions=True)


def test_after_the_expiry_running_turns_end_and_waiting_ones_are_refused(talk: Talk) -> None:
    [running] = talk.create()
    talk.create()
    [other] = talk.create("a")
    talk.created(running.turn_id, "resp_1")
    talk.tell(running.turn_id, "created", "in_progress")
    assert talk.pass_to(MAX_S) == []
    talk.create()
    talk.create("b")
    assert talk.tell(running.turn_id, "completed") == []
    talk.core.receive_refused(other.turn_id, OVERLOADED)
    assert talk.commands() == [EXPIRED]
    frames = talk.heard()
    reached = "websocket_connection_limit_reached"
    assert endings(frames) == ["completed", reached, reached, reached]
    assert endings(frames, "a") == ["overloaded"]
    assert endings(frames, "b") == [reached]
    assert_responses_conversation(frames)


def test_a_turn_that_outlives_the_grace_is_left_to_be_resumed(talk: Talk) -> None:
    [running] = talk.create()
    talk.created(running.turn_id, "resp_1")
    talk.tell(running.turn_id, "created", "in_progress")
    talk.pass_to(MAX_S)
    assert talk.pass_to(MAX_S + GRACE_S) == [EXPIRED]
    frames = talk.heard()
    assert endings(frames) == ["websocket_connection_limit_reached"]
    assert frames[-1]["type"] == "error"
    assert talk.core.next_timeout_at is None


# Drain


def test_drain_closes_an_idle_socket_at_once(talk: Talk) -> None:
    talk.core.receive_drain()
    talk.core.receive_drain()
    assert talk.commands() == [Close(1001, "the server is going away")]
    assert talk.heard() == []


def test_drain_waits_for_the_last_ending(talk: Talk) -> None:
    [first] = talk.create()
    talk.create()
    talk.core.receive_drain()
    [second] = talk.run(first.turn_id, "resp_1")
    shutting_down = ErrorInfo(code="shutting_down", message="no", retry_after_s=1.0)
    talk.core.receive_refused(second.turn_id, shutting_down)
    assert talk.commands() == [Close(1001, "the server is going away")]
    assert endings(talk.heard()) == ["completed", "shutting_down"]
    assert talk.create() == []
    talk.core.receive_bytes(b"{}", now=0.0)
    assert talk.heard() == []


def test_unsent_frames_are_counted(talk: Talk) -> None:
    for _ in range(3):
        talk.core.receive_text("", now=0.0)
    assert talk.core.num_unsent == 3
    talk.heard()
    assert talk.core.num_unsent == 0


# Our own bugs


def test_a_refusal_after_the_response_was_created_is_our_bug(talk: Talk) -> None:
    [command] = talk.create()
    talk.created(command.turn_id, "resp_1")
    with pytest.raises(AssertionError):
        talk.core.receive_refused(command.turn_id, OVERLOADED)


def test_an_event_after_the_ending_is_our_bug(talk: Talk) -> None:
    [command] = talk.create()
    talk.created(command.turn_id, "resp_1")
    late: list[EventObject] = [
        {"type": "response.completed", "sequence_number": 0},
        {"type": "response.completed", "sequence_number": 1},
    ]
    with pytest.raises(AssertionError):
        talk.core.receive_events(command.turn_id, late, now=0.0)
    with pytest.raises(KeyError):
        talk.core.receive_events(command.turn_id, late, now=0.0)


# Random interleavings

_ORDER = ("created", "in_progress", "output_text.delta", "output_text.delta")
STREAM_IDS = st.sampled_from([None, "a", "b", "c"])


@pytest.mark.pain(12)
@property_test
@given(data=st.data())
def test_any_interleaving_is_well_formed(data: st.DataObject) -> None:
    talk = Talk(max_turns=6, max_messages_per_s=30)
    submitted: list[Any] = []
    running: dict[str, tuple[str | None, int]] = {}
    ended: list[str] = []
    asked: list[str | None] = []
    is_closed = False

    def obey(commands: list[Any]) -> None:
        nonlocal is_closed
        for command in commands:
            match command:
                case CreateResponse() | ResumeResponse():
                    submitted.append(command)
                case CancelResponse(turn_id):
                    obey(end(turn_id, "incomplete"))
                case Close():
                    is_closed = True

    def end(turn_id: str, ending: str) -> list[Any]:
        response_id, told = running.pop(turn_id)
        kinds = [*_ORDER[min(told, 2) : 2], ending]
        assert response_id is not None
        ended.append(response_id)
        return talk.tell(turn_id, *kinds, response_id=response_id)

    def finish(command: Any, *, is_created: bool) -> None:
        submitted.remove(command)
        if not is_created:
            talk.core.receive_refused(
                command.turn_id, data.draw(st.sampled_from([NOT_FOUND, OVERLOADED]))
            )
            obey(talk.commands())
            return
        response_id = f"resp_{command.turn_id}"
        if isinstance(command, CreateResponse) and command.parent is not None:
            assert command.parent.response_id == command.body.previous_response_id
        running[command.turn_id] = (response_id, 0)
        obey(talk.created(command.turn_id, response_id))

    def ask(**fields: Any) -> None:
        stream_id = data.draw(STREAM_IDS)
        named = {} if stream_id is None else {"stream_id": stream_id}
        num_refused = count("rate_limit_exceeded", stream_id)
        obey(talk.say(**named, **fields))
        talk.heard()
        if count("rate_limit_exceeded", stream_id) == num_refused and not is_closed:
            asked.append(stream_id)

    def count(code: str, stream_id: str | None) -> int:
        return endings(talk.frames, stream_id).count(code)

    for action in data.draw(st.lists(st.sampled_from("cccrrxksssfeeeetttttnl"), max_size=80)):
        match action:
            case "c":
                fields = (
                    {"previous_response_id": data.draw(st.sampled_from(ended))} if ended else {}
                )
                ask(type="response.create", input="hi", **fields)
            case "x":
                ask(type="response.create", input=7)
            case "r":
                ask(type="tokenwire.response.resume", response_id="resp_x")
            case "k":
                obey(talk.say(type="response.cancel", stream_id=data.draw(STREAM_IDS)))
            case "s" | "f" if submitted:
                finish(data.draw(st.sampled_from(submitted)), is_created=action == "s")
            case "t" if running:
                turn_id = data.draw(st.sampled_from(list(running)))
                response_id, told = running[turn_id]
                if told < len(_ORDER):
                    running[turn_id] = (response_id, told + 1)
                    obey(talk.tell(turn_id, _ORDER[told]))
            case "e" if running:
                turn_id = data.draw(st.sampled_from(list(running)))
                obey(
                    end(turn_id, data.draw(st.sampled_from(["completed", "incomplete", "failed"])))
                )
            case "n":
                obey(talk.pass_to(talk.now + data.draw(st.floats(0, 1))))
            case "l":
                talk.heard()

    while submitted or running:
        for command in tuple(submitted):
            finish(command, is_created=True)
        for turn_id in tuple(running):
            obey(end(turn_id, "completed"))
    talk.heard()
    assert not is_closed
    assert_responses_conversation(talk.frames)
    for stream_id in (None, "a", "b", "c"):
        num_endings = len(endings(talk.frames, stream_id)) - count("rate_limit_exceeded", stream_id)
        assert num_endings == asked.count(stream_id)
