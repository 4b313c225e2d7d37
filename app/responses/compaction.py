"""Compaction of a conversation: the model's own summary replaces its answers."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, TypedDict

from app.responses.schemas.items import encode_summary
from app.responses.schemas.objects import CompactionObject, Item, MessageObject
from app.responses.snapshot import to_usage
from app.schemas.usage import TokenCounts
from streaming import (
    AnswerText,
    ChatMessage,
    ChatPrompt,
    Generation,
    GenerationRequest,
    OutputParser,
)
from streaming.errors import EngineFailure

logger = logging.getLogger(__name__)

_MAX_SUMMARY_TOKENS = 1024
_SUMMARY_PROMPT = (
    "Summarize our conversation so far, so that we can go on from your summary alone. Keep names, "
    "numbers, decisions, open questions and what tools have returned. Write only the summary."
)


class CompactedObject(TypedDict):
    """The answer of `POST /v1/responses/compact`."""

    id: str
    object: Literal["response.compaction"]
    created_at: int
    output: list[MessageObject | CompactionObject]
    usage: dict[str, Any]


def to_summary_request(request: GenerationRequest) -> GenerationRequest:
    """Return the request for a summary of another request's conversation."""
    assert isinstance(request.prompt, ChatPrompt)
    messages = (*request.prompt.messages, ChatMessage("user", _SUMMARY_PROMPT))
    params = replace(request.params, temperature=0.0, max_tokens=_MAX_SUMMARY_TOKENS)
    return replace(request, prompt=replace(request.prompt, messages=messages), params=params)


def to_compacted(context: Sequence[Item], generation: Generation) -> CompactedObject:
    """Return the compacted conversation: the user's messages, then the summary.

    Args:
        context: the conversation.
        generation: the log of its summary, which has ended without failure.

    Raises:
        EngineFailure: the summary is empty, so the conversation would be lost.
    """
    parser = OutputParser(generation.output_format)
    pieces = (*parser.feed(generation.text), *parser.flush())
    summary = "".join(piece.text for piece in pieces if isinstance(piece, AnswerText))
    if not summary.strip():
        logger.warning("%s: the summary is empty", generation.generation_id)
        raise EngineFailure
    key = secrets.token_hex(16)
    counts = TokenCounts.of([generation])
    return {
        "id": f"resp_{key}",
        "object": "response.compaction",
        "created_at": int(generation.created_at),
        "output": [
            *(item for item in context if item["type"] == "message" and item["role"] == "user"),
            {
                "id": f"cmp_{key}",
                "type": "compaction",
                "encrypted_content": encode_summary(summary),
            },
        ],
        "usage": to_usage(
            input_tokens=counts.prompt_tokens,
            cached_tokens=counts.cached_tokens,
            output_tokens=counts.completion_tokens,
            reasoning_tokens=counts.reasoning_tokens,
        ),
    }
