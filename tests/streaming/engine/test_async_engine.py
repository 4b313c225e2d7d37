"""The asyncio API: admission, subscribing, limits, shutdown and failures."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import random
import threading
from collections.abc import Iterable

import pytest

from streaming import (
    AsyncEngine,
    Backend,
    EngineConfig,
    EngineStats,
    Failed,
    Finished,
    Generation,
    GenerationRequest,
    Reader,
    SamplingParams,
    TextPrompt,
)
from streaming.backend import Batch, FailedRow, SampledToken
from streaming.backends.scripted import (
    ByteTokenizer,
    Gate,
    ScriptedRunner,
    ScriptInput,
    repeat_prompt,
    say,
    scripted_backend,
)
from streaming.errors import (
    CursorLost,
    DeadlineExceeded,
    EngineFailure,
    GenerationNotFound,
    InvalidRequest,
    ModelLoadError,
    Overloaded,
    PromptTooLong,
    ShuttingDown,
)
from streaming.output_constraint import Grammar, GrammarKind
from streaming.sequence import Sequence
from tests.support import (
    TIMEOUT_S,
    Panic,
    WordCompiler,
    ask,
    assert_well_formed,
    collect,
    entered,
    finish_reason,
    joined,
    running_engine,
    tokenwire_threads,
    yield_to_loop,
)
from tests.watching_loop import until


def say_for_ever(_: ScriptInput) -> Iterable[int]:
    return itertools.repeat(ord("a"))


def endless_backend(*, gate: Gate | None = None, max_num_seqs: int = 8) -> Backend:
    return scripted_backend(say_for_ever, gate=gate, max_num_seqs=max_num_seqs, max_model_len=10**9)


async def wait_ended(generation: Generation) -> str:
    """Wait for the end without a subscription, and return the finish reason or error code."""
    with Reader(generation) as reader:
        outcome = await reader.wait_ended()
        assert_well_formed(reader.read(), generation)
    return outcome.finish_reason if isinstance(outcome, Finished) else outcome.error.code


# Submit, subscribe, find.


async def test_a_request_becomes_a_log_that_can_be_read_to_its_end():
    request = GenerationRequest(
        prompt=TextPrompt("ask"),
        params=SamplingParams(max_tokens=50),
        caller="alice",
        metadata={"k": "v"},
    )
    async with running_engine(scripted_backend(say("héllo 😀"))) as engine:
        generation = await engine.submit(request)
        events = await collect(engine, generation)
        assert engine.find(generation.generation_id, caller="alice") is generation
    assert joined(events) == "héllo 😀"
    assert finish_reason(generation) == "stop"
    assert (generation.caller, generation.model, dict(generation.metadata)) == (
        "alice",
        "scripted",
        {"k": "v"},
    )
    assert generation.usage.prompt_tokens == 3


async def test_ids_are_long_and_unique():
    async with running_engine(scripted_backend(say(""))) as engine:
        generations = await engine.submit_all([ask()] * 20)
    ids = {generation.generation_id for generation in generations}
    assert len(ids) == 20
    assert all(len(generation_id) >= 32 for generation_id in ids)


async def test_a_log_is_found_by_its_caller_only_and_while_it_is_retained():
    async with running_engine(scripted_backend(), EngineConfig(retention_bytes=0)) as engine:
        generation = await engine.submit(ask())
        with pytest.raises(GenerationNotFound):
            engine.find(generation.generation_id, caller="bob")
        await collect(engine, generation)
        # The log has its end a moment before the store finishes it.
        await until(lambda: not engine._store.num_open)
        with pytest.raises(GenerationNotFound):
            engine.find(generation.generation_id, caller="anyone")


async def test_a_reader_that_comes_back_at_its_cursor_misses_nothing():
    gate = Gate()
    async with running_engine(
        scripted_backend(say("one two three"), gate=gate), gate=gate
    ) as engine:
        generation = await engine.submit(ask())
        gate.allow(5)
        with engine.subscribe(generation, grace_s=60.0) as reader:
            events = [event async for event in _until(reader, "one")]
        rest = asyncio.create_task(collect(engine, generation, after=reader.cursor))
        await yield_to_loop()
        gate.open()
        assert joined(events) + joined(await rest) == "one two three"


async def _until(reader: Reader, text: str):
    shown = ""
    async for event in reader:
        yield event
        shown += joined([event])
        if text in shown:
            return


async def test_readers_are_woken_on_the_loops_thread():
    woken_on: set[str] = set()
    async with running_engine(scripted_backend(say("hello"))) as engine:
        generation = await engine.submit(ask())
        with engine.subscribe(
            generation, on_wake=lambda: woken_on.add(threading.current_thread().name)
        ) as reader:
            await reader.wait_ended()
    assert woken_on == {threading.current_thread().name}


async def test_stats_count_what_runs_and_what_waits():
    gate = Gate()
    async with running_engine(endless_backend(gate=gate, max_num_seqs=1), gate=gate) as engine:
        assert engine.stats == EngineStats(0, 0)
        logs = await engine.submit_all([ask()] * 3)
        await entered(gate)
        gate.allow()
        await entered(gate)
        assert engine.stats == EngineStats(num_running=1, num_waiting=2)
        for log in logs:
            engine.cancel(log)
        gate.open()
        assert [await wait_ended(log) for log in logs] == ["cancelled"] * 3
        assert engine.stats == EngineStats(0, 0)


async def test_a_waiting_request_is_told_its_position():
    gate = Gate()
    async with running_engine(
        scripted_backend(say("ab"), gate=gate, max_num_seqs=1), gate=gate
    ) as engine:
        logs = await engine.submit_all([ask()] * 3)
        for _ in range(2):  # the first step may have started before the others arrived
            await entered(gate)
            gate.allow()
        await entered(gate)
        assert [log.queued.position if log.queued else None for log in logs] == [None, 0, 1]
        gate.open()
        for log in logs:
            await collect(engine, log)


async def test_the_engine_is_ready_between_start_and_shutdown():
    backend = scripted_backend()
    engine = AsyncEngine(backend)
    assert not engine.is_ready
    assert (engine.info, engine.tokenizer) == (backend.info, backend.tokenizer)
    await engine.start()
    assert engine.is_ready
    await engine.drain(deadline_s=1.0)
    assert not engine.is_ready
    await engine.aclose()
    assert tokenwire_threads() == []


# Several requests at once.


async def test_logs_of_a_batch_are_returned_in_order():
    async with running_engine(scripted_backend(repeat_prompt)) as engine:
        generations = await engine.submit_all([ask("b"), ask("a"), ask("b")])
        for generation in generations:
            await collect(engine, generation)
    assert [generation.text for generation in generations] == ["b", "a", "b"]


def by_word(word: str) -> GenerationRequest:
    return ask(word, grammar=Grammar(GrammarKind.REGEX, word))


async def test_a_grammar_is_compiled_once_for_all_choices_and_again_for_the_next_request():
    compiler = WordCompiler()
    backend = dataclasses.replace(scripted_backend(repeat_prompt), grammars=compiler)
    async with running_engine(backend) as engine:
        generations = await engine.submit_all([by_word("ab"), ask("free"), by_word("ab")])
        generations.append(await engine.submit(by_word("ab")))
        for generation in generations:
            await collect(engine, generation)
    assert compiler.compiled == [("ab", 2), ("ab", 1)]
    assert [generation.text for generation in generations] == ["ab", "free", "ab", "ab"]
    # The grammar's words end without an end token, the free text with one.
    assert [log.usage.completion_tokens for log in generations] == [2, 5, 2, 2]


async def test_a_grammar_that_cannot_be_compiled_is_refused_before_it_is_queued():
    backend = dataclasses.replace(scripted_backend(), grammars=WordCompiler())
    async with running_engine(backend) as engine:
        with pytest.raises(InvalidRequest, match="unclosed group") as caught:
            await engine.submit_all([ask("fine"), by_word("(")])
        assert engine._store.num_open == engine._store.num_ended == 0
    assert caught.value.param == "response_format"


@pytest.mark.pain(13)
async def test_a_batch_is_admitted_whole_or_not_at_all():
    async with running_engine(scripted_backend(max_model_len=16)) as engine:
        for bad, error in (("", InvalidRequest), ("日" * 6, PromptTooLong)):
            with pytest.raises(error):
                await engine.submit_all([ask("fine"), ask(bad)])
            assert engine.stats == EngineStats(0, 0)
            assert engine._store.num_open == engine._store.num_ended == 0


# Tokenizing.


class HeldTokenizer(ByteTokenizer):
    """Encodes once it is opened, and records the threads that it ran on."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self._is_open = threading.Event()
        self.thread_names: list[str] = []

    def encode(self, text: str) -> list[int]:
        self.thread_names.append(threading.current_thread().name)
        self.entered.release()
        self._is_open.wait()
        return super().encode(text)

    def open(self) -> None:
        self._is_open.set()


