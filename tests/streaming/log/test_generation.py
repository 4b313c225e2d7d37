"""A log: its sequence numbers, its single end, and the values computed from it."""

from __future__ import annotations

import gc
import threading
import tracemalloc

import pytest

from streaming.errors import EngineFailure
from streaming.log.generation import (
    Failed,
    Finished,
    FinishReason,
    Generation,
    Logprob,
    Queued,
    Started,
    Tail,
    Timings,
    Token,
    TokenLogprobs,
    Usage,
)
from tests.support import (
    make_generation,
    started_generation,
    words,
)

STOP = Finished(FinishReason.STOP, at=9.0)
FAILED = Failed(EngineFailure(), at=9.0)


# The log.


def test_a_new_log_is_empty_and_open():
    generation = make_generation()
    assert (generation.last_seq, generation.text) == (-1, "")
    assert not generation.tokens
    assert generation.outcome is None
    assert not generation.is_ended
    assert generation.read_after(-1) == []


def test_a_sequence_number_is_an_index_that_never_changes():
    generation = started_generation("a", "b")
    before = generation.read_after(-1)
    generation.append(Tail("c", at=1.0))
    generation.end(STOP)
    assert generation.read_after(-1)[:2] == before
    assert generation.read_after(1) == [Tail("c", at=1.0), STOP]
    assert generation.last_seq == 3
    assert generation.text == "abc"


@pytest.mark.parametrize("first", [STOP, FAILED])
@pytest.mark.parametrize("second", [STOP, FAILED])
def test_a_log_ends_once_and_the_first_ending_wins(
    first: Finished | Failed, second: Finished | Failed
):
    generation = started_generation("a")
    assert generation.end(first)
    num_bytes = generation.num_bytes
    assert not generation.end(second)
    assert (generation.outcome, generation.last_seq) == (first, 1)
    assert generation.read_after(-1)[1:] == [first]
    assert generation.num_bytes == num_bytes


@pytest.mark.parametrize("record", [Token(1, "x", at=1.0), Tail("x", at=1.0)])
def test_a_log_ignores_records_after_its_end(record: Token | Tail):
    generation = started_generation()
    generation.end(STOP)
    num_bytes = generation.num_bytes
    generation.append(record)
    assert (generation.last_seq, generation.num_bytes) == (0, num_bytes)
    assert generation.read_after(-1) == [STOP]


def test_a_record_appended_while_another_thread_ends_the_log_is_not_read():
    """The engine checks for an ending just before the loop ends the log, and then appends."""
    generation = started_generation("a")
    generation.end(FAILED)
    generation._records.append(Token(1, "late", at=2.0))
    assert generation.read_after(-1) == [Token(1, "a", at=0.0), FAILED]
    assert (generation.text, generation.last_seq) == ("a", 1)
    assert generation.usage == Usage(3, 0, 1)
    assert generation.tokens == (Token(1, "a", at=0.0),)


def test_two_threads_that_end_a_log_agree_on_its_ending():
    for _ in range(200):
        generation = started_generation("a")
        together = threading.Barrier(2)
        won: list[Finished | Failed] = []

        def end(
            record: Finished | Failed,
            generation: Generation = generation,
            together: threading.Barrier = together,
            won: list[Finished | Failed] = won,
        ) -> None:
            together.wait()
            if generation.end(record):
                won.append(record)

        threads = [threading.Thread(target=end, args=(record,)) for record in (STOP, FAILED)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert won == [generation.outcome]
        assert generation.read_after(0) == won


def test_start_keeps_the_first_start_and_clears_the_queue_position():
    generation = make_generation(prompt_tokens=3)
    generation.queued = Queued(0, None)
    generation.start(cached_tokens=2, at=1.0)
    generation.queued = Queued(0, None)
    generation.start(cached_tokens=3, at=2.0)
    assert generation.started == Started(prompt_tokens=3, cached_tokens=2, at=1.0)
    assert generation.queued is None


def test_the_end_clears_the_queue_position():
    generation = make_generation()
    generation.queued = Queued(0, None)
    generation.end(STOP)
    assert generation.queued is None


# Usage and timings.


def test_usage_counts_tokens_without_tails():
    generation = make_generation(prompt_tokens=3)
    assert generation.usage == Usage(3, 0, 0)
    generation.start(cached_tokens=2, at=1.0)
    words(generation, "a", "")
    generation.append(Tail("b", at=1.0))
    generation.end(STOP)
    assert generation.usage == Usage(prompt_tokens=3, cached_tokens=2, completion_tokens=2)
    assert generation.usage.total_tokens == 5


def test_timings_of_phases_that_did_not_complete_are_none():
    generation = make_generation()
    assert generation.timings == Timings(None, None, None, None, None)
    generation.end(Finished(FinishReason.CANCELLED, at=4.0))
    assert generation.timings == Timings(None, None, None, 4.0, None)


def test_timings_of_a_complete_generation():
    generation = make_generation()
    generation.start(cached_tokens=0, at=1.0)
    for at in (3.0, 3.5, 5.0):
        generation.append(Token(1, "x", at))
    generation.end(Finished(FinishReason.STOP, at=6.0))
    assert generation.timings == Timings(
        queue_s=1.0, prefill_s=2.0, ttft_s=3.0, total_s=6.0, tokens_per_s=1.0
    )


def test_tokens_that_arrive_at_the_same_time_have_no_rate():
    generation = started_generation("a", "b")
    assert generation.timings.tokens_per_s is None


# Bytes.


@pytest.mark.parametrize(
    ("num_logs", "num_tokens", "num_top"),
    [(2000, 0, 0), (2000, 1, 0), (500, 10, 5), (10, 1000, 0), (5, 200, 5)],
)
def test_num_bytes_bounds_the_memory_of_a_log(num_logs: int, num_tokens: int, num_top: int):
    tracemalloc.start()
    try:
        generations = []
        for n in range(num_logs):
            generation = Generation(
                generation_id=f"gen_{n:032}",
                caller="anyone",
                model="scripted",
                created_at=float(n),
                submitted_at=float(n),
                prompt_tokens=1000 + n,
                metadata={f"key{n}": "v" * 512},
            )
            generation.start(cached_tokens=0, at=float(n))
            for i in range(num_tokens):
                top = tuple(Logprob(i + 1000 + k, -0.5 - i) for k in range(num_top))
                logprobs = TokenLogprobs(Logprob(i + 1000, -0.5 - i), top) if num_top else None
                generation.append(Token(i + 1000, f"{i:4}", at=float(i), logprobs=logprobs))
            generation.end(Finished(FinishReason.STOP, at=float(n)))
            generations.append(generation)
        gc.collect()  # empties the free lists of the interpreter, which count as traced memory
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    counted = sum(generation.num_bytes for generation in generations)
    assert taken <= counted <= 2 * taken


def test_a_scored_prompt_is_set_before_the_first_token_and_counts_as_memory():
    generation = make_generation()
    num_bytes = generation.num_bytes
    prompt = (
        Token(1, "a", at=0.0),
        Token(2, "b", at=0.0, logprobs=TokenLogprobs(Logprob(2, -1.0), (Logprob(1, -0.5),))),
    )
    generation.score_prompt(prompt)
    assert generation.scored_prompt == prompt
    assert (generation.last_seq, generation.usage.completion_tokens) == (-1, 0)
    assert generation.num_bytes > num_bytes
    words(generation, "x")
    with pytest.raises(AssertionError):
        generation.score_prompt(prompt)
