from __future__ import annotations

import gc
import tracemalloc

import pytest

from app.responses.context import Context
from app.responses.response import LiveResponse
from tests.app.responses.logs import make_head, make_log


def make_response(*, num_tokens: int, logprobs: bool) -> LiveResponse:
    log = make_log(*("abcdefgh"[number % 8] for number in range(num_tokens)), logprobs=logprobs)
    return LiveResponse(
        head=make_head(reports_logprobs=logprobs),
        caller="anyone",
        generation=log,
        context=Context.of((), ()),
        is_stored=True,
    )


def tracked_objects() -> int:
    gc.collect()
    return len(gc.get_objects())


@pytest.mark.parametrize("logprobs", [False, True])
@pytest.mark.slow
def test_a_finished_response_has_no_objects_per_token(logprobs: bool):
    response = make_response(num_tokens=1000, logprobs=logprobs)
    before = tracked_objects()
    num_shown = len(response.finish().last_snapshot["output"][0]["content"][0]["logprobs"])
    assert num_shown == (1000 if logprobs else 0)
    assert response.finish().last_snapshot == response.finish().last_snapshot
    assert tracked_objects() - before < 200


@pytest.mark.parametrize("num_tokens", [1, 500])
@pytest.mark.parametrize("logprobs", [False, True])
@pytest.mark.slow
def test_num_bytes_covers_the_memory_of_a_response(num_tokens: int, logprobs: bool):
    make_response(num_tokens=1, logprobs=logprobs).finish()  # creates what all responses share
    tracemalloc.start()
    try:
        responses = [make_response(num_tokens=num_tokens, logprobs=logprobs) for _ in range(5)]
        for response in responses:
            response.finish()
        gc.collect()
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken <= sum(response.num_bytes for response in responses)
