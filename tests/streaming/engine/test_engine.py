"""The engine, stepped in a for-loop: every log ends once, and nothing is left behind."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable
from collections.abc import Sequence as SequenceOf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.backend import Batch, CacheGeometry, FailedRow, SampledToken
from streaming.backends.scripted import ScriptedRunner, ScriptInput
from streaming.detokenizer import REPLACEMENT
from streaming.engine.engine import MAX_FAILED_STEPS, Engine, ModelBroken
from streaming.errors import DeadlineExceeded, EngineFailure, NoTokenAllowed, ShuttingDown
from streaming.log.generation import (
    Failed,
    Finished,
    FinishReason,
    Generation,
    Queued,
    Started,
)
from streaming.log.reader import Event, Reader
from streaming.output_constraint import GrammarMatcher
from streaming.sampling_params import SamplingParams
from tests.support import (
    ManualClock,
    Panic,
    WordMatcher,
    assert_well_formed,
    finish_reason,
    make_sequence,
    property_test,
)

STEP_S = 0.5
SHUTTING_DOWN = ShuttingDown(retry_after_s=1.0)


class TimedRunner(ScriptedRunner):
    """Plays scripts by generation id; each step takes time and is recorded."""

    def __init__(self, clock: ManualClock, *, max_num_seqs: int, step_s: float = STEP_S) -> None:
        self.scripts: dict[str, list[int | BaseException]] = {}
        self.batches: list[list[str]] = []
        self._clock = clock
        self._step_s = step_s
        super().__init__(self._read_script, max_num_seqs=max_num_seqs)

    def _read_script(self, sequence: ScriptInput) -> Iterable[int | BaseException]:
        return self.scripts[sequence.generation_id]

    def run(self, batch: Batch) -> list[SampledToken | FailedRow]:
        self.batches.append([chunk.sequence.generation_id for chunk in batch.chunks])
        self._clock.advance(self._step_s)
        return super().run(batch)


class Rig:
    """An engine, its runner and its clock, with an integrity check at every step."""

    def __init__(self, *, max_num_seqs: int = 2, step_s: float = STEP_S) -> None:
        self.clock = ManualClock()
        self.runner = TimedRunner(self.clock, max_num_seqs=max_num_seqs, step_s=step_s)
        self.engine = Engine(self.runner, clock=self.clock)
        self.generations: list[Generation] = []

    def add(
        self,
        text: str | list[int | BaseException] = "",
        *,
        timeout_s: float = 1e6,
        params: SamplingParams | None = None,
        prompt: str = "ask",
        caller: str = "anyone",
        matcher: GrammarMatcher | None = None,
        decode: Callable[[SequenceOf[int]], str] | None = None,
    ) -> Generation:
        generation_id = f"gen_{len(self.generations)}"
        self.runner.scripts[generation_id] = list(text.encode() if isinstance(text, str) else text)
        sequence = make_sequence(
            generation_id,
            params=params,
            deadline_at=self.clock() + timeout_s,
            submitted_at=self.clock(),
            prompt=prompt,
            caller=caller,
            matcher=matcher,
            decode=decode,
        )
        self.generations.append(sequence.generation)
        self.engine.add(sequence)
        return sequence.generation

    def step(self) -> list[str]:
        """Return the ids of the logs that have new records."""
        touched = [generation.generation_id for generation in self.engine.step()]
        assert len(set(touched)) == len(touched)
        self.engine.check_integrity()
        return touched

    def finish(self) -> None:
        for _ in range(1000):
            if not self.engine.has_work:
                return
            self.step()
        raise AssertionError("the engine has work for ever")

    @property
    def endings(self) -> list[str]:
        """The ending of each log."""
        return [ending(generation) for generation in self.generations]

    def assert_nothing_left(self) -> None:
        assert not self.engine.has_work
        self.engine.check_integrity()
        ran = {generation_id for batch in self.runner.batches for generation_id in batch}
        assert sorted(self.runner.released) == sorted(ran), (
            "each sequence that ran is released once"
        )
        for generation in self.generations:
            with Reader(generation) as reader:
                assert_well_formed(reader.read(), generation)
            assert (generation.started is not None) == (generation.generation_id in ran)


def ending(generation: Generation) -> str:
    outcome = generation.outcome
    if isinstance(outcome, Failed):
        return outcome.error.code
    return finish_reason(generation) or "open"


# Whole generations.


def test_an_idle_engine_does_nothing():
    rig = Rig()
    assert rig.step() == []
    assert rig.runner.batches == []
    assert not rig.engine.has_work


def test_sequences_share_steps_and_keep_their_own_text():
    rig = Rig(max_num_seqs=2)
    a, b, c = rig.add("one"), rig.add("zwei"), rig.add("x")
    rig.finish()
    assert [log.text for log in (a, b, c)] == ["one", "zwei", "x"]
    assert rig.endings == ["stop", "stop", "stop"]
    assert rig.runner.batches[:5] == [["gen_0", "gen_1"]] * 4 + [["gen_1", "gen_2"]]
    rig.assert_nothing_left()


def test_a_step_returns_the_logs_with_new_records():
    rig = Rig(max_num_seqs=1)
    rig.add("a")
    rig.add("b")
    assert rig.step() == ["gen_0", "gen_1"]  # one has text, the other a queue position
    assert rig.step() == ["gen_0", "gen_1"]
    assert rig.endings == ["stop", "open"]
    assert rig.step() == ["gen_1"]
    assert rig.step() == ["gen_1"]
    assert rig.step() == []
    assert rig.engine.take_touched() == []


def test_usage_and_timings_come_from_the_engines_clock():
    rig = Rig(max_num_seqs=1)
    rig.add("ab")
    second = rig.add("xyz")
    rig.finish()
    assert second.started == Started(prompt_tokens=3, cached_tokens=0, at=3 * STEP_S)
    assert second.usage.completion_tokens == 4  # the end token counts as generated
    timings = second.timings
    assert (timings.queue_s, timings.prefill_s, timings.ttft_s) == (1.5, 0.5, 2.0)
    assert (timings.total_s, timings.tokens_per_s) == (3.5, 2.0)


# Cancel.


def test_a_cancelled_sequence_stops_and_the_others_go_on():
    rig = Rig(max_num_seqs=2)
    a, b = rig.add("aaaaaaaa"), rig.add("bbb")
    rig.step()
    rig.engine.cancel("gen_0")
    assert (a.text, ending(a)) == ("a", "cancelled")
    assert "gen_0" in rig.step()
    rig.finish()
    assert (a.text, b.text) == ("a", "bbb")
    rig.assert_nothing_left()


@pytest.mark.pain(2)
def test_a_sequence_cancelled_while_it_waits_never_runs():
    rig = Rig(max_num_seqs=1)
    rig.add("aaa")
    waiting = rig.add("never")
    rig.step()
    rig.engine.cancel("gen_1")
    rig.finish()
    assert (waiting.text, waiting.started, waiting.queued) == ("", None, None)
    assert all(batch == ["gen_0"] for batch in rig.runner.batches)
    assert rig.endings == ["stop", "cancelled"]
    rig.assert_nothing_left()


def test_a_sequence_cancelled_before_the_first_step_never_runs():
    rig = Rig()
    rig.add("never")
    rig.engine.cancel("gen_0")
    assert rig.step() == ["gen_0"]
    assert rig.runner.batches == []
    rig.assert_nothing_left()


def test_cancel_and_fail_of_an_ended_or_unknown_sequence_do_nothing():
    rig = Rig()
    log = rig.add("a")
    rig.finish()
    records = log.read_after(-1)
    for generation_id in ("gen_0", "gen_never"):
        rig.engine.cancel(generation_id)
        rig.engine.fail(generation_id, EngineFailure())
    assert log.read_after(-1) == records
    assert rig.step() == []
    rig.assert_nothing_left()


# Failures.


def test_a_failing_step_fails_its_sequences_and_no_others(caplog: pytest.LogCaptureFixture):
    rig = Rig(max_num_seqs=2)
    rig.add([*b"ab", RuntimeError("broken kernel")])
    rig.add("neighbour")
    rig.add("after")
    rig.finish()
    assert rig.endings == ["engine_error", "engine_error", "stop"]
    assert [log.text for log in rig.generations] == ["ab", "ne", "after"]
    assert "broken kernel" in caplog.text
    rig.assert_nothing_left()


@pytest.mark.pain(23)
@pytest.mark.parametrize("error", [RuntimeError("broken kernel"), Panic("broken kernel")])
def test_a_panic_in_a_step_is_a_failing_step(error: BaseException):
    rig = Rig(max_num_seqs=1)
    rig.add([*b"ab", error])
    rig.add("after")
    rig.finish()
    assert rig.endings == ["engine_error", "stop"]
    rig.assert_nothing_left()


def test_a_runner_that_returns_too_few_tokens_has_failed():
    class ShortRunner(TimedRunner):
        def run(self, batch: Batch) -> list[SampledToken | FailedRow]:
            return super().run(batch)[:-1]

    rig = Rig()
    rig.runner = ShortRunner(rig.clock, max_num_seqs=2)
    rig.engine = Engine(rig.runner, clock=rig.clock)
    rig.add("a")
    rig.add("b")
    rig.finish()
    assert rig.endings == ["engine_error", "engine_error"]


def test_consecutive_failed_steps_break_the_engine():
    rig = Rig(max_num_seqs=1)
    bad: list[int | BaseException] = [RuntimeError("CUDA error: device-side assert")]
    for _ in range(MAX_FAILED_STEPS - 1):
        rig.add(bad)
    rig.add("fine")
    rig.finish()
    for _ in range(MAX_FAILED_STEPS):
        rig.add(bad)
    for _ in range(MAX_FAILED_STEPS - 1):
        rig.step()
    with pytest.raises(ModelBroken, match="5 steps in a row have failed"):
        rig.step()
    assert rig.endings.count("engine_error") == 2 * MAX_FAILED_STEPS - 1
    rig.assert_nothing_left()


class RaisingDecode:
    """A tokenizer that raises from its n-th call on."""

    def __init__(self, error: BaseException, *, num_fine: int) -> None:
        self._error = error
        self._num_left = num_fine

    def __call__(self, token_ids: SequenceOf[int]) -> str:
        self._num_left -= 1
        if self._num_left < 0:
            raise self._error
        return "".join(map(chr, token_ids))


class RaisingMatcher(WordMatcher):
    """A grammar that raises at its second token."""

    def __init__(self, error: BaseException) -> None:
        super().__init__("bad")
        self._error = error

    def accept(self, token_id: int) -> None:
        super().accept(token_id)
        if token_id == ord("a"):
            raise self._error


ERRORS = (RuntimeError("no such token"), Panic("index out of bounds"))


@pytest.mark.pain(23)
@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("num_fine", range(2, 6))
def test_a_tokenizer_that_raises_ends_its_sequence_only(
    error: BaseException, num_fine: int, caplog: pytest.LogCaptureFixture
):
    rig = Rig(max_num_seqs=2)
    bad = rig.add("bad", decode=RaisingDecode(error, num_fine=num_fine))
    rig.add("neighbour")
    rig.add("after")
    rig.finish()
    assert rig.endings == ["engine_error", "stop", "stop"]
    assert "bad".startswith(bad.text)
    assert [log.text for log in rig.generations[1:]] == ["neighbour", "after"]
    assert str(error) in caplog.text
    assert str(error) not in str(bad.outcome)
    rig.assert_nothing_left()


@pytest.mark.pain(23)
@pytest.mark.parametrize("error", ERRORS)
def test_a_grammar_that_raises_ends_its_sequence_only(error: BaseException):
    rig = Rig(max_num_seqs=2)
    bad = rig.add("bad", matcher=RaisingMatcher(error))
    rig.add("neighbour")
    rig.finish()
    assert rig.endings == ["engine_error", "stop"]
    assert bad.text == "b"
    rig.assert_nothing_left()


class RaisingMask(WordMatcher):
    """A grammar that raises where it is asked what may come after `num_fine` tokens."""

    def __init__(self, error: BaseException, *, num_fine: int) -> None:
        super().__init__("bad")
        self._error = error
        self._num_fine = num_fine

    def mask(self) -> bytes:
        if self._num_fine == 0:
            raise self._error
        self._num_fine -= 1
        return super().mask()


@pytest.mark.pain(23)
@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("num_fine", range(3))
@pytest.mark.parametrize("has_neighbour", [True, False])
def test_a_grammar_without_a_mask_ends_its_sequence_only(
    error: BaseException, num_fine: int, has_neighbour: bool, caplog: pytest.LogCaptureFixture
):
    rig = Rig(max_num_seqs=2)
    bad = rig.add("bad", matcher=RaisingMask(error, num_fine=num_fine))
    if has_neighbour:
        rig.add("neighbour")
    rig.finish()
    assert rig.endings == ["engine_error", *["stop"] * has_neighbour]
    assert bad.text == "bad"[:num_fine]
    assert all(log.text == "neighbour" for log in rig.generations[1:])
    assert str(error) in caplog.text
    assert str(error) not in str(bad.outcome)
    rig.assert_nothing_left()


@pytest.mark.pain(23)
@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("ends_by", ["cancel", "deadline", "fail_all"])
def test_a_log_ends_although_its_held_text_cannot_be_decoded(
    error: BaseException, ends_by: str, caplog: pytest.LogCaptureFixture
):
    rig = Rig(max_num_seqs=2)

    def decode(token_ids: SequenceOf[int]) -> str:
        """Raise at a lone byte "x", like a byte-fallback token that cannot be decoded alone."""
        if bytes(token_ids) == b"x":
            raise error
        return REPLACEMENT if token_ids[-1] == ord("x") else bytes(token_ids).decode()

    held = rig.add("ax" + "a" * 50, timeout_s=1.0, decode=decode)
    rig.add("neighbour")
    rig.step()
    rig.step()
    match ends_by:
        case "cancel":
            rig.engine.cancel("gen_0")
        case "deadline":
            rig.step()
        case "fail_all":
            rig.engine.fail_all(SHUTTING_DOWN)
    assert str(error) in caplog.text
    expected = {"cancel": "cancelled", "deadline": "timeout", "fail_all": "shutting_down"}
    assert ending(held) == expected[ends_by]
    rig.finish()
    rig.assert_nothing_left()


def test_a_log_that_the_loop_has_ended_leaves_the_engine():
    rig = Rig(max_num_seqs=1)
    running, waiting, other = rig.add("aaa"), rig.add("bbb"), rig.add("c")
    rig.step()
    for generation in (running, waiting):
        generation.end(Finished(FinishReason.CANCELLED, rig.clock()))
    rig.clock.advance(1.0)  # it does so only during a long step
    assert {"gen_0", "gen_1"} <= set(rig.step())
    rig.finish()
    assert (running.text, waiting.text, other.text) == ("a", "", "c")
    assert rig.endings == ["cancelled", "cancelled", "stop"]
    rig.assert_nothing_left()


def test_a_log_ended_by_the_loop_during_a_step_gets_no_token():
    rig = Rig(max_num_seqs=1)

    class EndingRunner(TimedRunner):
        def run(self, batch: Batch) -> list[SampledToken | FailedRow]:
            if len(self.batches) == 1:
                rig.generations[0].end(Finished(FinishReason.CANCELLED, rig.clock()))
            return super().run(batch)

    rig.runner = EndingRunner(rig.clock, max_num_seqs=1)
    rig.engine = Engine(rig.runner, clock=rig.clock)
    generation = rig.add("abc")
    rig.finish()
    assert (generation.text, rig.endings) == ("a", ["cancelled"])
    rig.assert_nothing_left()


def test_a_deadline_ends_the_running_and_the_waiting():
    rig = Rig(max_num_seqs=1)
    rig.add("a" * 50, timeout_s=2.0)
    rig.add("b" * 50, timeout_s=1.0)
    rig.add("c")
    rig.finish()
    assert rig.endings == ["timeout", "timeout", "stop"]
    outcomes = [log.outcome for log in rig.generations[:2]]
    assert [outcome.at for outcome in outcomes if outcome] == [2.0, 1.0]
    error = outcomes[0].error if isinstance(outcomes[0], Failed) else None
    assert isinstance(error, DeadlineExceeded)
    assert error.timeout_s == 2.0
    assert [len(log.text) for log in rig.generations] == [4, 0, 1]
    rig.assert_nothing_left()


def test_fail_all_ends_all_or_only_waiting_sequences():
    rig = Rig(max_num_seqs=1)
    rig.add("aaa")
    rig.add("b")
    rig.add("c")
    rig.step()
    rig.engine.fail_all(SHUTTING_DOWN, waiting_only=True)
    assert rig.endings == ["open", "shutting_down", "shutting_down"]
    rig.step()
    rig.engine.fail_all(SHUTTING_DOWN)
    assert rig.endings == ["shutting_down"] * 3
    rig.assert_nothing_left()


def test_fail_all_logs_ends_all_logs_without_calling_the_runner():
    rig = Rig(max_num_seqs=1)
    rig.add("aaa")
    rig.add("b")
    rig.step()
    rig.engine.fail_all_logs(EngineFailure())
    assert rig.endings == ["engine_error", "engine_error"]
    assert rig.runner.released == []
    assert {log.generation_id for log in rig.engine.take_touched()} == {"gen_0", "gen_1"}
    assert not rig.engine.has_work


class StickyRunner(TimedRunner):
    """Fails to release any sequence."""

    def release(self, generation_id: str) -> None:
        raise RuntimeError("stuck")


def test_fail_all_logs_ends_the_others_after_a_release_that_failed():
    rig = Rig(max_num_seqs=2)
    rig.runner = StickyRunner(rig.clock, max_num_seqs=2)
    rig.engine = Engine(rig.runner, clock=rig.clock)
    rig.add("")
    rig.add("bbb")
    with pytest.raises(RuntimeError, match="stuck"):
        rig.engine.step()
    rig.engine.fail_all_logs(EngineFailure())
    assert rig.endings == ["stop", "engine_error"]
    assert {log.generation_id for log in rig.engine.take_touched()} == {"gen_0", "gen_1"}


# The queue.


def test_queue_positions_are_reported_and_move_up():
    rig = Rig(max_num_seqs=1)
    logs = [rig.add("aa"), rig.add("bb"), rig.add("cc")]
    seen: list[list[int | None]] = []
    while rig.engine.has_work:
        rig.step()
        seen.append([log.queued.position if log.queued else None for log in logs])
    assert seen == [[None, 0, 1]] * 3 + [[None, None, 0]] * 3 + [[None] * 3] * 3


def test_a_position_moves_up_when_an_earlier_sequence_leaves():
    rig = Rig(max_num_seqs=1)
    rig.add("aaaa")
    rig.add("bb")
    last = rig.add("cc")
    rig.step()
    rig.engine.cancel("gen_1")
    assert "gen_2" in rig.step()
    assert last.queued is not None
    assert last.queued.position == 0


def test_the_wait_is_estimated_from_measured_steps():
    rig = Rig(max_num_seqs=1)
    assert rig.engine.forecast is None
    rig.add("a" * 200, params=SamplingParams(max_tokens=10))
    first = rig.add("b", params=SamplingParams(max_tokens=20))
    second = rig.add("c")
    rig.step()  # one token in half a second, so nine more take 4.5 s, and twenty take 10 s
    assert (first.queued, second.queued) == (Queued(0, 4.5), Queued(1, 14.5))
    assert rig.engine.forecast is not None
    assert rig.engine.forecast.expected[-1].ends_in_s == 64.5


def test_estimates_are_reported_once_a_second_and_positions_at_once():
    rig = Rig(max_num_seqs=1)
    rig.add("a" * 50)
    rig.add("b")
    told = [("gen_1" in rig.step()) for _ in range(6)]  # half a second each
    assert told == [True, False, True, False, True, False]
    rig.add("c")
    assert "gen_2" in rig.step()


def test_an_unchanged_position_and_estimate_is_not_reported():
    rig = Rig(max_num_seqs=1, step_s=0.0)
    rig.add("aaaa")
    rig.add("b")
    assert rig.step() == ["gen_0", "gen_1"]
    rig.add("c")
    assert rig.step() == ["gen_0", "gen_2"]


def test_a_longer_queue_is_ranked_less_often():
    """Otherwise each step that changes the queue would cost time proportional to its length."""
    rig = Rig(max_num_seqs=1, step_s=0.001)
    for _ in range(640):
        rig.add("a")  # so a sequence ends every other step
    steps = [sum(log.startswith("gen_") for log in rig.step()) > 100 for _ in range(101)]
    assert [n for n, has_told_all in enumerate(steps) if has_told_all] == [
        0,
        10,
        20,
        30,
        40,
        50,
        60,
        70,
        80,
        90,
        100,
    ]


def test_a_step_scans_all_deadlines_only_when_one_is_due():
    rig = Rig(max_num_seqs=1)
    rig.add("a" * 50, timeout_s=100.0)
    rig.add("b", timeout_s=4.0)
    for _ in range(7):
        rig.step()
    assert rig.endings == ["open", "open"]
    assert rig.engine._next_deadline_at == 4.0
    rig.step()
    rig.step()
    assert rig.endings == ["open", "timeout"]
    assert rig.engine._next_deadline_at == 100.0


# With a block manager.

BROKEN_ROW = -1
"""In a script: the model fails on this row only."""
DEAD_END = -2
"""In a script: the request's own constraints leave no token."""
FAILED_ROWS = {
    BROKEN_ROW: FailedRow("not finite"),
    DEAD_END: FailedRow(
        "a dead end", NoTokenAllowed(param="response_format", reason="the grammar ends here")
    ),
}
DECODE_STEP_S = 0.1
PREFILL_TOKEN_S = 0.001


