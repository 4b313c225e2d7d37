"""Describes `WS /v1/stream` for the AsyncAPI document.

The example frames are built by the functions of `app.stream.frames`.
"""

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
One socket carries many generations, each as a stream with its own `id`.

* The frames of one id are `accepted`, `queued` (any number), `started`, `delta` (any number), then
  exactly one `done` or `error`. After that the id is free again.
* `seq` is the cursor. It always increases, also across a resume: the text before and after it
  joins without gap or overlap.
* A dropped connection does not cancel. The generation runs on for a grace period, and `resume` on
  any socket of the same caller continues from the cursor; `after` -1 replays from the beginning.
* Unknown fields are errors. An `error` leaves the socket open, unless the error table lists a
  close code for it.

The server refuses a handshake with HTTP status 401 (API key), 403 (origin or host), 404, 426 (no
upgrade), 429 (too many sockets) or 503, each with a JSON error.
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
    1001: "The server is shutting down; all streams have ended or can be resumed elsewhere.",
    1008: "You received nothing for too long; resume from your cursor.",
    1009: "Your message was too large.",
    1011: "Internal server error.",
    1013: "Closed to make room for another caller; resume later, or on another socket.",
}


def stream_channel() -> Channel:
    """Return the description of `WS /v1/stream`."""
    all_frames = ("accepted", "queued", "started", "delta", "done", "error")
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
        replies={"generate": all_frames, "cancel": ("done", "error"), "resume": all_frames},
        unsolicited=("error",),
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
        _sent_message("accepted", AcceptedFrame, accepted=accepted_frame("story", generation)),
        _sent_message("queued", QueuedFrame, queued=queued_frame("story", Queued(2, 1.5))),
        _sent_message(
            "started", StartedFrame, started=started_frame("story", Started(5, 0, at=0.004))
        ),
        _sent_message("delta", DeltaFrame, text=plain, detailed=detailed),
        _sent_message("done", DoneFrame, stop=ended_frame("story", Ended(1, finished), generation)),
        _sent_message(
            "error",
            ErrorFrame,
            stream=error_frame(refused, "story"),
            connection=error_frame(limited, None),
        ),
    )


def _sent_message(name: str, frame_type: Any, **examples: Any) -> Message:
    return Message(
        name,
        TypeAdapter(frame_type),
        tuple(Example(example, payload) for example, payload in examples.items()),
    )


def _generation() -> Generation:
    return Generation(
        generation_id="gen_Jv6KkNbZ3q0cT1mXw8sYdA0fQe5uRhL2",
        caller="",
        model="SmolLM2-135M-Instruct",
        created_at=1_795_500_000.0,
        submitted_at=0.0,
        prompt_tokens=5,
    )
