"""States of a sequence, the conditions that end it, and its text."""

from __future__ import annotations

import gc
from collections.abc import Iterable
from collections.abc import Sequence as SequenceOf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.backends.scripted import EOS, ByteTokenizer
from streaming.chat.output_parser import OutputFormat, ToolSyntax
from streaming.errors import EngineFailure
from streaming.log.generation import (
    Failed,
    Finished,
    FinishReason,
    Logprob,
    Tail,
    Token,
    TokenLogprobs,
)
from streaming.output_constraint import Grammar, GrammarKind
from streaming.sampling_params import SamplingParams
from streaming.sequence import _NEXT_STATES, InvalidTransition, Sequence, SequenceState
from tests.support import (
    WordMatcher,
    chunk_of,
    finish_reason,
    make_generation,
    make_sequence,
    property_test,
)

EDGES = {
    ("waiting", "running"),
    ("waiting", "ended"),
    ("running", "waiting"),
    ("running", "ended"),
}


def make_running(params: SamplingParams | None = None, *, max_tokens: int = 100) -> Sequence:
    sequence = make_sequence(params=params, max_tokens=max_tokens)
    sequence.move_to(SequenceState.RUNNING)
    return sequence


def feed(sequence: Sequence, token_ids: Iterable[int]) -> None:
    """Append until the sequence ends, as the engine does."""
    for token_id in token_ids:
        if sequence.is_ended:
            return
        sequence.append(token_id, at=1.0)


def outcome(sequence: Sequence) -> tuple[str, str | None, int]:
    """Return text, finish reason and number of tokens."""
    generation = sequence.generation
    assert generation.usage.completion_tokens == len(sequence.output_ids)
    return generation.text, finish_reason(generation), len(sequence.output_ids)


# States.


@pytest.mark.parametrize("old", SequenceState)
@pytest.mark.parametrize("new", SequenceState)
def test_only_the_listed_state_changes_are_allowed(old: SequenceState, new: SequenceState):
    sequence = make_sequence()
    sequence.state = old
    if (old, new) in EDGES:
        sequence.move_to(new)
        assert sequence.state is new
    else:
        with pytest.raises(InvalidTransition, match=f"{old} -> {new}"):
            sequence.move_to(new)
        assert sequence.state is old


def test_the_table_has_every_state():
    assert set(_NEXT_STATES) == set(SequenceState)


def test_a_new_sequence_waits_and_nothing_is_computed():
    sequence = make_sequence("gen_7", prompt="ask", max_tokens=5)
    assert sequence.generation_id == "gen_7"
    assert sequence.state is SequenceState.WAITING
    assert not sequence.is_ended
    assert (sequence.num_prompt_tokens, sequence.num_tokens, sequence.num_tokens_left) == (3, 3, 5)
    assert sequence.num_computed_tokens == 0
    feed(sequence, b"ab")
    assert (sequence.num_prompt_tokens, sequence.num_tokens, sequence.num_tokens_left) == (3, 5, 3)


def test_a_new_sequence_is_attached_and_has_priority_0():
    sequence = make_sequence(caller="alice")
    assert (sequence.caller, sequence.priority, sequence.is_detached) == ("alice", 0, False)
    assert sequence.block_table.block_ids == ()
    assert make_sequence(priority=3).priority == 3


def test_uncomputed_tokens_are_counted():
    sequence = make_running()
    assert (sequence.token_ids.tolist(), sequence.num_uncomputed_tokens) == ([*b"ask"], 3)
    sequence.num_computed_tokens = 3
    feed(sequence, b"a")
    assert (sequence.token_ids.tolist(), sequence.num_uncomputed_tokens) == ([*b"aska"], 1)
    sequence.num_computed_tokens = 0
    assert sequence.num_uncomputed_tokens == 4


def test_prompt_and_output_are_separate():
    sequence = make_running()
    feed(sequence, b"xy")
    assert (sequence.prompt_ids, list(sequence.output_ids)) == (tuple(b"ask"), [*b"xy"])


def test_a_sequence_needs_a_prompt_and_a_limit():
    with pytest.raises(AssertionError):
        make_sequence(prompt="")
    with pytest.raises(AssertionError):
        make_sequence(params=SamplingParams())


# Endings.


