"""Each parameter at the bounds of its range, and the message of its error."""

from __future__ import annotations

import dataclasses
import math

import pytest

from streaming.errors import InvalidRequest
from streaming.output_constraint import Grammar, GrammarKind
from streaming.sampling_params import (
    MAX_LOGIT_BIASES,
    MAX_LOGPROBS,
    MAX_SEED,
    MAX_STOP_CHARS,
    MAX_STOP_STRINGS,
    MAX_STOP_TOKENS,
    SamplingParams,
)

NAN, INF = math.nan, math.inf
HUGE = 10**400  # no float holds it

RANGES: dict[str, tuple[list[object], list[object]]] = {
    "max_tokens": ([None, 1, 10**9, HUGE], [0, -1, -HUGE]),
    "min_tokens": ([0, 1, 10**9], [-1]),
    "temperature": ([0, 0.0, 1.0, 2.0], [-0.001, 2.001, NAN, INF, -INF, HUGE]),
    "top_p": ([0.001, 1.0], [0.0, -1.0, 1.001, NAN, INF]),
    "top_k": ([0, 1, HUGE], [-1]),
    "min_p": ([0.0, 1.0], [-0.001, 1.001, NAN]),
    "stop": (
        [(), ("a",), ("a" * MAX_STOP_CHARS,), ("a",) * MAX_STOP_STRINGS],
        [("",), ("a", ""), ("a" * (MAX_STOP_CHARS + 1),), ("a",) * (MAX_STOP_STRINGS + 1)],
    ),
    "include_stop_str_in_output": ([False, True], []),
    "stop_token_ids": (
        [frozenset(), frozenset({0, 1}), frozenset(range(MAX_STOP_TOKENS))],
        [frozenset(range(MAX_STOP_TOKENS + 1))],
    ),
    "seed": (
        [None, 0, -1, MAX_SEED, -MAX_SEED - 1],
        [MAX_SEED + 1, -MAX_SEED - 2, HUGE, -HUGE],
    ),
    "presence_penalty": ([-2.0, 0.0, 2.0], [-2.001, 2.001, NAN]),
    "frequency_penalty": ([-2.0, 0.0, 2.0], [-2.001, 2.001, NAN]),
    "repetition_penalty": ([0.01, 1.0, 10.0], [0.0, 0.009, -1.0, 10.001, NAN, INF]),
    "logit_bias": (
        [{}, {5: -100.0, 6: 100.0}, dict.fromkeys(range(MAX_LOGIT_BIASES), 0.0)],
        [{5: 100.001}, {5: -100.001}, {5: NAN}, dict.fromkeys(range(MAX_LOGIT_BIASES + 1), 0.0)],
    ),
    "logprobs": ([None, 0, MAX_LOGPROBS], [-1, MAX_LOGPROBS + 1, HUGE]),
    "prompt_logprobs": ([None, 0, MAX_LOGPROBS], [-1, MAX_LOGPROBS + 1, HUGE]),
    "ignore_eos": ([False, True], []),
    "grammar": ([None, Grammar(GrammarKind.REGEX, "a")], []),
}
ACCEPTED = [(param, value) for param, (good, _) in RANGES.items() for value in good]
REFUSED = [(param, value) for param, (_, bad) in RANGES.items() for value in bad]


def shorten(value: object) -> str:
    return repr(value)[:20]


def test_the_table_has_every_field():
    assert list(RANGES) == [field.name for field in dataclasses.fields(SamplingParams)]


def test_the_defaults_sample_from_the_unmodified_distribution():
    assert SamplingParams() == SamplingParams(
        max_tokens=None,
        min_tokens=0,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        min_p=0.0,
        stop=(),
        stop_token_ids=frozenset(),
        seed=None,
        presence_penalty=0.0,
        frequency_penalty=0.0,
        repetition_penalty=1.0,
        logit_bias={},
        logprobs=None,
        ignore_eos=False,
    )


@pytest.mark.parametrize(("param", "value"), ACCEPTED, ids=shorten)
def test_a_value_in_range_is_accepted(param: str, value: object):
    params = SamplingParams(**{param: value})  # type: ignore[arg-type]
    assert getattr(params, param) == value


@pytest.mark.parametrize(("param", "value"), REFUSED, ids=shorten)
def test_a_value_out_of_range_is_rejected_with_its_field(param: str, value: object):
    with pytest.raises(InvalidRequest) as caught:
        SamplingParams(**{param: value})  # type: ignore[arg-type]
    assert caught.value.param == param
    assert str(caught.value).startswith(f"{param}: ")
    assert len(str(caught.value)) < 200


def test_min_tokens_is_at_most_max_tokens():
    assert SamplingParams(max_tokens=3, min_tokens=3).min_tokens == 3
    with pytest.raises(InvalidRequest) as caught:
        SamplingParams(max_tokens=3, min_tokens=4)
    assert str(caught.value) == "min_tokens: must be at least 0 and at most 3 (got 4)"


@pytest.mark.parametrize(
    ("param", "value", "reason"),
    [
        ("max_tokens", 0, "must be at least 1 (got 0)"),
        ("max_tokens", -12345678, "must be at least 1 (got -12345678)"),
        ("temperature", 2.5, "must be at least 0 and at most 2 (got 2.5)"),
        ("top_p", 0.0, "must be more than 0 and at most 1 (got 0)"),
        ("top_p", NAN, "must be more than 0 and at most 1 (got nan)"),
        ("seed", 2**63, f"must be at least {-(2**63)} and at most {2**63 - 1} (got {2**63})"),
        ("max_tokens", -HUGE, "must be at least 1 (got an integer of more than 64 bits)"),
        ("stop", ("a", ""), "each string must have 1 to 256 characters (got 0)"),
        ("stop", ("a",) * 17, "must have at most 16 strings (got 17)"),
        (
            "stop_token_ids",
            frozenset(range(1025)),
            "must have at most 1024 different ids (got 1025)",
        ),
        ("logit_bias", dict.fromkeys(range(1025), 0), "must have at most 1024 entries (got 1025)"),
        ("logit_bias", {5: 100.5}, "each bias must be at least -100 and at most 100 (got 100.5)"),
    ],
)
def test_the_error_says_what_is_allowed_and_what_it_got(param: str, value: object, reason: str):
    with pytest.raises(InvalidRequest) as caught:
        SamplingParams(**{param: value})  # type: ignore[arg-type]
    assert caught.value.reason == reason


@pytest.mark.parametrize(("temperature", "is_greedy"), [(0, True), (0.0, True), (0.001, False)])
def test_greedy_is_temperature_zero(temperature: float, is_greedy: bool):
    assert SamplingParams(temperature=temperature).is_greedy is is_greedy


@pytest.mark.parametrize(
    ("seed", "offset", "expected"),
    [
        (None, 5, None),
        (7, 0, 7),
        (7, 2, 9),
        (-1, 2, 1),
        (MAX_SEED, 0, MAX_SEED),
        (MAX_SEED, 1, -MAX_SEED - 1),
        (MAX_SEED - 1, 3, -MAX_SEED),
        (-MAX_SEED - 1, 0, -MAX_SEED - 1),
    ],
)
def test_a_seed_offset_wraps_around(seed: int | None, offset: int, expected: int | None):
    params = SamplingParams(seed=seed, top_k=3)
    assert params.with_seed_offset(offset) == SamplingParams(seed=expected, top_k=3)