def held_backend() -> tuple[Backend, HeldTokenizer]:
    tokenizer = HeldTokenizer()
    return dataclasses.replace(scripted_backend(say("x")), tokenizer=tokenizer), tokenizer


@pytest.mark.pain(7)
async def test_tokenizing_leaves_the_event_loop_free():
    """The loop runs while the thread is busy: all that can be shown without a clock."""
    backend, tokenizer = held_backend()
    async with running_engine(backend, gate=tokenizer) as engine:
        submitting = asyncio.create_task(engine.submit(ask()))
        await entered(tokenizer)
        await yield_to_loop()
        assert not submitting.done()
        tokenizer.open()
        await collect(engine, await submitting)
    assert [name.startswith("tokenwire-tokenizer") for name in tokenizer.thread_names] == [True]


async def test_a_prompt_is_tokenized_alone_whether_or_not_it_fits():
    async with running_engine(scripted_backend(max_model_len=4)) as engine:
        assert await engine.tokenize(ask("héy")) == list("héy".encode())
        with pytest.raises(PromptTooLong):  # more characters than the context could hold
            await engine.tokenize(ask("12345"))
        with pytest.raises(InvalidRequest):
            await engine.tokenize(ask(""))
        assert await engine.detokenize(list("hé".encode()), param="tokens") == "hé"
        with pytest.raises(InvalidRequest) as caught:
            await engine.detokenize([1, 257], param="tokens")
        assert caught.value.param == "tokens"


