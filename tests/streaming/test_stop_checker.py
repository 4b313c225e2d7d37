"""No part of a stop string is returned, however the text is split."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.stop_checker import StopChecker
from tests.support import property_test


def reference(text: str, stop: Iterable[str], *, num_free_chars: int = 0) -> tuple[str, bool]:
    """Cut at the stop string that completes first, or the longest of those.

    A stop string that completes within the first `num_free_chars` characters is text.
    """
    for end in range(num_free_chars + 1, len(text) + 1):
        found = [string for string in stop if text[:end].endswith(string)]
        if found:
            return text[: end - len(max(found, key=len))], True
    return text, False


def check(
    pieces: Iterable[str], stop: Iterable[str], *, free_pieces: Iterable[str] = ()
) -> tuple[str, bool]:
    """Feed the pieces up to the stop, and return the text that was shown."""
    checker = StopChecker(tuple(stop))
    shown = "".join([checker.feed(piece, may_stop=False) for piece in free_pieces])
    for piece in pieces:
        shown += checker.feed(piece)
        if checker.is_stopped:
            assert checker.flush() == "", "nothing is held after the stop string"
            return shown, True
    return shown + checker.flush(), False


CASES = [
    ("no stop at all", ["END"]),
    ("one END two", ["END"]),
    ("END", ["END"]),
    ("almost EN", ["END"]),
    ("EN then END", ["END"]),
    ("aaab", ["aab"]),  # the match starts inside a failed one
    ("ababac", ["abac"]),
    ("xabcd", ["abcd", "bc"]),  # overlapping: the inner one completes first
    ("xabc", ["abc", "bc", "c"]),  # all complete at once: the longest wins
    ("xabc", ["ab", "abc"]),  # a prefix of another completes first
    ("User: hi", ["User:", "\n\n"]),
    ("日本語の終わり。後", ["終わり。"]),
    ("👩‍👩‍👧 family", ["👧"]),
    ("two\n\nlines", ["\n\n"]),
    ("twice END and END", ["END"]),
]


@pytest.mark.pain(5)
@pytest.mark.parametrize(("text", "stop"), CASES)
def test_the_result_does_not_depend_on_the_split(text: str, stop: list[str]):
    expected = reference(text, stop)
    for cut in range(len(text) + 1):
        assert check([text[:cut], text[cut:]], stop) == expected
        for second in range(cut, len(text) + 1):
            assert check([text[:cut], text[cut:second], text[second:]], stop) == expected
    assert check(text, stop) == expected


@pytest.mark.parametrize(("text", "stop"), CASES)
def test_a_stop_string_that_completes_too_early_is_text(text: str, stop: list[str]):
    for size in range(len(text) + 1):
        expected = reference(text, stop, num_free_chars=size)
        for first in range(size + 1):
            free_pieces = [text[:first], text[first:size]]
            for second in range(size, len(text) + 1):
                pieces = [text[size:second], text[second:]]
                assert check(pieces, stop, free_pieces=free_pieces) == expected
        assert check(text[size:], stop, free_pieces=text[:size]) == expected


@pytest.mark.pain(5)
def test_only_a_possible_start_of_a_stop_string_is_held():
    checker = StopChecker(("END", "\n\n"))
    assert [checker.feed(piece) for piece in ("a E", "N", "N\n", "b")] == ["a ", "", "ENN", "\nb"]
    assert checker.flush() == ""


def test_held_text_is_flushed_once():
    checker = StopChecker(("END",))
    assert checker.feed("the EN") == "the "
    assert checker.flush() == "EN"
    assert checker.flush() == ""
    assert not checker.is_stopped


def test_without_stop_strings_everything_passes():
    checker = StopChecker(())
    assert checker.feed("END") == "END"
    assert checker.flush() == ""
    assert not checker.is_stopped


def test_feeding_after_the_stop_string_is_an_error():
    checker = StopChecker(("END",))
    assert checker.feed("END more") == ""
    assert checker.is_stopped
    with pytest.raises(AssertionError, match="after the stop string"):
        checker.feed("x")


@property_test
@given(
    st.lists(st.text("ab", max_size=5), max_size=8),
    st.lists(st.text("ab", max_size=5), max_size=8),
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
)
def test_it_equals_a_simple_reference(free_pieces: list[str], pieces: list[str], stop: list[str]):
    free = "".join(free_pieces)
    expected = reference(free + "".join(pieces), stop, num_free_chars=len(free))
    assert check(pieces, stop, free_pieces=free_pieces) == expected


@property_test
@given(
    st.lists(st.text("abc", max_size=3), max_size=10),
    st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3),
    st.integers(0, 10),
)
def test_held_is_the_longest_beginning_of_a_stop_string(
    pieces: list[str], stop: list[str], num_free_pieces: int
):
    checker = StopChecker(stop)
    text = shown = ""
    for number, piece in enumerate(pieces):
        text += piece
        shown += checker.feed(piece, may_stop=number >= num_free_pieces)
        if checker.is_stopped:
            return
        begun = [n for string in stop for n in range(len(string)) if text.endswith(string[:n])]
        assert shown == text[: len(text) - max(begun)]


@pytest.mark.parametrize(("text", "stop"), CASES)
def test_a_kept_stop_string_ends_the_text_however_it_is_split(text: str, stop: list[str]):
    shown, is_stopped = reference(text, stop)
    found = [string for string in stop if is_stopped and text.startswith(shown + string)]
    expected = shown + min(found, key=len, default="")
    for cut in range(len(text) + 1):
        checker = StopChecker(stop, keeps_stop=True)
        pieces = checker.feed(text[:cut])
        if not checker.is_stopped:
            pieces += checker.feed(text[cut:])
        assert (pieces + checker.flush(), checker.is_stopped) == (expected, is_stopped)
