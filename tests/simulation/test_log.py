"""A log that the engine writes, the event loop ends, and two threads read, switching at each line.

The event loop reads new records on its thread; a worker thread reads those that a client missed.
"""

from __future__ import annotations

from pathlib import Path

import pytest

import streaming.log
from streaming.errors import EngineFailure
from streaming.log.generation import Failed, Finished, FinishReason, Generation, Record, Tail, Token
from streaming.log.reader import Reader
from tests.simulation.world import World
from tests.support import assert_well_formed, make_generation

_NUM_SEEDS = 1000
_PERIODS_S = (0.0, 0.0, 0.0, 0.01)
_LATEST = World(0, watched=frozenset()).now() + 60.0
_WATCHED = frozenset(
    str(Path(streaming.log.__file__).with_name(name))
    for name in ("generation.py", "reader.py", "records.py", "tokens.py")
)


def write(log: Generation) -> None:
    """Write like the engine, which continues if another thread ends the log."""
    log.start(cached_tokens=0, at=1.0)
    for number in range(5):
        log.append(Token(number, "a" if number % 2 else "", at=1.0))
    log.append(Tail("x", at=1.0))
    log.end(Finished(FinishReason.STOP, at=1.0))


def read_to_the_end(world: World, log: Generation, records: list[Record]) -> None:
    """Read like a writer of events, on any thread."""
    while not (records and isinstance(records[-1], Finished | Failed)):
        world.sleep(world.rng.choice(_PERIODS_S))
        assert world.now() < _LATEST, "the log never ends"
        records += log.read_after(len(records) - 1)


@pytest.mark.parametrize("is_ended_twice", [False, True])
@pytest.mark.slow
def test_a_reader_on_another_thread_sees_the_same_log(is_ended_twice: bool):
    for seed in range(_NUM_SEEDS):
        world, log, records = World(seed, watched=_WATCHED), make_generation(), list[Record]()
        threads = [
            world.make_thread(lambda log=log: write(log), name="engine"),  # type: ignore[misc]
            world.make_thread(
                lambda world=world, log=log, records=records: read_to_the_end(world, log, records),  # type: ignore[misc]
                name="worker",
            ),
        ]
        for thread in threads:
            thread.start()
        with world.watching():
            if is_ended_twice:
                log.end(Failed(EngineFailure(), at=1.0))
            with Reader(log) as reader:
                events = reader.read()
                while not reader.is_done:
                    world.sleep(world.rng.choice(_PERIODS_S))
                    assert world.now() < _LATEST, "the log never ends"
                    events += reader.read()
        for thread in threads:
            thread.join()
        world.close()
        assert_well_formed(events, log)
        assert records == log.read_after(-1), f"seed {seed}"
        assert len(records) == log.last_seq + 1
