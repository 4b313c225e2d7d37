"""The response object of a generation: the fields of the request, status, usage and error."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from app.responses.dialect import ReasoningDialect
from app.responses.schemas.objects import OutputItemObject, ResponseObject
from streaming import Failed, Finished, FinishReason, Generation

_HEAD_BYTES = 4000
"""Estimated memory of a response without its texts."""
_ERROR_CODES = {
    "overloaded": "rate_limit_exceeded",
    "rate_limited": "rate_limit_exceeded",
    "no_token_allowed": "invalid_prompt",
}
"""The dialect's codes for a failed response; every other error becomes `server_error`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseHead:
    """What is known of a response before its first token.

    Attributes:
        key: 32 hex digits from which the ids of the response and its items are made.
        echo: the fields of the request that every snapshot repeats.
        token_text: returns the text of a single token.
        token_bytes: returns its bytes, which may be part of a UTF-8 character; None if unknown.
        is_background: the response starts as `queued`.
        is_warm_up: the prompt is only read, and the output is hidden.
        reports_logprobs: the answer's tokens are sent with their log probabilities.
        reasoning_dialect: selects the event types of reasoning.
    """

    key: str
    echo: Mapping[str, Any]
    token_text: Callable[[int], str]
    token_bytes: Callable[[int], bytes | None]
    is_background: bool = False
    is_warm_up: bool = False
    reports_logprobs: bool = False
    reasoning_dialect: ReasoningDialect = ReasoningDialect.OPENAI

    @property
    def response_id(self) -> str:
        """The id of the response, which also leads from its items to it."""
        return f"resp_{self.key}"

    @property
    def num_bytes(self) -> int:
        """Estimated memory in bytes."""
        return _HEAD_BYTES + 2 * len(json.dumps(self.echo))


class ResponseSnapshot:
    """The fields of a response that change while it is generated, all but its output.

    Args:
        head: the fields that do not change.
        generation: the log of the response.
    """

    def __init__(self, head: ResponseHead, generation: Generation) -> None:
        self._head = head
        self._generation = generation
        self._final_fields: dict[str, Any] = {}
        self.status = "queued" if head.is_background else "in_progress"

    def to_object(self, output: list[OutputItemObject]) -> ResponseObject:
        """Return the response as it stands.

        Args:
            output: its items so far.
        """
        return {
            "id": self._head.response_id,
            "object": "response",
            "created_at": int(self._generation.created_at),
            "completed_at": None,
            "status": self.status,
            "incomplete_details": None,
            "model": self._generation.model,
            "output": output,
            "error": None,
            "usage": None,
            **self._head.echo,
            **self._final_fields,
        }

    def is_complete(self, record: Finished | Failed) -> bool:
        """Return whether the log's last record completes the response."""
        if isinstance(record, Failed):
            return False
        if record.finish_reason is FinishReason.LENGTH:
            return self._head.is_warm_up  # which stops after one token by design
        return record.finish_reason is not FinishReason.CANCELLED

    def finish(self, record: Finished | Failed, *, num_reasoning_tokens: int, is_lost: bool) -> str:
        """Set the final fields, and return the name of the terminal event.

        Args:
            record: the last record of the log.
            num_reasoning_tokens: tokens that were spent on reasoning.
            is_lost: the response should have been stored, and the write failed.
        """
        usage = self._generation.usage
        self._final_fields["usage"] = to_usage(
            input_tokens=usage.prompt_tokens,
            cached_tokens=usage.cached_tokens,
            output_tokens=0 if self._head.is_warm_up else usage.completion_tokens,
            reasoning_tokens=num_reasoning_tokens,
        )
        if is_lost:
            self._final_fields["store"] = False
        match record:
            case Failed(error=error):
                self.status = "failed"
                code = _ERROR_CODES.get(error.code, "server_error")
                self._final_fields["error"] = {"code": code, "message": str(error)}
                return "failed"
            case Finished(_, at) if self.is_complete(record):
                self.status = "completed"
                duration_s = at - self._generation.submitted_at
                self._final_fields["completed_at"] = int(self._generation.created_at + duration_s)
                return "completed"
            case Finished(FinishReason.LENGTH):
                self.status = "incomplete"
                self._final_fields["incomplete_details"] = {"reason": "max_output_tokens"}
                return "incomplete"
            case Finished(FinishReason.CANCELLED):
                # The dialect has this status, but no event for it; this event is the closest.
                self.status = "cancelled"
                return "incomplete"
            case _:
                raise AssertionError(record)


def to_usage(
    *, input_tokens: int, cached_tokens: int, output_tokens: int, reasoning_tokens: int
) -> dict[str, Any]:
    """Return the `usage` object: numbers of tokens."""
    return {
        "input_tokens": input_tokens,
        "output_tokens": output_tokens,
        "total_tokens": input_tokens + output_tokens,
        "input_tokens_details": {"cached_tokens": cached_tokens, "cache_write_tokens": 0},
        "output_tokens_details": {"reasoning_tokens": reasoning_tokens},
    }
