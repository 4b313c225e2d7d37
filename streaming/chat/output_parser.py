"""What the text of a chat answer is made of: reasoning, the answer itself, and calls of tools.

A model writes all three into one text, each in the syntax that its chat template teaches it. The
log keeps that text as it is; who shows it takes it apart with an `OutputParser`. The pieces depend
on the text alone, not on how it was cut when it was fed.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import assert_never

_QUOTE, _ESCAPE = '"', "\\"


@dataclass(frozen=True, slots=True)
class ToolSyntax:
    """How a call of a tool is written; calls are held to it, so it has no variants.

    The text of n calls is: `section_begin`, n times `call_begin` NAME `call_middle` ARGUMENTS
    `call_end` with `separator` between, `section_end`. ARGUMENTS is a JSON object.

    Attributes:
        trigger: what `section_begin + call_begin` begins with and no other text has; from here on
            it is a call.
        is_only_at_start: a trigger behind other text is text.
        allows_several: an answer may have more than one call.
        prefers_single: it has one, unless more are asked for.
    """

    call_begin: str
    call_middle: str
    call_end: str
    trigger: str
    section_begin: str = ""
    separator: str = ""
    section_end: str = ""
    is_only_at_start: bool = False
    allows_several: bool = True
    prefers_single: bool = False


@dataclass(frozen=True, slots=True)
class ReasoningSyntax:
    """How reasoning is set off from the answer; it comes first.

    Attributes:
        begin: may be left out where the template has written it already.
    """

    begin: str
    end: str


@dataclass(frozen=True, slots=True)
class OutputFormat:
    """What a parser is to look for.

    Attributes:
        tools: None where no tool may be called.
        reasoning: None where the model does not reason aloud.
        starts_in_reasoning: the prompt ends inside of reasoning.
    """

    tools: ToolSyntax | None = None
    reasoning: ReasoningSyntax | None = None
    starts_in_reasoning: bool = False

    @property
    def marks(self) -> tuple[str, ...]:
        """All texts that set calls and reasoning off from the answer."""
        tools, reasoning = self.tools, self.reasoning
        marks: tuple[str, ...] = ()
        if tools is not None:
            marks += (tools.section_begin, tools.call_begin, tools.call_middle)
            marks += (tools.call_end, tools.separator, tools.section_end)
        if reasoning is not None:
            marks += (reasoning.begin, reasoning.end)
        return marks


PLAIN = OutputFormat()
"""All text is answer."""


@dataclass(frozen=True, slots=True)
class ReasoningText:
    text: str


@dataclass(frozen=True, slots=True)
class AnswerText:
    text: str


@dataclass(frozen=True, slots=True)
class ToolCallStarted:
    """A call begins; calls are counted from 0."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class ToolArguments:
    """A piece of the arguments of the call that began last."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class ToolCallEnded:
    """The call is complete; one that the answer's end cuts off never ends."""

    index: int


Piece = ReasoningText | AnswerText | ToolCallStarted | ToolArguments | ToolCallEnded


class _State(Enum):
    BEFORE = auto()  # nothing but blanks yet, where reasoning may begin
    REASONING = auto()
    ANSWER = auto()
    NAME = auto()  # from the trigger up to the end of `call_middle`
    ARGUMENTS = auto()
    BETWEEN = auto()  # after the arguments of a call


