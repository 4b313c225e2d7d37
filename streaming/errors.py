"""Errors of the engine, grouped by what they affect. Clients see each as a code and a message.

StreamingError              abstract base; each leaf has a stable `code`
├── RequestError            affects this request only; the client has to change it
│   ├── InvalidRequest      a field is missing, unknown or out of range
│   ├── PromptTooLong       the prompt and one token of the answer do not fit the context
│   ├── ModelNotFound       the request names a model that is not served
│   ├── GenerationNotFound  the id is unknown, expired, or another caller's
│   ├── CursorLost          the cursor is not in the log
│   ├── NoTokenAllowed      grammar and sampling parameters together exclude every token
│   └── DeadlineExceeded    the request exceeded its time limit
├── CapacityError           the request is valid and may succeed later
│   ├── Overloaded          the queue is full
│   ├── CallerLimitReached  this caller has reached a limit
│   └── ShuttingDown        the server is shutting down
├── EngineFailure           the step that ran this request failed
└── ModelLoadError          the model cannot be loaded at start

`app/errors.py` maps each `code` to an HTTP status and a WebSocket close code.
"""

from __future__ import annotations


class StreamingError(Exception):
    """Base of all errors of the engine. `str()` is the message for the client.

    Attributes:
        code: identifies the error for programs; never changes its meaning.
        param: the field at fault, if there is one.
        retry_after_s: seconds to wait before trying again, if that may help.
    """

    code: str = "internal_error"
    param: str | None = None
    retry_after_s: float | None = None


class RequestError(StreamingError):
    """The request cannot be served as it is; other requests are not affected."""


class CapacityError(StreamingError):
    """The request is valid, and may be tried again after `retry_after_s` seconds."""


class InvalidRequest(RequestError):
    """A field is missing, unknown, of the wrong type or out of range.

    Args:
        param: name of the field.
        reason: what is wrong with it, such as "must be at least 1 (got 0)".
    """

    code = "invalid_request"

    def __init__(self, *, param: str, reason: str) -> None:
        self.param = param
        self.reason = reason
        super().__init__(param, reason)

    def __str__(self) -> str:
        return f"{self.param}: {self.reason}"


class PromptTooLong(RequestError):
    """The prompt leaves no room for one token of an answer.

    Args:
        size: size of the prompt.
        limit: largest size that this model accepts.
        unit: of both: "tokens", or "characters" for a prompt too long to be tokenised.
        param: the field with the prompt.
    """

    code = "prompt_too_long"

    def __init__(
        self, *, size: int, limit: int, unit: str = "tokens", param: str = "prompt"
    ) -> None:
        self.size = size
        self.limit = limit
        self.unit = unit
        self.param = param
        super().__init__(size, limit, unit, param)

    def __str__(self) -> str:
        return (
            f"{self.param}: must have at most {self.limit} {self.unit} to leave room for an answer "
            f"in this model's context (got {self.size}); shorten the prompt."
        )


class ModelNotFound(RequestError):
    """The request names a model that this server does not serve, instead of `served`."""

    code = "model_not_found"
    param = "model"

    def __init__(self, *, model: str, served: str) -> None:
        self.model = model
        self.served = served
        super().__init__(model, served)

    def __str__(self) -> str:
        return f"model: this server has no model {self.model!r}; use {self.served!r}."


class GenerationNotFound(RequestError):
    """This caller has no such generation. One of another caller gets the same answer."""

    code = "generation_not_found"
    param = "generation_id"

    def __init__(self, *, generation_id: str) -> None:
        self.generation_id = generation_id
        super().__init__(generation_id)

    def __str__(self) -> str:
        return (
            f"generation_id: generation {self.generation_id!r} was not found; it may have expired. "
            "Start a new one."
        )


class CursorLost(RequestError):
    """The cursor `after` is not in the log, whose last sequence number is `last`."""

    code = "cursor_lost"
    param = "after"

    def __init__(self, *, after: int, last: int) -> None:
        self.after = after
        self.last = last
        super().__init__(after, last)

    def __str__(self) -> str:
        return (
            f"after: must be at least -1 and at most {self.last}, the sequence number of the last "
            f"record (got {self.after}); resume after the last record that you received."
        )


class NoTokenAllowed(RequestError):
    """The request's grammar and sampling parameters exclude every token.

    Args:
        param: the field to change.
        reason: how it excludes the last tokens.
    """

    code = "no_token_allowed"

    def __init__(self, *, param: str, reason: str) -> None:
        self.param = param
        self.reason = reason
        super().__init__(param, reason)

    def __str__(self) -> str:
        return f"{self.param}: {self.reason}"


class DeadlineExceeded(RequestError):
    """The request was stopped because it took longer than `timeout_s` seconds."""

    code = "timeout"

    def __init__(self, *, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        super().__init__(timeout_s)

    def __str__(self) -> str:
        return (
            f"The request exceeded its time limit of {self.timeout_s:g} s and was stopped; ask for "
            "fewer tokens, or set a longer timeout_s if the server allows it."
        )


class Overloaded(CapacityError):
    """The queue is full, or too many generations are open.

    Args:
        num_waiting: current number of `unit`.
        max_waiting: limit on that number.
        retry_after_s: estimate of when there is room.
        unit: what is counted: "requests" or "prompt tokens" that wait, or open "generations".
        was_displaced: the request was waiting, and its place went to a caller with fewer requests.
    """

    code = "overloaded"

    def __init__(
        self,
        *,
        num_waiting: int,
        max_waiting: int,
        retry_after_s: float,
        unit: str = "requests",
        was_displaced: bool = False,
    ) -> None:
        self.num_waiting = num_waiting
        self.max_waiting = max_waiting
        self.retry_after_s = retry_after_s
        self.unit = unit
        self.was_displaced = was_displaced
        super().__init__(num_waiting, max_waiting, retry_after_s, unit, was_displaced)

    def __str__(self) -> str:
        state = "open" if self.unit == "generations" else "waiting"
        reason = f"{self.num_waiting} {self.unit} are {state} (limit: {self.max_waiting})"
        if self.was_displaced:
            reason += ", and this one was displaced by a caller with fewer"
        return f"The server is busy: {reason}; try again later."


class CallerLimitReached(CapacityError):
    """The caller has reached the limit for one caller.

    Args:
        num_held: current number of `unit` of this caller.
        max_held: limit on that number for one caller.
        unit: what is counted, such as "waiting requests".
        retry_after_s: estimate of when the caller has fewer.
    """

    code = "rate_limited"

    def __init__(self, *, num_held: int, max_held: int, unit: str, retry_after_s: float) -> None:
        self.num_held = num_held
        self.max_held = max_held
        self.unit = unit
        self.retry_after_s = retry_after_s
        super().__init__(num_held, max_held, unit, retry_after_s)

    def __str__(self) -> str:
        return (
            f"You have {self.num_held} {self.unit} (limit for one caller: {self.max_held}); "
            "try again later."
        )


class ShuttingDown(CapacityError):
    """The server is shutting down: it refuses new requests and ends the open ones."""

    code = "shutting_down"

    def __init__(self, *, retry_after_s: float) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(retry_after_s)

    def __str__(self) -> str:
        return "The server is shutting down."


class EngineFailure(StreamingError):
    """The step that ran this request failed. The cause is in the server's log only."""

    code = "engine_error"

    def __str__(self) -> str:
        return "The model failed on this request. Try again, or see the server's log."


class ModelLoadError(StreamingError):
    """The model cannot be loaded; `reason` is one line for the operator."""

    code = "model_load_error"

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)

    def __str__(self) -> str:
        return self.reason
