"""Admission as a whole: limits before and after tokenizing, threads that hang, and shutdown."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from streaming.admission.controller import AdmissionController
from streaming.backends.scripted import ByteTokenizer, Gate, scripted_backend
from streaming.config import EngineConfig
from streaming.errors import (
    DeadlineExceeded,
    EngineFailure,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    PromptTooLong,
    ShuttingDown,
    StreamingError,
)
from streaming.log.generation import Generation
from streaming.request import GenerationRequest, TextPrompt
from tests.support import TIMEOUT_S, ManualHost, ask, entered, make_generation, yield_to_loop


class GatedTokenizer(ByteTokenizer):
    """Waits at a gate before prompts that begin with an exclamation mark."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = Gate()
        self.texts: list[str] = []

    def encode(self, text: str) -> list[int]:
        if text.startswith("!"):
            self.gate.wait()
        self.texts.append(text)
        return super().encode(text)


class Rig:
    """A controller with a hand-set clock; stands in for the engine behind it."""

    def __init__(self, **limits: float) -> None:
        self.tokenizer = GatedTokenizer()
        self.logs: list[Generation] = []
        self.evicted: list[str] = []
        self.error: StreamingError | None = None
        self.host = ManualHost()
        self.controller = AdmissionController(
            dataclasses.replace(scripted_backend(max_model_len=16), tokenizer=self.tokenizer),
            EngineConfig(**limits),  # type: ignore[arg-type]
            open_logs=lambda: self.logs,
            evict_waiting=lambda log, _: self.evicted.append(log.generation_id),
            forecast=lambda: None,
            check_alive=self._check_alive,
            host=self.host,
        )

    async def admit(self, *texts: str, caller: str = "anyone") -> list[Generation]:
        """Admit a request for each text, and add their logs to the open ones."""
        requests = [GenerationRequest(prompt=TextPrompt(text), caller=caller) for text in texts]
        logs = [sequence.generation for sequence in await self.controller.admit(requests)]
        self.logs += logs
        return logs

    def _check_alive(self) -> None:
        if self.error is not None:
            raise self.error


@contextmanager
def running(**limits: float) -> Iterator[Rig]:
    """Give a rig; at exit, assert that no thread is left."""
    rig = Rig(**limits)
    yield rig
    rig.tokenizer.gate.open()
    for _ in range(10):
        rig.tokenizer.gate.allow()
    assert rig.controller.shutdown(TIMEOUT_S)


async def test_requests_become_sequences_in_their_order():
    with running(request_timeout_s=60.0) as rig:
        rig.host.clock.advance(5.0)
        requests = [ask("a"), dataclasses.replace(ask("b"), timeout_s=1.0), ask("a")]
        sequences = await rig.controller.admit(requests)
    assert [bytes(sequence.prompt_ids) for sequence in sequences] == [b"a", b"b", b"a"]
    assert [sequence.deadline_at for sequence in sequences] == [65.0, 6.0, 65.0]
    assert rig.tokenizer.texts == ["a", "b"], "a shared prompt is tokenized once"
    assert rig.controller.num_tokenizing == 0


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (dataclasses.replace(ask(), model="another"), ModelNotFound),
        (ask(""), InvalidRequest),
        (ask("x" * 16), PromptTooLong),
    ],
)
async def test_a_request_that_cannot_be_served_admits_none_of_its_batch(
    request_: GenerationRequest, error: type[StreamingError]
):
    with running() as rig:
        with pytest.raises(error):
            await rig.controller.admit([ask(), request_])
        assert rig.controller.num_tokenizing == 0


async def test_a_full_queue_refuses_before_it_tokenizes():
    with running(max_waiting_requests=2) as rig:
        await rig.admit("a", "b")
        with pytest.raises(Overloaded):
            await rig.admit("c")
        with pytest.raises(Overloaded):
            await rig.controller.tokenize(ask("d"))
    assert rig.tokenizer.texts == ["a", "b"]


async def test_the_token_limit_is_checked_once_prompts_are_tokenized():
    with running(max_waiting_tokens=5) as rig:
        await rig.admit("abc")
        with pytest.raises(Overloaded, match=r"3 prompt tokens are waiting \(limit: 5\)"):
            await rig.admit("xyz")
        await rig.admit("xy")
    assert rig.tokenizer.texts == ["abc", "xyz", "xy"]