def test_eos_ends_it_and_counts():
    sequence = make_running()
    feed(sequence, [*b"ab", EOS, *b"c"])
    assert outcome(sequence) == ("ab", "stop", 3)
    assert sequence.is_ended


def test_the_limit_ends_it():
    sequence = make_running(max_tokens=3)
    feed(sequence, b"abcdef")
    assert outcome(sequence) == ("abc", "length", 3)


def test_eos_as_the_last_allowed_token_is_a_stop():
    sequence = make_running(max_tokens=3)
    feed(sequence, [*b"ab", EOS])
    assert outcome(sequence) == ("ab", "stop", 3)


def test_a_stop_string_in_the_last_allowed_token_is_a_stop():
    sequence = make_running(SamplingParams(max_tokens=5, stop=("END",)))
    feed(sequence, b"abEND")
    assert outcome(sequence) == ("ab", "stop", 5)


def test_a_stop_token_ends_it_without_text():
    sequence = make_running(SamplingParams(max_tokens=9, stop_token_ids=frozenset({ord("c")})))
    feed(sequence, b"abcd")
    assert outcome(sequence) == ("ab", "stop", 3)


def test_ignore_eos_ignores_end_tokens_but_not_stop_tokens():
    params = SamplingParams(max_tokens=9, ignore_eos=True, stop_token_ids=frozenset({ord("c")}))
    sequence = make_running(params)
    feed(sequence, [*b"a", EOS, EOS, *b"bc"])
    assert outcome(sequence) == ("ab", "stop", 5)
    assert sequence.input.banned_token_ids == {EOS, ord("c")}


@pytest.mark.pain(5)
@pytest.mark.parametrize("pieces", ["abENDcd", "xENENDy", "END"])
def test_no_part_of_a_stop_string_is_shown(pieces: str):
    sequence = make_running(SamplingParams(max_tokens=99, stop=("END",)))
    feed(sequence, pieces.encode())
    text, reason, num_tokens = outcome(sequence)
    end = pieces.index("END")
    assert (text, reason, num_tokens) == (pieces[:end], "stop", end + 3)


@pytest.mark.pain(5)
def test_held_text_is_released_with_the_last_token():
    for token_ids, reason in (([*b"abEN", EOS], "stop"), ([*b"abxEN"], "length")):
        sequence = make_running(SamplingParams(max_tokens=5, stop=("END",)))
        feed(sequence, token_ids)
        expected = bytes(token_id for token_id in token_ids if token_id != EOS).decode()
        assert outcome(sequence) == (expected, reason, 5)
        assert isinstance(sequence.generation.read_after(-1)[-2], Token)


@pytest.mark.pain(4)
@pytest.mark.parametrize("ending", ["eos", "length", "cancel"])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_an_incomplete_character_at_the_end_is_dropped(ending: str, size: int):
    sequence = make_running(max_tokens=2 + size if ending == "length" else 99)
    feed(sequence, b"ab" + "😀".encode()[:size])
    if ending == "eos":
        feed(sequence, [EOS])
    if ending == "cancel":
        sequence.cancel(at=2.0)
    assert sequence.is_ended
    assert sequence.generation.text == "ab"


def make_holding(params: SamplingParams) -> Sequence:
    """Feed "a E", then a token with "ND" and an incomplete character, so that both are held."""
    pieces = {1: b"ask", 2: b"a E", 3: b"ND\xe6"}

    def decode(token_ids: Iterable[int]) -> str:
        return b"".join(pieces[token_id] for token_id in token_ids).decode(errors="replace")

    base = make_sequence()
    sequence = Sequence(
        generation=base.generation,
        prompt_ids=[1],
        params=params,
        eos_token_ids=frozenset({4}),
        decode=decode,
        deadline_at=base.deadline_at,
    )
    feed(sequence, [2, 3])
    return sequence


def test_the_flush_at_the_limit_may_complete_a_stop_string():
    for end in ("limit", "eos", "cancel"):
        params = SamplingParams(max_tokens=2 if end == "limit" else 9, stop=("END",))
        sequence = make_holding(params)
        if end == "eos":
            feed(sequence, [4])
        if end == "cancel":
            assert not sequence.is_ended
            sequence.cancel(at=1.0)
        assert sequence.generation.text == "a "
        assert finish_reason(sequence.generation) == ("cancelled" if end == "cancel" else "stop")


# min_tokens.