async def test_tokenizing_only_counts_as_a_waiting_request():
    backend, tokenizer = held_backend()
    config = EngineConfig(max_waiting_requests=1)
    async with running_engine(backend, config, gate=tokenizer) as engine:
        tokenizing = asyncio.ensure_future(engine.tokenize(ask("first")))
        await entered(tokenizer)
        for refused in (
            engine.tokenize(ask("second")),
            engine.detokenize([1], param="tokens"),
            engine.submit(ask("third")),
        ):
            with pytest.raises(Overloaded):
                await refused
        tokenizer.open()
        assert await tokenizing == list(b"first")
        assert await engine.tokenize(ask("again")) == list(b"again")


async def test_a_submit_that_is_cancelled_while_it_tokenizes_leaves_nothing():
    backend, tokenizer = held_backend()
    config = EngineConfig(max_waiting_requests=1)
    async with running_engine(backend, config, gate=tokenizer) as engine:
        submitting = asyncio.create_task(engine.submit(ask()))
        await entered(tokenizer)
        with pytest.raises(Overloaded):
            await engine.submit(ask())
        submitting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await submitting
        tokenizer.open()
        assert engine.stats == EngineStats(0, 0)
        assert engine._store.num_open == 0
        await until(lambda: not engine._admission.num_tokenizing)
        await collect(engine, await engine.submit(ask()))  # its room is free again


async def test_cancelled_requests_do_not_fill_the_tokenizer_queue():
    """Running jobs are counted until they are done, waiting ones are removed."""
    backend, tokenizer = held_backend()
    config = EngineConfig(max_waiting_requests=3, num_tokenizer_threads=1)
    async with running_engine(backend, config, gate=tokenizer) as engine:
        for num_places in (3, 2, 2):
            submitting = [asyncio.create_task(engine.submit(ask())) for _ in range(num_places)]
            if num_places == 3:
                await entered(tokenizer)
            await yield_to_loop()
            with pytest.raises(Overloaded):
                await engine.submit(ask())
            for task in submitting:
                task.cancel()
            results = await asyncio.gather(*submitting, return_exceptions=True)
            assert [type(result) for result in results] == [asyncio.CancelledError] * num_places
            assert engine._admission.num_tokenizing == 1
        tokenizer.open()
        await until(lambda: not engine._admission.num_tokenizing)
        await collect(engine, await engine.submit(ask()))
    assert len(tokenizer.thread_names) == 2, "jobs cancelled in the queue do not run"


async def test_a_request_that_waits_for_a_tokenizer_fails_at_shutdown():
    """A cancelled future would look to the caller like a cancellation of its own task."""
    backend, tokenizer = held_backend()
    config = EngineConfig(num_tokenizer_threads=1)
    async with running_engine(backend, config, gate=tokenizer) as engine:
        submitting = [asyncio.create_task(engine.submit(ask())) for _ in range(3)]
        await entered(tokenizer)
        closing = asyncio.create_task(engine.aclose())
        await until(lambda: engine.is_shutting_down)
        tokenizer.open()
        results = await asyncio.gather(*submitting, return_exceptions=True)
        await closing
    assert [type(result) for result in results] == [ShuttingDown] * 3
    assert len(tokenizer.thread_names) == 1, "the others were not tokenized"


async def test_a_request_that_waits_for_a_tokenizer_is_evicted_for_a_new_caller():
    backend, tokenizer = held_backend()
    config = EngineConfig(max_waiting_requests=3, num_tokenizer_threads=1)
    async with running_engine(backend, config, gate=tokenizer) as engine:
        many = [asyncio.create_task(engine.submit(ask(str(n)))) for n in range(3)]
        await entered(tokenizer)
        request = GenerationRequest(prompt=TextPrompt("one"), caller="modest")
        modest = asyncio.create_task(engine.submit(request))
        with pytest.raises(Overloaded, match="displaced by a caller with fewer"):
            await many[-1]
        tokenizer.open()
        for submitting in (*many[:-1], modest):
            await collect(engine, await submitting)


