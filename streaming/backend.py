"""The interface between the engine and a backend: a tokenizer, a model runner, a model's facts.

A `Batch` is what the engine gives a runner for one step. It is plain data: it holds no live
`streaming.sequence.Sequence`, does not change when one does, and can be pickled. So a batch can be
recorded, replayed, and sent to another process.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, overload

from streaming.chat.output_parser import PLAIN, OutputFormat
from streaming.errors import StreamingError
from streaming.log.generation import TokenLogprobs
from streaming.output_constraint import GrammarMatcher, OutputConstraint
from streaming.request import ChatPrompt
from streaming.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """Facts about the served model: reported to clients, and limits of requests.

    Attributes:
        model_id: the name that clients use.
        backend: name of the backend that runs the model.
        dtype: of the weights.
        device: where the model runs.
        max_model_len: most tokens of prompt and output together.
        vocab_size: token ids are below it.
        eos_token_ids: tokens that end a text.
        has_chat_template: whether `messages` can be served.
        batch_invariant: whether a request's output is the same, to the bit, in any batch.
        attention: attention of the batched backend: "native" for the project's own kernel, or
            "torch"; None for a backend that leaves it to the model.
    """

    model_id: str
    backend: str
    dtype: str
    device: str
    max_model_len: int
    vocab_size: int
    eos_token_ids: frozenset[int]
    has_chat_template: bool
    batch_invariant: bool = True
    attention: str | None = None


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A tokenized prompt.

    Attributes:
        token_ids: the prompt.
        output_format: how tool calls and reasoning are written in the answer.
    """

    token_ids: list[int]
    output_format: OutputFormat = PLAIN


class Tokenizer(Protocol):
    """Converts text to token ids and back. Thread-safe."""

    @property
    def max_chars_per_token(self) -> int:
        """Most characters of one token: bounds a prompt's length before it is tokenized."""

    def encode(self, text: str) -> list[int]:
        """Return the ids of a raw prompt, with the model's start token where it has one."""

    def encode_chat(self, prompt: ChatPrompt) -> list[int]:
        """Return the ids of a conversation, up to the beginning of the assistant's answer.

        Raises:
            InvalidRequest: the model has no chat template, or the template rejects the messages.
        """

    def prepare_chat(self, prompt: ChatPrompt) -> EncodedPrompt:
        """Return the same ids, and the format of the answer.

        Raises:
            InvalidRequest: as `encode_chat` does.
        """

    def decode(self, token_ids: SequenceOf[int]) -> str:
        """Return the text, without special tokens except delimiters of calls and reasoning."""

    def token_text(self, token_id: int) -> str:
        """Return the text of one token by itself, also of a special one."""

    def token_bytes(self, token_id: int) -> bytes | None:
        """Return the UTF-8 bytes of a token, which may be part of a character.

        None if the tokenizer has no bytes for it.
        """


class GrammarCompiler(Protocol):
    """Compiles grammars for one tokenizer. Thread-safe."""

    def compile(self, constraint: OutputConstraint, *, count: int = 1) -> list[GrammarMatcher]:
        """Return `count` matchers, each at the beginning of a text. It may take a second.

        Raises:
            InvalidRequest: the grammar cannot be compiled; the text says why.
        """


class TokenView(SequenceOf[int]):
    """An immutable view of the first `length` tokens of an append-only list, without a copy.

    Pickling it copies the tokens of the view.

    Args:
        token_ids: may grow, but its tokens are never changed or removed.
        length: number of tokens of the view.
    """

    __slots__ = ("_length", "_token_ids")

    def __init__(self, token_ids: SequenceOf[int], length: int) -> None:
        self._token_ids = token_ids
        self._length = length

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> SequenceOf[int]: ...
    def __getitem__(self, index: int | slice) -> int | SequenceOf[int]:
        places = range(self._length)[index]
        if isinstance(places, int):
            return self._token_ids[places]
        if places.step == 1:
            return self._token_ids[places.start : places.stop]
        return [self._token_ids[place] for place in places]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TokenView) and tuple(self) == tuple(other)

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        return TokenView, (self._token_ids[: self._length], self._length)


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceInput:
    """The part of a runner's input that is the same in all steps of a sequence.

    All chunks of a sequence share one object. A transport to another process can send it once, with
    the first chunk, and only the generation id from then on.

    Attributes:
        generation_id: key of the state that a runner keeps between steps, until `release`.
        num_prompt_tokens: tokens of the prompt; the others are output.
        params: `max_tokens` is set.
        banned_token_ids: tokens that may not be chosen before `params.min_tokens`.
    """

    generation_id: str
    num_prompt_tokens: int
    params: SamplingParams
    banned_token_ids: frozenset[int] = frozenset()


