"""A backend that plays given tokens: for tests, examples, and development of the web page.

Its tokens are bytes, so a character outside ASCII takes several of them. Tool calls are written in
the `HERMES` format. Scripts must keep to it, since no grammar constrains them.
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
    """What a script gets: the request's prompt and sampling parameters."""

    generation_id: str
    prompt_ids: tuple[int, ...]
    params: SamplingParams


Script = Callable[[ScriptInput], Iterable[int | BaseException]]
"""Returns the output tokens of one sequence. An exception among them fails its step, except a
`RequestError`, which fails only this sequence."""


class ByteTokenizer:
    """One token for each byte of UTF-8, and `EOS`.

    Args:
        chat_format: how the scripts write calls and reasoning.
        starts_in_reasoning: prompts end with the delimiter that begins reasoning.
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
        """Return the bytes of a text."""
        return list(text.encode())

    def encode_chat(self, prompt: ChatPrompt) -> list[int]:
        """Return the bytes of a conversation, one line for each message."""
        return self.prepare_chat(prompt).token_ids

    def prepare_chat(self, prompt: ChatPrompt) -> EncodedPrompt:
        """Return the bytes of a conversation, and the format of the answer."""
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
        """Return the text without `EOS`; incomplete UTF-8 becomes replacement characters."""
        return bytes(token_id for token_id in token_ids if token_id != EOS).decode(errors="replace")

    def token_text(self, token_id: int) -> str:
        """Return the text of one byte, or "<eos>"."""
        return "<eos>" if token_id == EOS else bytes([token_id]).decode(errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """Return the byte, or "<eos>"."""
        return b"<eos>" if token_id == EOS else bytes([token_id])


def _turn(message: ChatMessage) -> str:
    calls = "".join(
        f"\n{HERMES.call_begin}{call.name}{HERMES.call_middle}{call.arguments}{HERMES.call_end}"
        for call in message.tool_calls
    )
    return f"{message.role}: {message.content}{calls}\n"


class ScriptMatcher:
    """A matcher that allows every token."""

    is_done = False

    def mask(self) -> bytes:
        """Return a mask with all bits set."""
        return b"\xff" * (_VOCAB_SIZE // 8 + 1)

    def accept(self, token_id: int) -> None:
        """Accept any token."""


class ScriptCompiler:
    """Accepts requests with tools, and trusts their scripts to write calls correctly.

    It rejects response formats, since scripts do not follow them.
    """

    def compile(self, constraint: OutputConstraint, *, count: int = 1) -> list[GrammarMatcher]:
        """Return matchers that allow every token.

        Raises:
            InvalidRequest: the request has a response format.
        """
        if isinstance(constraint, Grammar) or constraint.text is not None:
            raise InvalidRequest(
                param="response_format", reason="scripted cannot be held to a grammar"
            )
        return [ScriptMatcher() for _ in range(count)]


class Gate:
    """Blocks the runner until a test lets steps pass."""

    def __init__(self) -> None:
        self._permits = threading.Semaphore(0)
        self._is_open = threading.Event()
        self.entered = threading.Semaphore(0)
        """Released each time the runner reaches the gate."""

    def wait(self) -> None:
        """Block until a step is allowed; called by the runner."""
        self.entered.release()
        if not self._is_open.is_set():
            self._permits.acquire()

    def allow(self, num_steps: int = 1) -> None:
        """Let so many steps pass."""
        self._permits.release(num_steps)

    def open(self) -> None:
        """Let all steps pass from now on."""
        self._is_open.set()
        self._permits.release()


class ScriptedRunner:
    """Plays a script for each sequence, then ends its text.

    Args:
        script: returns the tokens of a sequence.
        max_num_seqs: most sequences in one step.
        cache: size of a KV cache that the engine manages. The runner writes tokens to it in place
            of keys and values, and reads prompts from it, since cached prefixes are in no chunk.
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
        """Return the next token of each script."""
        if self._gate is not None:
            self._gate.wait()
        if self.cache is not None:
            for chunk in batch.chunks:
                slots = _slots(chunk, chunk.start, chunk.end, self.cache.block_size)
                self._cached_ids.update(zip(slots, chunk.token_ids, strict=True))
        return [self._next(chunk) for chunk in batch.chunks if chunk.yields_token]

    def release(self, generation_id: str) -> None:
        """Forget a script, and add the id to `released`."""
        self._lines.pop(generation_id, None)
        self.released.append(generation_id)

    def close(self) -> None:
        """Set `is_closed`."""
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
        """Return the prompt of a sequence at its first token."""
        num_tokens = chunk.sequence.num_prompt_tokens
        if self.cache is None:
            assert chunk.start == 0, "a runner without a cache gets prompts whole"
            return chunk.token_ids[:num_tokens]
        slots = _slots(chunk, 0, num_tokens, self.cache.block_size)
        return tuple(self._cached_ids[slot] for slot in slots)


def _slots(chunk: Chunk, start: int, end: int, block_size: int) -> Iterator[int]:
    """Yield the cache slots of a sequence's tokens `start` to `end` (half-open)."""
    for position in range(start, end):
        yield chunk.block_ids[position // block_size] * block_size + position % block_size


def _logprobs(token_id: int, num_top: int) -> TokenLogprobs:
    top = (Logprob((token_id + rank) % _VOCAB_SIZE, -0.5 - rank) for rank in range(num_top))
    return TokenLogprobs(Logprob(token_id, -0.5), tuple(top))


def say(*texts: str) -> Script:
    """Return a script that answers with the next of `texts`, and repeats the last one."""
    remaining = list(texts)

    def script(_: ScriptInput) -> Iterable[int]:
        text = remaining.pop(0) if len(remaining) > 1 else remaining[0]
        return list(text.encode())

    return script


def repeat_prompt(sequence: ScriptInput) -> Iterable[int]:
    """Answer with the prompt."""
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
        script: returns the tokens of a sequence.
        max_num_seqs: most sequences in one step.
        max_model_len: most tokens of prompt and output together.
        gate: waited for before each step.
        has_chat_template: whether `messages` can be served.
        reasons: text between the delimiters of `THINK` at the beginning of an answer is reasoning.
        starts_in_reasoning: as `reasons`, with the first delimiter in the prompt.
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
