"""Splits the text of a chat answer into reasoning, answer text and tool calls.

A model writes all three into one text, in the syntax of its chat template. The log stores the raw
text; the web layer parses it with an `OutputParser` when it writes events. The result depends only
on the text, not on how it is split into chunks.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import assert_never

_QUOTE, _ESCAPE = '"', "\\"


@dataclass(frozen=True, slots=True)
class ToolSyntax:
    """The exact syntax of tool calls, which a grammar enforces during generation.

    The text of n calls is: `section_begin`, n times `call_begin` NAME `call_middle` ARGUMENTS
    `call_end` joined by `separator`, `section_end`. ARGUMENTS is a JSON object.

    Attributes:
        call_begin: text before the tool's name.
        call_middle: text between the name and the arguments.
        call_end: text after the arguments.
        trigger: prefix of `section_begin + call_begin` that marks the start of a call.
        section_begin: text before the first call.
        separator: text between two calls.
        section_end: text after the last call.
        is_only_at_start: a trigger counts only at the start of the answer; later it is plain text.
        allows_several: an answer may contain more than one call.
        prefers_single: an answer contains one call unless the request asks for parallel calls.
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
    """Delimiters of the reasoning, which comes before the answer.

    Attributes:
        begin: opening delimiter; missing from the output if the template has written it already.
        end: closing delimiter.
    """

    begin: str
    end: str


@dataclass(frozen=True, slots=True)
class OutputFormat:
    """Syntax that a parser looks for in one answer.

    Attributes:
        tools: syntax of tool calls; None if the answer may not call tools.
        reasoning: delimiters of the reasoning; None if the model does not write any.
        starts_in_reasoning: the prompt ends inside the reasoning.
    """

    tools: ToolSyntax | None = None
    reasoning: ReasoningSyntax | None = None
    starts_in_reasoning: bool = False

    @property
    def delimiters(self) -> tuple[str, ...]:
        """All delimiters of tool calls and reasoning."""
        tools, reasoning = self.tools, self.reasoning
        delimiters: tuple[str, ...] = ()
        if tools is not None:
            delimiters += (tools.section_begin, tools.call_begin, tools.call_middle)
            delimiters += (tools.call_end, tools.separator, tools.section_end)
        if reasoning is not None:
            delimiters += (reasoning.begin, reasoning.end)
        return delimiters


PLAIN = OutputFormat()
"""The format of plain text: all of it is the answer."""


@dataclass(frozen=True, slots=True)
class ReasoningText:
    """A chunk of the reasoning."""

    text: str


