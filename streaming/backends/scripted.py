"""A backend that says which tokens come out: for tests, examples, and work on the page.

Its tokens are bytes, so every character outside ASCII is split over several of them. Calls of
tools are written as `HERMES` has it; a script has to keep to that itself, nothing else holds it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

from streaming.backend import (
    Backend,
    Batch,
    CacheGeometry,
    Chunk,
    EncodedPrompt,
    FailedRow,
    ModelInfo,
    SampledToken,
)
from streaming.chat.format import HERMES, THINK, ChatFormat, may_call_tools
from streaming.chat.messages import ChatMessage
from streaming.errors import InvalidRequest, RequestError
from streaming.log.generation import Logprob, TokenLogprobs
from streaming.output_constraint import Grammar, GrammarMatcher, OutputConstraint
from streaming.request import ChatPrompt
from streaming.sampling_params import SamplingParams

EOS = 256
_VOCAB_SIZE = 257


@dataclass(frozen=True, slots=True)
class ScriptInput:
    """What a script knows of its sequence."""

    generation_id: str
    prompt_ids: tuple[int, ...]
    params: SamplingParams


Script = Callable[[ScriptInput], Iterable[int | BaseException]]
"""The tokens of one sequence; an exception among them fails the step that would yield it, but for a
`RequestError`, which fails this sequence alone."""


class ByteTokenizer:
    """One token for each byte of UTF-8, and one that ends the text.

    Args:
        chat_format: how the scripts write calls and reasoning.
        starts_in_reasoning: conversations end with the mark that begins reasoning.
    """

    max_chars_per_token = 1

    def __init__(
        self, chat_format: ChatFormat | None = None, *, starts_in_reasoning: bool = False
    ) -> None:
        self._chat_format = chat_format or ChatFormat(HERMES)
        self._reasoning_begin = ""
        if starts_in_reasoning:
            assert self._chat_format.reasoning is not None
            self._reasoning_begin = self._chat_format.reasoning.begin

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def encode_chat(self, prompt: ChatPrompt) -> list[int]:
        return self.prepare_chat(prompt).token_ids

    def prepare_chat(self, prompt: ChatPrompt) -> EncodedPrompt:
        tools = prompt.tools if may_call_tools(prompt) else ()
        lines = [
            *([f"template: {prompt.template_kwargs}\n"] if prompt.template_kwargs else []),
            *(f"tool: {tool.name} {tool.description} {tool.parameters}\n" for tool in tools),
            *map(_turn, prompt.messages),
        ]
        if prompt.continue_final_message:
            lines[-1] = lines[-1].removesuffix("\n")
        elif prompt.add_generation_prompt:
            lines.append(f"assistant: {self._reasoning_begin}")
        text = "".join(lines)
        return EncodedPrompt(self.encode(text), self._chat_format.of_answer(prompt, text=text))

    def decode(self, token_ids: SequenceOf[int]) -> str:
        return bytes(token_id for token_id in token_ids if token_id != EOS).decode(errors="replace")

    def token_text(self, token_id: int) -> str:
        return "<eos>" if token_id == EOS else bytes([token_id]).decode(errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        return b"<eos>" if token_id == EOS else bytes([token_id])


def _turn(message: ChatMessage) -> str:
    calls = "".join(
        f"\n{HERMES.call_begin}{call.name}{HERMES.call_middle}{call.arguments}{HERMES.call_end}"
        for call in message.tool_calls
    )
    return f"{message.role}: {message.content}{calls}\n"


class ScriptMatcher:
    """Lets a script say what it likes."""

    is_done = False

    def mask(self) -> bytes:
        return b"\xff" * (_VOCAB_SIZE // 8 + 1)

    def accept(self, token_id: int) -> None:
        """Take it, whatever it is."""


class ScriptCompiler:
    """Lets requests with tools through: their scripts are trusted to write calls as they should.

    A text of a certain form is refused, since no script would keep to it by itself.
    """

    def compile(self, constraint: OutputConstraint, *, count: int = 1) -> list[GrammarMatcher]:
        if isinstance(constraint, Grammar) or constraint.text is not None:
            raise InvalidRequest(
                param="response_format", reason="scripted cannot be held to a grammar"
            )
        return [ScriptMatcher() for _ in range(count)]


class Gate:
    """Holds the runner back until the test lets steps pass."""

    def __init__(self) -> None:
        self._permits = threading.Semaphore(0)
        self._is_open = threading.Event()
        self.entered = threading.Semaphore(0)
        """Released each time that the runner comes to the gate."""

    def wait(self) -> None:
        self.entered.release()
        if not self._is_open.is_set():
            self._permits.acquire()

    def allow(self, num_steps: int = 1) -> None:
        self._permits.release(num_steps)

    def open(self) -> None:
        """Let everything pass from now on."""
        self._is_open.set()
        self._permits.release()


class ScriptedRunner:
    """Plays a script for each sequence, then ends its text.

    Args:
        script: what each sequence says.
        max_num_seqs: most sequences in one step.
        cache: a cache for the engine to hand out. Tokens are written to it in place of their keys
            and values, so a script learns a prompt that was found in the cache.
        gate: waited for before each step.
    """

    def __init__(
        self,
        script: Script,
        *,
        max_num_seqs: int = 8,
        cache: CacheGeometry | None = None,
        gate: Gate | None = None,
    ) -> None:
        self._script = script
        self._gate = gate
        self._lines: dict[str, Iterator[int | BaseException]] = {}
        self._cached_ids: dict[int, int] = {}  # by slot: block * block_size + offset
        self.max_num_seqs = max_num_seqs
        self.cache = cache
        self.released: list[str] = []
        self.is_closed = False

    def run(self, batch: Batch) -> list[SampledToken | FailedRow]:
        if self._gate is not None:
            self._gate.wait()
        if self.cache is not None:
            for chunk in batch.chunks:
                slots = _slots(chunk, chunk.start, chunk.end, self.cache.block_size)
                self._cached_ids.update(zip(slots, chunk.token_ids, strict=True))
        return [self._next(chunk) for chunk in batch.chunks if chunk.yields_token]

    def release(self, generation_id: str) -> None:
        self._lines.pop(generation_id, None)
        self.released.append(generation_id)

    def close(self) -> None:
        self.is_closed = True

    def _next(self, chunk: Chunk) -> SampledToken | FailedRow:
        sequence, params = chunk.sequence, chunk.sequence.params
        line = self._lines.get(sequence.generation_id)
        if line is None:
            asked = ScriptInput(sequence.generation_id, self._prompt_ids(chunk), params)
            line = self._lines[sequence.generation_id] = iter(self._script(asked))
        token_id = next(line, EOS)
        if isinstance(token_id, RequestError):
            return FailedRow(str(token_id), token_id)
        if isinstance(token_id, BaseException):
            raise token_id
        prompt_logprobs = None
        if params.prompt_logprobs is not None and not chunk.output_position:
            prompt_logprobs = tuple(
                _logprobs(prompt_id, params.prompt_logprobs)
                for prompt_id in self._prompt_ids(chunk)[1:]
            )
        num_top = params.logprobs
        logprobs = None if num_top is None else _logprobs(token_id, num_top)
        return SampledToken(token_id, logprobs, prompt_logprobs)

    def _prompt_ids(self, chunk: Chunk) -> tuple[int, ...]:
        """Return the prompt of a sequence whose first token is due."""
        num_tokens = chunk.sequence.num_prompt_tokens
        if self.cache is None:
            assert chunk.start == 0, "a runner without a cache gets prompts whole"
            return chunk.token_ids[:num_tokens]
        slots = _slots(chunk, 0, num_tokens, self.cache.block_size)
        return tuple(self._cached_ids[slot] for slot in slots)


def _slots(chunk: Chunk, start: int, end: int, block_size: int) -> Iterator[int]:
    """Yield the places in the cache of a sequence's tokens `start` to `end` (half-open)."""
    for position in range(start, end):
        yield chunk.block_ids[position // block_size] * block_size + position % block_size


def _logprobs(token_id: int, num_top: int) -> TokenLogprobs:
    top = (Logprob((token_id + rank) % _VOCAB_SIZE, -0.5 - rank) for rank in range(num_top))
    return TokenLogprobs(Logprob(token_id, -0.5), tuple(top))


def say(*texts: str) -> Script:
    """Return a script that answers with one of `texts` after the other, the last one for ever."""
    remaining = list(texts)

    def script(_: ScriptInput) -> Iterable[int]:
        text = remaining.pop(0) if len(remaining) > 1 else remaining[0]
        return list(text.encode())

    return script


def repeat_prompt(sequence: ScriptInput) -> Iterable[int]:
    """Say what was asked, as a parrot does."""
    return sequence.prompt_ids


def scripted_backend(
    script: Script = repeat_prompt,
    *,
    max_num_seqs: int = 8,
    max_model_len: int = 4096,
    gate: Gate | None = None,
    has_chat_template: bool = True,
    reasons: bool = False,
    starts_in_reasoning: bool = False,
) -> Backend:
    """Return a backend that plays `script`.

    Args:
        reasons: what a script says between `THINK`'s marks at its beginning is reasoning.
        starts_in_reasoning: and the first mark is part of the prompt.
    """
    chat_format = ChatFormat(HERMES, reasoning=THINK if reasons or starts_in_reasoning else None)
    return Backend(
        info=ModelInfo(
            model_id="scripted",
            backend="scripted",
            dtype="none",
            device="none",
            max_model_len=max_model_len,
            vocab_size=_VOCAB_SIZE,
            eos_token_ids=frozenset({EOS}),
            has_chat_template=has_chat_template,
        ),
        tokenizer=ByteTokenizer(chat_format, starts_in_reasoning=starts_in_reasoning),
        runner=ScriptedRunner(script, max_num_seqs=max_num_seqs, gate=gate),
        grammars=ScriptCompiler(),
    )
