"""`POST /v1/chat/completions`."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Request, Response

from app.dependencies import CallerDependency, ServicesDependency, bearer_scheme
from app.http.json_route import JSONRoute
from app.openai.answer import answer
from app.openai.chat_writer import ChatWriter
from app.openai.schemas.chat import ChatCompletion, ChatCompletionChunk, ChatRequest
from app.schemas.error import GENERATION_ERRORS, error_responses
from app.schemas.event_stream import event_stream

router = APIRouter(
    prefix="/v1",
    tags=["chat"],
    dependencies=[Depends(bearer_scheme)],
    route_class=JSONRoute,
)

_QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
_WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}

EXAMPLES: dict[str, Any] = {
    "question": {
        "summary": "A question",
        "value": {
            "messages": [{"role": "system", "content": "You are brief."}, *_QUESTION],
            "max_completion_tokens": 64,
            "temperature": 0,
        },
    },
    "stream": {
        "summary": "A stream with usage",
        "value": {
            "messages": _QUESTION,
            "max_completion_tokens": 64,
            "stream": True,
            "stream_options": {"include_usage": True},
        },
    },
    "tools": {
        "summary": "A tool that the model may call",
        "value": {
            "messages": [{"role": "user", "content": "What is the weather in Paris?"}],
            "tools": [_WEATHER],
            "tool_choice": "auto",
            "max_completion_tokens": 128,
        },
    },
    "tool_result": {
        "summary": "The result of a tool call",
        "value": {
            "messages": [
                {"role": "user", "content": "What is the weather in Paris?"},
                {
                    "role": "assistant",
                    "tool_calls": [
                        {
                            "id": "call_1",
                            "type": "function",
                            "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'},
                        }
                    ],
                },
                {"role": "tool", "tool_call_id": "call_1", "content": "Sunny, 21 degrees."},
            ],
            "tools": [_WEATHER],
            "max_completion_tokens": 64,
        },
    },
    "logprobs": {
        "summary": "Two choices with log probabilities",
        "value": {
            "messages": _QUESTION,
            "n": 2,
            "seed": 7,
            "max_completion_tokens": 8,
            "logprobs": True,
            "top_logprobs": 2,
        },
    },
}

_SUCCESS = {
    "description": "The answer. With `stream`, Server-Sent Events: each carries one "
    "`chat.completion.chunk`, and the last is `data: [DONE]`.",
    "content": event_stream(ChatCompletionChunk),
}


@router.post(
    "/chat/completions",
    response_model=ChatCompletion,
    responses={200: _SUCCESS, **error_responses(*GENERATION_ERRORS)},
)
async def create_chat_completion(
    body: Annotated[ChatRequest, Body(openapi_examples=EXAMPLES)],
    request: Request,
    caller: CallerDependency,
    services: ServicesDependency,
) -> Response:
    """Answer a conversation.

    The server admits all `n` choices or none. It stops generating when the client disconnects.
    """
    return await answer(
        request,
        services,
        body.to_requests(caller=caller, max_choices=services.settings.max_choices_at_once),
        partial(ChatWriter, body),
        stream=bool(body.stream),
    )