def test_end_tokens_are_banned_before_min_tokens():
    sequence = make_running(SamplingParams(max_tokens=9, min_tokens=2))
    banned = []
    for token_id in b"abc":
        banned.append(chunk_of(sequence).must_not_end)
        sequence.append(token_id, at=1.0)
    assert banned == [True, True, False]


def test_an_end_token_before_min_tokens_does_not_end_it():
    sequence = make_running(SamplingParams(max_tokens=9, min_tokens=2))
    feed(sequence, [EOS, *b"a", EOS])
    assert outcome(sequence) == ("a", "stop", 3)


def test_a_stop_string_before_min_tokens_is_text():
    sequence = make_running(SamplingParams(max_tokens=99, min_tokens=4, stop=("END",)))
    feed(sequence, b"ENDxyEND!")
    assert outcome(sequence) == ("ENDxy", "stop", 8)


@pytest.mark.parametrize(("keeps_stop", "shown"), [(False, "ab"), (True, "abEND")])
def test_a_stop_string_that_begins_before_min_tokens_and_completes_after_ends_the_text(
    keeps_stop: bool, shown: str
):
    params = SamplingParams(
        max_tokens=99, min_tokens=4, stop=("END",), include_stop_str_in_output=keeps_stop
    )
    sequence = make_running(params)
    feed(sequence, b"abEND!")
    assert outcome(sequence) == (shown, "stop", 5)


@pytest.mark.parametrize("stop", [("aa",), ("ab", "bc"), ("aba",)])
@pytest.mark.parametrize("text", ["aaaab", "xabxabcabc", "ababaxaaba"])
def test_the_first_stop_string_complete_after_min_tokens_ends_the_text(
    text: str, stop: tuple[str, ...]
):
    for min_tokens in range(len(text) + 1):
        sequence = make_running(
            SamplingParams(max_tokens=len(text), min_tokens=min_tokens, stop=stop)
        )
        feed(sequence, text.encode())
        ends = [end for end in range(min_tokens + 1, len(text) + 1) if text[:end].endswith(stop)]
        if ends:
            assert outcome(sequence) == (text[: ends[0] - len(stop[0])], "stop", ends[0])
        else:
            assert outcome(sequence) == (text, "length", len(text))


def test_min_tokens_may_be_max_tokens():
    sequence = make_running(SamplingParams(max_tokens=3, min_tokens=3, stop=("c",)))
    feed(sequence, b"abc")
    assert outcome(sequence) == ("abc", "length", 3)


def test_a_stop_string_complete_in_the_last_of_min_tokens_is_text_at_the_end_too():
    for end in ("limit", "cancel"):
        params = SamplingParams(max_tokens=2 if end == "limit" else 9, min_tokens=2, stop=("END",))
        sequence = make_holding(params)
        if end == "cancel":
            sequence.cancel(at=1.0)
        expected = "length" if end == "limit" else "cancelled"
        assert outcome(sequence) == ("a END", expected, 2)


def test_text_held_before_min_tokens_is_released_by_a_cancel():
    sequence = make_running(SamplingParams(max_tokens=99, min_tokens=9, stop=("END",)))
    feed(sequence, b"ENDEN")
    assert sequence.generation.text == "END"
    sequence.cancel(at=2.0)
    assert outcome(sequence) == ("ENDEN", "cancelled", 5)


# Cancel, failure, preemption.


def test_cancel_releases_held_text_as_a_tail():
    sequence = make_running(SamplingParams(max_tokens=99, stop=("END",)))
    feed(sequence, b"abEN")
    sequence.cancel(at=2.0)
    assert outcome(sequence) == ("abEN", "cancelled", 4)
    assert sequence.generation.read_after(-1)[-2:] == [
        Tail("EN", at=2.0),
        Finished(FinishReason.CANCELLED, at=2.0),
    ]


def test_cancel_without_held_text_has_no_tail():
    sequence = make_sequence()
    sequence.cancel(at=2.0)
    assert sequence.generation.read_after(-1) == [Finished(FinishReason.CANCELLED, at=2.0)]
    assert sequence.is_ended


def test_fail_keeps_the_text_and_the_error():
    sequence = make_running(SamplingParams(max_tokens=99, stop=("END",)))
    feed(sequence, b"abE")
    error = EngineFailure()
    sequence.fail(error, at=2.0)
    assert sequence.generation.text == "abE"
    assert sequence.generation.outcome == Failed(error, at=2.0)


