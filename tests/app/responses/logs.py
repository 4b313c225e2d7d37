"""Logs of tests, and writers for them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from app.responses.schemas.objects import EventObject
from app.responses.schemas.request import ResponseRequest
from app.responses.snapshot import ResponseHead
from app.responses.writer import ResponseWriter
from streaming import FinishReason, Generation, Logprob, OutputFormat, Token, TokenLogprobs
from streaming.chat.format import HERMES, THINK
from streaming.errors import StreamingError
from streaming.log.generation import Failed, Finished, Tail
from tests.support import make_generation

TOOLS = OutputFormat(tools=HERMES)
REASONING = OutputFormat(tools=HERMES, reasoning=THINK)
KEY = "0123456789abcdef"


def call(name: str, arguments: str) -> str:
    """Return a call as the model writes it."""
    return f"{HERMES.call_begin}{name}{HERMES.call_middle}{arguments}{HERMES.call_end}"


def make_log(
    *texts: str,
    end: FinishReason | StreamingError | None = FinishReason.STOP,
    output_format: OutputFormat | None = None,
    tail: str = "",
    logprobs: bool = False,
) -> Generation:
    """Return a log with one token for each text."""
    log = make_generation()
    log.output_format = output_format or OutputFormat()
    log.start(cached_tokens=2, at=1.0)
    for number, text in enumerate(texts):
        append(log, text, at=1.0 + number, logprobs=logprobs)
    if tail:
        log.append(Tail(tail, at=50.0))
    if end is not None:
        finish(log, end)
    return log


def append(log: Generation, text: str, *, at: float = 0.0, logprobs: bool = False) -> None:
    """Append a token whose id is its first character's."""
    token_id = ord(text[0]) if text else 0
    chosen = TokenLogprobs(Logprob(token_id, -0.5), (Logprob(token_id, -0.5),))
    log.append(Token(token_id, text, at=at, logprobs=chosen if logprobs else None))


def finish(log: Generation, end: FinishReason | StreamingError) -> None:
    log.end(Finished(end, at=60.0) if isinstance(end, FinishReason) else Failed(end, at=60.0))


def make_head(**more: Any) -> ResponseHead:
    echo = ResponseRequest(input="hi", background=more.get("is_background", False)).echo()
    defaults = {"key": KEY, "echo": echo, "token_text": chr, "token_bytes": lambda _: None}
    return ResponseHead(**{**defaults, **more})


def write(log: Generation, *, after: int = -1, **more: Any) -> list[EventObject]:
    """Return all events of a log."""
    return list(ResponseWriter(make_head(**more), log, after=after).events())


def kinds(events: Iterable[EventObject]) -> list[str]:
    """Return the types of events, runs of the same type once."""
    found: list[str] = []
    for event in events:
        kind = event["type"].removeprefix("response.")
        if found[-1:] != [kind]:
            found.append(kind)
    return found