# Limits.


async def test_the_queue_is_bounded_by_requests():
    gate = Gate()
    backend = scripted_backend(say("x"), gate=gate, max_num_seqs=1)
    async with running_engine(backend, EngineConfig(max_waiting_requests=3), gate=gate) as engine:
        running = await engine.submit(ask())
        await entered(gate)
        waiting = [await engine.submit(ask()) for _ in range(3)]
        with pytest.raises(Overloaded) as caught:
            await engine.submit(ask())
        error = caught.value
        assert (error.num_waiting, error.max_waiting, error.unit) == (3, 3, "requests")
        assert error.retry_after_s == 1.0, "nothing has been measured yet"
        gate.open()
        for generation in (running, *waiting):
            await collect(engine, generation)
        await collect(engine, await engine.submit(ask()))


async def test_a_batch_counts_with_all_its_requests():
    config = EngineConfig(max_waiting_requests=3)
    async with running_engine(scripted_backend(say("x")), config) as engine:
        with pytest.raises(Overloaded):
            await engine.submit_all([ask()] * 4)
        for generation in await engine.submit_all([ask()] * 3):
            await collect(engine, generation)


async def test_the_queue_is_bounded_by_prompt_tokens():
    gate = Gate()
    backend = scripted_backend(say("x"), gate=gate, max_num_seqs=1)
    async with running_engine(backend, EngineConfig(max_waiting_tokens=10), gate=gate) as engine:
        logs = [await engine.submit(ask("x" * 100))]  # a single prompt may be larger than the limit
        await entered(gate)
        logs += [await engine.submit(ask("x" * 6)), await engine.submit(ask("x" * 4))]
        with pytest.raises(Overloaded) as caught:
            await engine.submit(ask("x"))
        error = caught.value
        assert (error.num_waiting, error.max_waiting, error.unit) == (10, 10, "prompt tokens")
        gate.open()
        for generation in logs:
            await collect(engine, generation)


async def test_a_batch_counts_with_all_its_prompt_tokens():
    config = EngineConfig(max_waiting_tokens=10)
    async with running_engine(scripted_backend(say("x")), config) as engine:
        for prompts in (["x" * 6, "y" * 5], ["x" * 11, "y"]):
            with pytest.raises(InvalidRequest, match="at most 10 tokens in total") as caught:
                await engine.submit_all([ask(prompt) for prompt in prompts])
            assert caught.value.param == "prompt"
            assert engine._store.num_open == 0
        for generation in await engine.submit_all([ask("x" * 6), ask("y" * 4)]):
            await collect(engine, generation)


async def test_choices_of_one_prompt_may_be_larger_than_the_limit_while_nothing_waits():
    gate = Gate()
    backend = scripted_backend(say("x"), gate=gate, max_num_seqs=1)
    async with running_engine(backend, EngineConfig(max_waiting_tokens=10), gate=gate) as engine:
        logs = [await engine.submit(ask())]
        await entered(gate)
        logs += await engine.submit_all([ask("x" * 6)] * 2)
        with pytest.raises(Overloaded) as caught:
            await engine.submit_all([ask("x")])
        assert caught.value.num_waiting == 12, "each choice counts"
        gate.open()
        for generation in logs:
            await collect(engine, generation)


async def test_a_refusal_has_the_expected_wait():
    gate = Gate()
    backend = endless_backend(gate=gate, max_num_seqs=1)
    async with running_engine(backend, EngineConfig(max_waiting_requests=1), gate=gate) as engine:
        await engine.submit(ask(max_tokens=10**6))
        await entered(gate)
        gate.allow()
        await entered(gate)
        await engine.submit(ask(max_tokens=10**6))
        gate.allow()
        await entered(gate)
        with pytest.raises(Overloaded) as caught:
            await engine.submit(ask())
        assert engine._engine.forecast is not None
        ends_in_s = engine._engine.forecast.expected[0].ends_in_s
        assert caught.value.retry_after_s == pytest.approx(ends_in_s, rel=0.5)
        assert (caught.value.retry_after_s or 0.0) > 1.0


async def test_a_generation_that_runs_too_long_is_ended():
    async with running_engine(endless_backend(), EngineConfig(request_timeout_s=0.5)) as engine:
        generation = await engine.submit(ask())
        assert await wait_ended(generation) == "timeout"
        assert generation.text.strip("a") == ""


# Cancel, and clients that leave.


async def test_cancel_ends_a_generation_at_the_next_step_and_is_idempotent():
    gate = Gate()
    async with running_engine(endless_backend(gate=gate), gate=gate) as engine:
        generation = await engine.submit(ask())
        await entered(gate)
        engine.cancel(generation)
        engine.cancel(generation)
        gate.allow()  # the step in progress is the last one
        assert await wait_ended(generation) == "cancelled"
        engine.cancel(generation)
    assert generation.text == "a"