class CachedRunner(TimedRunner):
    """Has a KV cache; the time of a step depends on its decodes and prompt tokens."""

    def __init__(self, clock: ManualClock, *, max_num_seqs: int, cache: CacheGeometry) -> None:
        super().__init__(clock, max_num_seqs=max_num_seqs, step_s=0.0)
        self.cache = cache
        self.num_prompt_tokens: list[int] = []
        """Of each step."""

    def run(self, batch: Batch) -> list[SampledToken | FailedRow]:
        num_decodes = sum(chunk.is_decode for chunk in batch.chunks)
        self.num_prompt_tokens.append(batch.num_tokens - num_decodes)
        decode_s = DECODE_STEP_S if num_decodes else 0.0
        self._clock.advance(decode_s + PREFILL_TOKEN_S * self.num_prompt_tokens[-1])
        return [
            FAILED_ROWS.get(row.token_id, row) if isinstance(row, SampledToken) else row
            for row in super().run(batch)
        ]


class CachedRig(Rig):
    """A rig whose runner has a KV cache in blocks of four tokens."""

    def __init__(
        self, *, max_num_seqs: int = 8, num_blocks: int = 64, max_batch_tokens: int = 64
    ) -> None:
        super().__init__()
        cache = CacheGeometry(
            num_blocks=num_blocks, block_size=4, max_batch_tokens=max_batch_tokens
        )
        self.cached_runner = CachedRunner(self.clock, max_num_seqs=max_num_seqs, cache=cache)
        self.runner = self.cached_runner
        self.engine = Engine(self.runner, clock=self.clock)
        self.num_blocks = num_blocks

    @property
    def num_free_blocks(self) -> int:
        cache = self.engine._scheduler._block_manager
        assert cache is not None
        return cache.num_free_blocks

    def assert_nothing_left(self) -> None:
        super().assert_nothing_left()
        assert self.num_free_blocks == self.num_blocks


