from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import RequestRefused
from app.responses.protocol.events import error_event
from app.responses.protocol.parsing import query_resumes, to_message
from app.responses.protocol.turn import Create, RejectedRequest, Resume
from app.responses.schemas.request import ResponseRequest
from app.responses.schemas.socket import CancelResponseMessage, ResumeResponseMessage, SteerMessage
from app.websocket.protocol.frames import serialize
from tests.support import property_test


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"type": "response.create", "stream_id": "a", "input": "hi", "generate": False},
            Create(ResponseRequest(input="hi", generate=False)),
        ),
        (
            {"type": "response.create", "stream": True, "x_new": 1},
            Create(ResponseRequest(stream=True)),
        ),
        ({"type": "response.create", "background": None}, Create(ResponseRequest(background=None))),
        ({"type": "response.cancel"}, CancelResponseMessage(type="response.cancel")),
        (
            {"type": "tokenwire.response.resume", "response_id": "r", "stream_id": "a"},
            ResumeResponseMessage(
                type="tokenwire.response.resume", response_id="r", starting_after=-1, stream_id="a"
            ),
        ),
        (
            {"type": "response.steer", "previous_response_id": "r", "input": "x"},
            SteerMessage(type="response.steer", previous_response_id="r", input="x"),
        ),
    ],
)
def test_valid_frames_become_messages(fields: dict[str, Any], message: Any):
    assert to_message(fields) == message


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
_TYPES = ("response.create", "response.cancel", "response.steer", "tokenwire.response.resume", "x")
_NAMES = (*ResponseRequest.model_fields, "type", "stream_id", "response_id", "starting_after")


@property_test
@given(
    st.dictionaries(st.sampled_from(_NAMES) | st.text(max_size=5), _JSON), st.sampled_from(_TYPES)
)
def test_any_object_is_accepted_or_refused_with_a_valid_error(fields: dict[str, Any], kind: str):
    try:
        to_message({**fields, "type": kind})
    except RequestRefused as refused:
        serialize(error_event(refused.info, None)).encode()


@pytest.mark.parametrize(
    ("response_ids", "cursors", "stream_ids", "resumes"),
    [
        ([], [], [], []),
        (["r"], ["7"], [], [(None, Resume("r", 7))]),
        (["r"], [], [], [(None, Resume("r", -1))]),
        (["r"], ["-1"], ["a"], [("a", Resume("r", -1))]),
        (["r", "s"], ["7", "0"], ["a", ""], [("a", Resume("r", 7)), (None, Resume("s", 0))]),
        (["", "s"], ["-1", "0"], [], [(None, Resume("s", 0))]),
        ([""], ["-1"], ["a"], []),
        (["r"], ["seven"], ["a"], "starting_after: must be an integer"),
        (["r"], [""], [], "starting_after: must be an integer"),
        (["r"], ["-2"], [], "starting_after: must be at least -1"),
        (["r", "s"], ["7"], [], "starting_after: must be given once for each resume"),
        ([], ["7"], [], "starting_after: must be given once for each resume"),
        (["r", "s"], [], ["a"], "stream_id: must be given once for each resume"),
        (["r"], [], ["a b"], "stream_id: must be 1 to 256 characters of A-Z a-z 0-9 _ . -"),
    ],
)
def test_the_query_of_a_handshake_becomes_resumes(
    response_ids: list[str], cursors: list[str], stream_ids: list[str], resumes: Any
):
    found = query_resumes(response_ids, cursors, stream_ids)
    if isinstance(resumes, list):
        assert found == resumes
        return
    [(_, refusal)] = found
    assert isinstance(refusal, RejectedRequest)
    assert (refusal.info.message, refusal.info.param) == (resumes, resumes.partition(":")[0])