@pytest.mark.pain(2)
async def test_a_request_cancelled_in_the_queue_never_runs():
    gate = Gate()
    async with running_engine(endless_backend(gate=gate, max_num_seqs=1), gate=gate) as engine:
        running, waiting = await engine.submit_all([ask(), ask()])
        await entered(gate)
        with engine.subscribe(waiting):
            pass
        gate.allow(2)  # the step in progress, and the one that reports it
        assert await wait_ended(waiting) == "cancelled"
        assert (waiting.started, running.is_ended) == (None, False)


async def test_the_last_subscriber_ends_a_generation_at_once_without_grace():
    gate = Gate()
    async with running_engine(endless_backend(gate=gate), gate=gate) as engine:
        generation = await engine.submit(ask())
        with engine.subscribe(generation), engine.subscribe(generation):
            await entered(gate)
        gate.allow()
        assert await wait_ended(generation) == "cancelled"


async def test_a_generation_goes_on_while_another_subscriber_stays():
    gate = Gate()
    async with running_engine(endless_backend(gate=gate), gate=gate) as engine:
        generation = await engine.submit(ask())
        with engine.subscribe(generation):
            with engine.subscribe(generation):
                await entered(gate)
            for _ in range(3):  # a cancelled generation would not reach the runner again
                gate.allow()
                await entered(gate)
        gate.open()
        assert await wait_ended(generation) == "cancelled"


async def test_the_last_subscriber_ends_a_generation_after_the_grace():
    async with running_engine(endless_backend()) as engine:
        generation = await engine.submit(ask())
        with engine.subscribe(generation, grace_s=0.02):
            pass
        assert not generation.is_ended
        assert await wait_ended(generation) == "cancelled"


async def test_a_subscriber_within_the_grace_keeps_a_generation_alive():
    async with running_engine(endless_backend()) as engine:
        kept, dropped = await engine.submit_all([ask(), ask()])
        for generation, grace_s in ((kept, 0.01), (dropped, 0.05)):
            with engine.subscribe(generation, grace_s=grace_s):
                pass
        with engine.subscribe(kept):
            assert await wait_ended(dropped) == "cancelled"  # the longer grace has ended
            assert not kept.is_ended
        assert await wait_ended(kept) == "cancelled"


async def test_a_generation_is_detached_while_its_grace_runs():
    gate = Gate()
    async with running_engine(endless_backend(gate=gate), gate=gate) as engine:
        generation = await engine.submit(ask())
        await entered(gate)
        (sequence,) = engine._engine._sequences.values()
        seen = []
        with (
            engine.subscribe(generation, grace_s=3600.0),
            engine.subscribe(generation, grace_s=3600.0),
        ):
            seen.append(await _is_detached(sequence, gate))
        seen.append(await _is_detached(sequence, gate))
        with engine.subscribe(generation, grace_s=3600.0):
            seen.append(await _is_detached(sequence, gate))
            with engine.subscribe(generation, grace_s=3600.0):
                pass
            seen.append(await _is_detached(sequence, gate))
        seen.append(await _is_detached(sequence, gate))
    assert seen == [False, True, False, False, True]


async def _is_detached(sequence: Sequence, gate: Gate) -> bool:
    """Return the engine's flag after all commands so far."""
    gate.allow()
    await entered(gate)
    return sequence.is_detached


async def test_a_detached_generation_waits_behind_the_others():
    gate = Gate()
    backend = scripted_backend(say("a"), gate=gate, max_num_seqs=1)
    async with running_engine(backend, gate=gate) as engine:
        running, gone, here = [await engine.submit(ask()) for _ in range(3)]
        with engine.subscribe(gone, grace_s=3600.0):
            await entered(gate)
        gate.open()
        for generation in (running, gone, here):
            await wait_ended(generation)
    assert gone.started is not None
    assert here.started is not None
    assert gone.started.at > here.started.at


async def test_a_grace_ends_with_its_generation():
    gate = Gate()
    async with running_engine(scripted_backend(say("x"), gate=gate), gate=gate) as engine:
        generation = await engine.submit(ask())
        with engine.subscribe(generation, grace_s=3600.0):
            await entered(gate)
        assert len(engine._subscribers.in_grace) == 1
        gate.open()
        assert await wait_ended(generation) == "stop"
        assert not engine._subscribers.in_grace
        with engine.subscribe(generation, grace_s=3600.0):
            pass  # leaving an ended log starts no grace
        assert not engine._subscribers.in_grace