def test_a_broken_row_ends_its_sequence_and_no_other(caplog: pytest.LogCaptureFixture):
    rig = CachedRig()
    bad = rig.add([*b"ab", BROKEN_ROW, *b"cd"])
    good = rig.add("neighbour", prompt="tell")
    rig.finish()
    assert [(log.text, ending(log)) for log in (bad, good)] == [
        ("ab", "engine_error"),
        ("neighbour", "stop"),
    ]
    assert "gen_0 failed: not finite" in caplog.text
    assert "not finite" not in str(bad.outcome)
    rig.assert_nothing_left()


def test_blocks_of_a_broken_row_are_not_shared():
    rig = CachedRig()
    rig.add("x", prompt="a fine prompt")
    rig.add([BROKEN_ROW], prompt="a prompt that breaks")
    rig.finish()
    fine = rig.add("y", prompt="a fine prompt")
    again = rig.add("y", prompt="a prompt that breaks")
    rig.finish()
    assert (fine.usage.cached_tokens, again.usage.cached_tokens) == (12, 0)
    rig.assert_nothing_left()


def test_a_dead_end_fails_its_own_request_only(caplog: pytest.LogCaptureFixture):
    rig = CachedRig()
    stuck = rig.add([*b"ab", DEAD_END])
    good = rig.add("neighbour", prompt="tell")
    rig.finish()
    assert rig.endings == ["no_token_allowed", "stop"]
    assert (stuck.text, good.text) == ("ab", "neighbour")
    assert isinstance(stuck.outcome, Failed)
    assert str(stuck.outcome.error) == "response_format: the grammar ends here"
    assert caplog.text == "", "not an error for the operator"
    rig.assert_nothing_left()


