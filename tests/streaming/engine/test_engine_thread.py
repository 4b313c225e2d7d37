"""The engine thread: commands before steps, idle without work, and one end of every log."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest

from streaming.backends.scripted import Gate, ScriptedRunner, say
from streaming.engine.engine import Engine
from streaming.engine.engine_thread import EngineThread
from streaming.errors import ShuttingDown
from streaming.host import OPERATING_SYSTEM, Host
from streaming.log.generation import Failed, Generation
from tests.support import (
    TIMEOUT_S,
    ManualClock,
    ManualHost,
    Panic,
    finish_reason,
    make_sequence,
    tokenwire_threads,
)

GOING = ShuttingDown(retry_after_s=1.0)


class Rig:
    """A thread with its engine, and its callbacks."""

    def __init__(self, runner: ScriptedRunner, host: Host) -> None:
        self.engine = Engine(runner)
        self.told: queue.SimpleQueue[list[Generation]] = queue.SimpleQueue()
        self.tellers: set[str] = set()
        self.has_died = threading.Event()
        self.thread = EngineThread(host=host)
        self.thread.drive(self.engine, on_step=self._take_step, on_death=self.has_died.set)

    def _take_step(self, touched: list[Generation]) -> None:
        self.tellers.add(threading.current_thread().name)
        self.told.put(touched)

    def add(self, *names: str) -> list[Generation]:
        """Add sequences, all before the same step."""
        sequences = [make_sequence(name) for name in names]

        def add() -> None:
            for sequence in sequences:
                self.engine.add(sequence)

        self.thread.put(add)
        return [sequence.generation for sequence in sequences]

    def until_ended(self, generation: Generation) -> None:
        """Wait for the callback with the end of the log."""
        while not generation.is_ended:
            assert generation in self.told.get(timeout=TIMEOUT_S)


@contextmanager
def running(
    runner: ScriptedRunner,
    *,
    gate: Gate | None = None,
    host: Host = OPERATING_SYSTEM,
) -> Iterator[Rig]:
    """Start a thread; at exit, assert that none is left."""
    rig = Rig(runner, host)
    rig.thread.start()
    try:
        yield rig
    finally:
        if gate is not None:
            gate.open()
        rig.thread.stop(GOING)
        assert rig.thread.join(TIMEOUT_S)
    assert tokenwire_threads() == []
    assert not rig.thread.is_alive


def error_of(generation: Generation) -> str | None:
    outcome = generation.outcome
    return outcome.error.code if isinstance(outcome, Failed) else None


def test_a_log_is_written_and_reported_on_the_thread():
    with running(ScriptedRunner(say("hello"))) as rig:
        [generation] = rig.add("a")
        rig.until_ended(generation)
        assert rig.tellers == {"tokenwire-engine"}
    assert (generation.text, finish_reason(generation)) == ("hello", "stop")


def test_commands_run_in_order_also_without_an_engine():
    done: list[int] = []
    last = threading.Event()
    with running(ScriptedRunner(say(""))) as rig:
        for number in range(100):
            rig.thread.put(partial(done.append, number))
        rig.thread.put(last.set)
        assert last.wait(TIMEOUT_S)
        assert rig.told.empty(), "no log was written"
    assert done == list(range(100))


def test_a_command_runs_before_the_next_step():
    gate = Gate()
    with running(ScriptedRunner(say("hello"), gate=gate), gate=gate) as rig:
        [generation] = rig.add("a")
        assert gate.entered.acquire(timeout=TIMEOUT_S)
        rig.thread.put(lambda: rig.engine.cancel(generation.generation_id))
        gate.allow()
        rig.until_ended(generation)
    assert (generation.text, finish_reason(generation)) == ("h", "cancelled")


def test_a_log_that_a_command_ends_is_reported_before_the_next_step():
    gate = Gate()
    with running(ScriptedRunner(say("hello"), gate=gate), gate=gate) as rig:
        rig.add("a")
        assert gate.entered.acquire(timeout=TIMEOUT_S)
        [cancelled] = rig.add("b")
        rig.thread.put(lambda: rig.engine.cancel("b"))
        gate.allow()
        assert gate.entered.acquire(timeout=TIMEOUT_S)  # the next step, which stays at the gate
        rig.until_ended(cancelled)


def test_stop_ends_all_logs_and_the_thread():
    gate = Gate()
    with running(ScriptedRunner(say("hello"), gate=gate, max_num_seqs=1), gate=gate) as rig:
        logs = rig.add("a", "b")
        assert gate.entered.acquire(timeout=TIMEOUT_S)
        rig.thread.stop(GOING)
        gate.allow()
        assert rig.thread.join(TIMEOUT_S)
        assert [error_of(log) for log in logs] == ["shutting_down"] * 2


def test_call_returns_results_and_raises_errors_of_the_thread():
    with running(ScriptedRunner(say(""))) as rig:
        assert rig.thread.call(lambda: threading.current_thread().name) == "tokenwire-engine"
        for error in (ValueError("bad"), Panic("worse")):
            with pytest.raises(type(error), match=str(error)):
                rig.thread.call(partial(_raise, error))
        [generation] = rig.add("a")
        rig.until_ended(generation)


def _raise(error: BaseException) -> None:
    raise error


def test_call_works_before_there_is_an_engine():
    thread = EngineThread()
    thread.start()
    assert thread.call(lambda: 1 + 1) == 2
    thread.stop(GOING)
    assert thread.join(TIMEOUT_S)


def test_a_thread_that_was_never_started_counts_as_ended():
    assert EngineThread().join(TIMEOUT_S)


def test_busy_since_is_the_start_of_the_current_step():
    clock, gate = ManualClock(5.0), Gate()
    with running(ScriptedRunner(say("ab"), gate=gate), gate=gate, host=ManualHost(clock)) as rig:
        rig.add("a")
        for now in (5.0, 7.0):
            assert gate.entered.acquire(timeout=TIMEOUT_S)
            assert rig.thread.busy_since == now
            clock.now = 7.0
            gate.allow()
        gate.open()
        rig.thread.put(lambda: clock.advance(2.0))
        assert rig.thread.call(lambda: rig.thread.busy_since) == 9.0


@pytest.mark.pain(23)
def test_a_panic_in_the_engine_is_reported(caplog: pytest.LogCaptureFixture):
    with running(ScriptedRunner(say("a"))) as rig:
        rig.thread.put(partial(_raise, Panic("in a command")))
        assert rig.has_died.wait(TIMEOUT_S)
        [generation] = rig.add("late")
        rig.thread.put(partial(_raise, Panic("in another")))
        [last] = rig.add("last")
        assert rig.thread.fail_all_logs() == [generation, last]
    assert [error_of(log) for log in (generation, last)] == ["engine_error"] * 2
    assert "accepts no more work" in caplog.text


class StickyRunner(ScriptedRunner):
    """Fails to release a sequence, which no engine survives."""

    def release(self, generation_id: str) -> None:
        raise RuntimeError("stuck")


def test_death_is_reported_once_and_all_logs_can_be_failed(caplog: pytest.LogCaptureFixture):
    gate = Gate()
    with running(StickyRunner(say("x", "xyz"), gate=gate, max_num_seqs=2), gate=gate) as rig:
        last, live, waiting = rig.add("a", "b", "c")
        assert gate.entered.acquire(timeout=TIMEOUT_S)
        gate.allow()
        assert gate.entered.acquire(timeout=TIMEOUT_S)  # the second step ends the first log
        gate.allow()
        assert rig.has_died.wait(TIMEOUT_S)
        [inboxed] = rig.add("d")
        rig.thread.put(lambda: rig.engine.cancel("b"))
        failed_logs = rig.thread.fail_all_logs()
        assert rig.thread._inbox.empty()
    assert {log.generation_id for log in failed_logs} == {"a", "b", "c", "d"}
    assert all(log.is_ended for log in failed_logs)
    assert finish_reason(last) == "stop"
    assert [error_of(log) for log in (live, waiting, inboxed)] == ["engine_error"] * 3
    assert "accepts no more work" in caplog.text
