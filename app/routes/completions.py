"""`POST /v1/completions`: the batch caller's route, and its stream."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Request, Response

from app.completion_writer import CompletionWriter
from app.dependencies import CallerDependency, ServicesDependency, bearer_scheme
from app.disconnect import run_while_connected
from app.errors import ErrorInfo
from app.event_stream import DONE, PING, EventStream, to_message
from app.json_route import JSONRoute
from app.reader_group import ReaderGroup, failure
from app.schemas.completions import Completion, CompletionRequest
from app.schemas.error import error_responses
from app.schemas.event_stream import event_stream
from streaming import AsyncEngine, Generation, GenerationRequest

router = APIRouter(
    prefix="/v1",
    tags=["completions"],
    dependencies=[Depends(bearer_scheme)],
    route_class=JSONRoute,
)

EXAMPLES: dict[str, Any] = {
    "text": {
        "summary": "One prompt",
        "value": {"prompt": "The capital of France is", "max_tokens": 16, "temperature": 0},
    },
    "batch": {
        "summary": "A list of prompts, two choices each",
        "value": {
            "prompt": ["The capital of France is", "The capital of Italy is"],
            "n": 2,
            "max_tokens": 8,
            "temperature": 0.7,
            "seed": 7,
        },
    },
    "token_ids": {
        "summary": "Token ids, with log probabilities",
        "value": {"prompt": [72, 101, 108, 108, 111], "max_tokens": 8, "logprobs": 2},
    },
    "stream": {
        "summary": "A stream that ends with its usage",
        "value": {
            "prompt": "Once upon a time",
            "max_tokens": 32,
            "stop": ["\n\n"],
            "stream": True,
            "stream_options": {"include_usage": True},
        },
    },
}

_SUCCESS = {
    "description": "The completion; with `stream`, Server-Sent Events: one chunk of the same form "
    "each, and `data: [DONE]` last.",
    "content": event_stream(Completion.__name__),
}
_ERRORS = error_responses(
    "invalid_json",
    "unauthorized",
    "forbidden_origin",
    "model_not_found",
    "prompt_too_long",
    "message_too_big",
    "unsupported_media_type",
    "invalid_request",
    "engine_error",
    "internal_error",
    "overloaded",
    "shutting_down",
    "timeout",
)


@router.post("/completions", response_model=Completion, responses={200: _SUCCESS, **_ERRORS})
async def create_completion(
    body: Annotated[CompletionRequest, Body(openapi_examples=EXAMPLES)],
    request: Request,
    caller: CallerDependency,
    services: ServicesDependency,
) -> Response:
    """Continue prompts.

    A list of prompts comes back in order, `n` choices for each. All are admitted, or none is. When
    the caller leaves, everything stops.
    """
    engine, settings = services.engine, services.settings
    # A batch that could never be queued whole would be told to try again for ever.
    max_choices = min(settings.max_choices, settings.max_waiting_requests)
    requests = body.to_requests(owner=caller, max_choices=max_choices)
    if not body.stream:
        return await run_while_connected(request.receive, _complete(body, engine, requests))
    generations = await engine.submit_all(requests)
    return EventStream(
        _stream(body, engine, generations, ping_interval_s=settings.ping_interval_s),
        stall_timeout_s=settings.stall_timeout_s,
    )


async def _complete(
    body: CompletionRequest, engine: AsyncEngine, requests: Sequence[GenerationRequest]
) -> Response:
    generations = await engine.submit_all(requests)
    with ReaderGroup(engine, generations) as readers:
        await readers.wait_ended()
    completion = CompletionWriter(body, engine, generations).whole()
    return Response(completion.model_dump_json(), media_type="application/json")


@contextmanager
def _stream(
    body: CompletionRequest,
    engine: AsyncEngine,
    generations: Sequence[Generation],
    *,
    ping_interval_s: float,
) -> Iterator[AsyncGenerator[bytes, None]]:
    writer = CompletionWriter(body, engine, generations)
    with ReaderGroup(engine, generations, every_token=body.logprobs is not None) as readers:
        yield _messages(writer, readers, ping_interval_s=ping_interval_s)


async def _messages(
    writer: CompletionWriter, readers: ReaderGroup, *, ping_interval_s: float
) -> AsyncGenerator[bytes, None]:
    for echo in writer.echo_chunks():
        yield to_message(echo)
    while not readers.is_done:
        if not await readers.wait(timeout_s=ping_interval_s):
            yield PING
        for index, events in readers.read():
            if chunk := writer.chunk(index, events):
                yield to_message(chunk)
            if (error := failure(events)) is not None:
                yield to_message(json.dumps(ErrorInfo.of(error).to_openai()))
                yield DONE
                return
    if usage := writer.usage_chunk():
        yield to_message(usage)
    yield DONE
