"""The answer of a route that serves choices: whole, or as a stream of chunks."""

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
from app.openai.choice_writer import ChoiceWriter, cut
from app.openai.reader_group import ReaderGroup, failure
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
    """Admit all requests or none, and answer with their logs; when the caller leaves, all stop.

    Raises:
        StreamingError: they are refused.
        RequestRefused: one has failed before the answer began.
    """
    engine, settings = services.engine, services.settings
    if not stream:
        work = _complete(engine, requests, make_writer)
        return await run_while_connected(request.receive, work)
    generations = await engine.submit_all(requests)
    return EventStream(
        _stream(engine, generations, make_writer(engine, generations)),
        stall_timeout_s=settings.stall_timeout_s,
        keep_alive_s=settings.sse_keep_alive_s,
    )


async def _complete(
    engine: AsyncEngine, requests: Sequence[GenerationRequest], make_writer: MakeWriter
) -> Response:
    generations = await engine.submit_all(requests)
    with ReaderGroup(engine, generations) as readers:
        await readers.wait_ended()
    # Long answers with log probabilities take a while to write.
    content = await asyncio.to_thread(make_writer(engine, generations).whole)
    return Response(content, media_type="application/json")


@contextmanager
def _stream(
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
            for part in cut(events):
                for chunk in writer.chunks(index, part):
                    yield to_message(chunk)
            if (error := failure(events)) is not None:
                yield to_message(json.dumps(ErrorInfo.of(error).to_openai()))
                yield DONE
                return
    for chunk in writer.closing():
        yield to_message(chunk)
    yield DONE
