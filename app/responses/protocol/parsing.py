"""One frame of a client of `WS /v1/responses`, from JSON to a checked wish."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from app.errors import ErrorInfo, RequestRefused
from app.responses.protocol.turn import Create, Refusal, Resume
from app.responses.schemas.request import ResponseRequest
from app.responses.schemas.socket import (
    CONTROL_MESSAGE,
    CONTROL_TYPES,
    CREATE,
    LANE_PATTERN,
    RESUME,
    ControlMessage,
)
from app.schemas.validation import printable, to_error_info

_KNOWN_TYPES = (CREATE, *CONTROL_TYPES)
_ONLY_HERE = ("type", "stream_id")
"""Fields of the frame that are none of the request's."""

_INVALID_LANE = ErrorInfo(
    code="invalid_stream_id",
    message="stream_id: must be 1 to 256 of A-Z a-z 0-9 _ . -",
    param="stream_id",
)


def to_message(fields: dict[str, Any]) -> Create | ControlMessage:
    """Return what the frame wants.

    Raises:
        RequestRefused: its type is unknown, or a field is missing or wrong.
    """
    kind = fields.get("type")
    if not isinstance(kind, str) or kind not in _KNOWN_TYPES:
        shown = repr(printable(kind)) if isinstance(kind, str) else "what was given"
        message = f"type: {shown} is not one of {', '.join(_KNOWN_TYPES)}"
        raise RequestRefused(ErrorInfo(code="unknown_type", message=message, param="type"))
    check_lane(fields.get("stream_id"))
    try:
        if kind != CREATE:
            return CONTROL_MESSAGE.validate_python(fields)
        body = ResponseRequest.model_validate(
            {name: value for name, value in fields.items() if name not in _ONLY_HERE}
        )
    except ValidationError as error:
        complaints = error.errors(include_url=False)
        raise RequestRefused(to_error_info(complaints, skip=CONTROL_TYPES)) from error
    if body.background:
        message = "background: a response of a WebSocket is not one; it outlives a dropped line."
        raise RequestRefused(ErrorInfo(code="invalid_request", message=message, param="background"))
    return Create(body)


def check_lane(lane: object) -> None:
    """Refuse what cannot be the name of a lane; None is the default lane.

    Raises:
        RequestRefused: it cannot.
    """
    if lane is not None and attempted_lane({"stream_id": lane}) is None:
        raise RequestRefused(_INVALID_LANE)


def is_turn(fields: dict[str, Any]) -> bool:
    """Return whether the frame was to begin a turn, whatever is wrong with it."""
    return fields.get("type") in (CREATE, RESUME)


def attempted_lane(fields: dict[str, Any]) -> str | None:
    """Return the lane that the frame named, if that is a name."""
    lane = fields.get("stream_id")
    return lane if isinstance(lane, str) and LANE_PATTERN.fullmatch(lane) else None


def attempted_parent(fields: dict[str, Any]) -> str | None:
    """Return the response that the frame was to go on from, if it named one."""
    parent = fields.get("previous_response_id")
    return parent if fields.get("type") == CREATE and isinstance(parent, str) else None


def query_resumes(
    response_ids: Sequence[str], cursors: Sequence[str], lanes: Sequence[str] = ()
) -> list[tuple[str | None, Resume | Refusal]]:
    """Return the lanes and wishes of a handshake's query, in order.

    The query is `?resume=ID&starting_after=N&stream_id=LANE`. All three may be repeated, each the
    same number of times, or the last two be left out. An empty id is none: so says a client whose
    line dropped before it knew of a response. An empty lane is the default lane.

    Args:
        response_ids: each `resume`.
        cursors: each `starting_after`; without any, all events are wanted.
        lanes: each `stream_id`.
    """
    num = len(response_ids)
    for name, values in (("starting_after", cursors), ("stream_id", lanes)):
        if values and len(values) != num:
            return [(None, _refusal(name, "give one for each resume"))]
    triples = zip(response_ids, cursors or ["-1"] * num, lanes or [""] * num, strict=True)
    return [_query_resume(*triple) for triple in triples if triple[0]]


def _query_resume(response_id: str, cursor: str, lane: str) -> tuple[str | None, Resume | Refusal]:
    if lane and attempted_lane({"stream_id": lane}) is None:
        return None, Refusal(_INVALID_LANE)
    try:
        starting_after = int(cursor)
    except ValueError:
        return lane or None, _refusal("starting_after", "is not a whole number")
    if starting_after < -1:
        return lane or None, _refusal("starting_after", "is less than -1")
    return lane or None, Resume(response_id, starting_after)


def _refusal(param: str, reason: str) -> Refusal:
    return Refusal(ErrorInfo(code="invalid_request", message=f"{param}: {reason}", param=param))
