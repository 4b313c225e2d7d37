"""What the Responses dialect names differently: event types of reasoning, and fields of errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum

from streaming.errors import InvalidRequest, PromptTooLong


class ReasoningDialect(StrEnum):
    """Whose event types a stream uses for reasoning: OpenAI's or those of Open Responses."""

    OPENAI = "openai"
    OPEN_RESPONSES = "open_responses"

    @property
    def event_prefix(self) -> str:
        """The event type without its last part, `.delta` or `.done`."""
        if self is ReasoningDialect.OPENAI:
            return "response.reasoning_text"
        return "response.reasoning"


_PARAMS = {
    "messages": "input",
    "prompt": "input",
    "max_tokens": "max_output_tokens",
    "logprobs": "top_logprobs",
    "response_format": "text.format",
    "chat_template_kwargs": "reasoning.effort",
}
"""The engine's field names mapped to this dialect's."""


@contextmanager
def translate_errors() -> Iterator[None]:
    """Replace the engine's field names in errors by the names of this dialect."""
    try:
        yield
    except InvalidRequest as error:
        raise InvalidRequest(
            param=_PARAMS.get(error.param or "", error.param or ""), reason=error.reason
        ) from error
    except PromptTooLong as error:
        raise PromptTooLong(
            size=error.size, limit=error.limit, unit=error.unit, param="input"
        ) from error
