"""Describes `WS /v1/responses` for the AsyncAPI document, with examples made by the real code."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from app.asyncapi.channel import Channel, Example, Message
from app.responses.protocol.events import error_event, expiring_event, steer_failed_event
from app.responses.refusals import previous_not_found
from app.responses.schemas.events import RESPONSE_EVENTS
from app.responses.schemas.objects import EventObject
from app.responses.schemas.request import ResponseRequest
from app.responses.schemas.socket import (
    CREATE,
    RESUME,
    CancelResponseMessage,
    ResumeResponseMessage,
    SteerMessage,
)
from app.responses.schemas.socket_events import (
    ConnectionExpiringEvent,
    ResponsesErrorEvent,
    SteerFailedEvent,
)
from app.responses.snapshot import ResponseHead
from app.responses.writer import ResponseWriter
from streaming import (
    Failed,
    Finished,
    FinishReason,
    Generation,
    OutputFormat,
    ReasoningSyntax,
    Token,
    ToolSyntax,
)
from streaming.errors import EngineFailure

_DESCRIPTION = """\
OpenAI's Responses dialect, with the events of its event streams as frames. A `response.create`
begins a turn. Several turns may be open at once, each on the stream that its `stream_id` names.

* The turns of a stream run in order, one at a time; the turns of several streams run concurrently.
  Events of a named stream have its `stream_id`. Without `stream_id`, a turn is on the default
  stream.
* A turn has exactly one ending: `response.completed`, `response.incomplete` or `response.failed`,
  or an `error` if it has no response.
* `sequence_number` starts at 0 for each response, without gaps. It is the cursor.
* A response with `store: false` can be continued only on its connection, and only while it is the
  newest of its stream.
* A lost connection does not cancel its responses. Resume them with `tokenwire.response.resume`, or
  in the handshake with the query parameters `resume`, `starting_after` and `stream_id`: the events
  after the cursor are replayed, then the new ones are sent. Events that are not OpenAI's are sent
  only with `tokenwire_events=true`.

