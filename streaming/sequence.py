"""One generation on its way through the engine: its tokens, its state, and when it ends."""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable, MutableSequence
from collections.abc import Sequence as SequenceOf
from enum import StrEnum

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
    WAITING = "waiting"
    RUNNING = "running"
    ENDED = "ended"


class InvalidTransition(AssertionError):
    """A sequence was moved along an edge that the table does not have."""


_NEXT_STATES = {
    SequenceState.WAITING: {SequenceState.RUNNING, SequenceState.ENDED},
    SequenceState.RUNNING: {SequenceState.WAITING, SequenceState.ENDED},
    SequenceState.ENDED: set[SequenceState](),
}


class Sequence:
    """Writes one log, token by token, and decides when it ends.

    Args:
        generation: the log.
        prompt_ids: at least one token.
        params: `max_tokens` is set: admission has filled it in.
        eos_token_ids: the model's own end tokens.
        decode: token ids to text, special tokens left out.
        deadline_at: monotonic seconds.
        priority: higher ones are served first.
        matcher: follows the text through its grammar, where it has one.
        prompt_texts: `texts_of` the prompt, where its log probabilities are wanted. It takes too
            long to be made in a step.
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
        # Arrays, which the garbage collector does not look into as it does into lists.
        self.output_ids: MutableSequence[int] = array("i")
        self.token_ids = array("i", prompt_ids)
        """Prompt and output."""
        self.num_computed_tokens = 0
        self.block_table = BlockTable()
        self.priority = priority
        self.matcher = matcher
        self.is_detached = False
        """Nobody follows the log; its client may still come back."""
        self.state = SequenceState.WAITING
        self.banned_token_ids = params.stop_token_ids | eos_token_ids
        """Tokens that may not be chosen before `min_tokens`."""
        self._end_token_ids = params.stop_token_ids | (
            # A grammar lets them come where the text is complete, and then it is.
            frozenset() if params.ignore_eos and matcher is None else eos_token_ids
        )
        self._prompt_texts = prompt_texts
        self._detokenizer = Detokenizer(decode, self.prompt_ids)
        self._stop_checker = StopChecker(params.stop, keeps_stop=params.include_stop_str_in_output)

    @property
    def generation_id(self) -> str:
        return self.generation.generation_id

    @property
    def caller(self) -> str:
        return self.generation.caller

    @property
    def deadline_error(self) -> DeadlineExceeded:
        """What it ends with if it has not ended by its deadline."""
        allowed_s = self.deadline_at - self.generation.submitted_at
        return DeadlineExceeded(timeout_s=round(allowed_s, 3))

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.prompt_ids)

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_uncomputed_tokens(self) -> int:
        """Tokens that the model has not seen."""
        return len(self.token_ids) - self.num_computed_tokens

    @property
    def num_tokens_left(self) -> int:
        """Most tokens that are still to be generated."""
        return self.max_tokens - len(self.output_ids)

    @property
    def is_ended(self) -> bool:
        return self.state is SequenceState.ENDED

    @property
    def must_not_end(self) -> bool:
        """Whether the next token may not be one of `banned_token_ids`."""
        return len(self.output_ids) < self.params.min_tokens

    def move_to(self, state: SequenceState) -> None:
        if state not in _NEXT_STATES[self.state]:
            raise InvalidTransition(f"{self.state} -> {state}")
        self.state = state

    @property
    def wants_prompt_logprobs(self) -> bool:
        """Whether the log probabilities of the prompt are still to be reported."""
        return self.params.prompt_logprobs is not None and not self.output_ids

    def score_prompt(self, logprobs: SequenceOf[TokenLogprobs], *, at: float) -> None:
        """Take the log probabilities of all tokens of the prompt but the first, before any token.

        A token's text is what it sets free, as in the answer.
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
        """Take the next token into the log, and end the log where this token ends it.

        A text that is complete by its grammar ends, also without an end token. An ending that falls
        on the last place allowed by `max_tokens` is a stop, not a length.

        Raises:
            BaseException: the matcher, the tokenizer or the parser raised it. The sequence can then
                only be failed.
        """
        assert not self.is_ended, "an ended sequence takes no more"
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
        """End the log where it stands; text that was held as a possible stop string is let go."""
        self._let_go(at)
        self._end(Finished(FinishReason.CANCELLED, at))

    def fail(self, error: StreamingError, *, at: float) -> None:
        """End the log with an error; held text is let go as by `cancel`."""
        self._let_go(at)
        self._end(Failed(error, at))

    def drop(self) -> None:
        """End a sequence whose log the event loop has ended."""
        assert self.generation.is_ended
        self.move_to(SequenceState.ENDED)

    @property
    def _may_stop(self) -> bool:
        """Whether what the last token completes may end the text."""
        return len(self.output_ids) > self.params.min_tokens

    def _check_stop(self, text: str) -> str:
        return self._stop_checker.feed(text, may_stop=self._may_stop)

    def _flush(self) -> str:
        return self._check_stop(self._detokenizer.flush()) + self._stop_checker.flush()

    def _let_go(self, at: float) -> None:
        try:
            text = self._flush()
        except BaseException:  # or a panic; the log ends all the same
            logger.exception("%s: the text that was held is lost", self.generation_id)
            return
        if text:
            self.generation.append(Tail(text, at))

    def _reason_to_stop(self, text: str) -> FinishReason:
        """Return `stop`, or `tool_calls` for an answer that ends with calls, all of them complete.

        Args:
            text: what the last token sets free; it is not in the log yet.
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
