from __future__ import annotations

import pytest

from app.schemas.usage import TokenCounts, Usage, count_reasoning_tokens
from streaming import OutputFormat, ReasoningSyntax
from streaming.log.generation import Generation
from tests.support import make_generation, words

THINK = ReasoningSyntax("<think>", "</think>")


def make_log(
    *texts: str,
    prompt_tokens: int = 3,
    cached_tokens: int = 0,
    output_format: OutputFormat | None = None,
) -> Generation:
    generation = make_generation(prompt_tokens=prompt_tokens)
    if output_format is not None:
        generation.output_format = output_format
    generation.start(cached_tokens=cached_tokens, at=0.0)
    words(generation, *texts)
    return generation


def test_logs_of_one_prompt_count_it_once():
    logs = [
        make_log("a", "b", prompt_tokens=5, cached_tokens=4),
        make_log("a", prompt_tokens=5, cached_tokens=5),
        make_log("a", "b", "c", prompt_tokens=2, cached_tokens=1),
        make_log(prompt_tokens=2),
    ]
    assert TokenCounts.of(logs, num_per_prompt=2) == TokenCounts(
        prompt_tokens=7, cached_tokens=5, completion_tokens=6, reasoning_tokens=0
    )
    assert TokenCounts.of(logs).prompt_tokens == 14


def test_openais_form():
    counts = TokenCounts(prompt_tokens=7, cached_tokens=5, completion_tokens=6, reasoning_tokens=2)
    assert Usage.of(counts).model_dump() == {
        "prompt_tokens": 7,
        "completion_tokens": 6,
        "total_tokens": 13,
        "prompt_tokens_details": {"cached_tokens": 5},
        "completion_tokens_details": {"reasoning_tokens": 2},
    }


@pytest.mark.parametrize(
    ("texts", "starts_in_reasoning", "expected"),
    [
        (["<thi", "nk>", "hm", "</thi", "nk>", "Yes"], False, 5),
        (["", "hm", "</think>Y", "es"], True, 3),
        (["<think>", "hm", "", ""], False, 4),
        (["Yes", " <think>", "no"], False, 0),
        (["<think>", "</think>", "Yes", "<think>", "x"], False, 2),
        ([], False, 0),
    ],
)
def test_reasoning_is_counted_with_its_tags(
    texts: list[str], starts_in_reasoning: bool, expected: int
):
    log = make_log(
        *texts,
        output_format=OutputFormat(reasoning=THINK, starts_in_reasoning=starts_in_reasoning),
    )
    assert count_reasoning_tokens(log) == expected
    assert TokenCounts.of([log, log], num_per_prompt=2).reasoning_tokens == 2 * expected


def test_without_reasoning_none_is_counted():
    assert count_reasoning_tokens(make_log("<think>", "x")) == 0
