"""The routes of `/v1/responses`: create, retrieve, cancel and delete responses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Depends, Path, Query, Request, Response
from openresponses_types import CompactResource

from app.dependencies import CallerDependency, Services, ServicesDependency, bearer_scheme
from app.errors import ErrorInfo, RequestRefused
from app.http.disconnect import run_while_connected
from app.http.event_stream import DONE, EventStream, to_event_message
from app.http.json_route import JSONRoute
from app.json.json_text import to_json_soon
from app.responses.refusals import stream_expired
from app.responses.registry import ResponseRegistry
from app.responses.response import LiveResponse
from app.responses.response_reader import ResponseReader
from app.responses.schemas.events import ResponseBody, ResponseEvent
from app.responses.schemas.request import (
    MAX_LABEL_CHARS,
    CompactRequest,
    InputTokens,
    ResponseRequest,
)
from app.responses.service import ResponseService
from app.schemas.error import GENERATION_ERRORS, error_responses
from app.schemas.event_stream import event_stream
from streaming import Failed
from streaming.errors import InvalidRequest

router = APIRouter(
    prefix="/v1/responses",
    tags=["responses"],
    dependencies=[Depends(bearer_scheme)],
    route_class=JSONRoute,
)

EXAMPLES: dict[str, Any] = {
    "text": {
        "summary": "A question",
        "value": {"input": "What is the capital of France?", "max_output_tokens": 32},
    },
    "items": {
        "summary": "A conversation, with instructions and a seed",
        "value": {
            "instructions": "Answer in one word.",
            "input": [
                {"role": "user", "content": "The capital of France?"},
                {"role": "assistant", "content": "Paris."},
                {"role": "user", "content": "And of Italy?"},
            ],
            "temperature": 0.2,
            "seed": 7,
            "max_output_tokens": 16,
        },
    },
    "tools": {
        "summary": "A function that the model may call",
        "value": {
            "input": "How warm is it in Rome?",
            "tools": [
                {
                    "type": "function",
                    "name": "get_temperature",
                    "description": "The temperature in a city, in degrees Celsius.",
                    "parameters": {
                        "type": "object",
                        "properties": {"city": {"type": "string"}},
                        "required": ["city"],
                    },
                }
            ],
            "max_output_tokens": 64,
        },
    },
    "stream": {
        "summary": "A stream of events",
        "value": {"input": "Tell me a story.", "max_output_tokens": 64, "stream": True},
    },
    "background": {
        "summary": "In the background, to be retrieved later",
        "value": {"input": "Tell me a story.", "max_output_tokens": 64, "background": True},
    },
}

_MODEL: dict[str, Any] = {"model": ResponseBody}
_CREATED = {
    **_MODEL,
    "description": "The response; with `stream`, Server-Sent Events, and `data: [DONE]` last.",
    "content": event_stream(ResponseEvent),
}
_PROMPT_ERRORS = (
    *GENERATION_ERRORS,
    "previous_response_not_found",
    "store_unavailable",
    "unsupported_content",
)
_FIND_ERRORS = error_responses(
    "rate_limited",
    "unauthorized",
    "forbidden_origin",
    "response_not_found",
    "invalid_request",
    "internal_error",
    "store_unavailable",
)

ResponseId = Annotated[str, Path(max_length=MAX_LABEL_CHARS)]


@router.post("", response_model=None, responses={200: _CREATED, **error_responses(*_PROMPT_ERRORS)})
async def create_response(
    body: Annotated[ResponseRequest, Body(openapi_examples=EXAMPLES)],
    request: Request,
    caller: CallerDependency,
    services: ServicesDependency,
) -> Response:
    """Create a response.

    Unless `background` is set, it is cancelled when the client disconnects.
    """
    service = services.responses
    if not body.stream:
        return await run_while_connected(request.receive, _complete(service, body, caller))
    response = await service.create(body, caller=caller)
    return _event_stream(services, response, keeps_alive=True)


@router.post(
    "/input_tokens", response_model=InputTokens, responses=error_responses(*_PROMPT_ERRORS)
)
async def count_input_tokens(
    body: ResponseRequest, caller: CallerDependency, services: ServicesDependency
) -> InputTokens:
    """Count the tokens in the prompt of a request, without creating a response."""
    num_tokens = await services.responses.count_input_tokens(body, caller=caller)
    return InputTokens(input_tokens=num_tokens)


@router.post(
    "/compact",
    response_model=None,
    responses={200: {"model": CompactResource}, **error_responses(*_PROMPT_ERRORS)},
)
async def compact(
    body: CompactRequest, request: Request, caller: CallerDependency, services: ServicesDependency
) -> Response:
    """Summarize a conversation, to continue it with a shorter prompt.

    The `output` is the input of the next request: the user's messages unchanged, then a compaction
    item. The model will read only that item. Nothing is stored. The request is cancelled when the
    client disconnects.
    """
    work = services.responses.compact(body, caller=caller)
    return await _to_json(await run_while_connected(request.receive, work))


@router.get(
    "/{response_id}",
    response_model=None,
    responses={200: _CREATED, **_FIND_ERRORS, **error_responses("stream_expired")},
)
async def get_response(
    response_id: ResponseId,
    caller: CallerDependency,
    services: ServicesDependency,
    stream: Annotated[
        bool,
        Query(
            description="Replay its events, then stream the new ones. Only while it is in memory."
        ),
    ] = False,
    starting_after: Annotated[
        int | None,
        Query(ge=-1, description="`sequence_number` to start after; only with `stream`."),
    ] = None,
) -> Response:
    """Retrieve a response as it stands, or stream its events."""
    if starting_after is not None and not stream:
        raise InvalidRequest(param="starting_after", reason="requires stream=true")
    registry = services.responses.registry
    response = await registry.find(response_id, caller=caller)
    if not stream:
        return await _to_json(await registry.snapshot(response))
    if not isinstance(response, LiveResponse):
        raise stream_expired()
    after = -1 if starting_after is None else starting_after
    return _event_stream(services, response, keeps_alive=False, after=after)


@router.delete("/{response_id}", response_model=None, responses=_FIND_ERRORS)
async def delete_response(
    response_id: ResponseId, caller: CallerDependency, services: ServicesDependency
) -> Response:
    """Delete a response; an open one is cancelled.

    Responses that continue it keep their context.
    """
    await services.responses.registry.delete(response_id, caller=caller)
    return await _to_json({"id": response_id, "object": "response", "deleted": True})


@router.post("/{response_id}/cancel", response_model=None, responses={200: _MODEL, **_FIND_ERRORS})
async def cancel_response(
    response_id: ResponseId, caller: CallerDependency, services: ServicesDependency
) -> Response:
    """Cancel a background response and return it; an ended one is returned unchanged."""
    registry = services.responses.registry
    response = await registry.cancel(response_id, caller=caller)
    return await _to_json(await registry.snapshot(response))


@router.get("/{response_id}/input_items", response_model=None, responses=_FIND_ERRORS)
async def list_input_items(
    response_id: ResponseId,
    caller: CallerDependency,
    services: ServicesDependency,
    order: Annotated[
        Literal["asc", "desc"], Query(description="The order of the input, or the reverse.")
    ] = "desc",
    limit: Annotated[int, Query(ge=1, le=100, description="Maximum number of items.")] = 20,
    after: Annotated[
        str | None, Query(max_length=MAX_LABEL_CHARS, description="The id of the last item seen.")
    ] = None,
) -> Response:
    """List the input of a response, without the context that it continues."""
    response = await services.responses.registry.find(response_id, caller=caller)
    own = response.context.own
    items = own if order == "asc" else own[::-1]
    start = 0
    if after is not None:
        ids = [item["id"] for item in items]
        if after not in ids:
            raise InvalidRequest(param="after", reason="is not an item of this response")
        start = len(ids) - ids[::-1].index(after)  # the last one, if a client used an id twice
    page = items[start : start + limit]
    return await _to_json(
        {
            "object": "list",
            "data": page,
            "first_id": page[0]["id"] if page else None,
            "last_id": page[-1]["id"] if page else None,
            "has_more": start + limit < len(items),
        }
    )


async def _complete(service: ResponseService, body: ResponseRequest, caller: str) -> Response:
    response = await service.create(body, caller=caller)
    registry = service.registry
    if not response.is_background:
        with registry.subscribe(response, on_wake=lambda: None):
            await registry.wait_ended(response)
        outcome = response.generation.outcome
        if isinstance(outcome, Failed):
            raise RequestRefused(ErrorInfo.of(outcome.error))
    return await _to_json(await registry.snapshot(response))


def _event_stream(
    services: Services, response: LiveResponse, *, keeps_alive: bool, after: int = -1
) -> EventStream:
    return EventStream(
        _stream(services.responses.registry, response, keeps_alive=keeps_alive, after=after),
        stall_timeout_s=services.settings.stall_timeout_s,
        keep_alive_s=services.settings.sse_keep_alive_s,
    )


@contextmanager
def _stream(
    registry: ResponseRegistry, response: LiveResponse, *, keeps_alive: bool, after: int
) -> Iterator[AsyncGenerator[bytes, None]]:
    woken = asyncio.Event()
    subscribe = registry.subscribe if keeps_alive else registry.observe
    with subscribe(response, on_wake=woken.set):
        reader = ResponseReader(response.writer(after=after), on_wake=woken.set)
        yield _messages(reader, woken, skips=after >= 0)


async def _messages(
    reader: ResponseReader, woken: asyncio.Event, *, skips: bool
) -> AsyncGenerator[bytes, None]:
    if skips:
        await asyncio.to_thread(reader.skip)
    while True:
        woken.clear()
        for event in reader.read():
            yield to_event_message(event["type"], await to_json_soon(event))
        if reader.is_done:
            yield DONE
            return
        if woken.is_set():
            await asyncio.sleep(0)  # let other tasks run between two chunks of a replay
        await woken.wait()


async def _to_json(fields: Mapping[str, Any]) -> Response:
    return Response(await to_json_soon(fields), media_type="application/json")
