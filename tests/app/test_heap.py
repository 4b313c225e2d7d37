from __future__ import annotations

import gc
import itertools
import weakref

import pytest

from app.heap import THRESHOLDS, freeze_gc
from app.stream.frames import delta_frames
from app.websocket.protocol.frames import serialize
from streaming import AsyncEngine, Delta
from streaming.backends.scripted import scripted_backend
from tests.support import ask, running_engine


class Node:
    def __init__(self) -> None:
        self.itself = self


def test_what_is_alive_is_left_out_and_what_is_garbage_is_gone() -> None:
    kept, garbage = Node(), weakref.ref(Node())
    thresholds = gc.get_threshold()
    try:
        freeze_gc()
        assert garbage() is None
        assert all(each is not kept for each in gc.get_objects())
        assert gc.get_freeze_count() > 0
        assert gc.get_threshold() == THRESHOLDS
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()
    assert any(each is kept for each in gc.get_objects())


async def stream(engine: AsyncEngine, *, num_tokens: int) -> int:
    """Make the frames of one answer with log probabilities; return how long they are."""
    generation = await engine.submit(ask(max_tokens=num_tokens, logprobs=5, ignore_eos=True))
    num_chars = 0
    with engine.subscribe(generation, include_empty_deltas=True) as reader:
        async for event in reader:
            if isinstance(event, Delta):
                for frame in delta_frames(
                    "a",
                    event,
                    return_token_ids=True,
                    return_logprobs=True,
                    token_text=engine.tokenizer.token_text,
                ):
                    num_chars += len(serialize(frame))
    assert generation.usage.completion_tokens == num_tokens
    return num_chars


@pytest.mark.slow
async def test_a_long_stream_leaves_no_object_for_each_token() -> None:
    backend = scripted_backend(lambda _: itertools.cycle(b"word "))
    growths = []
    async with running_engine(backend) as engine:
        await stream(engine, num_tokens=10)
        # More than once: a module that is imported meanwhile, on any thread, counts as well.
        for _ in range(3):
            gc.collect()
            before = len(gc.get_objects())
            assert await stream(engine, num_tokens=2000) > 100_000
            gc.collect()
            growths.append(len(gc.get_objects()) - before)  # the log is still kept
    assert min(growths) < 200
