"""Readers of a log: nothing is lost, repeated or left open, however they interleave."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.errors import CursorLost, EngineFailure
from streaming.log.generation import (
    Failed,
    Finished,
    FinishReason,
    Generation,
    Queued,
    Started,
    Tail,
    Token,
    Tokens,
)
from streaming.log.reader import Delta, Ended, Event, Reader
from tests.support import (
    assert_well_formed,
    joined,
    make_generation,
    property_test,
    started_generation,
    text_up_to,
    words,
    yield_to_loop,
)

STOP = Finished(FinishReason.STOP, at=9.0)
FAILED = Failed(EngineFailure(), at=9.0)


# Reading.


def test_unread_records_are_merged_into_one_delta():
    generation = started_generation("a", "", "b")
    with Reader(generation) as reader:
        started, delta = reader.read()
        assert isinstance(started, Started)
        assert delta == Delta(2, "ab", generation.tokens)
        assert reader.read() == []
        generation.append(Tail("c", at=1.0))
        generation.end(STOP)
        assert reader.read() == [Delta(3, "c", Tokens.of(())), Ended(4, STOP)]
        assert reader.is_done
        assert reader.read() == []


def test_a_token_without_text_moves_the_cursor_with_the_next_delta():
    generation = started_generation("a")
    with Reader(generation) as reader:
        reader.read()
        words(generation, "")
        assert reader.read() == []
        assert reader.cursor == 0
        words(generation, "b")
        assert reader.read() == [Delta(2, "b", generation.tokens[1:])]


def test_a_token_without_text_at_the_end_is_skipped():
    generation = started_generation("a")
    with Reader(generation) as reader:
        reader.read()
        words(generation, "")
        generation.end(STOP)
        assert reader.read() == [Ended(2, STOP)]


def test_include_empty_deltas_reports_tokens_without_text():
    generation = started_generation("")
    with Reader(generation, include_empty_deltas=True) as reader:
        assert reader.read()[1:] == [Delta(0, "", generation.tokens)]
        words(generation, "")
        generation.end(STOP)
        assert reader.read() == [Delta(1, "", generation.tokens[1:]), Ended(2, STOP)]
        assert reader.read() == []


def test_queue_positions_are_reported_when_they_change_and_not_after_the_start():
    generation = make_generation()
    with Reader(generation) as reader:
        assert reader.read() == []
        generation.queued = Queued(1, None)
        assert reader.read() == [Queued(1, None)]
        assert reader.read() == []
        generation.queued = Queued(0, 2.0)
        assert reader.read() == [Queued(0, 2.0)]
        generation.start(cached_tokens=0, at=1.0)
        assert reader.read() == [generation.started]
        generation.queued = Queued(0, None)  # preempted: it waits again
        assert reader.read() == []


def test_a_log_that_ended_in_the_queue_has_an_ending_and_no_start():
    generation = make_generation()
    generation.end(FAILED)
    with Reader(generation) as reader:
        assert reader.read() == [Ended(0, FAILED)]


@pytest.mark.parametrize("after", [-2, 2, 10**30])
def test_a_cursor_outside_the_log_is_rejected(after: int):
    generation = started_generation("a", "b")
    with pytest.raises(CursorLost) as caught:
        Reader(generation, after=after)
    assert (caught.value.after, caught.value.last) == (after, 1)
    assert generation.num_subscribers == 0


def test_a_reader_that_starts_at_the_terminal_record_gets_it():
    generation = started_generation("a", "b")
    generation.end(STOP)
    for after in (1, 2):
        with Reader(generation, after=after) as reader:
            assert reader.read() == [generation.started, Ended(2, STOP)]
            assert reader.cursor == 2


def test_a_reader_that_starts_at_the_newest_record_of_an_open_log_waits_for_the_next():
    generation = started_generation("a", "b")
    with Reader(generation, after=1) as reader:
        assert reader.read() == [generation.started]
        generation.end(STOP)
        assert reader.read() == [Ended(2, STOP)]


def test_wake_calls_every_reader_until_it_closes():
    generation = make_generation()
    wakes: list[str] = []
    with Reader(generation, on_wake=lambda: wakes.append("a")):
        with Reader(generation, on_wake=lambda: wakes.append("b")):
            assert generation.num_subscribers == 2
            generation.wake()
            assert sorted(wakes) == ["a", "b"]
        generation.wake()
        assert sorted(wakes) == ["a", "a", "b"]
    generation.wake()
    assert len(wakes) == 3
    assert generation.num_subscribers == 0


def test_a_reader_may_close_another_while_all_are_woken():
    generation = make_generation()
    readers: list[Reader] = []

    def close_all() -> None:
        for reader in readers:
            reader.close()

    readers += [Reader(generation, on_wake=close_all), Reader(generation, on_wake=close_all)]
    generation.wake()
    assert generation.num_subscribers == 0


def test_two_readers_with_one_callback_are_two_subscribers():
    """A connection that resumes a log which it already reads has two readers and one callback."""
    generation = make_generation()
    wakes: list[None] = []

    def on_wake() -> None:
        wakes.append(None)

    first = Reader(generation, on_wake=on_wake)
    second = Reader(generation, on_wake=on_wake)
    assert generation.num_subscribers == 2
    first.close()
    generation.wake()
    assert wakes == [None]
    second.close()


class WatchedGeneration(Generation):
    """Counts the records whose text is read; can append records after each read of `extent`."""

    num_read = 0
    grows = False

    @property
    def extent(self) -> tuple[int, Finished | Failed | None]:
        extent = super().extent
        if self.grows:
            words(self, "b")
        return extent

    def text_between(self, start: int, stop: int) -> str:
        self.num_read += stop - start
        return super().text_between(start, stop)

    def records_between(self, start: int, stop: int) -> Iterator[Token | Tail]:
        raise AssertionError("a reader makes no objects")


def watched_generation() -> WatchedGeneration:
    return WatchedGeneration(
        generation_id="gen_1",
        caller="anyone",
        model="scripted",
        created_at=0.0,
        submitted_at=0.0,
        prompt_tokens=1,
    )


@pytest.mark.parametrize("include_empty_deltas", [False, True])
@pytest.mark.parametrize("period", [1, 2, 30, 1000])
def test_a_reader_woken_at_each_token_reads_each_once(period: int, include_empty_deltas: bool):
    generation = watched_generation()
    with Reader(generation, include_empty_deltas=include_empty_deltas) as reader:
        for number in range(1, 901):
            words(generation, "" if number % period else "a")
            reader.read()
        assert generation.num_read == (900 if include_empty_deltas else 900 // period * period)


def test_a_record_appended_during_a_read_comes_with_the_next_one():
    generation = watched_generation()
    with Reader(generation) as reader:
        words(generation, "", "a")
        generation.grows = True
        deltas = reader.read() + reader.read()
    generation.grows = False
    tokens = generation.tokens
    assert deltas == [Delta(1, "a", tokens[:2]), Delta(2, "b", tokens[2:3])]


# Waiting for more.


async def read_all(reader: Reader, events: list[Event]) -> None:
    async for event in reader:
        events.append(event)  # noqa: PERF401 - the test checks the events so far


@pytest.mark.parametrize("has_callback", [False, True])
async def test_iteration_sleeps_until_it_is_woken(has_callback: bool):
    generation = started_generation()
    wakes: list[None] = []
    on_wake = (lambda: wakes.append(None)) if has_callback else None
    events: list[Event] = []
    with Reader(generation, on_wake=on_wake) as reader:
        async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
            tasks.create_task(read_all(reader, events))
            await yield_to_loop()
            words(generation, "a", "b")
            await yield_to_loop()
            assert joined(events) == ""
            generation.wake()
            await yield_to_loop()
            await yield_to_loop()
            assert joined(events) == "ab"
            generation.wake()  # a wake without new records returns no event
            await yield_to_loop()
            generation.end(STOP)
            generation.wake()
    assert_well_formed(events, generation)
    assert len(wakes) == (3 if has_callback else 0)


@pytest.mark.parametrize("on_wake", [None, lambda: None])
async def test_wait_ended_returns_the_outcome(on_wake: object):
    generation = started_generation("a")
    with Reader(generation, on_wake=on_wake) as reader:  # type: ignore[arg-type]
        async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(reader.wait_ended())
            await yield_to_loop()
            generation.wake()
            await yield_to_loop()
            assert not waiting.done()
            generation.end(FAILED)
            generation.wake()
        assert waiting.result() is FAILED
        assert await reader.wait_ended() is FAILED


# Random interleavings.

actions = st.one_of(
    st.tuples(st.just("append"), st.sampled_from(["", "a", "é", "日本", "👩‍👩‍👧"])),
    st.tuples(st.just("tail"), st.sampled_from(["x", "yz"])),
    st.tuples(st.just("queue"), st.integers(0, 3)),
    st.tuples(st.just("start"), st.none()),
    st.tuples(st.just("open"), st.booleans()),
    st.tuples(st.just("resume"), st.floats(0, 1)),
    st.tuples(st.just("read"), st.integers(0, 50)),
    st.tuples(st.just("leave"), st.integers(0, 50)),
)
endings = st.sampled_from([*(Finished(reason, at=9.0) for reason in FinishReason), FAILED])


class Client:
    """A reader and all events that it returned."""

    def __init__(
        self, generation: Generation, *, after: int = -1, include_empty_deltas: bool = False
    ):
        self.after = after
        self.events: list[Event] = []
        self.num_wakes = 0
        self.include_empty_deltas = include_empty_deltas
        self.reader = Reader(
            generation,
            after=after,
            include_empty_deltas=include_empty_deltas,
            on_wake=self._count_wake,
        )

    def _count_wake(self) -> None:
        self.num_wakes += 1

    def read(self) -> None:
        self.events += self.reader.read()


@property_test
@given(st.lists(actions, max_size=40), endings)
def test_any_interleaving_reads_the_same_log(
    script: list[tuple[str, object]], ending: Finished | Failed
):
    generation = make_generation()
    clients = [Client(generation)]
    left: list[Client] = []
    for action, value in script:
        match action, value:
            case "append", str(text):
                generation.start(cached_tokens=0, at=1.0)
                generation.append(Token(7, text, at=1.0))
            case "tail", str(text):
                generation.start(cached_tokens=0, at=1.0)
                generation.append(Tail(text, at=1.0))
            case "queue", int(position) if generation.started is None:
                generation.queued = Queued(position, None)
            case "start", _:
                generation.start(cached_tokens=0, at=1.0)
            case "open", bool(include_empty_deltas):
                clients.append(Client(generation, include_empty_deltas=include_empty_deltas))
            case "resume", float(part):
                after = round(part * (generation.last_seq + 1)) - 1
                clients.append(Client(generation, after=after))
            case "read", int(n):
                clients[n % len(clients)].read()
            case "leave", int(n) if len(clients) > 1:
                client = clients.pop(n % len(clients))
                client.reader.close()
                assert_well_formed(client.events, generation, after=client.after, is_open=True)
                left.append(client)
        assert generation.num_subscribers == len(clients)

    # Clients that left resume at their cursor, before or after the end.
    returned = [Client(generation, after=client.reader.cursor) for client in left[::2]]
    generation.end(ending)
    returned += [Client(generation, after=client.reader.cursor) for client in left[1::2]]
    woken_before = [client.num_wakes for client in clients + returned]
    generation.wake()
    woken_after = [client.num_wakes for client in clients + returned]
    assert woken_after == [num + 1 for num in woken_before]

    for client in clients + returned:
        client.read()
        client.read()
        assert_well_formed(client.events, generation, after=client.after)
        if client.include_empty_deltas:
            tokens = [t for e in client.events if isinstance(e, Delta) for t in e.tokens]
            assert tuple(tokens) == generation.tokens
        client.reader.close()
    for gone, back in zip(left[::2] + left[1::2], returned, strict=True):
        seen_before = text_up_to(generation, gone.after)
        assert seen_before + joined(gone.events) + joined(back.events) == generation.text
    assert generation.num_subscribers == 0
    records = generation.read_after(-1)
    assert [r for r in records if isinstance(r, Finished | Failed)] == [ending]


class PlainReader:
    """Reference: returns all records after its cursor, once they have text or end the log."""

    def __init__(self, generation: Generation, *, after: int, include_empty_deltas: bool):
        self.cursor = after
        self._generation = generation
        self._every_token = include_empty_deltas
        self._mark: Queued | Started | None = None

    def read(self) -> list[Event]:
        generation, events = self._generation, list[Event]()
        mark = generation.started or generation.queued
        if mark is not None and mark != self._mark:
            self._mark = mark
            events.append(mark)
        records = generation.read_after(self.cursor)
        shown = [record for record in records if isinstance(record, Token | Tail)]
        text = "".join(record.text for record in shown)
        if text or (shown and self._every_token):
            self.cursor += len(shown)
            tokens = Tokens.of(record for record in shown if isinstance(record, Token))
            events.append(Delta(self.cursor, text, tokens))
        if records and isinstance(records[-1], Finished | Failed):
            self.cursor = generation.last_seq
            events.append(Ended(self.cursor, records[-1]))
        return events


@property_test
@given(st.lists(st.sampled_from([*"tttTTrrrqsx"]), max_size=30), st.integers(0, 5), st.booleans())
def test_the_times_of_wakes_change_only_what_is_merged(
    script: list[str], after: int, include_empty_deltas: bool
):
    generation = started_generation(*["", "a"] * 3) if after else make_generation()
    with Reader(generation, after=after - 1, include_empty_deltas=include_empty_deltas) as reader:
        plain = PlainReader(generation, after=after - 1, include_empty_deltas=include_empty_deltas)
        for number, action in enumerate([*script, "end", "r", "r"]):
            match action:
                case "t" | "T":
                    generation.append(Token(number, "" if action == "t" else "a", at=1.0))
                case "x":
                    generation.append(Tail("x", at=1.0))
                case "q":
                    generation.queued = Queued(number // 9, None)
                case "s":
                    generation.start(cached_tokens=0, at=1.0)
                case "end":
                    generation.end(STOP)
                case _:
                    assert reader.read() == plain.read()
                    assert reader.cursor == plain.cursor


@property_test
@given(st.data())
def test_a_stream_cut_at_every_cursor_joins_without_gap_or_overlap(data: st.DataObject):
    texts = data.draw(st.lists(st.text(max_size=3), max_size=8))
    generation = started_generation(*texts)
    generation.end(STOP)
    for after in range(-1, generation.last_seq + 1):
        with Reader(generation, after=after) as reader:
            assert_well_formed(reader.read(), generation, after=after)
            assert reader.is_done


# Deltas.


@pytest.mark.parametrize(
    ("seq", "texts", "tail", "expected"),
    [
        (4, "", "tail", [(4, "tail", "")]),
        (4, "ab", "", [(4, "ab", "ab")]),
        (4, "abc", "", [(3, "ab", "ab"), (4, "c", "c")]),
        (4, "abcd", "!", [(1, "ab", "ab"), (4, "cd!", "cd")]),
        (4, "abcde", "", [(1, "ab", "ab"), (3, "cd", "cd"), (4, "e", "e")]),
    ],
)
def test_a_delta_is_cut_into_smaller_ones(
    seq: int, texts: str, tail: str, expected: list[tuple[int, str, str]]
):
    delta = Delta(seq, texts + tail, Tokens.of(Token(1, text, at=0.0) for text in texts))
    parts = [(part.seq, part.text, part.tokens.text) for part in delta.cut(max_tokens=2)]
    assert parts == expected