def test_a_dead_end_drops_no_prefix():
    """Otherwise any client could flush the system prompt that all others share."""
    rig = CachedRig()
    rig.add([DEAD_END], prompt="system prompt + a")
    rig.finish()
    other = rig.add("y", prompt="system prompt + b")
    rig.finish()
    assert other.usage.cached_tokens == 16
    rig.assert_nothing_left()


def test_a_broken_row_uncaches_its_own_blocks_only():
    rig = CachedRig()
    rig.add("x", prompt="system prompt + a fine question")
    rig.finish()
    rig.add([BROKEN_ROW], prompt="system prompt + a question that breaks")
    rig.finish()
    fine = rig.add("y", prompt="system prompt + a fine question")
    again = rig.add("y", prompt="system prompt + a question that breaks")
    rig.finish()
    assert (fine.usage.cached_tokens, again.usage.cached_tokens) == (28, 16)
    rig.assert_nothing_left()


def test_a_row_that_breaks_late_uncaches_blocks_since_the_last_token():
    rig = CachedRig()
    rig.add([*b"abcd", BROKEN_ROW], prompt="ask!")
    rig.finish()
    again = rig.add("y", prompt="ask!abcdefgh")
    rig.finish()
    assert again.usage.cached_tokens == 4
    rig.assert_nothing_left()


