"""How one request wants its tokens chosen and when it wants them to end."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
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
    """Sampling and ending rules of one request, checked on creation.

    Attributes:
        max_tokens: most tokens to generate; None means what the context leaves.
        min_tokens: end-of-sequence and stop tokens are banned before this many tokens, and a stop
            string that is complete by then is text.
        temperature: 0 is greedy (argmax).
        top_p: nucleus sampling, Holtzman et al. 2020, arXiv:1904.09751.
        top_k: 0 keeps all tokens.
        min_p: least probability relative to the likeliest token, arXiv:2407.01082.
        stop: strings that end the text and are not part of it.
        include_stop_str_in_output: they are part of it.
        stop_token_ids: token ids that end the text; the model's own end tokens are added to them.
        seed: None draws a fresh one for each request.
        presence_penalty: subtracted from logits of tokens already generated.
        frequency_penalty: subtracted once for each time a token was generated.
        repetition_penalty: divides positive logits, multiplies negative ones, of tokens in prompt
            or output (Keskar et al. 2019, arXiv:1909.05858).
        logit_bias: added to the logits, by token id.
        logprobs: number of alternatives to report for each token; 0 reports the chosen one only,
            None reports nothing. Taken from the model's own distribution, before any of the above.
        prompt_logprobs: the same for each token of the prompt but the first.
        ignore_eos: the model's end tokens do not end the text.
        grammar: the language of the whole text; None is any text. It goes before all of the above:
            a text that is complete ends, whatever `min_tokens` and `ignore_eos` say, and one that
            is not gets no end token. Stop strings, stop tokens and `max_tokens` still cut it.

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
    logit_bias: Mapping[int, float] = field(default_factory=lambda: MappingProxyType({}))
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
            raise InvalidRequest(param="stop", reason=f"at most {MAX_STOP_STRINGS} stop strings")
        if any(not 0 < len(stop) <= MAX_STOP_CHARS for stop in self.stop):
            raise InvalidRequest(
                param="stop", reason=f"a stop string has 1 to {MAX_STOP_CHARS} characters"
            )
        if len(self.stop_token_ids) > MAX_STOP_TOKENS:
            raise InvalidRequest(
                param="stop_token_ids", reason=f"at most {MAX_STOP_TOKENS} different ids"
            )
        if len(self.logit_bias) > MAX_LOGIT_BIASES:
            raise InvalidRequest(param="logit_bias", reason=f"at most {MAX_LOGIT_BIASES} entries")
        for bias in self.logit_bias.values():
            check_range("logit_bias", bias, -100.0, 100.0)

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0.0

    def with_seed_offset(self, offset: int) -> Self:
        """Return the same with its seed, if any, counted on; the least follows the greatest."""
        if self.seed is None:
            return self
        least, num_seeds = -MAX_SEED - 1, 2 * (MAX_SEED + 1)
        return replace(self, seed=(self.seed + offset - least) % num_seeds + least)


def check_range(
    param: str, value: float, low: float, high: float, *, above_low: bool = False
) -> None:
    """Refuse a value outside of `low` to `high`, both included unless told otherwise.

    Raises:
        InvalidRequest: it is outside, or not a number.
    """
    too_low = value <= low if above_low else value < low
    if value != value or too_low or value > high:  # only NaN is not itself
        more = "more than" if above_low else "at least"
        bounds = f"{more} {_write(low)}"
        if high != math.inf:
            bounds += f" and at most {_write(high)}"
        raise InvalidRequest(param=param, reason=f"must be {bounds}, not {_write(value)}")


def _write(value: float) -> str:
    """Write an integer exactly; one that no float holds cannot be formatted as one."""
    if isinstance(value, float):
        return f"{value:g}"
    return str(value) if value.bit_length() <= 64 else "a number of more than 64 bits"
