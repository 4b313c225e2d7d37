"""Each line of pains.md has the tests that are marked with its number, and no others."""

from __future__ import annotations

import re

from tests.pains import PAGE, filled, listed_numbers, marked_tests

TEXT = PAGE.read_text()
NUMBERS = [*range(1, 19), 23, 24]


def test_the_page_has_every_line_once_and_a_list_below_each():
    headings = [int(number) for number in re.findall(r"^## (\d+)\. ", TEXT, re.MULTILINE)]
    assert headings == listed_numbers(TEXT) == NUMBERS


def test_every_line_is_shown_and_every_mark_has_a_line():
    assert sorted(marked_tests()) == NUMBERS


def test_the_page_names_exactly_the_marked_tests():
    assert filled(TEXT) == TEXT, "run `python -m tests.pains`"