async def test_a_lost_cursor_does_not_subscribe():
    async with running_engine(endless_backend()) as engine:
        generation = await engine.submit(ask())
        with engine.subscribe(generation, grace_s=0.02):
            pass
        with pytest.raises(CursorLost), engine.subscribe(generation, after=10**9):
            pass
        assert await wait_ended(generation) == "cancelled"


@pytest.mark.pain(3)
async def test_a_hundred_clients_that_drop_at_random_leave_nothing():
    dice = random.Random(3)
    backend = scripted_backend(say("a" * 40), max_num_seqs=4)
    runner = backend.runner
    assert isinstance(runner, ScriptedRunner)
    async with running_engine(backend) as engine:

        async def drop() -> Generation:
            generation = await engine.submit(ask())
            with engine.subscribe(generation, grace_s=dice.choice([0.0, 0.001])) as reader:
                num_events = dice.randrange(5)
                while num_events > 0 and not reader.is_done:
                    num_events -= len(reader.read()) or 1
                    await yield_to_loop()
            return generation

        generations = await asyncio.gather(*(drop() for _ in range(100)))
        assert {await wait_ended(log) for log in generations} <= {"cancelled", "stop"}
        assert engine.stats == EngineStats(0, 0)
        assert engine.is_ready
        assert joined(await collect(engine, await engine.submit(ask()))) == "a" * 40
    started = {log.generation_id for log in generations if log.started is not None}
    assert sorted(started) == sorted(runner.released[:-1])


# Shutdown.


@pytest.mark.pain(15)
async def test_drain_ends_waiting_generations_and_waits_for_running_ones():
    gate = Gate()
    async with running_engine(
        scripted_backend(say("hello"), gate=gate, max_num_seqs=1), gate=gate
    ) as engine:
        logs = await engine.submit_all([ask()] * 3)
        await entered(gate)
        draining = asyncio.create_task(engine.drain(deadline_s=60.0))
        await yield_to_loop()
        assert not engine.is_ready
        with pytest.raises(ShuttingDown) as caught:
            await engine.submit(ask())
        assert caught.value.retry_after_s == 1.0
        gate.open()
        await draining
        assert [await wait_ended(log) for log in logs] == ["stop"] + ["shutting_down"] * 2
    assert logs[0].text == "hello"


@pytest.mark.pain(15)
async def test_drain_ends_running_generations_at_the_deadline():
    gate = Gate()
    async with running_engine(endless_backend(gate=gate, max_num_seqs=1), gate=gate) as engine:
        logs = await engine.submit_all([ask()] * 2)
        await entered(gate)
        gate.open()
        await engine.drain(deadline_s=0.02)
        assert logs[0].text, "it had until the deadline"
        assert engine.stats == EngineStats(0, 0)
        assert [await wait_ended(log) for log in logs] == ["shutting_down"] * 2


async def test_drain_of_an_idle_engine_returns_at_once():
    async with running_engine(scripted_backend()) as engine:
        await engine.drain(deadline_s=0.0)
        await engine.drain(deadline_s=0.0)


class ClosingRunner(ScriptedRunner):
    """Counts calls of `close`."""

    num_closed = 0

    def close(self) -> None:
        self.num_closed += 1
        super().close()


async def test_aclose_ends_everything_wakes_every_reader_and_is_idempotent():
    runner = ClosingRunner(say_for_ever, max_num_seqs=1)
    backend = dataclasses.replace(endless_backend(), runner=runner)
    async with running_engine(backend) as engine:
        logs = await engine.submit_all([ask()] * 3)
        endings = [asyncio.create_task(wait_ended(log)) for log in logs]
        with engine.subscribe(logs[0], grace_s=3600.0):
            await yield_to_loop()
        await asyncio.gather(engine.aclose(), engine.aclose())
        assert tokenwire_threads() == []
        assert await asyncio.gather(*endings) == ["shutting_down"] * 3
        await engine.aclose()
        with pytest.raises(ShuttingDown):
            await engine.submit(ask())
    assert runner.num_closed == 1
    assert sorted(runner.released) == sorted(log.generation_id for log in logs if log.started)


async def test_an_engine_that_was_never_started_closes():
    engine = AsyncEngine(scripted_backend())
    await engine.drain(deadline_s=1.0)
    await engine.aclose()
    assert engine.stats == EngineStats(0, 0)


@pytest.mark.slow
def test_an_engine_outlives_the_event_loop_that_started_it():
    """A loop that closed without `aclose`: the engine thread drops its callbacks, and goes on."""
    gate = Gate()
    engine = AsyncEngine(scripted_backend(say("x"), gate=gate))

    async def leave() -> Generation:
        await engine.start()
        generation = await engine.submit(ask())
        await entered(gate)
        return generation

    generation = asyncio.run(leave())
    gate.open()
    asyncio.run(engine.aclose())
    assert tokenwire_threads() == []
    assert generation.text == "x"


