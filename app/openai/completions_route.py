"""`POST /v1/completions`, which takes one raw prompt or a batch of them."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Request, Response

from app.dependencies import CallerDependency, ServicesDependency, bearer_scheme
from app.http.json_route import JSONRoute
from app.openai.answer import answer
from app.openai.completion_writer import CompletionWriter
from app.openai.schemas.completions import Completion, CompletionRequest
from app.schemas.error import GENERATION_ERRORS, error_responses
from app.schemas.event_stream import event_stream

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
        "summary": "A batch of prompts, two choices each",
        "value": {
            "prompt": ["The capital of France is", "The capital of Italy is"],
            "n": 2,
            "max_tokens": 8,
            "temperature": 0.7,
            "seed": 7,
        },
    },
    "score": {
        "summary": "Log probabilities of a prompt",
        "value": {"prompt": "One and one is two.", "echo": True, "logprobs": 1, "max_tokens": 0},
    },
    "token_ids": {
        "summary": "Token ids with log probabilities",
        "value": {"prompt": [72, 101, 108, 108, 111], "max_tokens": 8, "logprobs": 2},
    },
    "stream": {
        "summary": "A stream with usage",
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
    "description": "The completion. With `stream`, Server-Sent Events: each carries a chunk in the "
    "same form, and the last is `data: [DONE]`.",
    "content": event_stream(Completion),
}


@router.post(
    "/completions",
    response_model=Completion,
    responses={200: _SUCCESS, **error_responses(*GENERATION_ERRORS)},
)
async def create_completion(
    body: Annotated[CompletionRequest, Body(openapi_examples=EXAMPLES)],
    request: Request,
    caller: CallerDependency,
    services: ServicesDependency,
) -> Response:
    """Complete one prompt or a batch of prompts.

    The answer has `n` choices for each prompt, in the order of the prompts. The server admits all
    of them or none. It stops generating when the client disconnects.
    """
    return await answer(
        request,
        services,
        body.to_requests(caller=caller, max_choices=services.settings.max_choices_at_once),
        partial(CompletionWriter, body),
        stream=bool(body.stream),
    )
