"""Which turns are left out where a conversation does not fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from streaming import ChatMessage, ChatPrompt, GenerationRequest
from streaming.errors import PromptTooLong


def shorten(request: GenerationRequest, error: PromptTooLong) -> GenerationRequest | None:
    """Return the request without about as much as is too much; None if nothing can be spared.

    At least one turn goes, the oldest first. What the system says stays, and so does the last turn.
    """
    assert isinstance(request.prompt, ChatPrompt)
    messages = request.prompt.messages
    num_chars = sum(map(_num_chars, messages))
    excess = num_chars - num_chars * error.limit // error.size
    left_out: set[int] = set()
    for span in _spans(messages):
        spared = [at for at in span if messages[at].role != "system"]
        left_out.update(spared)
        excess -= sum(_num_chars(messages[at]) for at in spared)
        if excess <= 0:
            break
    if not left_out:
        return None
    kept = tuple(message for at, message in enumerate(messages) if at not in left_out)
    return replace(request, prompt=replace(request.prompt, messages=kept))


def _spans(messages: Sequence[ChatMessage]) -> list[range]:
    """Return what can be left out, in this order.

    That is each turn but the last: what a user said and all that followed, up to the next user. Of
    the last turn, it is each round but the last: what the assistant said or called, and what its
    calls returned. So calls and what they returned stay together.
    """
    others = [at for at, message in enumerate(messages) if message.role != "system"]
    turns = sorted({*others[:1], *(at for at in others if messages[at].role == "user")})
    rounds = [at for at in others if messages[at].role == "assistant" and at >= turns[-1]]
    return [range(*span) for starts in (turns, rounds) for span in pairwise(starts)]


def _num_chars(message: ChatMessage) -> int:
    return sum(map(len, message.texts))
