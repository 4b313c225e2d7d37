from __future__ import annotations

import pytest

from app.errors import RequestRefused
from app.openai.reader_group import ReaderGroup, error_of
from streaming import Delta, Ended, Started
from streaming.backends.scripted import Gate, repeat_prompt, say, scripted_backend
from tests.support import ask, assert_well_formed, entered, running_engine


async def test_each_log_is_read_from_start_to_end():
    async with running_engine(scripted_backend(repeat_prompt, max_num_seqs=2)) as engine:
        logs = await engine.submit_all([ask("one"), ask("two"), ask("three")])
        seen: dict[int, list[object]] = {0: [], 1: [], 2: []}
        with ReaderGroup(engine, logs) as readers:
            while not readers.is_done:
                await readers.wait()
                for index, events in readers.read():
                    seen[index] += events
        for index, log in enumerate(logs):
            assert_well_formed(seen[index], log)  # type: ignore[arg-type]
        assert [log.text for log in logs] == ["one", "two", "three"]
        assert [log.num_subscribers for log in logs] == [0, 0, 0]


async def test_logs_that_ended_before_the_subscription_are_read():
    async with running_engine(scripted_backend(say("a"))) as engine:
        logs = await engine.submit_all([ask("x")])
        with engine.subscribe(logs[0]) as reader:
            await reader.wait_ended()
        with ReaderGroup(engine, logs) as readers:
            await readers.wait()
            [(index, events)] = readers.read()
        assert (index, [type(event) for event in events]) == (0, [Started, Delta, Ended])
        assert readers.is_done


async def test_wait_returns_false_after_its_timeout():
    gate = Gate()
    async with running_engine(scripted_backend(say("a"), gate=gate), gate=gate) as engine:
        logs = await engine.submit_all([ask("x")])
        with ReaderGroup(engine, logs) as readers:
            await entered(gate)
            while await readers.wait(timeout_s=0.01):
                readers.read()
            assert not readers.is_done


async def test_leaving_cancels_open_generations():
    gate = Gate()
    backend = scripted_backend(say("x" * 4000), gate=gate, max_num_seqs=1)
    async with running_engine(backend, gate=gate) as engine:
        logs = await engine.submit_all([ask("x", max_tokens=4000)] * 2)
        with ReaderGroup(engine, logs):
            await entered(gate)
        gate.open()
        for log in logs:
            with engine.subscribe(log) as reader:
                await reader.wait_ended()
        assert sum(log.usage.completion_tokens for log in logs) <= 1


async def test_the_error_of_one_generation_is_raised():
    def script(sequence):
        return [RuntimeError("no")] if sequence.prompt_ids == (98,) else b"x"

    async with running_engine(scripted_backend(script, max_num_seqs=1)) as engine:
        logs = await engine.submit_all([ask("a"), ask("b"), ask("c")])
        with ReaderGroup(engine, logs) as readers, pytest.raises(RequestRefused) as refused:
            await readers.wait_ended()
    assert refused.value.info.code == "engine_error"


async def test_a_finished_generation_has_no_error():
    async with running_engine(scripted_backend(say("a"))) as engine:
        logs = await engine.submit_all([ask("x")])
        with ReaderGroup(engine, logs) as readers:
            await readers.wait_ended()
        with engine.subscribe(logs[0]) as reader:
            assert error_of(reader.read()) is None