def test_an_ended_sequence_rejects_tokens_and_endings():
    sequence = make_running()
    feed(sequence, [EOS])
    records = sequence.generation.read_after(-1)
    with pytest.raises(AssertionError):
        sequence.append(1, at=2.0)
    for end in (
        lambda: sequence.cancel(at=2.0),
        lambda: sequence.fail(EngineFailure(), at=2.0),
    ):
        with pytest.raises(InvalidTransition):
            end()
    assert sequence.generation.read_after(-1) == records


def test_a_preempted_sequence_continues_after_its_last_token():
    sequence = make_running()
    feed(sequence, b"a")
    sequence.move_to(SequenceState.WAITING)
    sequence.move_to(SequenceState.RUNNING)
    feed(sequence, [*b"b", EOS])
    assert outcome(sequence) == ("ab", "stop", 3)


def test_logprobs_stay_with_their_token():
    sequence = make_running()
    logprobs = TokenLogprobs(Logprob(97, -0.5))
    sequence.append(97, at=1.5, logprobs=logprobs)
    assert sequence.generation.tokens == (Token(97, "a", 1.5, logprobs),)


@property_test
@given(
    st.text("aé日😀E", max_size=20),
    st.integers(1, 40),
    st.sampled_from([(), ("E",), ("日a", "é"), ("aaa", "aE")]),
    st.integers(0, 3),
    st.booleans(),
)
def test_the_log_is_the_text_up_to_what_ends_it(
    text: str, max_tokens: int, stop: tuple[str, ...], min_tokens: int, is_cancelled: bool
):
    params = SamplingParams(
        max_tokens=max_tokens, min_tokens=min(min_tokens, max_tokens), stop=stop
    )
    sequence = make_running(params)
    feed(sequence, text.encode())
    if not sequence.is_ended and is_cancelled:
        sequence.cancel(at=1.0)
    feed(sequence, [EOS] * (min_tokens + 1))
    shown, reason, num_tokens = outcome(sequence)
    assert sequence.is_ended
    assert text.startswith(shown)
    assert num_tokens <= max_tokens
    if reason == "length":
        assert num_tokens == max_tokens
        assert shown == text.encode()[:max_tokens].decode(errors="ignore")
    if not stop and reason != "length":
        assert shown == text
    if not params.min_tokens:
        assert not any(string in shown for string in stop)


# Grammars.


def make_constrained(word: str, *, is_open: bool = False, **params: object) -> Sequence:
    rules = SamplingParams(grammar=Grammar(GrammarKind.REGEX, word), **{"max_tokens": 5, **params})  # type: ignore[arg-type]
    sequence = make_sequence(params=rules, matcher=WordMatcher(word, is_open=is_open))
    sequence.move_to(SequenceState.RUNNING)
    return sequence


@pytest.mark.parametrize(
    ("is_open", "tokens", "expected"),
    [
        (False, b"word", ("word", "stop", 4)),
        (True, [*b"word", EOS], ("word", "stop", 5)),
        (True, b"word", ("word", None, 4)),
        (False, b"wor", ("wor", None, 3)),
    ],
    ids=["nothing can follow", "ended", "open", "begun"],
)
@pytest.mark.parametrize("params", [{}, {"ignore_eos": True}, {"min_tokens": 5}])
def test_a_complete_text_ends_whatever_the_other_parameters(
    is_open: bool,
    tokens: Iterable[int],
    expected: tuple[str, str | None, int],
    params: dict[str, object],
):
    sequence = make_constrained("word", is_open=is_open, **params)
    feed(sequence, tokens)
    assert outcome(sequence) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("<f>{}", "tool_calls"), ("<f>{}</f", "tool_calls"), ("<f>{", "stop"), ("<f", "stop")],
)
def test_a_text_that_is_complete_by_its_grammar_ends_with_its_calls(text: str, expected: str):
    sequence = make_constrained(text, max_tokens=20)
    syntax = ToolSyntax(trigger="<", call_begin="<", call_middle=">", call_end="</f>")
    sequence.generation.output_format = OutputFormat(syntax)
    feed(sequence, text.encode())
    assert outcome(sequence) == (text, expected, len(text))