def test_an_unverified_prefix_is_uncached_when_a_sharer_breaks():
    """The sequence that computed it may have ended before; the broken blocks would stay."""
    rig = CachedRig(max_batch_tokens=8)
    rig.add("never", prompt="system prompt + a question")
    rig.step()
    rig.step()
    rig.engine.cancel("gen_0")
    shared = rig.add([BROKEN_ROW], prompt="system prompt + another")
    rig.finish()
    assert (shared.usage.cached_tokens, ending(shared)) == (16, "engine_error")
    again = rig.add("y", prompt="system prompt + another")
    rig.finish()
    assert again.usage.cached_tokens == 0
    rig.assert_nothing_left()


def test_a_failed_step_frees_its_blocks_and_the_next_request_works():
    rig = CachedRig(num_blocks=8)
    rig.add([*b"a", RuntimeError("out of memory")], prompt="x" * 12)
    rig.add("b", prompt="y" * 12)
    rig.finish()
    assert rig.endings == ["engine_error", "engine_error"]
    assert rig.num_free_blocks == 8
    fine = rig.add("fine", prompt="x" * 12)
    rig.finish()
    assert fine.text == "fine"
    rig.assert_nothing_left()


@pytest.mark.pain(1)
def test_cancel_frees_the_blocks_at_once():
    rig = CachedRig(num_blocks=8)
    rig.add("a" * 50, prompt="x" * 20)
    rig.step()
    assert rig.num_free_blocks == 3
    rig.engine.cancel("gen_0")
    assert rig.num_free_blocks == 8
    rig.assert_nothing_left()


