"""Answers `/v1/completions` and `/v1/chat/completions`, as one JSON body or as an event stream.

The routes pass their requests and a writer, which turns the generations into JSON.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import contextmanager

from fastapi import Request, Response

from app.dependencies import Services
from app.errors import ErrorInfo
from app.http.disconnect import run_while_connected
from app.http.event_stream import DONE, EventStream, to_message
from app.openai.choice_writer import ChoiceWriter, split_events
from app.openai.reader_group import ReaderGroup, error_of
from streaming import AsyncEngine, Generation, GenerationRequest

MakeWriter = Callable[[AsyncEngine, Sequence[Generation]], ChoiceWriter]


async def answer(
    request: Request,
    services: Services,
    requests: Sequence[GenerationRequest],
    make_writer: MakeWriter,
    *,
    stream: bool,
) -> Response:
    """Submit all requests at once and return the response that reports their generations.

    The engine admits all of them or none. When the client disconnects, all of them are cancelled.

    Raises:
        StreamingError: the engine refuses the requests.
        RequestRefused: a generation failed, and the response is not a stream.
    """
    engine, settings = services.engine, services.settings
    if not stream:
        body = _json_response(engine, requests, make_writer)
        return await run_while_connected(request.receive, body)
    generations = await engine.submit_all(requests)
    return EventStream(
        _subscribe(engine, generations, make_writer(engine, generations)),
        stall_timeout_s=settings.stall_timeout_s,
        keep_alive_s=settings.sse_keep_alive_s,
    )


async def _json_response(
    engine: AsyncEngine, requests: Sequence[GenerationRequest], make_writer: MakeWriter
) -> Response:
    generations = await engine.submit_all(requests)
    with ReaderGroup(engine, generations) as readers:
        await readers.wait_ended()
    # Serializing a long answer with log probabilities would block the event loop.
    content = await asyncio.to_thread(make_writer(engine, generations).whole)
    return Response(content, media_type="application/json")


@contextmanager
def _subscribe(
    engine: AsyncEngine,
    generations: Sequence[Generation],
    writer: ChoiceWriter,
) -> Iterator[AsyncGenerator[bytes, None]]:
    with ReaderGroup(
        engine, generations, include_empty_deltas=writer.include_empty_deltas
    ) as readers:
        yield _messages(writer, readers)


async def _messages(writer: ChoiceWriter, readers: ReaderGroup) -> AsyncGenerator[bytes, None]:
    for chunk in writer.opening():
        yield to_message(chunk)
    while not readers.is_done:
        await readers.wait()
        for index, events in readers.read():
            for part in split_events(events):
                for chunk in writer.chunks(index, part):
                    yield to_message(chunk)
            if (error := error_of(events)) is not None:
                yield to_message(json.dumps(ErrorInfo.of(error).to_openai()))
                yield DONE
                return
    for chunk in writer.closing():
        yield to_message(chunk)
    yield DONE
