from __future__ import annotations

import random

import pytest

from app.transport.door import Door, Place


class Visitor:
    """A connection; knows whether it was sent away."""

    def __init__(self, door: Door, host: str | None = "10.0.0.1") -> None:
        self.is_evicted = False
        self.place = door.admit(self, host)

    def evict(self) -> None:
        self.is_evicted = True

    @property
    def got(self) -> Place:
        assert self.place is not None
        return self.place


def make_door(max_connections: int = 3, *, per_address: int = 0, reserved: int = 1) -> Door:
    return Door(max_connections=max_connections, max_per_address=per_address, num_reserved=reserved)


def test_who_waits_longest_gives_way():
    door = make_door()
    first, second, third = (Visitor(door) for _ in range(3))
    first.got.serve()
    first.got.wait()  # since now
    fourth = Visitor(door)
    assert [each.is_evicted for each in (first, second, third)] == [False, True, False]
    assert not fourth.got.is_reserved
    assert len(door) == 3


def test_who_is_served_keeps_its_place_and_others_get_a_reserved_one():
    door = make_door()
    served = [Visitor(door) for _ in range(3)]
    for each in served:
        each.got.serve()
    extra = Visitor(door)
    assert extra.got.is_reserved
    assert not any(each.is_evicted for each in served)


def test_reserved_places_are_few_and_the_one_that_waits_longest_goes():
    door = make_door(1, reserved=2)
    Visitor(door).got.serve()
    first, second = Visitor(door), Visitor(door)
    third = Visitor(door)
    assert [first.is_evicted, second.is_evicted] == [True, False]
    second.got.serve()
    third.got.serve()
    assert Visitor(door).place is None
    third.got.leave()
    assert Visitor(door).got.is_reserved


def test_one_address_pushes_out_its_own():
    door = make_door(10, per_address=2)
    other = Visitor(door, "10.0.0.2")
    first, second = Visitor(door), Visitor(door)
    third = Visitor(door)
    assert [each.is_evicted for each in (other, first, second)] == [False, True, False]
    second.got.serve()
    third.got.serve()
    assert Visitor(door).got.is_reserved
    assert not Visitor(door, "10.0.0.3").got.is_reserved


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("10.0.0.1", "::ffff:10.0.0.1", True),
        ("10.0.0.1", "10.0.0.2", False),
        ("2001:db8:1:2:3::4", "2001:db8:1:2:ffff::1", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        (None, None, True),
    ],
)
def test_what_is_one_address(one: str | None, other: str | None, is_same: bool):
    door = make_door(10, per_address=1)
    Visitor(door, one).got.serve()
    assert Visitor(door, other).got.is_reserved == is_same


def test_leaving_twice_is_leaving_once():
    door = make_door(10, per_address=2)
    first, second = Visitor(door), Visitor(door)
    first.got.leave()
    first.got.leave()
    assert len(door) == 1
    third = Visitor(door)
    assert (second.is_evicted, third.got.is_reserved) == (False, False)


def test_whatever_comes_and_goes_the_limits_hold_and_nothing_is_left():
    chance = random.Random(7)
    door = make_door(8, per_address=4, reserved=2)
    inside: list[Visitor] = []
    for _ in range(5000):
        visitor = Visitor(door, f"10.0.0.{chance.randrange(4)}")
        if visitor.place is not None:
            inside.append(visitor)
        inside = [each for each in inside if not each.is_evicted]
        for each in chance.sample(inside, k=min(3, len(inside))):
            chance.choice([each.got.wait, each.got.serve, each.got.serve, each.got.leave])()
            if each.place not in door._places | door._reserved:
                inside.remove(each)
        assert len(door) == len(inside) <= 8 + 2
        assert all(count <= 4 for count in door._num_at.values())
    for each in inside:
        each.got.leave()
    assert len(door) == 0
    left = (door._waiting, door._waiting_at, door._waiting_reserved, door._num_at)
    assert left == ({}, {}, {}, {})
