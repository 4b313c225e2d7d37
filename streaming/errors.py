"""Everything that can go wrong with a generation, by blast radius.

StreamingError              never raised itself; each leaf has a stable `code`
├── RequestError            this request only; the caller can mend it
│   ├── InvalidRequest      a field is missing, unknown or out of range
│   ├── PromptTooLong       prompt and answer do not fit the context
│   ├── ModelNotFound       another model was asked for
│   ├── GenerationNotFound  never was, expired, or someone else's: one answer for all three
│   ├── CursorLost          the cursor points behind the end of the log
│   ├── NoTokenAllowed      its own rules leave no token to go on with
│   └── DeadlineExceeded    the generation ran longer than it may
├── CapacityError           nothing is wrong with the request; try later
│   ├── Overloaded          the queue is full
│   ├── CallerLimitReached  this caller has as much as one caller may
│   └── ShuttingDown        the server is going away
├── EngineFailure           the step that ran this request failed
└── ModelLoadError          at start: the model cannot be served

The web layer maps each class to its wire form in `app/errors.py`; nothing here knows HTTP.
"""

from __future__ import annotations


class StreamingError(Exception):
    """Base of all errors of the engine; `str()` is safe to show to the peer."""

    code: str = "internal_error"
    param: str | None = None
    retry_after_s: float | None = None


class RequestError(StreamingError):
    """This request is at fault; no other is touched."""


class CapacityError(StreamingError):
    """The request is fine and may be tried again after `retry_after_s` seconds."""


class InvalidRequest(RequestError):
    """A field is missing, unknown, of the wrong type or out of range."""

    code = "invalid_request"

    def __init__(self, *, param: str, reason: str) -> None:
        self.param = param
        self.reason = reason
        super().__init__(param, reason)

    def __str__(self) -> str:
        return f"{self.param}: {self.reason}"


class PromptTooLong(RequestError):
    """The prompt leaves no room for an answer; `unit` tells whether it was tokenised to see."""

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
            f"{self.param}: the prompt has {self.size} {self.unit}; this model takes at most "
            f"{self.limit}, one place of its context being kept for the answer."
        )


class ModelNotFound(RequestError):
    """The request names a model that this server does not serve."""

    code = "model_not_found"
    param = "model"

    def __init__(self, *, model: str, served: str) -> None:
        self.model = model
        self.served = served
        super().__init__(model, served)

    def __str__(self) -> str:
        return f"model: {self.model!r} is not served here; this server serves {self.served!r}."


class GenerationNotFound(RequestError):
    """No such generation for this caller; never tells whether it exists for another."""

    code = "generation_not_found"
    param = "generation_id"

    def __init__(self, *, generation_id: str) -> None:
        self.generation_id = generation_id
        super().__init__(generation_id)

    def __str__(self) -> str:
        return f"generation_id: no generation {self.generation_id!r}; it may have expired."


class CursorLost(RequestError):
    """The reader claims records that the log does not have."""

    code = "cursor_lost"
    param = "after"

    def __init__(self, *, after: int, last: int) -> None:
        self.after = after
        self.last = last
        super().__init__(after, last)

    def __str__(self) -> str:
        return f"after: cursor {self.after} is outside the log, whose last record is {self.last}."


class NoTokenAllowed(RequestError):
    """The request's own rules leave no token for the text to go on with; `param` names the rule."""

    code = "no_token_allowed"

    def __init__(self, *, param: str, reason: str) -> None:
        self.param = param
        self.reason = reason
        super().__init__(param, reason)

    def __str__(self) -> str:
        return f"{self.param}: {self.reason}"


class DeadlineExceeded(RequestError):
    """The generation was ended because it ran longer than `timeout_s` seconds."""

    code = "timeout"

    def __init__(self, *, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        super().__init__(timeout_s)

    def __str__(self) -> str:
        return f"The generation ran longer than {self.timeout_s:g} s and was ended."


class Overloaded(CapacityError):
    """The queue is full; `retry_after_s` estimates when it has room.

    Args:
        unit: of `num_waiting` and `max_waiting`; "generations" are open, all else is waiting.
        was_displaced: the request was waiting, and a caller that holds less has its place now.
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
        reason = f"{self.num_waiting} {self.unit} are {state}, of at most {self.max_waiting}"
        if self.was_displaced:
            reason += ", and this one gave its place to a caller that has fewer"
        return f"{reason}; try again later."


class CallerLimitReached(CapacityError):
    """The caller has as much as one caller may; `retry_after_s` estimates when it has less.

    Args:
        unit: what is counted, such as "waiting requests".
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
            f"You have {self.num_held} {self.unit}, of at most {self.max_held} for one caller; "
            "try again later."
        )


class ShuttingDown(CapacityError):
    """The server takes no new work and ends what runs."""

    code = "shutting_down"

    def __init__(self, *, retry_after_s: float) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(retry_after_s)

    def __str__(self) -> str:
        return "The server is shutting down."


class EngineFailure(StreamingError):
    """The model failed on the step that ran this request; details are in the server's log only."""

    code = "engine_error"

    def __str__(self) -> str:
        return "The model failed on this request; the server's log says why."


class ModelLoadError(StreamingError):
    """The model cannot be served; the message is one line for the operator."""

    code = "model_load_error"

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)

    def __str__(self) -> str:
        return self.reason
