from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from app.errors import ErrorInfo
from app.responses.protocol.turn import Create, RejectedRequest, Resume, Turn, TurnState
from app.responses.schemas.request import ResponseRequest
from app.websocket.protocol.open_stream import InvalidTransition

W, S, C, E = TurnState
ALLOWED = {(W, S), (W, E), (S, C), (S, E), (C, E)}
REFUSED = ErrorInfo(code="invalid_request", message="no")


@pytest.mark.parametrize(("before", "after"), list(product(TurnState, TurnState)))
def test_states(before: TurnState, after: TurnState):
    turn: Turn[Any] = Turn("turn_1", stream_id=None, request=Resume("resp_1", 0))
    turn.state = before
    if (before, after) in ALLOWED:
        turn.move_to(after)
        assert turn.state is after
    else:
        with pytest.raises(InvalidTransition, match=f"{before} -> {after}"):
            turn.move_to(after)


@pytest.mark.parametrize(
    ("turn_request", "parent_id", "needs_engine"),
    [
        (Create(ResponseRequest(previous_response_id="resp_1")), "resp_1", True),
        (Create(ResponseRequest()), None, True),
        (RejectedRequest(REFUSED, "resp_1"), "resp_1", False),
        (Resume("resp_1", 0), None, True),
    ],
)
def test_a_request_tells_its_parent_and_whether_it_needs_the_engine(
    turn_request: Any, parent_id: str | None, needs_engine: bool
):
    turn: Turn[Any] = Turn("turn_1", stream_id=None, request=turn_request)
    assert (turn.parent_id, turn.needs_engine) == (parent_id, needs_engine)
