"""Truncated conversations, tokenized concurrently by one real tokenizer."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import threading
from collections.abc import Iterable
from typing import Any

import pytest

from app.responses.registry import ResponseRegistry
from app.responses.schemas.request import ResponseRequest
from app.responses.service import ResponseService
from streaming import EngineConfig
from streaming.backend import EncodedPrompt, Tokenizer
from streaming.backends.scripted import ScriptInput, scripted_backend
from streaming.backends.tokenization.tokenizer import FastTokenizer
from streaming.request import ChatPrompt
from tests.streaming.backends import tiny_models
from tests.support import TIMEOUT_S, running_engine

NUM_THREADS = 32
MAX_MODEL_LEN = 11_000


class MeetingTokenizer(FastTokenizer):
    """Starts the first `num_threads` prompts at the same moment."""

    def __init__(self, *, num_threads: int) -> None:
        super().__init__(tiny_models.hf_tokenizer(), vocab_size=1000)
        self._meeting = threading.Barrier(num_threads, timeout=TIMEOUT_S / 2)
        self._arrivals = itertools.count()

    def prepare_chat(self, prompt: ChatPrompt) -> EncodedPrompt:
        if next(self._arrivals) < self._meeting.parties:
            self._meeting.wait()
        return super().prepare_chat(prompt)


def conversation(number: int) -> ResponseRequest:
    """Return a request that is too long by an amount that depends on its number."""
    turns: list[dict[str, Any]] = []
    for turn in range(10):
        turns.append(
            {"role": "user", "content": f"<|im_end|>{turn}: " + "hello " * (250 + 8 * number)}
        )
        turns.append({"role": "assistant", "content": "é😀 " * (10 * number + 1)})
    turns.append({"role": "user", "content": f"and {number}?"})
    return ResponseRequest.model_validate({"input": turns, "truncation": "auto"})


async def prompts_of(
    requests: Iterable[ResponseRequest], tokenizer: Tokenizer
) -> list[tuple[int, ...]]:
    """Return the prompt tokens of each request; all are submitted concurrently."""
    seen: dict[str, tuple[int, ...]] = {}

    def script(sequence: ScriptInput) -> Iterable[int]:
        seen[sequence.generation_id] = tuple(sequence.prompt_ids)
        return []

    backend = scripted_backend(script, max_num_seqs=NUM_THREADS, max_model_len=MAX_MODEL_LEN)
    backend = dataclasses.replace(backend, tokenizer=tokenizer)
    config = EngineConfig(num_tokenizer_threads=NUM_THREADS)
    async with running_engine(backend, config) as engine:
        registry = ResponseRegistry(engine, retention_s=100.0, retention_bytes=2**26)
        service = ResponseService(engine, registry)
        responses = await asyncio.gather(*(service.create(each, caller="me") for each in requests))
        for response in responses:
            with registry.subscribe(response, on_wake=lambda: None):
                await registry.wait_ended(response)
        await registry.aclose()
    return [seen[response.generation.generation_id] for response in responses]


@pytest.mark.pain(6)
@pytest.mark.slow
async def test_thirty_two_threads_tokenise_at_once_and_cut_each_its_own() -> None:
    """Runs three times: a tokenizer that sets truncation per call passes once in four by chance."""
    requests = [conversation(number) for number in range(NUM_THREADS)]
    alone = [(await prompts_of([each], MeetingTokenizer(num_threads=1)))[0] for each in requests]
    for _ in range(3):
        assert await prompts_of(requests, MeetingTokenizer(num_threads=NUM_THREADS)) == alone
    assert len({len(prompt) for prompt in alone}) > NUM_THREADS / 2
    assert max(len(prompt) for prompt in alone) < MAX_MODEL_LEN
