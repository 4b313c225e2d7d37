"""The protocol core, without a socket, a clock or an engine."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import ErrorInfo
from app.stream.protocol import (
    MAX_ENDED_IDS,
    CancelGeneration,
    Command,
    ResumeGeneration,
    StartGeneration,
    StreamProtocol,
)
from app.websocket.protocol.frames import Close
from streaming import (
    ChatMessage,
    ChatPrompt,
    Failed,
    Finished,
    FinishReason,
    Generation,
    GenerationRequest,
    Grammar,
    GrammarKind,
    Queued,
    Reader,
    SamplingParams,
    TextPrompt,
    Token,
    TokenPrompt,
)
from streaming.errors import EngineFailure, PromptTooLong
from streaming.log.generation import Tail
from tests.app.conversation import Frame, assert_conversation, text_of
from tests.support import make_generation, property_test, words


class Conversation:
    """A protocol core, and the frames that it has sent."""

    def __init__(self, *, max_streams: int = 8, max_messages_per_s: float = 1e6) -> None:
        self.core = StreamProtocol(
            caller="me",
            token_text=str,
            max_streams=max_streams,
            max_messages_per_s=max_messages_per_s,
        )
        self.now = 0.0
        self.frames: list[Frame] = []
        self.readers: dict[str, Reader] = {}

    def say(self, **fields: Any) -> list[Command]:
        self.core.receive_text(json.dumps(fields), now=self.now)
        return self.core.commands()

    def generate(self, stream_id: str = "a", **fields: Any) -> list[Command]:
        return self.say(type="generate", id=stream_id, prompt="hi", **fields)

    def accept(
        self, stream_id: str = "a", generation: Generation | None = None, *, after: int = -1
    ) -> Generation:
        generation = generation or make_generation(f"gen_{stream_id}")
        self.readers[stream_id] = Reader(generation, after=after)
        self.core.receive_accepted(stream_id, generation)
        return generation

    def read(self, stream_id: str = "a") -> None:
        reader = self.readers[stream_id]
        self.core.receive_events(stream_id, reader.read(), now=self.now)
        if reader.is_done:
            del self.readers[stream_id]

    def new_frames(self) -> list[Frame]:
        """Return the new frames."""
        frames: list[Frame] = [{**frame} for frame in self.core.frames_to_send()]
        self.frames += frames
        return frames

    def error(self) -> tuple[str, str | None, str | None]:
        """Return code, param and id of the only new frame, an error."""
        [frame] = self.new_frames()
        assert frame["type"] == "error"
        return frame["error"]["code"], frame["error"].get("param"), frame.get("id")


@pytest.fixture
def talk() -> Conversation:
    return Conversation()


# generate


def test_generate_becomes_a_command(talk: Conversation) -> None:
    commands = talk.say(
        type="generate",
        id="a",
        prompt="hi",
        model="m",
        max_tokens=5,
        temperature=0,
        stop="END",
        logprobs=2,
        priority=-3,
        timeout_s=7.5,
        metadata={"page": "7"},
    )
    params = SamplingParams(max_tokens=5, temperature=0, stop=("END",), logprobs=2)
    request = GenerationRequest(
        prompt=TextPrompt("hi"),
        params=params,
        caller="me",
        model="m",
        priority=-3,
        timeout_s=7.5,
        metadata={"page": "7"},
    )
    assert commands == [StartGeneration("a", request, include_empty_deltas=True)]
    assert talk.new_frames() == []


@pytest.mark.parametrize(
    ("fields", "prompt", "max_tokens"),
    [
        ({"prompt": "hi"}, TextPrompt("hi"), 16),
        ({"prompt": [1, 2]}, TokenPrompt((1, 2)), 16),
        ({"prompt": ""}, TextPrompt(""), 16),
        ({"prompt": "hi", "messages": None, "max_tokens": None}, TextPrompt("hi"), 16),
        (
            {"messages": [{"role": "user", "content": "hi"}]},
            ChatPrompt((ChatMessage("user", "hi"),)),
            None,
        ),
    ],
)
def test_prompts_and_their_default_lengths(
    talk: Conversation, fields: dict[str, Any], prompt: object, max_tokens: int | None
) -> None:
    [command] = talk.say(type="generate", **fields)
    assert isinstance(command, StartGeneration)
    assert (command.request.prompt, command.request.params.max_tokens) == (prompt, max_tokens)
    assert command.include_empty_deltas is False


def test_a_whole_stream(talk: Conversation) -> None:
    talk.generate()
    generation = talk.accept()
    generation.queued = Queued(0, None)
    talk.read()
    generation.start(cached_tokens=0, at=1.0)
    words(generation, "he", "llo")
    talk.read()
    words(generation, "!")
    generation.end(Finished(FinishReason.LENGTH, 2.0))
    talk.read()
    frames = talk.new_frames()
    kinds = [frame["type"] for frame in frames]
    assert kinds == ["accepted", "queued", "started", "delta", "delta", "done"]
    assert [frame["seq"] for frame in frames[3:]] == [1, 2, 3]
    assert text_of(frames) == "hello!"
    assert_conversation(frames)


def test_text_released_by_a_cancel_comes_before_the_last_frame(talk: Conversation) -> None:
    talk.generate()
    generation = talk.accept()
    generation.start(cached_tokens=0, at=0.0)
    words(generation, "a")
    generation.append(Tail("b", 0.0))
    generation.end(Finished(FinishReason.CANCELLED, 0.0))
    talk.read()
    [delta, done] = talk.new_frames()[2:]
    assert (delta["seq"], delta["text"]) == (1, "ab")
    assert (done["seq"], done["finish_reason"]) == (2, "cancelled")


def test_a_failed_generation_ends_with_an_error_that_has_a_seq(talk: Conversation) -> None:
    talk.generate()
    generation = talk.accept()
    generation.start(cached_tokens=0, at=0.0)
    words(generation, "a")
    generation.end(Failed(EngineFailure(), 0.0))
    talk.read()
    frames = talk.new_frames()
    assert frames[-1]["error"]["code"] == "engine_error"
    assert frames[-1]["seq"] == 1
    assert_conversation(frames)


def test_a_stream_may_end_before_it_starts(talk: Conversation) -> None:
    talk.generate()
    talk.accept().end(Finished(FinishReason.CANCELLED, 0.0))
    talk.read()
    assert [frame["type"] for frame in talk.new_frames()] == ["accepted", "done"]


def test_refused_after_it_was_submitted(talk: Conversation) -> None:
    talk.generate()
    talk.core.receive_refused("a", ErrorInfo.of(PromptTooLong(size=9, limit=4)))
    assert talk.error() == ("prompt_too_long", "prompt", "a")
    assert talk.generate() != []


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({}, "invalid_request", "prompt"),
        ({"prompt": "a", "messages": []}, "invalid_request", "messages"),
        ({"prompt": "a", "temperature": 2.5}, "invalid_request", "temperature"),
        ({"prompt": "a", "seed": 10**400}, "invalid_request", "seed"),
        ({"prompt": "a", "logit_bias": {"x": 1}}, "invalid_request", "logit_bias"),
        ({"prompt": "a", "unknown": 1}, "invalid_request", "unknown"),
        (
            {"prompt": "a", "response_format": {"type": "json_schema", "json_schema": {}}},
            "invalid_request",
            "response_format.json_schema.name",
        ),
    ],
)
def test_an_invalid_generate_is_refused_with_its_id(
    talk: Conversation, fields: dict[str, Any], code: str, param: str
) -> None:
    assert talk.say(type="generate", id="a", **fields) == []
    assert talk.error() == (code, param, "a")
    assert talk.say(type="generate", **fields) == []
    assert talk.error() == (code, param, None)


def test_a_response_format_becomes_the_grammar_of_the_request(talk: Conversation) -> None:
    [command] = talk.generate(response_format={"type": "regex", "pattern": "a+"})
    assert isinstance(command, StartGeneration)
    assert command.request.params.grammar == Grammar(GrammarKind.REGEX, "a+")


def test_a_lone_surrogate_is_refused_with_its_id(talk: Conversation) -> None:
    assert talk.say(type="generate", id="a", prompt="\ud800") == []
    assert talk.error() == ("invalid_request", "prompt", "a")


def test_a_duplicate_field_is_refused_with_an_unambiguous_id(
    talk: Conversation,
) -> None:
    talk.core.receive_text('{"type": "generate", "id": "a", "seed": 1, "seed": 2}', now=0.0)
    talk.core.receive_text('{"type": "generate", "id": "a", "id": "b"}', now=0.0)
    shown = [(frame.get("id"), frame["error"]["param"]) for frame in talk.new_frames()]
    assert shown == [("a", "seed"), (None, "id")]


def test_a_null_response_format_is_ignored(talk: Conversation) -> None:
    assert len(talk.generate(response_format=None)) == 1


def test_invalid_frames(talk: Conversation) -> None:
    for text in ("", "[]", '{"type": "x"}', '{"type": "generate", "temperature": NaN}'):
        talk.core.receive_text(text, now=0.0)
    talk.core.receive_bytes(b"{}", now=0.0)
    frames = talk.new_frames()
    assert [frame["error"]["code"] for frame in frames] == [
        "invalid_json",
        "invalid_request",
        "unknown_type",
        "invalid_json",
        "invalid_json",
    ]
    assert all("id" not in frame for frame in frames)
    assert talk.core.commands() == []


# ids


def test_a_duplicate_id_does_not_end_the_stream_that_has_it(talk: Conversation) -> None:
    talk.generate()
    talk.accept()
    talk.new_frames()
    assert talk.generate() == []
    assert talk.error() == ("duplicate_id", "id", None)
    assert talk.generate(temperature=9) == []
    assert talk.error() == ("invalid_request", "temperature", None)
    assert talk.say(type="resume", id="a", generation_id="g", after=-1) == []
    assert talk.error() == ("duplicate_id", "id", None)


def test_an_id_is_free_after_its_end(talk: Conversation) -> None:
    for _ in range(2):
        talk.generate()
        talk.accept().end(Finished(FinishReason.STOP, 0.0))
        talk.read()
    assert_conversation(talk.new_frames())


def test_generated_ids_avoid_those_of_the_client(talk: Conversation) -> None:
    talk.generate("stream_1")
    [command] = talk.say(type="generate", prompt="hi")
    assert isinstance(command, StartGeneration)
    assert command.stream_id == "stream_2"


def test_a_generated_id_is_not_sent_before_accepted(talk: Conversation) -> None:
    talk.say(type="generate", prompt="hi")
    talk.core.receive_refused("stream_1", ErrorInfo(code="overloaded", message="no"))
    assert talk.error() == ("overloaded", None, None)


def test_streams_have_a_limit() -> None:
    talk = Conversation(max_streams=2)
    talk.generate("a")
    talk.generate("b")
    assert talk.generate("c") == []
    [frame] = talk.new_frames()
    assert (frame["error"]["code"], frame["id"]) == ("rate_limited", "c")
    assert frame["error"]["retry_after_s"] == 1.0
    talk.core.receive_refused("a", ErrorInfo(code="overloaded", message="no"))
    assert len(talk.generate("c")) == 1


# cancel


def test_cancel_of_an_open_stream(talk: Conversation) -> None:
    talk.generate()
    talk.accept()
    assert talk.say(type="cancel", id="a") == [CancelGeneration("a")]
    assert talk.say(type="cancel", id="a") == [CancelGeneration("a")]
    assert [frame["type"] for frame in talk.new_frames()] == ["accepted"]


def test_a_cancel_during_tokenization_waits_for_the_log(talk: Conversation) -> None:
    talk.generate()
    assert talk.say(type="cancel", id="a") == []
    generation = talk.accept()
    assert talk.core.commands() == [CancelGeneration("a")]
    generation.end(Finished(FinishReason.CANCELLED, 0.0))
    talk.read()
    assert [frame["type"] for frame in talk.new_frames()] == ["accepted", "done"]


def test_cancel_in_the_same_tick_as_the_last_token(talk: Conversation) -> None:
    talk.generate()
    talk.accept().end(Finished(FinishReason.STOP, 0.0))
    assert talk.say(type="cancel", id="a") == [CancelGeneration("a")]
    talk.read()
    assert talk.say(type="cancel", id="a") == []
    assert [frame["type"] for frame in talk.new_frames()] == ["accepted", "done"]


def test_a_cancel_of_a_refused_generate_is_ignored(talk: Conversation) -> None:
    talk.generate(temperature=9)
    talk.new_frames()
    talk.say(type="cancel", id="a")
    assert talk.new_frames() == []


def test_a_cancel_of_an_unknown_id_is_an_error(talk: Conversation) -> None:
    assert talk.say(type="cancel", id="a") == []
    assert talk.error() == ("unknown_id", "id", None)


def test_ended_ids_are_remembered_up_to_a_limit(talk: Conversation) -> None:
    for index in range(MAX_ENDED_IDS + 1):
        talk.generate(f"a{index}", temperature=9)
    talk.new_frames()
    talk.say(type="cancel", id="a1")
    assert talk.new_frames() == []
    talk.say(type="cancel", id="a0")
    assert talk.error() == ("unknown_id", "id", None)


# resume


def test_resume_becomes_a_command(talk: Conversation) -> None:
    commands = talk.say(
        type="resume", id="a", generation_id="gen_1", after=3, return_token_ids=True
    )
    assert commands == [ResumeGeneration("a", "gen_1", 3, include_empty_deltas=True)]
    [command] = talk.say(type="resume", generation_id="gen_1", after=-1)
    assert command == ResumeGeneration("stream_1", "gen_1", -1, include_empty_deltas=False)


def test_a_resumed_stream_has_the_usual_order(talk: Conversation) -> None:
    generation = make_generation("gen_1")
    generation.start(cached_tokens=0, at=0.0)
    words(generation, "a", "b", "c")
    talk.say(type="resume", id="a", generation_id="gen_1", after=0)
    talk.accept("a", generation, after=0)
    generation.end(Finished(FinishReason.STOP, 0.0))
    talk.read()
    frames = talk.new_frames()
    assert [frame["type"] for frame in frames] == ["accepted", "started", "delta", "done"]
    assert (frames[0]["generation_id"], text_of(frames)) == ("gen_1", "bc")


def test_a_resume_at_the_end_repeats_the_last_frame(talk: Conversation) -> None:
    generation = make_generation("gen_1")
    generation.start(cached_tokens=0, at=0.0)
    generation.end(Finished(FinishReason.STOP, 0.0))
    talk.say(type="resume", id="a", generation_id="gen_1", after=0)
    talk.accept("a", generation, after=0)
    talk.read()
    assert [frame["type"] for frame in talk.new_frames()] == ["accepted", "started", "done"]


def test_a_refused_resume_carries_its_id(talk: Conversation) -> None:
    talk.say(type="resume", id="a", generation_id="gen_1", after=0)
    talk.core.receive_refused("a", ErrorInfo(code="cursor_lost", message="no", param="after"))
    assert talk.error() == ("cursor_lost", "after", "a")
    talk.say(type="resume", id="a", after=0)
    assert talk.error() == ("invalid_request", "generation_id", "a")


def test_each_stream_of_a_log_chooses_token_ids_and_logprobs(talk: Conversation) -> None:
    generation = make_generation()
    generation.start(cached_tokens=0, at=0.0)
    generation.append(Token(7, "x", 0.0))
    talk.say(type="resume", id="a", generation_id="g", after=-1, return_token_ids=True)
    talk.say(type="resume", id="b", generation_id="g", after=-1, logprobs=True)
    for stream_id in ("a", "b"):
        talk.accept(stream_id, generation)
        talk.read(stream_id)
    deltas = {frame["id"]: frame for frame in talk.new_frames() if frame["type"] == "delta"}
    assert deltas["a"] == {"type": "delta", "id": "a", "seq": 0, "text": "x", "token_ids": [7]}
    assert deltas["b"] == {"type": "delta", "id": "b", "seq": 0, "text": "x", "logprobs": []}


# rate limits


def test_too_many_messages() -> None:
    talk = Conversation(max_streams=1, max_messages_per_s=2)
    for _ in range(2):
        talk.say(type="cancel", id="x")
    talk.new_frames()
    assert talk.generate() == []
    [frame] = talk.new_frames()
    assert (frame["error"]["code"], frame["id"]) == ("rate_limited", "a")
    assert frame["error"]["retryable"] is True
    assert frame["error"]["retry_after_s"] == 0.5
    talk.core.receive_bytes(b"{}", now=0.0)
    assert talk.error() == ("rate_limited", None, None)
    talk.core.receive_text("{", now=0.0)
    assert talk.error() == ("rate_limited", None, None)
    talk.generate(stop="x" * 5000)
    assert talk.error() == ("rate_limited", None, None)
    talk.now = 0.5
    assert len(talk.generate()) == 1


def test_a_burst_may_open_and_cancel_every_stream() -> None:
    talk = Conversation(max_streams=50, max_messages_per_s=1)
    for index in range(50):
        talk.generate(f"a{index}")
    for index in range(50):
        talk.say(type="cancel", id=f"a{index}")
    assert talk.new_frames() == []


def test_queue_positions_are_sent_at_most_once_a_second(talk: Conversation) -> None:
    talk.generate("a")
    talk.generate("b")
    logs = {stream_id: talk.accept(stream_id) for stream_id in ("a", "b")}
    for stream_id, log in logs.items():
        log.queued = Queued(9, None)
        talk.read(stream_id)
    assert talk.core.next_timeout_at is None
    talk.now = 0.25
    for position in (8, 7):
        logs["a"].queued = Queued(position, None)
        talk.read("a")
    assert talk.core.next_timeout_at == 1.0
    talk.now = 0.5
    logs["b"].queued = Queued(8, None)
    talk.read("b")
    logs["b"].start(cached_tokens=0, at=0.0)
    talk.read("b")
    talk.core.handle_timeout(now=0.99)
    talk.core.handle_timeout(now=1.0)
    talk.core.handle_timeout(now=9.0)
    positions = [
        (frame["id"], frame["position"]) for frame in talk.new_frames() if frame["type"] == "queued"
    ]
    assert positions == [("a", 9), ("b", 9), ("a", 7)]
    assert talk.core.next_timeout_at is None


def test_unsent_frames_are_counted(talk: Conversation) -> None:
    for _ in range(3):
        talk.say(type="cancel", id="x")
    assert talk.core.num_unsent == 3
    talk.new_frames()
    assert talk.core.num_unsent == 0


# drain


def test_drain_closes_an_idle_socket_at_once(talk: Conversation) -> None:
    talk.core.receive_drain()
    talk.core.receive_drain()
    assert talk.core.commands() == [Close(1001, "the server is going away")]


def test_drain_waits_until_all_streams_have_ended(talk: Conversation) -> None:
    talk.generate("a")
    talk.generate("b")
    log = talk.accept("a")
    talk.core.receive_drain()
    assert talk.core.commands() == []
    talk.core.receive_refused("b", ErrorInfo(code="shutting_down", message="no"))
    assert talk.core.commands() == []
    log.end(Finished(FinishReason.STOP, 0.0))
    talk.read("a")
    assert talk.core.commands() == [Close(1001, "the server is going away")]
    assert talk.new_frames()[-1]["type"] == "done"


def test_frames_after_the_close_are_ignored(talk: Conversation) -> None:
    talk.core.receive_drain()
    talk.core.commands()
    assert talk.generate() == []
    talk.core.receive_bytes(b"{}", now=0.0)
    assert talk.new_frames() == []


# mistakes in our own code


def test_events_of_an_unknown_stream_raise(talk: Conversation) -> None:
    with pytest.raises(KeyError):
        talk.core.receive_events("a", [], now=0.0)


def test_a_refusal_after_accepted_raises(talk: Conversation) -> None:
    talk.generate()
    talk.accept()
    with pytest.raises(AssertionError):
        talk.core.receive_refused("a", ErrorInfo(code="overloaded", message="no"))


# random interleavings


@pytest.mark.pain(12)
@property_test
@given(data=st.data())
def test_any_interleaving_is_well_formed(data: st.DataObject) -> None:
    talk = Conversation(max_streams=4, max_messages_per_s=20)
    submitted: list[str] = []
    logs: dict[str, Generation] = {}
    texts: dict[str, Generation] = {}
    ids = st.sampled_from("abcdef")

    def execute(commands: list[Command]) -> None:
        for command in commands:
            match command:
                case StartGeneration(stream_id=stream_id):
                    submitted.append(stream_id)
                case ResumeGeneration(stream_id=stream_id, generation_id=generation_id):
                    log = logs.get(generation_id)
                    if log is None:
                        info = ErrorInfo(code="generation_not_found", message="no")
                        talk.core.receive_refused(stream_id, info)
                    else:
                        talk.accept(stream_id, log)
                case CancelGeneration(stream_id=stream_id):
                    log = talk.readers[stream_id].generation
                    if not log.is_ended:
                        log.end(Finished(FinishReason.CANCELLED, talk.now))
                case Close():
                    pytest.fail("closed without a drain")

    def finish(stream_id: str, *, is_accepted: bool) -> None:
        submitted.remove(stream_id)
        if not is_accepted:
            talk.core.receive_refused(stream_id, ErrorInfo(code="overloaded", message="no"))
            return
        log = make_generation(f"gen_{len(logs)}")
        logs[log.generation_id] = texts[log.generation_id] = log
        talk.accept(stream_id, log)
        execute(talk.core.commands())

    def advance(log: Generation, how: str) -> None:
        if log.is_ended:
            return
        if log.started is None:
            if how == "wait":
                log.queued = Queued(data.draw(st.integers(0, 9)), None)
            elif how != "end":
                log.start(cached_tokens=0, at=talk.now)
        elif how != "end":
            log.append(Token(1, data.draw(st.sampled_from(["", "x", "é"])), talk.now))
        if how == "end":
            log.end(Finished(FinishReason.STOP, talk.now))

    for action in data.draw(st.lists(st.sampled_from("gggccrassttttteefnq"), max_size=80)):
        match action:
            case "g":
                execute(
                    talk.generate(data.draw(ids), temperature=data.draw(st.sampled_from([1, 9])))
                )
            case "c":
                execute(talk.say(type="cancel", id=data.draw(ids)))
            case "r":
                generation_id = data.draw(st.sampled_from([*logs, "gen_x"]))
                fields = {"id": data.draw(ids), "generation_id": generation_id, "after": -1}
                execute(talk.say(type="resume", **fields))
            case "a" | "f" if submitted:
                finish(data.draw(st.sampled_from(submitted)), is_accepted=action == "a")
            case "s" | "t" | "e" | "q" if logs:
                how = {"e": "end", "q": "wait"}.get(action, "go")
                advance(data.draw(st.sampled_from(list(logs.values()))), how)
            case "n":
                talk.now += data.draw(st.floats(0, 2))
                talk.core.handle_timeout(now=talk.now)
            case _:
                for stream_id in tuple(talk.readers):
                    talk.read(stream_id)
                talk.new_frames()

    for stream_id in tuple(submitted):
        finish(stream_id, is_accepted=True)
    for log in logs.values():
        advance(log, "end")
    for stream_id in tuple(talk.readers):
        talk.read(stream_id)
    talk.new_frames()
    assert_conversation(talk.frames)
    _assert_whole_texts(talk.frames, texts)


def _assert_whole_texts(frames: list[Frame], logs: dict[str, Generation]) -> None:
    """Assert that each stream that is done has the whole text of its log."""
    open_streams: dict[str, tuple[str, str]] = {}
    for frame in frames:
        match frame:
            case {"type": "accepted", "id": stream_id, "generation_id": generation_id}:
                open_streams[stream_id] = (generation_id, "")
            case {"type": "delta", "id": stream_id, "text": text}:
                generation_id, shown = open_streams[stream_id]
                open_streams[stream_id] = (generation_id, shown + text)
            case {"type": "done", "id": stream_id}:
                generation_id, shown = open_streams.pop(stream_id)
                assert shown == logs[generation_id].text
    assert open_streams == {}
