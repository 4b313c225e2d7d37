"""Which turns are left out first where a conversation does not fit."""

from __future__ import annotations

from streaming import ChatMessage


def drop_oldest(messages: tuple[ChatMessage, ...]) -> tuple[ChatMessage, ...] | None:
    """Return the conversation without its oldest turn; None if none can be spared.

    A turn is what a user said and all that followed, up to the next user. Of the last turn, the
    oldest of several rounds goes: what the assistant said or called, and what its calls returned.
    What the system said stays.
    """
    others = [at for at, message in enumerate(messages) if message.role != "system"]
    users = [at for at in others if messages[at].role == "user"]
    starts = sorted({*others[:1], *users})
    if len(starts) < 2:
        starts = [at for at in others if messages[at].role == "assistant"]
    if len(starts) < 2:
        return None
    return tuple(
        message
        for at, message in enumerate(messages)
        if message.role == "system" or not starts[0] <= at < starts[1]
    )