async def test_a_caller_without_requests_evicts_one_of_a_caller_with_several():
    with running(max_waiting_requests=2) as rig:
        _, newest = await rig.admit("a", "b", caller="many")
        await rig.admit("c", caller="one")
    assert rig.evicted == [newest.generation_id]


async def test_requests_that_are_tokenized_count_as_waiting():
    with running(max_waiting_requests=2, num_tokenizer_threads=1) as rig:
        admitting = [asyncio.create_task(rig.admit(text)) for text in ("!", "b")]
        await entered(rig.tokenizer.gate)
        assert rig.controller.num_tokenizing == 2
        with pytest.raises(Overloaded):
            await rig.admit("c")
        rig.tokenizer.gate.open()
        await asyncio.gather(*admitting)
    assert [log.prompt_tokens for log in rig.logs] == [1, 1]


async def test_limits_are_checked_again_after_tokenizing():
    """Here, other logs were opened meanwhile."""
    with running(max_generations=2, num_tokenizer_threads=1) as rig:
        admitting = asyncio.create_task(rig.admit("!"))
        await entered(rig.tokenizer.gate)
        for name in ("gen_1", "gen_2"):
            rig.logs.append(make_generation(name))
            rig.logs[-1].start(cached_tokens=0, at=0.0)
        rig.tokenizer.gate.open()
        with pytest.raises(Overloaded, match="2 generations are open"):
            await admitting


async def test_a_prompt_longer_than_the_context_is_tokenized_alone():
    with running() as rig:
        assert await rig.controller.tokenize(ask("x" * 16)) == list(b"x" * 16)
        text = await rig.controller.detokenize(list(b"y" * 99), param="tokens", caller="anyone")
    assert text == "y" * 99


async def test_tokenizing_ends_at_the_deadline_of_the_request():
    with running() as rig:
        with pytest.raises(DeadlineExceeded) as caught:
            await rig.controller.admit([dataclasses.replace(ask("!"), timeout_s=0.01)])
        rig.tokenizer.gate.open()
    assert caught.value.timeout_s == 0.01


async def test_an_engine_that_has_failed_admits_nothing():
    with running() as rig:
        rig.error = EngineFailure()
        for refused in (
            rig.admit("a"),
            rig.controller.tokenize(ask()),
            rig.controller.detokenize([1], param="tokens", caller="anyone"),
        ):
            with pytest.raises(EngineFailure):
                await refused
    assert rig.tokenizer.texts == []


async def test_an_engine_that_fails_during_tokenizing_admits_nothing():
    with running() as rig:
        admitting = asyncio.create_task(rig.admit("!"))
        await entered(rig.tokenizer.gate)
        rig.error = EngineFailure()
        rig.tokenizer.gate.open()
        with pytest.raises(EngineFailure):
            await admitting
    assert rig.logs == []


async def test_all_requests_can_be_failed_at_once():
    with running(num_tokenizer_threads=1) as rig:
        admitting = [asyncio.create_task(rig.admit(text)) for text in ("!", "b")]
        await entered(rig.tokenizer.gate)
        rig.controller.fail_all(ShuttingDown(retry_after_s=1.0))
        results = await asyncio.gather(*admitting, return_exceptions=True)
    assert [type(result) for result in results] == [ShuttingDown] * 2


async def test_a_stuck_thread_is_replaced(caplog: pytest.LogCaptureFixture):
    with running(num_tokenizer_threads=1, step_timeout_s=10.0) as rig:
        stuck = asyncio.create_task(rig.admit("!"))
        await entered(rig.tokenizer.gate)
        rig.host.clock.advance(9.0)
        rig.controller.replace_stuck_threads()
        await yield_to_loop()
        assert not stuck.done()
        rig.host.clock.advance(1.0)
        rig.controller.replace_stuck_threads()
        with pytest.raises(EngineFailure):
            await stuck
        await rig.admit("fine")
        assert rig.controller.failure_reason() is None
    assert "stuck for more than 10 s" in caplog.text


async def test_too_many_stuck_threads_are_a_failure():
    with running(num_tokenizer_threads=1, step_timeout_s=10.0) as rig:
        reasons = []
        for _ in range(5):
            stuck = asyncio.create_task(rig.admit("!"))
            await entered(rig.tokenizer.gate)
            rig.host.clock.advance(10.0)
            rig.controller.replace_stuck_threads()
            with pytest.raises(EngineFailure):
                await stuck
            reasons.append(rig.controller.failure_reason())
    assert reasons == [None] * 4 + ["5 tokenizer threads are stuck"]
