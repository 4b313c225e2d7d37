"""The class tree matches its drawing, and each error has a code, a field and a message."""

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
        InvalidRequest(param="top_p", reason="must be at most 1 (got 2)"),
        "invalid_request",
        "top_p",
        "top_p: must be at most 1 (got 2)",
    ),
    (
        PromptTooLong(size=9000, limit=4095),
        "prompt_too_long",
        "prompt",
        "prompt: must have at most 4095 tokens to leave room for an answer in this model's context "
        "(got 9000); shorten the prompt.",
    ),
    (
        PromptTooLong(size=9000, limit=4096, unit="characters", param="messages"),
        "prompt_too_long",
        "messages",
        "messages: must have at most 4096 characters to leave room for an answer in this model's "
        "context (got 9000); shorten the prompt.",
    ),
    (
        ModelNotFound(model="gpt", served="smol"),
        "model_not_found",
        "model",
        "model: this server has no model 'gpt'; use 'smol'.",
    ),
    (
        GenerationNotFound(generation_id="gen_1"),
        "generation_not_found",
        "generation_id",
        "generation_id: generation 'gen_1' was not found; it may have expired. Start a new one.",
    ),
    (
        CursorLost(after=9, last=4),
        "cursor_lost",
        "after",
        "after: must be at least -1 and at most 4, the sequence number of the last record (got 9); "
        "resume after the last record that you received.",
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
        "The request exceeded its time limit of 1.5 s and was stopped; ask for fewer tokens, or "
        "set a longer timeout_s if the server allows it.",
    ),
    (
        Overloaded(num_waiting=256, max_waiting=256, retry_after_s=2.0),
        "overloaded",
        None,
        "The server is busy: 256 requests are waiting (limit: 256); try again later.",
    ),
    (
        Overloaded(num_waiting=5, max_waiting=9, retry_after_s=2.0, unit="prompt tokens"),
        "overloaded",
        None,
        "The server is busy: 5 prompt tokens are waiting (limit: 9); try again later.",
    ),
    (
        Overloaded(num_waiting=7, max_waiting=7, retry_after_s=2.0, unit="generations"),
        "overloaded",
        None,
        "The server is busy: 7 generations are open (limit: 7); try again later.",
    ),
    (
        Overloaded(num_waiting=7, max_waiting=7, retry_after_s=2.0, was_displaced=True),
        "overloaded",
        None,
        "The server is busy: 7 requests are waiting (limit: 7), and this one was displaced by a "
        "caller with fewer; try again later.",
    ),
    (
        CallerLimitReached(num_held=3, max_held=4, unit="waiting requests", retry_after_s=2.0),
        "rate_limited",
        None,
        "You have 3 waiting requests (limit for one caller: 4); try again later.",
    ),
    (ShuttingDown(retry_after_s=1.0), "shutting_down", None, "The server is shutting down."),
    (
        EngineFailure(),
        "engine_error",
        None,
        "The model failed on this request. Try again, or see the server's log.",
    ),
    (ModelLoadError("no such folder: x"), "model_load_error", None, "no such folder: x"),
]


def subclasses(cls: type[StreamingError]) -> list[type[StreamingError]]:
    return [found for child in cls.__subclasses__() for found in (child, *subclasses(child))]


def leaves() -> list[type[StreamingError]]:
    return [cls for cls in subclasses(StreamingError) if not cls.__subclasses__()]


def test_the_class_tree_matches_its_drawing():
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


def test_every_leaf_is_in_the_table_and_has_a_unique_code():
    assert {type(error) for error, *_ in TABLE} == set(leaves())
    codes = [cls.code for cls in leaves()]
    assert len(set(codes)) == len(codes)
    assert StreamingError.code not in codes


@pytest.mark.parametrize(("error", "code", "param", "text"), TABLE)
def test_code_param_and_message(error: StreamingError, code: str, param: str | None, text: str):
    assert (error.code, error.param, str(error)) == (code, param, text)


@pytest.mark.parametrize("error", [error for error, *_ in TABLE], ids=lambda e: type(e).__name__)
def test_only_capacity_errors_say_when_to_try_again(error: StreamingError):
    assert (error.retry_after_s is not None) == isinstance(error, CapacityError)
    assert not (isinstance(error, CapacityError) and isinstance(error, RequestError))