@pytest.mark.pain(2)
def test_a_sequence_cancelled_during_prefill_runs_no_further():
    rig = CachedRig(max_batch_tokens=8)
    log = rig.add("never", prompt="x" * 40)
    rig.step()
    rig.step()
    rig.engine.cancel("gen_0")
    rig.finish()
    assert (rig.cached_runner.num_prompt_tokens, log.text) == ([8, 8], "")
    assert rig.endings == ["cancelled"]
    rig.assert_nothing_left()


def test_a_preempted_sequence_continues_where_it_was():
    rig = CachedRig(num_blocks=4)
    logs = [rig.add("abcdefg", prompt="old!"), rig.add("ABCDEFG", prompt="yng!")]
    with Reader(logs[1]) as reader:
        events: list[Event] = []
        while rig.engine.has_work:
            rig.step()
            events += reader.read()
    assert rig.engine.num_preemptions == 1
    assert [log.text for log in logs] == ["abcdefg", "ABCDEFG"]
    assert_well_formed(events, logs[1])
    assert logs[1].usage.cached_tokens == 0, "only tokens of other sequences count as cached"
    rig.assert_nothing_left()


def test_a_sequence_preempted_for_another_caller_continues_where_it_was():
    rig = CachedRig(max_num_seqs=2)
    texts = ["abcdefg", "ABCDEFG", "1234567"]
    logs = [rig.add(text, prompt=f"{text[0]}{n}", caller="greedy") for n, text in enumerate(texts)]
    for _ in range(3):
        rig.step()
    with Reader(logs[1]) as reader:
        modest = rig.add("modest", prompt="m", caller="modest")
        while not modest.text:
            rig.step()
        assert (rig.engine.num_preemptions, logs[1].is_ended) == (1, False)
        rig.finish()
        assert_well_formed([*reader.read()], logs[1])
    assert [log.text for log in (*logs, modest)] == [*texts, "modest"]
    rig.assert_nothing_left()