class Chunk(NamedTuple):
    """Consecutive tokens of one sequence in one step, and how to choose the next token.

    It is a named tuple because one is made for each row in each step, and a frozen dataclass takes
    three times as long to make.

    Penalties need all tokens of prompt and output. Copying them in each step would cost more the
    longer the text is, and a batch could not be run elsewhere if only the runner had them. So a
    chunk with penalties carries a view of them, and other chunks carry none. A runner may keep
    counts by generation id and add the new tokens, or count anew at any time.

    Attributes:
        sequence: the sequence's constant input.
        start: position of the first token in prompt and output.
        token_ids: the tokens to run, at least one.
        block_ids: cache blocks of the sequence, from position 0 on, at least up to `end`. Empty for
            a runner without a `cache`.
        yields_token: whether the next token is chosen in this step. False for a chunk of a prompt
            that is not its last.
        token_mask: tokens that the grammar allows next, as `GrammarMatcher.mask` returns them. None
            without a grammar, or if no token is chosen.
        text_ids: prompt and output. None without penalties, or if no token is chosen.
        scored_ids: tokens of the prompt from position `start + 1` on, which the chunk's first rows
            predict. Empty unless prompt log probabilities are wanted.
    """

    sequence: SequenceInput
    start: int
    token_ids: tuple[int, ...]
    block_ids: tuple[int, ...] = ()
    yields_token: bool = False
    token_mask: bytes | None = None
    text_ids: SequenceOf[int] | None = None
    scored_ids: tuple[int, ...] = ()

    @property
    def num_tokens(self) -> int:
        """Number of tokens of the chunk."""
        return len(self.token_ids)

    @property
    def end(self) -> int:
        """Position after the last token."""
        return self.start + len(self.token_ids)

    @property
    def is_decode(self) -> bool:
        """Whether the chunk is only the newest token of its sequence."""
        return self.yields_token and len(self.token_ids) == 1

    @property
    def params(self) -> SamplingParams:
        """Sampling parameters of the sequence."""
        return self.sequence.params

    @property
    def output_position(self) -> int:
        """Position of the next token in the output, 0 for the first.

        The seed and this position determine the random number of the draw.
        """
        return self.start + len(self.token_ids) - self.sequence.num_prompt_tokens

    @property
    def must_not_end(self) -> bool:
        """Whether `sequence.banned_token_ids` are banned from the next token."""
        min_tokens = self.sequence.params.min_tokens
        return min_tokens > 0 and self.output_position < min_tokens


@dataclass(frozen=True, slots=True)
class Batch:
    """The input of one step: at most one chunk of each sequence."""

    chunks: tuple[Chunk, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens of all chunks together."""
        return sum(len(chunk.token_ids) for chunk in self.chunks)


@dataclass(frozen=True, slots=True)
class SampledToken:
    """The next token of a sequence.

    Attributes:
        token_id: the token.
        logprobs: of the token and of the likeliest ones, if they are wanted.
        prompt_logprobs: of all tokens of the prompt but the first, with the first output token of a
            sequence that wants them.
    """

    token_id: int
    logprobs: TokenLogprobs | None = None
    prompt_logprobs: tuple[TokenLogprobs, ...] | None = None


@dataclass(frozen=True, slots=True)
class FailedRow:
    """The result of one sequence that gets no token; the others of the batch are unaffected.

    Attributes:
        reason: for the server's log.
        error: for the client, if the model's logits are finite. None if they are not: the model
            failed, and the keys and values that it computed for this sequence are suspect.
    """

    reason: str
    error: StreamingError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheGeometry:
    """The size of a runner's KV cache.

    Attributes:
        num_blocks: blocks in the pool.
        block_size: tokens in a block.
        max_batch_tokens: most tokens in one step.
        has_free_memory: whether there is memory for a block that has never been used. All blocks
            may be used at any time; without free memory, cached prefixes are evicted first.
    """

    num_blocks: int
    block_size: int
    max_batch_tokens: int
    has_free_memory: Callable[[], bool] = lambda: True


class ModelRunner(Protocol):
    """Runs a batch on the model. Called from one thread only."""

    @property
    def max_num_seqs(self) -> int:
        """Most sequences in one batch."""

    @property
    def cache(self) -> CacheGeometry | None:
        """The KV cache whose blocks the engine manages; None if the runner manages its own."""

    def run(self, batch: Batch) -> list[SampledToken | FailedRow]:
        """Run one step; return one result for each chunk that yields a token, in their order.

        An exception fails the sequences of the batch, and only these.
        """

    def release(self, generation_id: str) -> None:
        """Forget a sequence that ended; called once for each sequence that was in a batch."""

    def close(self) -> None:
        """Release threads and memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """A loaded model with its tokenizer and runner: all that an engine needs.

    Attributes:
        info: facts about the model.
        tokenizer: converts text to tokens and back.
        runner: runs batches.
        grammars: None if output cannot be constrained by a grammar.
    """

    info: ModelInfo
    tokenizer: Tokenizer
    runner: ModelRunner
    grammars: GrammarCompiler | None = None
