"""A generation inside the engine: its tokens, its state, and the conditions that end it.

The scheduler moves sequences between states; the engine appends the sampled tokens.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable, MutableSequence
from collections.abc import Sequence as SequenceOf
from enum import StrEnum

from streaming.backend import SequenceInput
from streaming.chat.output_parser import OutputParser
from streaming.detokenizer import Detokenizer
from streaming.errors import DeadlineExceeded, StreamingError
from streaming.log.generation import (
    Failed,
    Finished,
    FinishReason,
    Generation,
    Tail,
    Token,
    TokenLogprobs,
)
from streaming.output_constraint import GrammarMatcher
from streaming.sampling_params import SamplingParams
from streaming.scheduling.block_manager import BlockTable
from streaming.stop_checker import StopChecker

logger = logging.getLogger(__name__)


class SequenceState(StrEnum):
    """State of a sequence; a preempted one waits again."""

    WAITING = "waiting"
    RUNNING = "running"
    ENDED = "ended"


class InvalidTransition(AssertionError):
    """A sequence was moved between states that `_NEXT_STATES` does not connect."""


_NEXT_STATES = {
    SequenceState.WAITING: {SequenceState.RUNNING, SequenceState.ENDED},
    SequenceState.RUNNING: {SequenceState.WAITING, SequenceState.ENDED},
    SequenceState.ENDED: set[SequenceState](),
}


class Sequence:
    """Writes one log, token by token, and decides when it ends.

    Args:
        generation: the log.
        prompt_ids: token ids of the prompt, at least one.
        params: sampling parameters, with `max_tokens` set by admission.
        eos_token_ids: the model's end tokens.
        decode: converts token ids to text, without special tokens.
        deadline_at: time limit, in monotonic seconds.
        priority: sequences of higher priority run first.
        matcher: state of the text in its grammar, if it has one.
        prompt_texts: `texts_of` the prompt, if its log probabilities are requested. Computed at
            admission, since it takes too long for a step.
    """

    def __init__(
        self,
        *,
        generation: Generation,
        prompt_ids: SequenceOf[int],
        params: SamplingParams,
        eos_token_ids: frozenset[int],
        decode: Callable[[SequenceOf[int]], str],
        deadline_at: float,
        priority: int = 0,
        matcher: GrammarMatcher | None = None,
        prompt_texts: SequenceOf[str] = (),
    ) -> None:
        assert prompt_ids
        assert params.max_tokens is not None
        assert len(prompt_texts) == (0 if params.prompt_logprobs is None else len(prompt_ids))
        self.generation = generation
        self.prompt_ids = tuple(prompt_ids)
        self.params = params
        self.max_tokens = params.max_tokens
        self.deadline_at = deadline_at
        # Arrays rather than lists: the garbage collector does not traverse them.
        self.output_ids: MutableSequence[int] = array("i")
        self.token_ids = array("i", prompt_ids)
        """Prompt and output tokens."""
        self.num_computed_tokens = 0
        self.block_table = BlockTable()
        self.priority = priority
        self.matcher = matcher
        self.is_detached = False
        """The log has no subscriber and is in its grace period."""
        self.state = SequenceState.WAITING
        self.input = SequenceInput(
            generation_id=generation.generation_id,
            num_prompt_tokens=len(self.prompt_ids),
            params=params,
            banned_token_ids=params.stop_token_ids | eos_token_ids,
        )
        """The part of a model runner's input that is the same in all steps."""
        self.has_penalties = params.has_penalties
        self._end_token_ids = params.stop_token_ids | (
            # A grammar allows end tokens only where the text is complete, so they always end it.
            frozenset() if params.ignore_eos and matcher is None else eos_token_ids
        )
        self._prompt_texts = prompt_texts
        self._detokenizer = Detokenizer(decode, self.prompt_ids)
        self._stop_checker = StopChecker(params.stop, keeps_stop=params.include_stop_str_in_output)

    @property
    def generation_id(self) -> str:
        """Id of the generation."""
        return self.generation.generation_id

    @property
    def caller(self) -> str:
        """The caller that owns the generation."""
        return self.generation.caller

    @property
    def deadline_error(self) -> DeadlineExceeded:
        """The error to fail with at the deadline."""
        allowed_s = self.deadline_at - self.generation.submitted_at
        return DeadlineExceeded(timeout_s=round(allowed_s, 3))

    @property
    def num_prompt_tokens(self) -> int:
        """Number of prompt tokens."""
        return len(self.prompt_ids)

    @property
    def num_tokens(self) -> int:
        """Number of prompt and output tokens."""
        return len(self.token_ids)

    @property
    def num_uncomputed_tokens(self) -> int:
        """Number of tokens whose keys and values are not in the KV cache."""
        return len(self.token_ids) - self.num_computed_tokens

    @property
    def num_tokens_left(self) -> int:
        """Most tokens that it may still generate."""
        return self.max_tokens - len(self.output_ids)

    @property
    def is_ended(self) -> bool:
        """Whether it has ended."""
        return self.state is SequenceState.ENDED

    def move_to(self, state: SequenceState) -> None:
        """Change the state.

        Raises:
            InvalidTransition: the current state does not lead to it.
        """
        if state not in _NEXT_STATES[self.state]:
            raise InvalidTransition(f"{self.state} -> {state}")
        self.state = state

    @property
    def wants_prompt_logprobs(self) -> bool:
        """Whether the log probabilities of the prompt are requested and not reported yet."""
        return self.params.prompt_logprobs is not None and not self.output_ids

    def score_prompt(self, logprobs: SequenceOf[TokenLogprobs], *, at: float) -> None:
        """Report the prompt's log probabilities, before the first output token.

        The text of each prompt token is the text that it completes, as in the answer.

        Args:
            logprobs: of all prompt tokens except the first, in order.
            at: monotonic seconds.
        """
        assert self.wants_prompt_logprobs
        texts, self._prompt_texts = self._prompt_texts, ()
        self.generation.score_prompt(
            Token(token_id, text, at, token_logprobs)
            for token_id, text, token_logprobs in zip(
                self.prompt_ids, texts, (None, *logprobs), strict=True
            )
        )

    def append(self, token_id: int, *, at: float, logprobs: TokenLogprobs | None = None) -> None:
        """Append the next token to the log, and end the log if this token ends it.

        A text that is complete in its grammar ends, even without an end token. If a stop condition
        and the `max_tokens` limit coincide, the finish reason is `stop`, not `length`.

        Args:
            token_id: the sampled token.
            at: monotonic seconds.
            logprobs: its log probabilities, if requested.

        Raises:
            BaseException: raised by the matcher, the tokenizer or the parser. After that, the
                sequence can only be failed.
        """
        assert not self.is_ended, "the sequence has ended"
        is_complete = False
        if self.matcher is not None:
            self.matcher.accept(token_id)
            is_complete = self.matcher.is_done
        self.output_ids.append(token_id)
        self.token_ids.append(token_id)
        reason: FinishReason | None = None
        if token_id in self._end_token_ids and (self._may_stop or is_complete):
            text, reason = self._flush(), FinishReason.STOP
        else:
            text = self._check_stop(self._detokenizer.feed(token_id))
            if self._stop_checker.is_stopped:
                reason = FinishReason.STOP
            elif is_complete:
                text, reason = text + self._flush(), FinishReason.STOP
            elif not self.num_tokens_left:
                text += self._flush()
                reason = FinishReason.STOP if self._stop_checker.is_stopped else FinishReason.LENGTH
        if reason is FinishReason.STOP:
            reason = self._reason_to_stop(text)
        self.generation.append(Token(token_id, text, at, logprobs))
        if reason is not None:
            self._end(Finished(reason, at))

    def cancel(self, *, at: float) -> None:
        """End the log at its current text; held text of a possible stop string is appended."""
        self._let_go(at)
        self._end(Finished(FinishReason.CANCELLED, at))

    def fail(self, error: StreamingError, *, at: float) -> None:
        """End the log with an error; held text is appended as in `cancel`."""
        self._let_go(at)
        self._end(Failed(error, at))

    def drop(self) -> None:
        """End the sequence, whose log the event loop has already ended."""
        assert self.generation.is_ended
        self.move_to(SequenceState.ENDED)

    @property
    def _may_stop(self) -> bool:
        """Whether a stop condition that the last token completes may end the text."""
        return len(self.output_ids) > self.params.min_tokens

    def _check_stop(self, text: str) -> str:
        return self._stop_checker.feed(text, may_stop=self._may_stop)

    def _flush(self) -> str:
        return self._check_stop(self._detokenizer.flush()) + self._stop_checker.flush()

    def _let_go(self, at: float) -> None:
        try:
            text = self._flush()
        except BaseException:  # also a panic in Rust code; the log must end in any case
            logger.exception("%s: held text could not be decoded and is lost", self.generation_id)
            return
        if text:
            self.generation.append(Tail(text, at))

    def _reason_to_stop(self, text: str) -> FinishReason:
        """Return `tool_calls` for an answer that ends with complete calls, and `stop` otherwise.

        Args:
            text: text that the last token completes, which is not in the log yet.
        """
        output_format = self.generation.output_format
        if output_format.tools is None:
            return FinishReason.STOP
        parser = OutputParser(output_format)
        parser.feed(self.generation.text + text)
        return FinishReason.TOOL_CALLS if parser.ends_with_calls else FinishReason.STOP

    def _end(self, record: Finished | Failed) -> None:
        self.move_to(SequenceState.ENDED)
        self.generation.end(record)
