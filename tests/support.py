"""Test doubles, factories and assertions shared by all tests."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol

from hypothesis import settings

from streaming import (
    AsyncEngine,
    Backend,
    Delta,
    Ended,
    EngineConfig,
    Event,
    Finished,
    Generation,
    GenerationRequest,
    Queued,
    SamplingParams,
    Started,
    TextPrompt,
)
from streaming.backend import Chunk
from streaming.backends.scripted import EOS, ByteTokenizer
from streaming.detokenizer import texts_of
from streaming.errors import InvalidRequest
from streaming.host import OPERATING_SYSTEM, Host
from streaming.log.generation import Token
from streaming.output_constraint import Grammar, GrammarMatcher, OutputConstraint
from streaming.scheduling.schedule import ScheduledChunk
from streaming.sequence import Sequence as EngineSequence

TIMEOUT_S = 45.0
"""Timeout of an async test."""


def property_test_of(num_examples: int) -> settings:
    """Return a decorator that runs `num_examples` random examples, or fewer in `make check`.

    It sets no deadline, since the duration of an example depends on the load of the machine.
    """
    # The hypothesis profile, which `make check` selects, gives the number out of 100.
    num_examples = max(1, num_examples * settings().max_examples // 100)
    return settings(max_examples=num_examples, deadline=None)


property_test = property_test_of(100)


class ManualClock:
    """A monotonic clock in seconds that only `advance` moves."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Move the clock forward."""
        self.now += seconds


class ManualHost(Host):
    """A host with real threads and a manual clock."""

    def __init__(self, clock: ManualClock | None = None) -> None:
        self.clock = clock or ManualClock()

    def now(self) -> float:
        return self.clock()


async def yield_to_loop() -> None:
    """Run each callback that is ready once."""
    await asyncio.sleep(0)  # noqa: TID251 - the only allowed use


class Panic(BaseException):
    """Like a panic in a Rust library, which is not an `Exception`."""


class Barrier(Protocol):
    """A double at which a thread blocks until the test opens it."""

    entered: threading.Semaphore

    def open(self) -> None:
        """Stop blocking."""


async def entered(barrier: Barrier) -> None:
    """Wait until a thread has reached the barrier, or fail after half of the test timeout."""
    has_entered = await asyncio.to_thread(barrier.entered.acquire, timeout=TIMEOUT_S / 2)
    assert has_entered, "no thread reached the barrier"


# Factories with defaults.


def make_generation(
    generation_id: str = "gen_1", *, caller: str = "anyone", prompt_tokens: int = 3
) -> Generation:
    """Return a new, empty log."""
    return Generation(
        generation_id=generation_id,
        caller=caller,
        model="scripted",
        created_at=1_700_000_000.0,
        submitted_at=0.0,
        prompt_tokens=prompt_tokens,
    )


def make_sequence(
    generation_id: str = "gen_1",
    *,
    prompt: str = "ask",
    params: SamplingParams | None = None,
    max_tokens: int = 100,
    deadline_at: float = 1e9,
    submitted_at: float = 0.0,
    caller: str = "anyone",
    priority: int = 0,
    matcher: GrammarMatcher | None = None,
    decode: Callable[[Sequence[int]], str] | None = None,
) -> EngineSequence:
    """Return a sequence of the byte tokenizer; `params`, if given, overrides `max_tokens`."""
    prompt_ids = ByteTokenizer().encode(prompt)
    generation = make_generation(generation_id, caller=caller, prompt_tokens=len(prompt_ids))
    generation.submitted_at = submitted_at
    params = params or SamplingParams(max_tokens=max_tokens)
    return EngineSequence(
        generation=generation,
        prompt_ids=prompt_ids,
        params=params,
        eos_token_ids=frozenset({EOS}),
        decode=decode or ByteTokenizer().decode,
        deadline_at=deadline_at,
        priority=priority,
        matcher=matcher,
        prompt_texts=prompt_texts_of(prompt_ids, params=params, decode=ByteTokenizer().decode),
    )


def chunk_of(sequence: EngineSequence, start: int = 0, num_tokens: int | None = None) -> Chunk:
    """Return tokens of a sequence as a runner gets them, by default all from `start` on."""
    num_tokens = sequence.num_tokens - start if num_tokens is None else num_tokens
    return ScheduledChunk(sequence, start, num_tokens).to_chunk()


def prompt_texts_of(
    prompt_ids: Sequence[int], *, params: SamplingParams, decode: Callable[[Sequence[int]], str]
) -> tuple[str, ...]:
    """Return the texts of the prompt as the admission computes them for these parameters."""
    return () if params.prompt_logprobs is None else texts_of(prompt_ids, decode=decode)


