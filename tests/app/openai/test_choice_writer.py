from __future__ import annotations

import pytest

from app.openai.choice_writer import (
    MAX_CHUNK_TOKENS,
    outcome_of,
    split_events,
    text_of,
    tokens_of,
)
from streaming import Delta, Ended, Event, Finished, FinishReason, Started, Token, Tokens

STARTED = Started(prompt_tokens=1, cached_tokens=0, at=0.0)
FINISHED = Finished(FinishReason.STOP, at=0.0)


def delta(num_tokens: int) -> Delta:
    tokens = Tokens.of(Token(token_id, "x", at=0.0) for token_id in range(num_tokens))
    return Delta(num_tokens - 1, "x" * num_tokens, tokens)


@pytest.mark.parametrize(
    ("num_tokens", "sizes"),
    [
        (1, [1]),
        (MAX_CHUNK_TOKENS, [MAX_CHUNK_TOKENS]),
        (MAX_CHUNK_TOKENS + 1, [MAX_CHUNK_TOKENS, 1]),
        (3 * MAX_CHUNK_TOKENS, [MAX_CHUNK_TOKENS] * 3),
    ],
)
def test_a_large_delta_is_split(num_tokens: int, sizes: list[int]):
    events: list[Event] = [STARTED, delta(num_tokens), Ended(num_tokens, FINISHED)]
    parts = list(split_events(events))
    assert [len(tokens_of(part)) for part in parts] == sizes
    assert [len(text_of(part)) for part in parts] == sizes
    assert [outcome_of(part) for part in parts] == [None] * (len(sizes) - 1) + [FINISHED]
    assert parts[0][0] == STARTED


@pytest.mark.parametrize("events", [[STARTED], [Ended(0, FINISHED)], [STARTED, delta(2)]])
def test_short_events_stay_together(events: list[Event]):
    assert list(split_events(events)) == [events]
