"""The tree of errors is as drawn, and each can be shown to a peer."""

from __future__ import annotations

import re

import pytest

from streaming import errors
from streaming.errors import (
    CallerLimitReached,
    CapacityError,
    CursorLost,
    DeadlineExceeded,
    EngineFailure,
    GenerationNotFound,
    InvalidRequest,
    ModelLoadError,
    ModelNotFound,
    NoTokenAllowed,
    Overloaded,
    PromptTooLong,
    RequestError,
    ShuttingDown,
    StreamingError,
)

TABLE = [
    (
        InvalidRequest(param="top_p", reason="must be at most 1"),
        "invalid_request",
        "top_p",
        "top_p: must be at most 1",
    ),
    (
        PromptTooLong(size=9000, limit=4095),
        "prompt_too_long",
        "prompt",
        "prompt: the prompt has 9000 tokens; this model takes at most 4095, "
        "one place of its context being kept for the answer.",
    ),
    (
        PromptTooLong(size=9000, limit=4096, unit="characters", param="messages"),
        "prompt_too_long",
        "messages",
        "messages: the prompt has 9000 characters; this model takes at most 4096, "
        "one place of its context being kept for the answer.",
    ),
    (
        ModelNotFound(model="gpt", served="smol"),
        "model_not_found",
        "model",
        "model: 'gpt' is not served here; this server serves 'smol'.",
    ),
    (
        GenerationNotFound(generation_id="gen_1"),
        "generation_not_found",
        "generation_id",
        "generation_id: no generation 'gen_1'; it may have expired.",
    ),
    (
        CursorLost(after=9, last=4),
        "cursor_lost",
        "after",
        "after: cursor 9 is outside the log, whose last record is 4.",
    ),
    (
        NoTokenAllowed(param="response_format", reason="the grammar allows no token here"),
        "no_token_allowed",
        "response_format",
        "response_format: the grammar allows no token here",
    ),
    (
        DeadlineExceeded(timeout_s=1.5),
        "timeout",
        None,
        "The generation ran longer than 1.5 s and was ended.",
    ),
    (
        Overloaded(num_waiting=256, max_waiting=256, retry_after_s=2.0),
        "overloaded",
        None,
        "256 requests are waiting, of at most 256; try again later.",
    ),
    (
        Overloaded(num_waiting=5, max_waiting=9, retry_after_s=2.0, unit="prompt tokens"),
        "overloaded",
        None,
        "5 prompt tokens are waiting, of at most 9; try again later.",
    ),
    (
        Overloaded(num_waiting=7, max_waiting=7, retry_after_s=2.0, unit="generations"),
        "overloaded",
        None,
        "7 generations are open, of at most 7; try again later.",
    ),
    (
        Overloaded(num_waiting=7, max_waiting=7, retry_after_s=2.0, was_displaced=True),
        "overloaded",
        None,
        "7 requests are waiting, of at most 7, and this one gave its place to a caller that has "
        "fewer; try again later.",
    ),
    (
        CallerLimitReached(num_held=3, max_held=4, unit="waiting requests", retry_after_s=2.0),
        "rate_limited",
        None,
        "You have 3 waiting requests, of at most 4 for one caller; try again later.",
    ),
    (ShuttingDown(retry_after_s=1.0), "shutting_down", None, "The server is shutting down."),
    (
        EngineFailure(),
        "engine_error",
        None,
        "The model failed on this request; the server's log says why.",
    ),
    (ModelLoadError("no such folder: x"), "model_load_error", None, "no such folder: x"),
]


def subclasses(cls: type[StreamingError]) -> list[type[StreamingError]]:
    return [found for child in cls.__subclasses__() for found in (child, *subclasses(child))]


def leaves() -> list[type[StreamingError]]:
    return [cls for cls in subclasses(StreamingError) if not cls.__subclasses__()]


def test_the_tree_is_as_drawn():
    assert errors.__doc__ is not None
    drawn: dict[str, str] = {}
    path: list[str] = []
    for line in errors.__doc__.splitlines():
        if match := re.match(r"((?:│   |    )*(?:[├└]── )?)([A-Z]\w+)  ", line):
            depth = len(match[1]) // 4
            path = [*path[:depth], match[2]]
            drawn[match[2]] = path[depth - 1] if depth else "Exception"
    in_code = {cls.__name__: cls.__mro__[1].__name__ for cls in subclasses(StreamingError)}
    assert drawn == {"StreamingError": "Exception", **in_code}


def test_every_leaf_is_in_the_table_and_has_a_code_of_its_own():
    assert {type(error) for error, *_ in TABLE} == set(leaves())
    codes = [cls.code for cls in leaves()]
    assert len(set(codes)) == len(codes)
    assert StreamingError.code not in codes


@pytest.mark.parametrize(("error", "code", "param", "text"), TABLE)
def test_code_param_and_text(error: StreamingError, code: str, param: str | None, text: str):
    assert (error.code, error.param, str(error)) == (code, param, text)


@pytest.mark.parametrize("error", [error for error, *_ in TABLE], ids=lambda e: type(e).__name__)
def test_only_what_may_be_tried_again_says_when(error: StreamingError):
    assert (error.retry_after_s is not None) == isinstance(error, CapacityError)
    assert not (isinstance(error, CapacityError) and isinstance(error, RequestError))
