"""Clients that disconnect and resume, in many simulated runs of threads, tasks and time.

A failure names its seed. `SIMULATION_SEEDS=7 pytest tests/simulation/test_scenario.py` replays it
with the same code; `SIMULATION_SEEDS=1000:21000` runs other seeds.
"""

from __future__ import annotations

import os

import pytest

from tests.app.conversation import Frame
from tests.simulation.scenario import run
from tests.simulation.talk import StreamTalk

_NUM_SEEDS = 120
_NUM_SEEDS_PER_TEST = 20
_NUM_QUICK_SEEDS = 20


def _chosen() -> range:
    begin, _, end = os.environ.get("SIMULATION_SEEDS", f"0:{_NUM_SEEDS}").partition(":")
    return range(int(begin), int(end or int(begin) + 1))


_SEEDS = _chosen()


@pytest.mark.parametrize(
    "seeds",
    [
        pytest.param(
            _SEEDS[start : start + _NUM_SEEDS_PER_TEST],
            id=f"from-{_SEEDS[start]}",
            marks=[pytest.mark.slow] if start >= _NUM_QUICK_SEEDS else [],
        )
        for start in range(0, len(_SEEDS), _NUM_SEEDS_PER_TEST)
    ],
)
def test_the_text_that_a_client_joins_is_the_log(seeds: range):
    for seed in seeds:
        try:
            run(seed)
        except BaseException as error:
            error.add_note(f"SIMULATION_SEEDS={seed} replays this")
            raise


@pytest.mark.slow
def test_a_seed_replays_the_same_run():
    for seed in range(3):
        one, other = run(seed), run(seed)
        assert one.world.digest == other.world.digest
        assert one.world.num_turns == other.world.num_turns
        assert one.counts == other.counts
    assert run(0).world.digest != run(1).world.digest


class ForgetfulTalk(StreamTalk):
    """Sometimes stores a cursor without the text before it."""

    def take(self, frame: Frame) -> None:
        if frame["type"] == "delta" and self.world.rng.random() < 0.01:
            frame = {**frame, "text": ""}
        super().take(frame)


class ForwardTalk(StreamTalk):
    """Resumes after a record that it has not received."""

    def open(self) -> Frame:
        said = super().open()
        return {**said, "after": said["after"] + 1} if "after" in said else said


@pytest.mark.parametrize("kind", [ForgetfulTalk, ForwardTalk])
def test_a_client_with_a_wrong_cursor_is_detected(kind: type[StreamTalk]):
    missing = "a gap or an overlap|the end of the text is missing|cursor_lost"

    def run_all() -> None:
        for seed in range(20):
            run(seed, kinds=(kind,))

    with pytest.raises(AssertionError, match=missing):
        run_all()
