"""Validates the frames and the query parameters of a client of `WS /v1/responses`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from app.errors import ErrorInfo, RequestRefused
from app.responses.protocol.turn import Create, RejectedRequest, Resume
from app.responses.schemas.request import ResponseRequest
from app.responses.schemas.socket import (
    CONTROL_MESSAGE,
    CONTROL_TYPES,
    CREATE,
    RESUME,
    STREAM_ID_PATTERN,
    ControlMessage,
)
from app.schemas.validation import printable, to_error_info

_KNOWN_TYPES = (CREATE, *CONTROL_TYPES)
_FRAME_FIELDS = ("type", "stream_id")
"""Fields of a `response.create` frame that are not part of the request."""

_INVALID_STREAM_ID = ErrorInfo(
    code="invalid_stream_id",
    message="stream_id: must be 1 to 256 characters of A-Z a-z 0-9 _ . -",
    param="stream_id",
)


def to_message(fields: dict[str, Any]) -> Create | ControlMessage:
    """Return the message in a frame.

    Raises:
        RequestRefused: its type is unknown, or a field is missing or invalid.
    """
    kind = fields.get("type")
    if not isinstance(kind, str) or kind not in _KNOWN_TYPES:
        shown = repr(printable(kind)) if isinstance(kind, str) else "the given value"
        message = f"type: {shown} is not one of {', '.join(_KNOWN_TYPES)}"
        raise RequestRefused(ErrorInfo(code="unknown_type", message=message, param="type"))
    check_stream_id(fields.get("stream_id"))
    try:
        if kind != CREATE:
            return CONTROL_MESSAGE.validate_python(fields)
        body = ResponseRequest.model_validate(
            {name: value for name, value in fields.items() if name not in _FRAME_FIELDS}
        )
    except ValidationError as error:
        errors = error.errors(include_url=False)
        raise RequestRefused(to_error_info(errors, skip=CONTROL_TYPES)) from error
    if body.background:
        message = "background: not supported here; a response outlives a lost connection anyway."
        raise RequestRefused(ErrorInfo(code="invalid_request", message=message, param="background"))
    return Create(body)


def check_stream_id(stream_id: object) -> None:
    """Check the form of a stream's id; None is the default stream.

    Raises:
        RequestRefused: it is not a string of that form.
    """
    if stream_id is not None and peek_stream_id({"stream_id": stream_id}) is None:
        raise RequestRefused(_INVALID_STREAM_ID)


def is_turn(fields: dict[str, Any]) -> bool:
    """Return whether a frame, valid or not, begins a turn by its type."""
    return fields.get("type") in (CREATE, RESUME)


def peek_stream_id(fields: dict[str, Any]) -> str | None:
    """Return the stream's id in a frame that may be invalid; None if it has none of valid form."""
    stream_id = fields.get("stream_id")
    is_valid = isinstance(stream_id, str) and STREAM_ID_PATTERN.fullmatch(stream_id)
    return stream_id if is_valid else None


def peek_parent_id(fields: dict[str, Any]) -> str | None:
    """Return the `previous_response_id` of a `response.create` that may be invalid."""
    parent_id = fields.get("previous_response_id")
    return parent_id if fields.get("type") == CREATE and isinstance(parent_id, str) else None


def query_resumes(
    response_ids: Sequence[str], cursors: Sequence[str], stream_ids: Sequence[str] = ()
) -> list[tuple[str | None, Resume | RejectedRequest]]:
    """Return the streams and resumes in a handshake's query, in order.

    The query is `?resume=ID&starting_after=N&stream_id=NAME`. All three may be repeated; the last
    two are either left out or given once for each `resume`. An empty `resume` is ignored: a client
    sends it if it lost its connection before it knew its response. An empty `stream_id` is the
    default stream.

    Args:
        response_ids: each `resume`.
        cursors: each `starting_after`; without any, all events are sent.
        stream_ids: each `stream_id`.
    """
    num = len(response_ids)
    for name, values in (("starting_after", cursors), ("stream_id", stream_ids)):
        if values and len(values) != num:
            return [(None, _rejected(name, "must be given once for each resume"))]
    triples = zip(response_ids, cursors or ["-1"] * num, stream_ids or [""] * num, strict=True)
    return [_query_resume(*triple) for triple in triples if triple[0]]


def _query_resume(
    response_id: str, cursor: str, stream_id: str
) -> tuple[str | None, Resume | RejectedRequest]:
    if stream_id and peek_stream_id({"stream_id": stream_id}) is None:
        return None, RejectedRequest(_INVALID_STREAM_ID)
    try:
        starting_after = int(cursor)
    except ValueError:
        return stream_id or None, _rejected("starting_after", "must be an integer")
    if starting_after < -1:
        return stream_id or None, _rejected("starting_after", "must be at least -1")
    return stream_id or None, Resume(response_id, starting_after)


def _rejected(param: str, reason: str) -> RejectedRequest:
    return RejectedRequest(
        ErrorInfo(code="invalid_request", message=f"{param}: {reason}", param=param)
    )
