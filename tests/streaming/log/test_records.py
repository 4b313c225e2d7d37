"""The columns of a log read like a list of records, from any thread, and are small."""

from __future__ import annotations

import gc
import itertools
import threading
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.errors import EngineFailure
from streaming.log.generation import Failed, Finished, FinishReason, Record
from streaming.log.records import Logprob, RecordColumns, Scores, Tail, Token, TokenLogprobs
from tests.support import make_generation, property_test

# Any text, including lone surrogates and characters that combine across records.
texts = st.text(max_size=5) | st.text(st.characters(), max_size=3) | st.just("👩‍👩‍👧")
times = st.floats(0, 1e9)
token_ids = st.integers(0, 2**31 - 1)
logprobs = st.builds(
    TokenLogprobs,
    st.builds(Logprob, token_ids, st.floats(allow_nan=False)),
    st.lists(st.builds(Logprob, token_ids, st.floats(allow_nan=False)), max_size=3).map(tuple),
)
tokens = st.builds(Token, token_ids, texts, times, st.none() | logprobs)
records = st.lists(tokens | tokens | st.builds(Tail, texts, times), max_size=20)


def make_columns(records: list[Token | Tail]) -> RecordColumns:
    columns = RecordColumns()
    for record in records:
        columns.append(record)
    return columns


def scores_of(record: Token | Tail) -> Scores:
    if isinstance(record, Tail) or record.logprobs is None:
        return ()
    all_of_them = (record.logprobs.chosen, *record.logprobs.top)
    return tuple((each.token_id, each.logprob) for each in all_of_them)


def token(number: int, *, num_top: int = 0, text: str = "word ") -> Token:
    top = tuple(Logprob(number + rank, -0.5 - rank) for rank in range(num_top))
    scores = TokenLogprobs(Logprob(number, -0.25), top) if num_top else None
    return Token(number, text, float(number), scores)


# Compared with a list.


@property_test
@given(records)
def test_every_range_reads_as_a_list_of_records_would(expected: list[Token | Tail]):
    columns = RecordColumns()
    for num_appended, record in enumerate(expected):
        assert len(columns) == num_appended
        columns.append(record)
    for start, stop in itertools.combinations_with_replacement(range(len(expected) + 1), 2):
        part = expected[start:stop]
        text = "".join(record.text for record in part)
        assert list(columns.records(start, stop)) == part
        assert columns.text(start, stop) == text
        assert list(columns.texts(start, stop)) == [record.text for record in part]
        assert columns.has_text(start, stop) == bool(text)
        only_tokens = [record for record in part if isinstance(record, Token)]
        assert columns.token_ids(start, stop) == [each.token_id for each in only_tokens]
        assert list(columns.scores(start, stop)) == [scores_of(record) for record in part]
        numbers = [n for n in range(start, stop) if isinstance(expected[n], Token)]
        assert list(columns.token_numbers(start, stop)) == numbers
        assert [columns.time(number) for number in numbers] == [each.at for each in only_tokens]


@property_test
@given(
    st.lists(tokens | tokens | st.builds(Tail, texts, times), max_size=15),
    st.lists(st.integers(0, 15), max_size=5),
    st.sampled_from([Finished(FinishReason.STOP, at=1.0), Failed(EngineFailure(), at=1.0), None]),
)
def test_a_log_reads_after_every_cursor_as_a_list_would(
    appended: list[Token | Tail], look_at: list[int], ending: Finished | Failed | None
):
    generation, expected = make_generation(), list[Record]()

    def check() -> None:
        for cursor in range(-1, len(expected) + 2):
            assert generation.read_after(cursor) == expected[cursor + 1 :]
        assert generation.last_seq == len(expected) - 1
        written = [record for record in expected if isinstance(record, Token | Tail)]
        assert generation.text == "".join(record.text for record in written)
        only_tokens = [record for record in written if isinstance(record, Token)]
        assert generation.tokens == only_tokens
        assert generation.usage.completion_tokens == len(only_tokens)
        assert generation.outcome == (ending if len(expected) > len(written) else None)

    for number, record in enumerate(appended):
        generation.append(record)
        expected.append(record)
        if number in look_at:
            check()
    if ending is not None:
        generation.end(ending)
        expected.append(ending)
    check()