@dataclass(frozen=True, slots=True)
class AnswerText:
    """A chunk of the answer text."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallStarted:
    """The start of a tool call; `index` counts the calls of the answer from 0."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class ToolArguments:
    """A chunk of the JSON arguments of the current call."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class ToolCallEnded:
    """The end of a complete call. A call that is cut off by the end of the answer has none."""

    index: int


Piece = ReasoningText | AnswerText | ToolCallStarted | ToolArguments | ToolCallEnded


class _State(Enum):
    """Position in the answer: START, REASONING, ANSWER, then three states for each call.

    Reasoning and calls are optional. Nothing but another call follows a call.
    """

    START = auto()  # only whitespace so far; reasoning may follow
    REASONING = auto()
    ANSWER = auto()
    TOOL_NAME = auto()  # from the trigger to the end of `call_middle`
    ARGUMENTS = auto()
    AFTER_CALL = auto()  # after the arguments of a call


class OutputParser:
    """Parses one answer incrementally.

    Call `feed` with each chunk, then `flush`. After merging adjacent texts of one kind, the pieces
    are the same for every way of splitting the text. Whitespace around the reasoning and before
    tool calls is dropped.
    """

    def __init__(self, output_format: OutputFormat) -> None:
        self._format = output_format
        self._pending = ""
        self._num_calls = 0
        self._has_answer = False
        self._arguments = _JsonObjectScanner()
        if output_format.starts_in_reasoning:
            self._state = _State.REASONING
        elif output_format.reasoning is not None:
            self._state = _State.START
        else:
            self._state = _State.ANSWER
        self._skips_whitespace = self._state is not _State.ANSWER

    @property
    def is_in_reasoning(self) -> bool:
        """Whether the text so far ends inside the reasoning."""
        return self._state is _State.REASONING

    @property
    def ends_with_calls(self) -> bool:
        """Whether at least one call has started, and all calls that have started are complete."""
        return bool(self._num_calls) and self._state is not _State.ARGUMENTS

    def feed(self, text: str) -> list[Piece]:
        """Add a chunk and return the pieces that are now certain."""
        self._pending += text
        pieces: list[Piece] = []
        while self._step(pieces):
            pass
        return pieces

    def flush(self) -> list[Piece]:
        """Return the rest at the end of the text, in which a partial delimiter is plain text."""
        pending, self._pending = self._pending, ""
        match self._state:
            case _State.REASONING:
                return [ReasoningText(pending)] if pending.strip() else []
            case _State.START | _State.ANSWER:
                return [AnswerText(pending)] if pending else []
            case _State.TOOL_NAME | _State.ARGUMENTS | _State.AFTER_CALL:
                return []
            case _:
                assert_never(self._state)

    def _step(self, pieces: list[Piece]) -> bool:
        """Parse the next part of the pending text; return False if more text is needed."""
        match self._state:
            case _State.START:
                return self._parse_start()
            case _State.REASONING:
                return self._parse_reasoning(pieces)
            case _State.ANSWER:
                return self._parse_answer(pieces)
            case _State.TOOL_NAME:
                return self._parse_name(pieces)
            case _State.ARGUMENTS:
                return self._parse_arguments(pieces)
            case _State.AFTER_CALL:
                return self._parse_after_call()
            case _:
                assert_never(self._state)

    def _parse_start(self) -> bool:
        assert self._format.reasoning is not None
        begin = self._format.reasoning.begin
        text = self._pending.lstrip()
        if text.startswith(begin):
            self._pending = text[len(begin) :]
            self._state = _State.REASONING
            return True
        if begin.startswith(text):
            return False
        self._state = _State.ANSWER
        self._skips_whitespace = False
        return True

    def _parse_reasoning(self, pieces: list[Piece]) -> bool:
        assert self._format.reasoning is not None
        if self._skips_whitespace:
            self._pending = self._pending.lstrip()
            self._skips_whitespace = not self._pending
        text, end, rest = self._pending.partition(self._format.reasoning.end)
        if end:
            _append(pieces, ReasoningText(text.rstrip()))
            self._pending, self._state, self._skips_whitespace = rest, _State.ANSWER, True
            return True
        num_pending = _num_pending(self._pending, self._format.reasoning.end)
        _append(pieces, ReasoningText(self._consume(len(self._pending) - num_pending)))
        return False

    def _parse_answer(self, pieces: list[Piece]) -> bool:
        if self._skips_whitespace:
            self._pending = self._pending.lstrip()
            self._skips_whitespace = not self._pending
        syntax = self._format.tools
        may_call = syntax is not None and not (syntax.is_only_at_start and self._has_answer)
        if syntax is None or not may_call:
            self._append_answer(pieces, self._consume(len(self._pending)))
            return False
        if syntax.is_only_at_start:
            # Wait while the text is a prefix of the trigger; otherwise all of it is the answer.
            start = self._pending.lstrip()
            if not start.startswith(syntax.trigger):
                if not syntax.trigger.startswith(start):
                    self._append_answer(pieces, self._consume(len(self._pending)))
                return False
        text, trigger, rest = self._pending.partition(syntax.trigger)
        if trigger:
            self._append_answer(pieces, text.rstrip())
            self._pending, self._state = trigger + rest, _State.TOOL_NAME
            return True
        # Keep a possible start of the trigger, and whitespace that is dropped if a call follows.
        num_pending = _num_pending(self._pending, syntax.trigger)
        self._append_answer(pieces, self._consume(len(self._pending) - num_pending))
        return False

    def _parse_name(self, pieces: list[Piece]) -> bool:
        syntax = self._format.tools
        assert syntax is not None
        begin = syntax.call_begin if self._num_calls else syntax.section_begin + syntax.call_begin
        name, middle, rest = self._pending[len(begin) :].partition(syntax.call_middle)
        if not middle:
            return False
        _append(pieces, ToolCallStarted(self._num_calls, name))
        self._num_calls += 1
        self._pending, self._state, self._arguments = rest, _State.ARGUMENTS, _JsonObjectScanner()
        return True

    def _parse_arguments(self, pieces: list[Piece]) -> bool:
        text = self._consume(self._arguments.feed(self._pending))
        index = self._num_calls - 1
        if text:
            _append(pieces, ToolArguments(index, text))
        if not self._arguments.is_done:
            return False
        _append(pieces, ToolCallEnded(index))
        self._state = _State.AFTER_CALL
        return True

    def _parse_after_call(self) -> bool:
        syntax = self._format.tools
        assert syntax is not None
        before = syntax.call_end + syntax.separator
        if not self._pending.startswith(before + syntax.call_begin):
            return False
        self._pending, self._state = self._pending[len(before) :], _State.TOOL_NAME
        return True

    def _append_answer(self, pieces: list[Piece], text: str) -> None:
        if text:
            self._has_answer = True
            _append(pieces, AnswerText(text))

    def _consume(self, num_chars: int) -> str:
        consumed, self._pending = self._pending[:num_chars], self._pending[num_chars:]
        return consumed


class _JsonObjectScanner:
    """Finds the end of a JSON object (RFC 8259) that is known to be valid."""

    def __init__(self) -> None:
        self._depth = 0
        self._is_in_string = False
        self._is_escaped = False
        self.is_done = False

    def feed(self, text: str) -> int:
        """Return the number of characters of `text` that belong to the object."""
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


def _num_pending(text: str, delimiter: str) -> int:
    """Return the length of the suffix that may start `delimiter`, with whitespace before it."""
    overlap = next(
        (
            size
            for size in range(min(len(text), len(delimiter) - 1), 0, -1)
            if text.endswith(delimiter[:size])
        ),
        0,
    )
    before = text[: len(text) - overlap]
    return overlap + len(before) - len(before.rstrip())


def _append(pieces: list[Piece], piece: Piece) -> None:
    """Append a piece; merge it with the previous one if both are text of the same kind."""
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