A handshake can be refused with the HTTP status 401 (key), 403 (origin or host), 404, 429 (too many
sockets) or 503, each with an error as JSON.
"""
_CLOSE_CODES = {
    1001: "The server is shutting down, or the connection has reached its maximum age; reconnect "
    "and resume.",
    1008: "The client read nothing for too long; resume from the cursor.",
    1009: "A message was too big.",
    1011: "The server failed.",
    1013: "The server is full and a caller with fewer sockets connected; resume later.",
}
_HEADERS: dict[str, Any] = {
    "type": "object",
    "properties": {"Authorization": {"type": "string", "examples": ["Bearer KEY"]}},
}
_QUERY: dict[str, Any] = {
    "type": "object",
    "properties": {
        "resume": {
            "type": "string",
            "description": "The id of a response to resume; may be repeated.",
        },
        "starting_after": {
            "type": "integer",
            "description": "Its newest `sequence_number` that the client has, once for each.",
        },
        "stream_id": {
            "type": "string",
            "description": "The stream for its events, once for each; if empty or left out, "
            "the default stream.",
        },
        "tokenwire_events": {
            "type": "boolean",
            "description": "`true` to receive events that are not OpenAI's.",
        },
    },
}

_KEY = "5f1c8c0b7b6d4e2f9a3c1d205f1c8c0b"
_TOOL = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather in a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    },
}
_SYNTAX = OutputFormat(
    tools=ToolSyntax(call_begin="<call>", call_middle=" ", call_end="</call>", trigger="<call>"),
    reasoning=ReasoningSyntax(begin="<think>", end="</think>"),
)
_TEXTS = ("<think>", "Easy.", "</think>", "Paris", "<call>get_weather ", "{}", "</call>")


class ResponseCreateMessage(ResponseRequest):
    """Begin a turn: the fields of `POST /v1/responses`, and a stream."""

    type: Literal["response.create"]
    stream_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,256}$")] | None = Field(
        None, description="The stream; null is the default stream."
    )
    background: Literal[False] | None = Field(
        False,
        description="Not supported here: a response of a socket outlives a lost connection anyway.",
    )
    stream: bool | None = Field(None, description="No effect: a socket always streams.")


def responses_channel() -> Channel:
    """Return the description of `WS /v1/responses`."""
    turn = (*RESPONSE_EVENTS, "error")
    return Channel(
        name="responses",
        address="/v1/responses",
        title="Responses",
        summary="For OpenAI's clients: conversations on concurrent streams, with tools.",
        description=_DESCRIPTION,
        security=("bearer", "subprotocol"),
        headers=_HEADERS,
        query=_QUERY,
        received=_received(),
        sent=_sent(),
        replies={
            CREATE: turn,
            RESUME: turn,
            "response.cancel": ("response.incomplete", "error"),
            "response.steer": ("response.steer.failed", "error"),
        },
        unsolicited=("tokenwire:connection.expiring", "error"),
        close_codes=_CLOSE_CODES,
    )


def _received() -> tuple[Message, ...]:
    response_id = f"resp_{_KEY}"
    call = {"type": "function_call_output", "call_id": f"call_{_KEY}_0", "output": "Sunny."}
    creates: dict[str, dict[str, Any]] = {
        "question": {"input": "What is the capital of France?", "max_output_tokens": 32},
        "continue": {"input": "And of Italy?", "previous_response_id": response_id, "store": False},
        "stream": {"input": "Tell me a story.", "stream_id": "story", "max_output_tokens": 64},
        "tools": {"input": "What is the weather in Paris?", "tools": [_TOOL]},
        "tool output": {"input": [call], "previous_response_id": response_id, "tools": [_TOOL]},
        "warm up": {"instructions": "Be brief.", "generate": False},
    }
    return (
        Message(
            CREATE,
            TypeAdapter(ResponseCreateMessage),
            tuple(Example(name, {"type": CREATE, **rest}) for name, rest in creates.items()),
        ),
        Message(
            "response.cancel",
            TypeAdapter(CancelResponseMessage),
            (
                Example("response", {"type": "response.cancel", "response_id": response_id}),
                Example("stream", {"type": "response.cancel", "stream_id": "story"}),
            ),
        ),
        Message(
            RESUME,
            TypeAdapter(ResumeResponseMessage),
            (Example("resume", {"type": RESUME, "response_id": response_id, "starting_after": 5}),),
        ),
        Message(
            "response.steer",
            TypeAdapter(SteerMessage),
            (
                Example(
                    "steer",
                    {
                        "type": "response.steer",
                        "previous_response_id": response_id,
                        "input": "Make it short.",
                    },
                ),
            ),
        ),
    )


def _sent() -> tuple[Message, ...]:
    shown = _examples()
    not_found = previous_not_found(f"resp_{_KEY}").info
    steered = steer_failed_event(
        f"resp_{_KEY}", "Make it short.", sequence_number=5, stream_id=None
    )
    return (
        *(
            Message(kind, TypeAdapter(event), (Example("event", shown[kind]),))
            for kind, event in RESPONSE_EVENTS.items()
        ),
        Message(
            "error",
            TypeAdapter(ResponsesErrorEvent),
            (Example("turn", error_event(not_found, "story")),),
        ),
        Message(
            "response.steer.failed", TypeAdapter(SteerFailedEvent), (Example("event", steered),)
        ),
        Message(
            "tokenwire:connection.expiring",
            TypeAdapter(ConnectionExpiringEvent),
            (Example("event", expiring_event(60)),),
        ),
    )


def _examples() -> dict[str, EventObject]:
    """Return an event of each type, written from logs made here."""
    queued = _written(finish=Finished(FinishReason.STOP, at=0.1), is_background=True)
    failed = _written("Paris", finish=Failed(EngineFailure(), at=0.3))
    cut = _written("Paris", finish=Finished(FinishReason.LENGTH, at=0.3))
    completed = _written(*_TEXTS, finish=Finished(FinishReason.STOP, at=0.4))
    return {event["type"]: event for event in (*queued, *failed, *cut, *completed)}


def _written(
    *texts: str, finish: Finished | Failed, is_background: bool = False
) -> list[EventObject]:
    generation = Generation(
        generation_id="gen_example",
        caller="",
        model="SmolLM2-135M-Instruct",
        created_at=1_795_500_000.0,
        submitted_at=0.0,
        prompt_tokens=36,
        output_format=_SYNTAX,
    )
    head = ResponseHead(
        key=_KEY,
        echo=ResponseRequest(input="What is the capital of France?").echo(),
        token_text=str,
        token_bytes=lambda _: None,
        is_background=is_background,
    )
    writer = ResponseWriter(head, generation)
    generation.start(cached_tokens=0, at=0.1)
    for token_id, text in enumerate(texts):
        generation.append(Token(token_id, text, at=0.2))
    generation.end(finish)
    return list(writer.events())