def test_only_some_records_may_have_log_probabilities():
    expected: list[Token | Tail] = [
        *(token(number) for number in range(3)),
        token(3, num_top=2),
        Tail("x", at=1.0),
        token(4),
        Token(5, "é", 0.0, TokenLogprobs(Logprob(6, float("-inf")))),
    ]
    columns = make_columns(expected)
    assert list(columns.records(0, len(columns))) == expected
    assert [*columns.records(5, 7)] == expected[5:]


# Failing appends.


@pytest.mark.parametrize(
    "bad",
    [
        Token(2**31, "x", at=1.0),
        Token(-1, "x", at=1.0),
        Token(1, "x", at="late"),  # type: ignore[arg-type]
        Token(1, None, at=1.0),  # type: ignore[arg-type]
        Token(1, "x", 1.0, TokenLogprobs(Logprob(1, -1.0), (Logprob(2**31, -1.0),))),
        Tail("x", at=None),  # type: ignore[arg-type]
    ],
)
@pytest.mark.parametrize("num_top", [0, 2])
def test_a_record_that_cannot_be_stored_changes_nothing(bad: Token | Tail, num_top: int):
    expected: list[Token | Tail] = [token(1, num_top=num_top), Tail("é", at=1.0)]
    columns = make_columns(expected)
    with pytest.raises((OverflowError, TypeError, AttributeError, AssertionError)):
        columns.append(bad)
    assert list(columns.records(0, len(columns))) == expected
    expected += [token(2, num_top=1), Tail("y", at=2.0)]
    for record in expected[2:]:
        columns.append(record)
    assert list(columns.records(0, len(columns))) == expected
    assert columns.text(0, 4) == "word éword y"
    assert list(columns.token_numbers(0, 4)) == [0, 2]


# Size.


def objects() -> int:
    gc.collect()
    return len(gc.get_objects())


@pytest.mark.slow
@pytest.mark.parametrize("num_top", [0, 5])
def test_tokens_add_no_objects_for_the_garbage_collector(num_top: int):
    generation = make_generation()
    before = objects()
    for number in range(10_000):
        generation.append(token(number, num_top=num_top))
    assert objects() - before < 20
    assert len(generation.tokens) == 10_000


@pytest.mark.slow
def test_a_scored_prompt_adds_no_objects_either():
    generation = make_generation()
    before = objects()
    generation.score_prompt(token(number, num_top=5) for number in range(10_000))
    assert objects() - before < 20


def walk(columns: RecordColumns) -> Iterator[object]:
    yield from columns.records(0, len(columns))


@pytest.mark.slow
def test_records_that_were_read_are_freed_with_the_last_reference():
    columns = make_columns([token(number, num_top=5) for number in range(10_000)])
    before = objects()
    for read in walk(columns):
        del read
    assert objects() - before < 20


@pytest.mark.parametrize(("num_top", "most_bytes"), [(0, 30), (5, 110)])
def test_a_token_takes_few_bytes_and_they_are_counted(num_top: int, most_bytes: int):
    num_tokens = 5000
    appended: list[Token | Tail] = [token(number, num_top=num_top) for number in range(num_tokens)]
    tracemalloc.start()
    try:
        columns = make_columns(appended)
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken < num_tokens * most_bytes
    assert taken <= columns.num_bytes * 1.01 + 200
    assert columns.num_bytes <= taken * 1.1


# Threads.


@pytest.mark.parametrize("num_top", [0, 2])
def test_one_thread_reads_while_another_appends(num_top: int):
    """Each text contains its record number, so a torn or shifted record is detected."""
    num_records = 20_000
    expected = [
        token(n, num_top=num_top, text=f"{n}é" if n % 3 else "") for n in range(num_records)
    ]
    generation = make_generation()
    begin = threading.Barrier(2)

    def write() -> None:
        begin.wait()
        for record in expected:
            generation.append(record)
        generation.end(Finished(FinishReason.STOP, at=1.0))

    writer = threading.Thread(target=write)
    writer.start()
    begin.wait()
    cursor, outcome, num_reads = 0, None, 0
    while outcome is None:
        stop, outcome = generation.extent
        part = expected[cursor:stop]
        assert generation.text_between(cursor, stop) == "".join(each.text for each in part)
        assert list(generation.records_between(cursor, stop)) == part
        assert generation.tokens_between(cursor, stop).ids == [each.token_id for each in part]
        assert generation.num_bytes > 0
        num_reads += stop > cursor
        cursor = stop
    writer.join()
    assert cursor == num_records
    assert num_reads > 0
