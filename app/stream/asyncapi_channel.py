"""`WS /v1/stream` for the AsyncAPI document, its answers made by the code that makes them."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from app.asyncapi.channel import Channel, Example, Message
from app.auth import SUBPROTOCOL
from app.errors import ErrorInfo
from app.stream.frames import (
    accepted_frame,
    delta_frames,
    ended_frame,
    error_frame,
    queued_frame,
    started_frame,
)
from app.stream.schemas.frames import (
    AcceptedFrame,
    DeltaFrame,
    DoneFrame,
    ErrorFrame,
    QueuedFrame,
    StartedFrame,
)
from app.stream.schemas.messages import CancelMessage, GenerateMessage, ResumeMessage
from streaming import (
    Delta,
    Ended,
    Finished,
    FinishReason,
    Generation,
    Logprob,
    Queued,
    Started,
    Token,
    TokenLogprobs,
)

_DESCRIPTION = """\
Many generations share one socket, each a stream that is told apart by its `id`.

* For one id the order is `accepted`, `queued` any number of times, `started`, `delta` any number
  of times, then exactly one `done` or `error`. After that the id is free again.
* `seq` is the cursor. It rises and never repeats, also across a resume: the text before and after
  it joins without gap or overlap.
* A dropped connection is no cancel. The generation goes on for a while, and `resume` on any socket
  of the same caller follows it from the cursor; `after` -1 replays it from its beginning.
* Unknown fields are errors. An `error` leaves the socket open, except where the table of errors
  gives it a close code.

A handshake can be refused with the HTTP status 401 (key), 403 (origin or host), 404, 426 (no
upgrade), 429 (too many sockets) or 503, each with an error as JSON.
"""

_HEADERS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "Authorization": {"type": "string", "examples": ["Bearer KEY"]},
        "Sec-WebSocket-Protocol": {
            "type": "string",
            "examples": [SUBPROTOCOL, f"{SUBPROTOCOL}, {SUBPROTOCOL.split('.')[0]}.key.S0VZ"],
        },
    },
}
_CLOSE_CODES = {
    1001: "The server goes away; every stream has had its ending or can be resumed elsewhere.",
    1008: "You took nothing for too long; resume from your cursor.",
    1009: "Your message was too big.",
    1011: "The server failed.",
    1013: "A caller with fewer sockets needed the place; resume later, or on another socket.",
}


def stream_channel() -> Channel:
    """Return the description of `WS /v1/stream`."""
    every = ("accepted", "queued", "started", "delta", "done", "error")
    return Channel(
        name="stream",
        address="/v1/stream",
        title="Native streams",
        summary="Raw prompts and chats, many at once, with cancel and resume.",
        description=_DESCRIPTION,
        security=("bearer", "subprotocol"),
        headers=_HEADERS,
        received=_received(),
        sent=_sent(),
        replies={"generate": every, "cancel": ("done", "error"), "resume": every},
        unasked=("error",),
        close_codes=_CLOSE_CODES,
    )


def _received() -> tuple[Message, ...]:
    return (
        Message(
            "generate",
            TypeAdapter(GenerateMessage),
            (
                Example(
                    "prompt",
                    {
                        "type": "generate",
                        "id": "story",
                        "prompt": "Once upon a time",
                        "max_tokens": 32,
                        "temperature": 0.7,
                    },
                ),
                Example(
                    "chat",
                    {
                        "type": "generate",
                        "id": "chat",
                        "messages": [{"role": "user", "content": "What is the capital of France?"}],
                        "temperature": 0,
                    },
                ),
                Example(
                    "logprobs",
                    {
                        "type": "generate",
                        "prompt": "The capital of France is",
                        "max_tokens": 4,
                        "logprobs": 1,
                        "return_token_ids": True,
                    },
                ),
            ),
        ),
        Message(
            "cancel",
            TypeAdapter(CancelMessage),
            (Example("cancel", {"type": "cancel", "id": "story"}),),
        ),
        Message(
            "resume",
            TypeAdapter(ResumeMessage),
            (
                Example(
                    "resume",
                    {
                        "type": "resume",
                        "id": "story",
                        "generation_id": _generation().generation_id,
                        "after": 11,
                    },
                ),
            ),
        ),
    )


def _sent() -> tuple[Message, ...]:
    generation = _generation()
    generation.start(cached_tokens=0, at=0.004)
    logprobs = TokenLogprobs(Logprob(7042, -0.21), (Logprob(7042, -0.21),))
    generation.append(Token(7042, " Paris", at=0.061, logprobs=logprobs))
    finished = Finished(FinishReason.STOP, at=0.083)
    generation.end(finished)
    [plain], [detailed] = (
        delta_frames(
            "story",
            Delta(0, generation.text, generation.tokens),
            return_token_ids=is_detailed,
            return_logprobs=is_detailed,
            token_text={7042: " Paris"}.__getitem__,
        )
        for is_detailed in (False, True)
    )
    refused = ErrorInfo(code="invalid_request", message="topp: unknown field", param="topp")
    limited = ErrorInfo(
        code="rate_limited",
        message="Too many messages; try again in 0.02 s.",
        retry_after_s=0.02,
    )
    return (
        _said("accepted", AcceptedFrame, accepted=accepted_frame("story", generation)),
        _said("queued", QueuedFrame, queued=queued_frame("story", Queued(2, 1.5))),
        _said("started", StartedFrame, started=started_frame("story", Started(5, 0, at=0.004))),
        _said("delta", DeltaFrame, text=plain, detailed=detailed),
        _said("done", DoneFrame, stop=ended_frame("story", Ended(1, finished), generation)),
        _said(
            "error",
            ErrorFrame,
            stream=error_frame(refused, "story"),
            connection=error_frame(limited, None),
        ),
    )


def _said(name: str, frame: Any, **examples: Any) -> Message:
    shown = tuple(Example(which, payload) for which, payload in examples.items())
    return Message(name, TypeAdapter(frame), shown)


def _generation() -> Generation:
    return Generation(
        generation_id="gen_Jv6KkNbZ3q0cT1mXw8sYdA0fQe5uRhL2",
        caller="",
        model="SmolLM2-135M-Instruct",
        created_at=1_795_500_000.0,
        submitted_at=0.0,
        prompt_tokens=5,
    )
