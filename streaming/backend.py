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
    """The served model, for people and for limits.

    Attributes:
        model_id: the name that clients use.
        max_model_len: prompt and answer together, in tokens.
        vocab_size: token ids are below it.
        eos_token_ids: tokens that end a text.
        has_chat_template: whether `messages` can be served.
        batch_invariant: whether a request's answer is the same, to the bit, whatever else runs.
        attention: what attends in batches: "native", our own kernel, or "torch"; None for a
            backend that leaves it to the model.
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
    """A prompt as the model reads it.

    Attributes:
        output_format: what to look for in the answer.
    """

    token_ids: list[int]
    output_format: OutputFormat = PLAIN


class Tokenizer(Protocol):
    """Text to token ids and back. All methods may be called from several threads at once."""

    @property
    def max_chars_per_token(self) -> int:
        """Most characters that one token can stand for: bounds a prompt before it is tokenised."""

    def encode(self, text: str) -> list[int]:
        """Return the ids of a raw prompt, with the model's start token where it has one."""

    def encode_chat(self, prompt: ChatPrompt) -> list[int]:
        """Return the ids of a conversation, up to where the assistant's answer begins.

        Raises:
            InvalidRequest: the model has no chat template, or the template refuses the messages.
        """

    def prepare_chat(self, prompt: ChatPrompt) -> EncodedPrompt:
        """Return the same ids, and how the answer to them is written.

        Raises:
            InvalidRequest: as `encode_chat` does.
        """

    def decode(self, token_ids: SequenceOf[int]) -> str:
        """Return the text, special tokens left out but for marks of calls and of reasoning."""

    def token_text(self, token_id: int) -> str:
        """Return how one token is written when it is listed by itself, special ones included."""

    def token_bytes(self, token_id: int) -> bytes | None:
        """Return the UTF-8 that a token stands for, also where it is a part of a character.

        None where the tokenizer does not tell.
        """


class GrammarCompiler(Protocol):
    """Makes grammars ready for one tokenizer. May be called from several threads at once."""

    def compile(self, constraint: OutputConstraint, *, count: int = 1) -> list[GrammarMatcher]:
        """Return `count` matchers, each at the beginning of a text; may take a second.

        Raises:
            InvalidRequest: the grammar cannot be compiled, and why.
        """


class TokenView(SequenceOf[int]):
    """The first `length` tokens of a list that only ever grows, without a copy.

    What the view shows never changes, since tokens are only appended behind it. It pickles as a
    copy of the tokens that it shows.

    Args:
        token_ids: tokens are appended to it, and none is changed or removed.
        length: number of tokens to show.
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
    """What a runner knows of a sequence in all its steps.

    All chunks of a sequence share one object. A transport to another process can send it once, with
    the first chunk, and the generation id from then on.

    Attributes:
        generation_id: key of whatever a runner keeps between two steps, until `release`.
        num_prompt_tokens: tokens of the prompt; the others are output.
        params: `max_tokens` is set.
        banned_token_ids: tokens that may not be chosen before `params.min_tokens`.
    """

    generation_id: str
    num_prompt_tokens: int
    params: SamplingParams
    banned_token_ids: frozenset[int] = frozenset()


class Chunk(NamedTuple):
    """Consecutive tokens of one sequence in one step, and how the token behind them is chosen.

    A named tuple, as one is made for each row in each step: a frozen dataclass takes three times as
    long to make.

    Penalties count all tokens of a text. To copy them in each step would cost more the longer the
    text is, and state that only the runner has would be lost if a batch were run elsewhere. So
    chunks with penalties, and only they, carry a view of their text. A runner may keep counts by
    generation id and read what is new, or count anew at any time.

    Attributes:
        sequence: whose tokens they are.
        start: position of the first of them in the text, prompt and output together.
        token_ids: at least one.
        block_ids: cache blocks of the sequence, from position 0 on, at least up to `end`. Empty for
            a runner without a `cache`.
        yields_token: whether the next token is chosen in this step. It is, unless the chunk is part
            of a text that is still being read.
        token_mask: the tokens that the grammar allows next, as `GrammarMatcher.mask` returns them.
            None without a grammar, and where no token is chosen.
        text_ids: prompt and output, where penalties count them; None where they do not, and where
            no token is chosen.
        scored_ids: where prompt log probabilities are wanted, the prompt's tokens from position
            `start + 1` on that the chunk's first rows predict.
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
        """Position behind the last token."""
        return self.start + len(self.token_ids)

    @property
    def is_decode(self) -> bool:
        """Whether the chunk is the one newest token of its sequence."""
        return self.yields_token and len(self.token_ids) == 1

    @property
    def params(self) -> SamplingParams:
        """Sampling parameters of the sequence."""
        return self.sequence.params

    @property
    def output_position(self) -> int:
        """Place in the output of the token behind the chunk, 0 for the first.

        With the seed, it fixes the random number that the token is drawn by.
        """
        return self.start + len(self.token_ids) - self.sequence.num_prompt_tokens

    @property
    def must_not_end(self) -> bool:
        """Whether the token behind the chunk may not be one of `sequence.banned_token_ids`."""
        min_tokens = self.sequence.params.min_tokens
        return min_tokens > 0 and self.output_position < min_tokens


@dataclass(frozen=True, slots=True)
class Batch:
    """One step: at most one chunk of each sequence."""

    chunks: tuple[Chunk, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens of all chunks together."""
        return sum(len(chunk.token_ids) for chunk in self.chunks)


@dataclass(frozen=True, slots=True)
class SampledToken:
    """The next token of a sequence.

    Attributes:
        prompt_logprobs: of all tokens of the prompt but the first, with the first token of a
            sequence that wants them.
    """

    token_id: int
    logprobs: TokenLogprobs | None = None
    prompt_logprobs: tuple[TokenLogprobs, ...] | None = None


@dataclass(frozen=True, slots=True)
class FailedRow:
    """One sequence of the batch gets no token; the others are fine.

    Attributes:
        reason: for the server's log.
        error: what its client is told, where the model's logits are finite. None where they are
            not: the model failed, and what it computed for this sequence is suspect.
    """

    reason: str
    error: StreamingError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheGeometry:
    """A runner's cache: `num_blocks` blocks of `block_size` tokens, filled step by step.

    Attributes:
        max_batch_tokens: most tokens in one step.
        has_free_memory: whether there is memory to spare for a block that has never been used. All
            may be used at any time, but prefixes are kept only while there is.
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
        """The cache whose blocks the engine hands out; None for a runner that has its own way."""

    def run(self, batch: Batch) -> list[SampledToken | FailedRow]:
        """Run one step; return one token for each chunk that yields one, in the batch's order.

        Any exception fails the sequences of the batch, and only them.
        """

    def release(self, generation_id: str) -> None:
        """Forget a sequence that ended, however it ended; called once for each that ever ran."""

    def close(self) -> None:
        """Give back threads and memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """What an engine is built on.

    Attributes:
        grammars: None where texts cannot be held to a grammar.
    """

    info: ModelInfo
    tokenizer: Tokenizer
    runner: ModelRunner
    grammars: GrammarCompiler | None = None