class WordMatcher:
    """Allows a single word of the byte tokenizer; with `is_open`, an end token must follow it."""

    def __init__(self, word: str, *, is_open: bool = False) -> None:
        self._left = list(word.encode())
        self._is_open = is_open
        self._is_ended = False

    @property
    def is_done(self) -> bool:
        return self._is_ended or not (self._left or self._is_open)

    def mask(self) -> bytes:
        bits = bytearray(EOS // 8 + 1)
        token_id = self._left[0] if self._left else EOS
        bits[token_id // 8] |= 1 << token_id % 8
        return bytes(bits)

    def accept(self, token_id: int) -> None:
        if self._left:
            assert token_id == self._left.pop(0)
        else:
            assert token_id == EOS
            self._is_ended = True


class WordCompiler:
    """Compiles a source to a matcher of that word; records its calls, and rejects "("."""

    def __init__(self) -> None:
        self.compiled: list[tuple[str, int]] = []

    def compile(self, constraint: OutputConstraint, *, count: int = 1) -> list[GrammarMatcher]:
        assert isinstance(constraint, Grammar)
        grammar = constraint
        if grammar.source == "(":
            raise InvalidRequest(param="response_format", reason="unclosed group")
        self.compiled.append((grammar.source, count))
        return [WordMatcher(grammar.source) for _ in range(count)]


def ask(text: str = "ask", **params: object) -> GenerationRequest:
    """Return a request for `text` with these sampling parameters."""
    return GenerationRequest(prompt=TextPrompt(text), params=SamplingParams(**params))  # type: ignore[arg-type]


def words(generation: Generation, *texts: str) -> None:
    """Append one token for each text."""
    for text in texts:
        generation.append(Token(len(text), text, at=0.0))


def started_generation(*texts: str) -> Generation:
    """Return an open log that has begun, with one token for each text."""
    generation = make_generation()
    generation.start(cached_tokens=0, at=1.0)
    words(generation, *texts)
    return generation


# Assertions on streams.


def assert_well_formed(
    events: Sequence[Event], generation: Generation, *, after: int = -1, is_open: bool = False
) -> None:
    """Assert that a reader's events are queued*, started?, delta*, ended, with the log's text.

    Args:
        events: all events of the reader, in order.
        generation: the log that it read.
        after: its first cursor.
        is_open: whether it stopped reading before the end.
    """
    ranks = {Queued: 0, Started: 1, Delta: 2, Ended: 3}
    order = [ranks[type(event)] for event in events]
    assert order == sorted(order), events
    assert order.count(1) <= 1, events
    assert order.count(3) == (0 if is_open else 1), events
    if 2 in order:
        assert 1 in order, "a delta without a start"

    seqs = [event.seq for event in events if isinstance(event, Delta | Ended)]
    assert seqs == sorted(set(seqs)), "a sequence number repeats or falls"
    deltas = [event for event in events if isinstance(event, Delta)]
    assert all(delta.seq > after for delta in deltas)
    text = "".join(delta.text for delta in deltas)
    if is_open:
        assert generation.text.startswith(text_up_to(generation, after) + text)
        return
    assert text_up_to(generation, after) + text == generation.text
    ended = events[-1]
    assert isinstance(ended, Ended)
    assert ended.record is generation.outcome
    assert ended.seq == generation.last_seq


def text_up_to(generation: Generation, seq: int) -> str:
    """Return the text up to and including the record `seq`."""
    records = generation.read_after(-1)[: seq + 1]
    return "".join(getattr(record, "text", "") for record in records)


def finish_reason(generation: Generation) -> str | None:
    """Return the finish reason of a log, or None if it is open or failed."""
    outcome = generation.outcome
    return str(outcome.finish_reason) if isinstance(outcome, Finished) else None


def joined(events: Iterable[Event]) -> str:
    """Return the joined text of the deltas."""
    return "".join(event.text for event in events if isinstance(event, Delta))


# A running engine.


def tokenwire_threads() -> list[str]:
    """Return the names of the engine's threads that are alive."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("tokenwire")]


def ended_logs(engine: AsyncEngine) -> list[Generation]:
    """Return the ended logs that the engine keeps, oldest first."""
    return [ended.log for ended in engine._store._ended.values()]


@asynccontextmanager
async def running_engine(
    backend: Backend,
    config: EngineConfig | None = None,
    *,
    gate: Barrier | None = None,
    host: Host = OPERATING_SYSTEM,
) -> AsyncIterator[AsyncEngine]:
    """Start an engine; at exit, close it and assert that no thread, task or sequence is left.

    Args:
        backend: usually a scripted one.
        config: limits.
        gate: barrier of the backend; opened at exit, so that the engine can end.
        host: provides time, threads and queues.
    """
    assert tokenwire_threads() == [], "an earlier test left a thread"
    tasks_before = asyncio.all_tasks()
    loop = asyncio.get_running_loop()
    handler_before = loop.get_exception_handler()
    failed_callbacks: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: failed_callbacks.append(context))
    engine = AsyncEngine(backend, config, host=host)
    async with asyncio.timeout(TIMEOUT_S):
        await engine.start()
        try:
            yield engine
        finally:
            if gate is not None:
                gate.open()
            await engine.aclose()
            loop.set_exception_handler(handler_before)
        assert failed_callbacks == []
        assert tokenwire_threads() == []
        assert asyncio.all_tasks() == tasks_before
        assert (engine.stats.num_running, engine.stats.num_waiting) == (0, 0)
        assert not engine._engine.has_work
        assert not engine._subscribers.in_grace
        if not engine.has_failed:
            engine._engine.check_integrity()


async def collect(engine: AsyncEngine, generation: Generation, *, after: int = -1) -> list[Event]:
    """Read a log to its end, check its events and return them."""
    with engine.subscribe(generation, after=after) as reader:
        events = [event async for event in reader]
    assert_well_formed(events, generation, after=after)
    return events