def test_a_text_completed_by_the_last_allowed_token_is_a_stop():
    complete, cut = make_constrained("words"), make_constrained("longer")
    feed(complete, b"words")
    feed(cut, b"longer")
    assert outcome(complete) == ("words", "stop", 5)
    assert outcome(cut) == ("longe", "length", 5)


def test_text_held_for_a_stop_string_is_shown_when_the_text_is_complete():
    sequence = make_constrained("word", stop=("rds",))
    feed(sequence, b"word")
    assert outcome(sequence) == ("word", "stop", 4)


def test_a_text_complete_before_min_tokens_shows_the_stop_string_it_ends_with():
    sequence = make_constrained("word", stop=("rd",), min_tokens=5)
    feed(sequence, b"word")
    assert outcome(sequence) == ("word", "stop", 4)


def test_a_stop_string_also_ends_a_constrained_text():
    sequence = make_constrained("word", stop=("or",))
    feed(sequence, b"word")
    assert outcome(sequence) == ("w", "stop", 3)


# Prompt log probabilities.


def test_the_prompt_is_scored_once_and_its_texts_join_to_it():
    sequence = make_sequence(prompt="aé!", params=SamplingParams(max_tokens=5, prompt_logprobs=0))
    assert sequence.wants_prompt_logprobs
    scores = [TokenLogprobs(Logprob(token_id, -1.0)) for token_id in sequence.prompt_ids[1:]]
    sequence.score_prompt(scores, at=2.0)
    assert sequence.generation.scored_prompt == tuple(
        Token(token_id, text, 2.0, logprobs)
        for token_id, text, logprobs in zip(
            "aé!".encode(), ["a", "", "é", "!"], [None, *scores], strict=True
        )
    )
    feed(sequence, b"x")
    assert not sequence.wants_prompt_logprobs, "a preempted sequence does not report it twice"


def test_a_long_prompt_is_scored_without_being_decoded():
    """Decoding 8,000 tokens takes a tenth of a second, which would delay all other streams."""
    sizes: list[int] = []

    def decode(token_ids: SequenceOf[int]) -> str:
        sizes.append(len(token_ids))
        return "x" * len(token_ids)

    sequence = Sequence(
        generation=make_generation(prompt_tokens=8000),
        prompt_ids=[1] * 8000,
        params=SamplingParams(max_tokens=5, prompt_logprobs=0),
        eos_token_ids=frozenset(),
        decode=decode,
        deadline_at=1e9,
        prompt_texts=["x"] * 8000,
    )
    sequence.score_prompt([TokenLogprobs(Logprob(1, -1.0))] * 7999, at=0.0)
    assert sum(sizes) <= 5, "but for the few tokens that the answer's first one follows"


def test_a_prompt_to_score_needs_a_text_for_each_token():
    sequence = make_sequence(prompt="ab", params=SamplingParams(max_tokens=5, prompt_logprobs=0))
    with pytest.raises(AssertionError):
        Sequence(
            generation=sequence.generation,
            prompt_ids=sequence.prompt_ids,
            params=sequence.params,
            eos_token_ids=frozenset(),
            decode=ByteTokenizer().decode,
            deadline_at=1e9,
            prompt_texts=["a"],
        )


def test_a_prompt_is_not_scored_without_a_request():
    sequence = make_sequence(prompt="ab")
    assert not sequence.wants_prompt_logprobs
    with pytest.raises(AssertionError):
        sequence.score_prompt([TokenLogprobs(Logprob(0, -1.0))], at=0.0)


def test_a_stop_string_that_is_asked_for_is_shown():
    params = SamplingParams(max_tokens=9, stop=("END",), include_stop_str_in_output=True)
    sequence = make_sequence(params=params)
    feed(sequence, b"one END two")
    assert outcome(sequence) == ("one END", "stop", 7)


def test_tokens_add_no_objects_for_the_garbage_collector():
    """Lists would also avoid objects, but the collector traverses them."""
    sequence = make_running(max_tokens=2000)
    feed(sequence, [97] * 1000)

    def num_referents() -> int:
        held = [each for each in gc.get_referents(sequence) if gc.is_tracked(each)]
        return sum(len(gc.get_referents(each)) for each in held)

    before = num_referents()
    feed(sequence, [97] * 500)
    assert num_referents() - before < 20
