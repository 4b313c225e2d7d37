"""The work of one step: the scheduler chooses it, the engine turns it into a `Batch`."""

from __future__ import annotations

from dataclasses import dataclass

from streaming.backend import Chunk, TokenView
from streaming.sequence import Sequence


@dataclass(slots=True)
class ScheduledChunk:
    """Tokens `start` to `start + num_tokens` (half-open) of a sequence, scheduled for one step.

    A chunk that reaches the newest token of its sequence yields the next one. The class is not
    frozen because an object is made for each row in each step, and a frozen one takes three times
    as long to make.

    Attributes:
        sequence: the live sequence, which a runner never sees.
        start: position of the first token in prompt and output.
        num_tokens: at least one.
    """

    sequence: Sequence
    start: int
    num_tokens: int

    @property
    def end(self) -> int:
        """Position after the last token."""
        return self.start + self.num_tokens

    @property
    def yields_token(self) -> bool:
        """Whether the sequence's next token is chosen in this step."""
        return self.end == self.sequence.num_tokens

    @property
    def is_decode(self) -> bool:
        """Whether the chunk is only the newest token of its sequence."""
        return self.num_tokens == 1 and self.yields_token

    def to_chunk(self) -> Chunk:
        """Return the chunk as plain data for a runner.

        The grammar mask is computed here, on the side of the engine that advances the matcher.

        Raises:
            BaseException: raised by the grammar matcher.
        """
        sequence, start, num_tokens = self.sequence, self.start, self.num_tokens
        end, token_ids, matcher = start + num_tokens, sequence.token_ids, sequence.matcher
        yields_token = end == len(token_ids)
        scored_ids: tuple[int, ...] = ()
        if start < sequence.input.num_prompt_tokens and sequence.wants_prompt_logprobs:
            scored_ids = sequence.prompt_ids[start + 1 : end + 1]
        return Chunk(
            sequence.input,
            start,
            (token_ids[start],) if num_tokens == 1 else tuple(token_ids[start:end]),
            sequence.block_table.block_ids,
            yields_token,
            matcher.mask() if matcher is not None and yields_token else None,
            TokenView(token_ids, end) if sequence.has_penalties and yields_token else None,
            scored_ids,
        )


@dataclass(frozen=True, slots=True)
class Schedule:
    """The chunks of one step: at most one of each sequence."""

    chunks: tuple[ScheduledChunk, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens of all chunks together."""
        return sum(chunk.num_tokens for chunk in self.chunks)