def test_an_evicted_sequence_ends_unless_it_has_started():
    rig = Rig(max_num_seqs=1)
    rig.add("a")
    rig.add("b")
    rig.step()
    for generation_id in ("gen_0", "gen_1", "gen_unknown"):
        rig.engine.evict_waiting(generation_id, SHUTTING_DOWN)
    rig.finish()
    assert rig.endings == ["stop", "shutting_down"]


def test_a_preempted_sequence_gets_no_queue_position():
    rig = CachedRig(num_blocks=4)
    rig.add("a" * 9, prompt="old!")
    young = rig.add("b" * 9, prompt="yng!")
    while rig.engine.num_preemptions == 0:
        rig.step()
    third = rig.add("c", prompt="3rd!")
    rig.step()
    assert third.queued is not None
    assert third.queued.position == 1, "behind the preempted sequence"
    assert (young.is_ended, young.queued) == (False, None)
    rig.finish()
    rig.assert_nothing_left()


def test_a_preempted_sequence_is_not_failed_with_the_waiting_ones():
    rig = CachedRig(num_blocks=4)
    rig.add("a" * 9, prompt="old!")
    young = rig.add("b" * 9, prompt="yng!")
    rig.step()
    rig.add("never", prompt="3rd!")
    while rig.engine.num_preemptions == 0:
        rig.step()
    rig.engine.fail_all(SHUTTING_DOWN, waiting_only=True)
    assert rig.endings == ["open", "open", "shutting_down"]
    rig.finish()
    assert (young.text, ending(young)) == ("b" * 9, "stop")
    rig.assert_nothing_left()


def test_a_preempted_sequence_can_be_cancelled():
    rig = CachedRig(num_blocks=4)
    rig.add("a" * 9, prompt="old!")
    rig.add("b" * 9, prompt="yng!")
    while rig.engine.num_preemptions == 0:
        rig.step()
    rig.engine.cancel("gen_1")
    rig.finish()
    assert rig.endings == ["stop", "cancelled"]
    rig.assert_nothing_left()


def test_a_detached_sequence_is_preempted_and_continues_when_attached():
    rig = CachedRig(max_num_seqs=1)
    gone, new = rig.add("goneforawhile"), rig.add("new", prompt="n")
    rig.step()
    rig.engine.set_detached("gen_0", is_detached=True)
    rig.engine.set_detached("gen_never", is_detached=True)
    rig.step()
    assert (gone.text, new.text) == ("g", "n")
    rig.engine.set_detached("gen_0", is_detached=False)
    rig.finish()
    assert (gone.text, new.text) == ("goneforawhile", "new")
    assert rig.engine.num_preemptions == 1
    rig.assert_nothing_left()


def test_a_caller_with_a_hundred_requests_does_not_starve_another_with_one():
    rig = CachedRig(max_num_seqs=1)
    for number in range(100):
        rig.add("ab", prompt=f"{number:04}", caller="many")
    for _ in range(3):
        rig.step()
    one = rig.add("xy", caller="one")
    num_ended = 0
    while not one.is_ended:
        rig.step()
        num_ended = rig.endings.count("stop")
    assert num_ended <= 4


@pytest.mark.pain(18)
def test_a_long_prompt_does_not_stall_running_streams():
    """No stream waits longer than four decode-only steps during a prefill."""
    rig = CachedRig(num_blocks=2000, max_batch_tokens=512)
    streams = [rig.add("a" * 200, prompt=text) for text in ("one", "two")]
    for _ in range(10):
        rig.step()
    long = rig.add("x", prompt="y" * 4000)
    while not long.tokens:
        rig.step()
    for stream in streams:
        times = [token.at for token in stream.tokens]
        gaps = [after - before for before, after in itertools.pairwise(times)]
        assert max(gaps) <= 4 * DECODE_STEP_S
    chunks = [size for size in rig.cached_runner.num_prompt_tokens if size]
    assert sum(chunks) == 3 + 3 + 4000
    assert max(chunks) <= 2 * DECODE_STEP_S / PREFILL_TOKEN_S
    assert len(chunks) < 40, "the prefill makes progress"