class OutputParser:
    """Takes one text apart as it comes.

    `feed` everything, then `flush`; the pieces, texts of one kind joined, are the same for every
    way of cutting the text. Blanks around reasoning and before calls belong to neither.
    """

    def __init__(self, output_format: OutputFormat) -> None:
        self._format = output_format
        self._held = ""
        self._num_calls = 0
        self._has_answer = False
        self._json = _ObjectScanner()
        if output_format.starts_in_reasoning:
            self._state = _State.REASONING
        elif output_format.reasoning is not None:
            self._state = _State.BEFORE
        else:
            self._state = _State.ANSWER
        self._skips_blanks = self._state is not _State.ANSWER

    @property
    def is_in_reasoning(self) -> bool:
        """Whether the text so far ends inside of reasoning."""
        return self._state is _State.REASONING

    @property
    def ends_with_calls(self) -> bool:
        """Whether calls have been shown, all of them whole."""
        return bool(self._num_calls) and self._state is not _State.ARGUMENTS

    def feed(self, text: str) -> list[Piece]:
        """Return what `text` makes certain."""
        self._held += text
        pieces: list[Piece] = []
        while self._advance(pieces):
            pass
        return pieces

    def flush(self) -> list[Piece]:
        """Return what was held as the possible beginning of something else: it was not."""
        held, self._held = self._held, ""
        match self._state:
            case _State.REASONING:
                return [ReasoningText(held)] if held.strip() else []
            case _State.BEFORE | _State.ANSWER:
                return [AnswerText(held)] if held else []
            case _State.NAME | _State.ARGUMENTS | _State.BETWEEN:
                return []
            case _:
                assert_never(self._state)

    def _advance(self, pieces: list[Piece]) -> bool:
        """Take a step through what is held; return False when more text is needed."""
        match self._state:
            case _State.BEFORE:
                return self._find_reasoning()
            case _State.REASONING:
                return self._read_reasoning(pieces)
            case _State.ANSWER:
                return self._read_answer(pieces)
            case _State.NAME:
                return self._read_name(pieces)
            case _State.ARGUMENTS:
                return self._read_arguments(pieces)
            case _State.BETWEEN:
                return self._read_between()
            case _:
                assert_never(self._state)

    def _find_reasoning(self) -> bool:
        assert self._format.reasoning is not None
        begin = self._format.reasoning.begin
        text = self._held.lstrip()
        if text.startswith(begin):
            self._held = text[len(begin) :]
            self._state = _State.REASONING
            return True
        if begin.startswith(text):
            return False
        self._state = _State.ANSWER
        self._skips_blanks = False
        return True

    def _read_reasoning(self, pieces: list[Piece]) -> bool:
        assert self._format.reasoning is not None
        if self._skips_blanks:
            self._held = self._held.lstrip()
            self._skips_blanks = not self._held
        text, end, rest = self._held.partition(self._format.reasoning.end)
        if end:
            _add(pieces, ReasoningText(text.rstrip()))
            self._held, self._state, self._skips_blanks = rest, _State.ANSWER, True
            return True
        num_held = _num_held(self._held, self._format.reasoning.end)
        _add(pieces, ReasoningText(self._take(len(self._held) - num_held)))
        return False

    def _read_answer(self, pieces: list[Piece]) -> bool:
        if self._skips_blanks:
            self._held = self._held.lstrip()
            self._skips_blanks = not self._held
        syntax = self._format.tools
        is_possible = syntax is not None and not (syntax.is_only_at_start and self._has_answer)
        if syntax is None or not is_possible:
            self._show_answer(pieces, self._take(len(self._held)))
            return False
        if syntax.is_only_at_start:
            start = self._held.lstrip()
            if not start.startswith(syntax.trigger):
                if not syntax.trigger.startswith(start):
                    self._show_answer(pieces, self._take(len(self._held)))
                return False
        text, trigger, rest = self._held.partition(syntax.trigger)
        if trigger:
            self._show_answer(pieces, text.rstrip())
            self._held, self._state = trigger + rest, _State.NAME
            return True
        num_held = _num_held(self._held, syntax.trigger)
        self._show_answer(pieces, self._take(len(self._held) - num_held))
        return False

    def _read_name(self, pieces: list[Piece]) -> bool:
        syntax = self._format.tools
        assert syntax is not None
        begin = syntax.call_begin if self._num_calls else syntax.section_begin + syntax.call_begin
        name, middle, rest = self._held[len(begin) :].partition(syntax.call_middle)
        if not middle:
            return False
        _add(pieces, ToolCallStarted(self._num_calls, name))
        self._num_calls += 1
        self._held, self._state, self._json = rest, _State.ARGUMENTS, _ObjectScanner()
        return True

    def _read_arguments(self, pieces: list[Piece]) -> bool:
        text = self._take(self._json.feed(self._held))
        index = self._num_calls - 1
        if text:
            _add(pieces, ToolArguments(index, text))
        if not self._json.is_done:
            return False
        _add(pieces, ToolCallEnded(index))
        self._state = _State.BETWEEN
        return True

    def _read_between(self) -> bool:
        syntax = self._format.tools
        assert syntax is not None
        before = syntax.call_end + syntax.separator
        if not self._held.startswith(before + syntax.call_begin):
            return False
        self._held, self._state = self._held[len(before) :], _State.NAME
        return True

    def _show_answer(self, pieces: list[Piece], text: str) -> None:
        if text:
            self._has_answer = True
            _add(pieces, AnswerText(text))

    def _take(self, num_chars: int) -> str:
        taken, self._held = self._held[:num_chars], self._held[num_chars:]
        return taken


class _ObjectScanner:
    """Finds where a JSON object ends (RFC 8259); it is known to be one."""

    def __init__(self) -> None:
        self._depth = 0
        self._is_in_string = False
        self._is_escaped = False
        self.is_done = False

    def feed(self, text: str) -> int:
        """Return how many characters of `text` belong to the object."""
        if self.is_done:
            return 0
        for position, char in enumerate(text):
            if self._is_in_string:
                if self._is_escaped:
                    self._is_escaped = False
                elif char == _ESCAPE:
                    self._is_escaped = True
                elif char == _QUOTE:
                    self._is_in_string = False
            elif char == _QUOTE:
                self._is_in_string = True
            elif char == "{":
                self._depth += 1
            elif char == "}":
                self._depth -= 1
                if not self._depth:
                    self.is_done = True
                    return position + 1
        return len(text)


def _num_held(text: str, mark: str) -> int:
    """Return how many characters at the end may be the beginning of `mark`, with blanks before."""
    overlap = next(
        (
            size
            for size in range(min(len(text), len(mark) - 1), 0, -1)
            if text.endswith(mark[:size])
        ),
        0,
    )
    before = text[: len(text) - overlap]
    return overlap + len(before) - len(before.rstrip())


def _add(pieces: list[Piece], piece: Piece) -> None:
    """Append a piece, joined to the one before where both are text of one kind."""
    if isinstance(piece, ReasoningText | AnswerText) and not piece.text:
        return
    last = pieces[-1] if pieces else None
    match piece, last:
        case (ReasoningText(text), ReasoningText(before)):
            pieces[-1] = ReasoningText(before + text)
        case (AnswerText(text), AnswerText(before)):
            pieces[-1] = AnswerText(before + text)
        case (ToolArguments(index, text), ToolArguments(_, before)):
            pieces[-1] = ToolArguments(index, before + text)
        case _:
            pieces.append(piece)
