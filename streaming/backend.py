"""What a backend is to the engine: a tokenizer, a model runner and a description of the model."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import Protocol

from streaming.chat.output_parser import PLAIN, OutputFormat
from streaming.errors import StreamingError
from streaming.log.generation import TokenLogprobs
from streaming.output_constraint import GrammarMatcher, OutputConstraint
from streaming.request import ChatPrompt
from streaming.sequence import Sequence


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


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens `start` to `start + num_tokens` (half-open) of a sequence, to be run in this step.

    A chunk that reaches the end of what is known of its sequence yields the next token.
    """

    sequence: Sequence
    start: int
    num_tokens: int

    @property
    def end(self) -> int:
        return self.start + self.num_tokens

    @property
    def yields_token(self) -> bool:
        return self.end == self.sequence.num_tokens

    @property
    def is_decode(self) -> bool:
        """Whether it is the one newest token."""
        return self.num_tokens == 1 and self.yields_token

    @property
    def token_ids(self) -> list[int]:
        return self.sequence.token_ids[self.start : self.end].tolist()


@dataclass(frozen=True, slots=True)
class Batch:
    chunks: tuple[Chunk, ...]

    @property
    def num_tokens(self) -> int:
        return sum(chunk.num_tokens for chunk in self.chunks)


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

    def release(self, sequence: Sequence) -> None:
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