# Logging.


def test_one_line_is_logged_per_end_without_text(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, logger="streaming.engine.engine")
    rig = Rig(max_num_seqs=1)
    rig.add("secret")
    rig.add("x")
    rig.step()
    rig.engine.fail("gen_1", SHUTTING_DOWN)
    rig.finish()
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [
        "generation_id=gen_1 prompt_tokens=3 completion_tokens=0 "
        "ended=The server is shutting down. total_s=0.500",
        "generation_id=gen_0 prompt_tokens=3 completion_tokens=7 ended=stop "
        "queue_s=0.000 ttft_s=0.500 total_s=3.500 tokens_per_s=2.000",
    ]


# Random operations.

scripts = st.lists(
    st.one_of(st.integers(97, 100), st.sampled_from([*"é😀".encode(), 256]), st.just(None)),
    max_size=6,
)
steps = st.one_of(
    st.tuples(st.just("add"), scripts),
    st.tuples(st.just("add"), scripts),
    st.tuples(st.just("step"), st.none()),
    st.tuples(st.just("step"), st.none()),
    st.tuples(st.just("cancel"), st.integers(0, 10)),
    st.tuples(st.just("fail"), st.integers(0, 10)),
    st.tuples(st.just("fail_all"), st.booleans()),
    st.tuples(st.just("advance"), st.sampled_from([0.1, 5.0])),
    st.tuples(st.just("read"), st.none()),
)


@pytest.mark.pain(12)
@property_test
@given(st.lists(steps, max_size=40), st.integers(1, 3))
def test_every_log_ends_well_formed(script: list[tuple[str, object]], max_num_seqs: int):
    rig = Rig(max_num_seqs=max_num_seqs)
    readers: list[tuple[Reader, list[Event]]] = []
    stop = SamplingParams(max_tokens=5, stop=("ab", "bc"))
    for action, value in script:
        match action, value:
            case "add", list(tokens):
                text = [RuntimeError("scripted") if t is None else t for t in tokens]
                log = rig.add(text, timeout_s=4.0, params=stop)
                readers.append((Reader(log), []))
            case "step", _:
                rig.step()
            case "cancel", int(n):
                rig.engine.cancel(f"gen_{n}")
            case "fail", int(n):
                rig.engine.fail(f"gen_{n}", EngineFailure())
            case "fail_all", bool(waiting_only):
                rig.engine.fail_all(SHUTTING_DOWN, waiting_only=waiting_only)
            case "advance", float(seconds):
                rig.clock.advance(seconds)
            case "read", _:
                for reader, events in readers:
                    events += reader.read()
        rig.engine.check_integrity()
    rig.finish()
    rig.assert_nothing_left()
    for reader, events in readers:
        events += reader.read()
        assert_well_formed(events, reader.generation)
        assert len(reader.generation.tokens) <= 5
        reader.close()


scripted_tokens = st.sampled_from([97, 98, BROKEN_ROW, DEAD_END, None])
cached_steps = st.one_of(
    st.tuples(st.just("add"), st.lists(scripted_tokens, max_size=9)),
    st.tuples(st.just("say"), st.integers(1, 9)),
    st.tuples(st.just("step"), st.none()),
    st.tuples(st.just("step"), st.none()),
    st.tuples(st.just("cancel"), st.integers(0, 10)),
    st.tuples(st.just("detach"), st.integers(0, 10)),
    st.tuples(st.just("attach"), st.integers(0, 10)),
    st.tuples(st.just("fail_all"), st.booleans()),
)


@property_test
@given(st.lists(cached_steps, max_size=40), st.integers(6, 16), st.sampled_from([3, 16]))
def test_no_block_is_lost(script: list[tuple[str, object]], num_blocks: int, max_batch_tokens: int):
    rig = CachedRig(max_num_seqs=3, num_blocks=num_blocks, max_batch_tokens=max_batch_tokens)
    said: list[tuple[Generation, str]] = []
    for number, (action, value) in enumerate(script):
        prompt = "a shared prompt"[: 1 + number % 15]
        match action, value:
            case "add", list(tokens):
                text = [RuntimeError("scripted") if t is None else t for t in tokens]
                rig.add(text, prompt=prompt, params=SamplingParams(max_tokens=9))
            case "say", int(size):
                said.append((rig.add("x" * size, prompt=prompt), "x" * size))
            case "step", _:
                rig.step()
            case "cancel", int(n):
                rig.engine.cancel(f"gen_{n}")
            case "detach" | "attach", int(n):
                rig.engine.set_detached(f"gen_{n}", is_detached=action == "detach")
            case "fail_all", bool(waiting_only):
                rig.engine.fail_all(SHUTTING_DOWN, waiting_only=waiting_only)
        rig.engine.check_integrity()
    rig.finish()
    rig.assert_nothing_left()
    for log, whole in said:
        assert whole.startswith(log.text)
        assert log.text == whole or ending(log) != "stop"
