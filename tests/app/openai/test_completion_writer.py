from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from app.openai.choice_writer import split_events
from app.openai.completion_writer import CompletionWriter
from app.openai.schemas.completions import CompletionRequest
from streaming import AsyncEngine, Event
from streaming.backends.scripted import say, scripted_backend
from tests.support import collect, running_engine


async def finished(
    engine: AsyncEngine, **fields: Any
) -> tuple[CompletionWriter, list[list[Event]]]:
    """Return the writer of a request, and the events of each choice as one reader gets them."""
    body = CompletionRequest.model_validate(fields)
    generations = await engine.submit_all(body.to_requests(caller="me", max_choices=8))
    events = []
    for generation in generations:
        await collect(engine, generation)
        with engine.subscribe(generation, include_empty_deltas=True) as reader:
            events.append(reader.read())
    return CompletionWriter(body, engine, generations), events


def choices_of(chunks: Iterable[str]) -> list[dict[str, Any]]:
    return [json.loads(chunk)["choices"][0] for chunk in chunks]


async def test_the_opening_is_the_prompt_of_each_choice():
    async with running_engine(scripted_backend(say("!"), max_num_seqs=4)) as engine:
        echo, _ = await finished(engine, prompt=["ab", "c"], n=2, echo=True)
        plain, _ = await finished(engine, prompt="ab")
    assert [(each["index"], each["text"]) for each in choices_of(echo.opening())] == [
        *[(0, "ab"), (1, "ab")],
        *[(2, "c"), (3, "c")],
    ]
    assert list(plain.opening()) == []


async def test_a_scored_prompt_is_sent_once_and_before_the_text():
    async with running_engine(scripted_backend(say("xyz"))) as engine:
        writer, [events] = await finished(engine, prompt="ab", echo=True, logprobs=0)
        opening = list(writer.opening())
        first = choices_of(writer.chunks(0, events))
        again = choices_of(writer.chunks(0, events))
    assert opening == []
    assert [each["text"] for each in first] == ["ab", "xyz"]
    assert [each["text"] for each in again] == ["xyz"]


async def test_text_offsets_go_on_from_chunk_to_chunk():
    async with running_engine(scripted_backend(say("x" * 300))) as engine:
        writer, [events] = await finished(engine, prompt="a", logprobs=0, max_tokens=300)
        parts = list(split_events(events))
        choices = [each for part in parts for each in choices_of(writer.chunks(0, part))]
        whole = json.loads(writer.whole())
    assert len(parts) == 2
    offsets = [offset for each in choices for offset in each["logprobs"]["text_offset"]]
    assert offsets == list(range(300))
    assert whole["usage"]["completion_tokens"] == 300


async def test_alternatives_with_the_same_text_report_the_highest_probability():
    """Two bytes of one character have the same text, the replacement character."""
    async with running_engine(scripted_backend(say("é"))) as engine:
        writer, _ = await finished(engine, prompt="a", logprobs=2, max_tokens=1)
        [choice] = json.loads(writer.whole())["choices"]
    assert choice["logprobs"]["top_logprobs"] == [{"\ufffd": -0.5}]


async def test_a_prompt_alone_hides_the_token_that_scored_it():
    async with running_engine(scripted_backend(say("xyz"))) as engine:
        writer, [events] = await finished(
            engine, prompt="ab", echo=True, max_tokens=0, return_token_ids=True
        )
        [choice] = choices_of(writer.chunks(0, events))
        whole = json.loads(writer.whole())
    assert (choice["text"], choice["token_ids"], choice["finish_reason"]) == ("", [], "length")
    assert whole["choices"][0]["text"] == "ab"
    assert whole["usage"]["completion_tokens"] == 0
