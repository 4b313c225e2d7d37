"""Shortens a conversation that does not fit the context, for `truncation: auto`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from streaming import ChatMessage, ChatPrompt, GenerationRequest
from streaming.errors import PromptTooLong


def shorten(request: GenerationRequest, error: PromptTooLong) -> GenerationRequest | None:
    """Return the request without its oldest turns; None if nothing can be dropped.

    Drops at least one turn, and about as many characters as the prompt is too long by. System
    messages and the last turn stay.
    """
    assert isinstance(request.prompt, ChatPrompt)
    messages = request.prompt.messages
    num_chars = sum(map(_num_chars, messages))
    excess = num_chars - num_chars * error.limit // error.size
    dropped: set[int] = set()
    for span in _droppable_spans(messages):
        droppable = [at for at in span if messages[at].role != "system"]
        dropped.update(droppable)
        excess -= sum(_num_chars(messages[at]) for at in droppable)
        if excess <= 0:
            break
    if not dropped:
        return None
    kept = tuple(message for at, message in enumerate(messages) if at not in dropped)
    return replace(request, prompt=replace(request.prompt, messages=kept))


def _droppable_spans(messages: Sequence[ChatMessage]) -> list[range]:
    """Return the spans of messages that can be dropped, in this order.

    First each turn but the last: a user's message and all that follows, up to the next user's. Then
    each round of the last turn but the last: a message of the assistant and the outputs of its
    calls. So calls and their outputs are dropped together.
    """
    others = [at for at, message in enumerate(messages) if message.role != "system"]
    turns = sorted({*others[:1], *(at for at in others if messages[at].role == "user")})
    rounds = [at for at in others if messages[at].role == "assistant" and at >= turns[-1]]
    return [range(*span) for starts in (turns, rounds) for span in pairwise(starts)]


def _num_chars(message: ChatMessage) -> int:
    return sum(map(len, message.texts))
