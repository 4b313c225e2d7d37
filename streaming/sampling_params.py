"""Sampling parameters and stop conditions of one request, and their validation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Self

from streaming.errors import InvalidRequest
from streaming.output_constraint import Grammar

MAX_STOP_STRINGS = 16
MAX_STOP_CHARS = 256
MAX_STOP_TOKENS = 1024
MAX_LOGPROBS = 20
MAX_LOGIT_BIASES = 1024
MAX_SEED = 2**63 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Sampling parameters and stop conditions of one request, validated on creation.

    Attributes:
        max_tokens: most tokens to generate; None generates up to the context size.
        min_tokens: least tokens to generate. End-of-sequence and stop tokens are banned until then,
            and a stop string that is completed by then is ordinary text.
        temperature: divides the logits; 0 is greedy decoding (argmax).
        top_p: probability mass of nucleus sampling (Holtzman et al. 2020, arXiv:1904.09751).
        top_k: number of most likely tokens to sample from; 0 samples from all.
        min_p: least probability relative to the most likely token (arXiv:2407.01082).
        stop: strings that end the text and are not part of it.
        include_stop_str_in_output: keep the stop string as part of the text.
        stop_token_ids: token ids that end the text, in addition to the model's end tokens.
        seed: seed of the random numbers; None draws a new one for each request.
        presence_penalty: subtracted from the logits of tokens that the output contains.
        frequency_penalty: subtracted from the logit of a token, times its count in the output.
        repetition_penalty: divides positive and multiplies negative logits of tokens in prompt or
            output (Keskar et al. 2019, arXiv:1909.05858).
        logit_bias: added to the logits, by token id.
        logprobs: number of most likely tokens to report at each position; 0 reports the chosen
            token only, None nothing. Computed from the model's distribution before all of the
            above.
        prompt_logprobs: the same for each prompt token except the first.
        ignore_eos: continue after the model's end tokens.
        grammar: grammar of the whole text; None allows any text. It takes precedence over
            `min_tokens` and `ignore_eos`: a complete text ends, and an incomplete one gets no end
            token. Stop strings, stop tokens and `max_tokens` still cut it.

    Raises:
        InvalidRequest: a value is out of range; `param` names the field.
    """

    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    stop: tuple[str, ...] = ()
    include_stop_str_in_output: bool = False
    stop_token_ids: frozenset[int] = frozenset()
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    ignore_eos: bool = False
    grammar: Grammar | None = None

    def __post_init__(self) -> None:
        if self.max_tokens is not None:
            check_range("max_tokens", self.max_tokens, 1, math.inf)
        check_range("min_tokens", self.min_tokens, 0, self.max_tokens or math.inf)
        check_range("temperature", self.temperature, 0.0, 2.0)
        check_range("top_p", self.top_p, 0.0, 1.0, above_low=True)
        check_range("top_k", self.top_k, 0, math.inf)
        check_range("min_p", self.min_p, 0.0, 1.0)
        check_range("presence_penalty", self.presence_penalty, -2.0, 2.0)
        check_range("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        check_range("repetition_penalty", self.repetition_penalty, 0.01, 10.0)
        if self.seed is not None:
            check_range("seed", self.seed, -MAX_SEED - 1, MAX_SEED)
        if self.logprobs is not None:
            check_range("logprobs", self.logprobs, 0, MAX_LOGPROBS)
        if self.prompt_logprobs is not None:
            check_range("prompt_logprobs", self.prompt_logprobs, 0, MAX_LOGPROBS)
        if len(self.stop) > MAX_STOP_STRINGS:
            raise InvalidRequest(
                param="stop",
                reason=f"must have at most {MAX_STOP_STRINGS} strings (got {len(self.stop)})",
            )
        for stop in self.stop:
            if not 0 < len(stop) <= MAX_STOP_CHARS:
                raise InvalidRequest(
                    param="stop",
                    reason=f"each string must have 1 to {MAX_STOP_CHARS} characters "
                    f"(got {len(stop)})",
                )
        if len(self.stop_token_ids) > MAX_STOP_TOKENS:
            raise InvalidRequest(
                param="stop_token_ids",
                reason=f"must have at most {MAX_STOP_TOKENS} different ids "
                f"(got {len(self.stop_token_ids)})",
            )
        if len(self.logit_bias) > MAX_LOGIT_BIASES:
            raise InvalidRequest(
                param="logit_bias",
                reason=f"must have at most {MAX_LOGIT_BIASES} entries (got {len(self.logit_bias)})",
            )
        for bias in self.logit_bias.values():
            check_range("logit_bias", bias, -100.0, 100.0, subject="each bias ")

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is always chosen."""
        return self.temperature == 0.0

    @property
    def has_penalties(self) -> bool:
        """Whether any penalty is on, so that the tokens of the text have to be counted."""
        return bool(
            self.repetition_penalty != 1.0 or self.presence_penalty or self.frequency_penalty
        )

    def with_seed_offset(self, offset: int) -> Self:
        """Return a copy with `offset` added to the seed, if any; 64-bit sums wrap around."""
        if self.seed is None:
            return self
        least, num_seeds = -MAX_SEED - 1, 2 * (MAX_SEED + 1)
        return replace(self, seed=(self.seed + offset - least) % num_seeds + least)


def check_range(
    param: str,
    value: float,
    low: float,
    high: float,
    *,
    above_low: bool = False,
    subject: str = "",
) -> None:
    """Check that a value is in `low` to `high`.

    Args:
        param: name of the field, for the error.
        value: the value.
        low: lower bound, included unless `above_low`.
        high: upper bound, included; infinity sets none.
        above_low: exclude the lower bound.
        subject: start of the message, if the field has several values.

    Raises:
        InvalidRequest: the value is out of range or NaN.
    """
    too_low = value <= low if above_low else value < low
    if value != value or too_low or value > high:  # NaN is unequal to itself
        more = "more than" if above_low else "at least"
        bounds = f"{more} {_write(low)}"
        if high != math.inf:
            bounds += f" and at most {_write(high)}"
        raise InvalidRequest(param=param, reason=f"{subject}must be {bounds} (got {_write(value)})")


def _write(value: float) -> str:
    """Format a number; a large integer is given as its size, which keeps messages short."""
    if isinstance(value, float):
        return f"{value:g}"
    return str(value) if value.bit_length() <= 64 else "an integer of more than 64 bits"
