from __future__ import annotations

from app.responses.context import Context
from app.responses.registry import ResponseRegistry
from app.responses.response import LiveResponse
from streaming import FinishReason
from tests.app.responses.logs import finish, make_head, make_log
from tests.support import ManualClock


def make_response(name: str, *, owner: str = "me", is_ended: bool = True) -> LiveResponse:
    return LiveResponse(
        head=make_head(key=name),
        owner=owner,
        generation=make_log("text", end=FinishReason.STOP if is_ended else None),
        context=Context.of((), ()),
        is_stored=True,
    )


def make_registry(
    *, retention_s: float = 10.0, max_ended: int = 100, retention_bytes: int = 10**6
) -> tuple[ResponseRegistry, ManualClock]:
    clock = ManualClock()
    registry = ResponseRegistry(
        retention_s=retention_s, max_ended=max_ended, retention_bytes=retention_bytes, clock=clock
    )
    return registry, clock


def settled(registry: ResponseRegistry, *names: str) -> list[LiveResponse]:
    responses = [make_response(name) for name in names]
    for response in responses:
        registry.add(response)
        registry.settle(response)
    return responses


def found(registry: ResponseRegistry, *names: str) -> list[bool]:
    return [registry.find(f"resp_{name}", owner="me") is not None for name in names]


def test_open_responses_stay():
    registry, clock = make_registry()
    response = make_response("a", is_ended=False)
    registry.add(response)
    clock.advance(1000)
    assert registry.find("resp_a", owner="me") is response
    finish(response.generation, FinishReason.STOP)
    registry.settle(response)
    assert (registry.num_open, registry.num_ended) == (0, 1)


def test_another_owners_response_is_as_unknown_as_none():
    registry, _ = make_registry()
    registry.add(make_response("a", owner="you", is_ended=False))
    settled(registry, "b")
    assert found(registry, "a", "b", "c") == [False, True, False]


def test_ended_responses_go_by_age():
    registry, clock = make_registry(retention_s=10)
    settled(registry, "a")
    clock.advance(6)
    settled(registry, "b")
    clock.advance(5)
    assert found(registry, "a", "b") == [False, True]


def test_ended_responses_go_by_number():
    registry, _ = make_registry(max_ended=2)
    settled(registry, "a", "b")
    assert found(registry, "a", "b") == [True, True]
    settled(registry, "c")
    assert found(registry, "a", "b", "c") == [False, True, True]


def test_ended_responses_go_by_size():
    num_bytes = make_response("a").num_bytes
    registry, _ = make_registry(retention_bytes=2 * num_bytes)
    settled(registry, "a", "b")
    assert found(registry, "a", "b") == [True, True]
    settled(registry, "c")
    assert found(registry, "a", "b", "c") == [False, True, True]
    assert registry.num_ended_bytes == 2 * num_bytes


def test_removed_responses_are_gone_and_take_nothing():
    registry, _ = make_registry()
    response = make_response("a", is_ended=False)
    registry.add(response)
    [ended] = settled(registry, "b")
    assert registry.remove(response)
    assert not registry.remove(ended)
    assert not registry.remove(ended)
    finish(response.generation, FinishReason.STOP)
    registry.settle(response)
    assert found(registry, "a", "b") == [False, False]
    assert (registry.num_open, registry.num_ended, registry.num_ended_bytes) == (0, 0, 0)