# Engine failure.


class StickyRunner(ScriptedRunner):
    """Fails to release a sequence, which no engine survives."""

    def release(self, generation_id: str) -> None:
        raise RuntimeError("stuck")


async def test_the_death_of_the_engine_ends_every_log(caplog: pytest.LogCaptureFixture):
    gate = Gate()
    runner = StickyRunner(say("x", "xyz"), gate=gate, max_num_seqs=2)
    backend = dataclasses.replace(scripted_backend(), runner=runner)
    async with running_engine(backend, gate=gate) as engine:
        last, running, waiting = await engine.submit_all([ask()] * 3)
        await entered(gate)
        gate.allow()
        await entered(gate)  # the second step ends the first sequence
        inboxed = await engine.submit(ask())
        for generation in (running, waiting, inboxed):
            engine.cancel(generation)
        still_inboxed = await engine.submit(ask())
        draining = asyncio.create_task(engine.drain(deadline_s=60.0))
        await yield_to_loop()
        gate.allow()
        logs = (last, running, waiting, inboxed, still_inboxed)
        endings = [await wait_ended(log) for log in logs]
        await draining
        assert engine.stats == EngineStats(0, 0)
        assert engine.has_failed
        assert not engine.is_ready
    assert endings[:2] == ["stop", "engine_error"]
    assert set(endings[2:]) <= {"cancelled", "engine_error", "shutting_down"}
    assert "stuck" in caplog.text


async def test_a_dead_engine_accepts_no_requests(caplog: pytest.LogCaptureFixture):
    runner = StickyRunner(say(""))
    backend = dataclasses.replace(scripted_backend(), runner=runner)
    async with running_engine(backend) as engine:
        generation = await engine.submit(ask())
        assert await wait_ended(generation) == "stop"
        await until(lambda: engine.has_failed)
        assert not engine.is_ready
        with pytest.raises(EngineFailure):
            await engine.submit(ask())
        with engine.subscribe(generation, grace_s=3600.0) as reader:
            assert_well_formed(reader.read(), generation)
        engine.cancel(generation)
        assert engine._thread._inbox.empty(), "no thread reads it any more"
    assert "accepts no more work" in caplog.text


async def test_a_failing_step_is_not_the_death_of_the_engine(caplog: pytest.LogCaptureFixture):
    def script(sequence: ScriptInput) -> Iterable[int | Exception]:
        return [*b"ab", RuntimeError("broken kernel")] if len(sequence.prompt_ids) == 1 else b"fine"

    async with running_engine(scripted_backend(script)) as engine:
        bad = await engine.submit(ask("!"))
        assert await wait_ended(bad) == "engine_error"
        assert isinstance(bad.outcome, Failed)
        good = await engine.submit(ask("??"))
        await collect(engine, good)
        assert engine.is_ready
    assert (bad.text, good.text) == ("ab", "fine")
    assert "broken kernel" not in str(bad.outcome.error)
    assert "broken kernel" in caplog.text


# Stuck threads and panics.


@pytest.mark.pain(23)
async def test_cancel_and_deadline_work_while_a_step_is_stuck():
    gate = Gate()
    async with running_engine(scripted_backend(say("hello"), gate=gate), gate=gate) as engine:
        cancelled = await engine.submit(ask())
        overdue = await engine.submit(dataclasses.replace(ask(), timeout_s=0.5))
        going_on = await engine.submit(ask())
        await entered(gate)
        engine.cancel(cancelled)
        assert await wait_ended(cancelled) == "cancelled"
        assert await wait_ended(overdue) == "timeout"
        assert not going_on.is_ended
        assert engine.is_ready
        gate.open()
        await collect(engine, going_on)
        after = await engine.submit(ask())
        await collect(engine, after)
    assert (cancelled.text, overdue.text, going_on.text, after.text) == ("", "", "hello", "hello")


@pytest.mark.pain(23)
async def test_drain_ends_while_a_step_is_stuck():
    gate = Gate()
    backend = scripted_backend(say("hello"), gate=gate, max_num_seqs=1)
    async with running_engine(backend, gate=gate) as engine:
        running, waiting = await engine.submit_all([ask()] * 2)
        await entered(gate)
        await engine.drain(deadline_s=0.01)
        endings = [await wait_ended(log) for log in (running, waiting)]
    assert endings == ["shutting_down"] * 2


