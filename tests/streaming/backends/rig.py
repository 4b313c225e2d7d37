"""A backend and an engine, driven by hand."""

from __future__ import annotations

from dataclasses import replace
from itertools import count

from streaming import Finished, Generation, SamplingParams
from streaming.backend import Backend
from streaming.engine.engine import Engine
from streaming.sequence import Sequence
from tests.support import make_generation, prompt_texts_of


class EngineRig:
    """Puts sequences into an engine and steps it; admission is left out."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.engine = Engine(backend.runner)
        self._ids = (f"gen_{number}" for number in count())

    def add(
        self,
        params: SamplingParams,
        *,
        prompt: str | list[int] = "hello",
        eos_token_ids: frozenset[int] = frozenset(),
    ) -> Sequence:
        prompt_ids = self.backend.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        matcher = None
        if params.grammar is not None:
            assert self.backend.grammars is not None
            [matcher] = self.backend.grammars.compile(params.grammar)
        sequence = Sequence(
            generation=make_generation(next(self._ids), prompt_tokens=len(prompt_ids)),
            prompt_ids=prompt_ids,
            params=params if params.max_tokens else replace(params, max_tokens=12),
            eos_token_ids=eos_token_ids,
            decode=self.backend.tokenizer.decode,
            deadline_at=float("inf"),
            matcher=matcher,
            prompt_texts=prompt_texts_of(
                prompt_ids, params=params, decode=self.backend.tokenizer.decode
            ),
        )
        self.engine.add(sequence)
        return sequence

    def run(
        self,
        params: SamplingParams,
        *,
        prompt: str | list[int] = "hello",
        eos_token_ids: frozenset[int] = frozenset(),
    ) -> Generation:
        """Run one sequence to its end and return its log."""
        sequence = self.add(params, prompt=prompt, eos_token_ids=eos_token_ids)
        while self.engine.has_work:
            self.engine.step()
        self.engine.check_integrity()
        assert_one_ending(sequence.generation)
        return sequence.generation

    def token_ids(self, params: SamplingParams, *, prompt: str | list[int] = "hello") -> list[int]:
        return token_ids(self.run(params, prompt=prompt))


def token_ids(generation: Generation) -> list[int]:
    return [token.token_id for token in generation.tokens]


def assert_one_ending(generation: Generation) -> None:
    records = generation.read_after(-1)
    endings = [record for record in records if record is generation.outcome]
    assert len(endings) == 1
    assert records[-1] is endings[0]


def ending(generation: Generation) -> str:
    """Return the finish reason, or the error's code."""
    outcome = generation.outcome
    assert outcome is not None
    return outcome.finish_reason if isinstance(outcome, Finished) else outcome.error.code
