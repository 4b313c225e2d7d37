"""The engine's errors, in the words of this dialect."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from streaming.errors import InvalidRequest, PromptTooLong

_PARAMS = {
    "messages": "input",
    "prompt": "input",
    "max_tokens": "max_output_tokens",
    "logprobs": "top_logprobs",
    "response_format": "text.format",
    "chat_template_kwargs": "reasoning.effort",
}
"""The engine's names of fields, in this dialect."""


@contextmanager
def translate_errors() -> Iterator[None]:
    """Name the fields of errors as this dialect does."""
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