@pytest.mark.pain(23)
async def test_a_step_beyond_its_timeout_fails_the_engine(
    caplog: pytest.LogCaptureFixture,
):
    gate = Gate()
    config = EngineConfig(step_timeout_s=0.05, close_timeout_s=0.05)
    backend = scripted_backend(say("hello"), gate=gate)
    async with running_engine(backend, config, gate=gate) as engine:
        generation = await engine.submit(ask())
        await entered(gate)
        assert await wait_ended(generation) == "engine_error"
        assert (engine.has_failed, engine.is_ready) == (True, False)
        with pytest.raises(EngineFailure):
            await engine.submit(ask())
        await engine.drain(deadline_s=3600.0)
        await engine.aclose()
        assert engine.has_stuck_threads
        gate.open()
        assert await asyncio.to_thread(engine._thread.join, TIMEOUT_S)
    assert "one step has taken" in caplog.text


class FaultyTokenizer(ByteTokenizer):
    """Gets stuck on prompts that begin with "!", and panics on those that begin with "?"."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = Gate()

    def encode(self, text: str) -> list[int]:
        if text.startswith("!"):
            self.gate.wait()
        if text.startswith("?"):
            raise Panic("index out of bounds")
        return super().encode(text)


def faulty_backend() -> tuple[Backend, Gate]:
    tokenizer = FaultyTokenizer()
    return dataclasses.replace(scripted_backend(), tokenizer=tokenizer), tokenizer.gate


@pytest.mark.pain(23)
async def test_a_stuck_tokenizer_fails_its_request_only():
    backend, gate = faulty_backend()
    config = EngineConfig(step_timeout_s=0.05, num_tokenizer_threads=1)
    async with running_engine(backend, config, gate=gate) as engine:
        hanging = asyncio.create_task(engine.submit(ask("!")))
        await entered(gate)
        behind = await engine.submit(ask("fine"))
        with pytest.raises(EngineFailure):
            await hanging
        await collect(engine, behind)
        assert engine.is_ready
        gate.open()
    assert behind.text == "fine"


@pytest.mark.pain(23)
async def test_too_many_stuck_tokenizers_fail_the_engine(
    caplog: pytest.LogCaptureFixture,
):
    backend, gate = faulty_backend()
    config = EngineConfig(step_timeout_s=0.01, num_tokenizer_threads=5)
    async with running_engine(backend, config, gate=gate) as engine:
        refused = await asyncio.gather(
            *(engine.submit(ask("!")) for _ in range(5)), return_exceptions=True
        )
        assert all(isinstance(error, EngineFailure) for error in refused)
        assert engine.has_failed
        gate.allow(5)
    assert "5 tokenizer threads are stuck" in caplog.text


@pytest.mark.pain(23)
async def test_drain_ends_requests_with_a_stuck_tokenizer():
    backend, gate = faulty_backend()
    config = EngineConfig(num_tokenizer_threads=1)
    async with running_engine(backend, config, gate=gate) as engine:
        requests = [asyncio.create_task(engine.submit(ask("!"))) for _ in range(3)]
        await entered(gate)
        await engine.drain(deadline_s=0.01)
        gate.open()
        outcomes = await asyncio.gather(*requests, return_exceptions=True)
    assert all(isinstance(outcome, ShuttingDown) for outcome in outcomes)


async def test_a_prompt_is_tokenized_within_the_deadline_of_its_request():
    backend, gate = faulty_backend()
    async with running_engine(backend, gate=gate) as engine:
        with pytest.raises(DeadlineExceeded) as exceeded:
            await engine.submit(dataclasses.replace(ask("!"), timeout_s=0.01))
        gate.open()
    assert exceeded.value.timeout_s == 0.01


@pytest.mark.pain(23)
async def test_a_tokenizer_that_panics_fails_its_request_only():
    backend, _ = faulty_backend()
    async with running_engine(backend) as engine:
        with pytest.raises(RuntimeError, match="Panic: index out of bounds"):
            await engine.submit(ask("?"))
        await collect(engine, await engine.submit(ask("fine")))
        assert engine.is_ready


async def test_the_model_is_loaded_on_the_thread_that_steps_it():
    names: list[str] = []

    class NamedRunner(ScriptedRunner):
        def run(self, batch: Batch) -> list[SampledToken | FailedRow]:
            names.append(threading.current_thread().name)
            return super().run(batch)

    def load() -> Backend:
        names.append(threading.current_thread().name)
        return dataclasses.replace(scripted_backend(), runner=NamedRunner(say("a")))

    engine = await asyncio.to_thread(AsyncEngine.load, load)
    await engine.start()
    await collect(engine, await engine.submit(ask()))
    await engine.aclose()
    assert set(names) == {"tokenwire-engine"}
    assert tokenwire_threads() == []


def test_a_model_that_cannot_be_loaded_leaves_no_thread():
    def load() -> Backend:
        raise ModelLoadError("no such model")

    with pytest.raises(ModelLoadError, match="no such model"):
        AsyncEngine.load(load)
    for thread in threading.enumerate():
        if thread.name.startswith("tokenwire"):
            thread.join(TIMEOUT_S)
    assert tokenwire_threads() == []
