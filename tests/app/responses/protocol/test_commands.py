"""The commands with real responses, where other tests of the protocol use doubles."""

from __future__ import annotations

import pytest

from app.responses.context import Context
from app.responses.protocol.commands import CancelResponse, CreateResponse, ResumeResponse
from app.responses.protocol.connection_age import ConnectionAge
from app.responses.protocol.core import ResponsesProtocol
from app.responses.response import AnyResponse, LiveResponse, StoredResponse
from app.websocket.socket_memory import SocketMemory
from tests.app.responses.logs import make_head, make_log

CREATE = '{"type": "response.create", "input": "hi", "previous_response_id": %s}'


def make_live() -> LiveResponse:
    return LiveResponse(
        head=make_head(),
        caller="me",
        generation=make_log("a"),
        context=Context.of((), ()),
        is_stored=True,
    )


def make_stored() -> StoredResponse:
    return make_live().finish()


@pytest.mark.parametrize("response", [make_live(), make_stored()])
def test_a_resumed_response_is_cached_by_its_size_and_continued(response: AnyResponse):
    memory = SocketMemory()
    core: ResponsesProtocol[AnyResponse] = ResponsesProtocol(
        age=ConnectionAge(opened_at=0.0, max_s=100.0),
        max_turns=4,
        max_messages_per_s=100.0,
        memory=memory,
    )
    resume = (
        f'{{"type": "tokenwire.response.resume", "response_id": "{response.response_id}", '
        '"starting_after": 3}'
    )
    core.receive_text(resume, now=0.0)
    assert core.commands() == [ResumeResponse("turn_1", response.response_id, 3)]
    core.receive_up_to_date("turn_1", response)
    assert memory.num_kept_bytes == response.num_bytes > 0
    core.receive_text(CREATE % f'"{response.response_id}"', now=0.0)
    [command] = core.commands()
    assert isinstance(command, CreateResponse)
    assert command.parent is response
    core.release()
    assert memory.num_kept_bytes == 0


def test_a_live_response_is_cancelled_by_its_turn():
    response = make_live()
    core: ResponsesProtocol[AnyResponse] = ResponsesProtocol(
        age=ConnectionAge(opened_at=0.0, max_s=100.0), max_turns=4, max_messages_per_s=100.0
    )
    core.receive_text(CREATE % "null", now=0.0)
    core.commands()
    core.receive_created("turn_1", response)
    cancel = f'{{"type": "response.cancel", "response_id": "{response.response_id}"}}'
    core.receive_text(cancel, now=0.0)
    assert core.commands() == [CancelResponse("turn_1")]
