"""Who is granted an extent of the arena, and when."""

from __future__ import annotations

from engine.core.actions import Child
from engine.core.arena import GRAIN
from engine.core.grants import Grants
from engine.core.messages import Grant, SlabRequest


def reader(number: int) -> Child:
    return Child("reader", number)


def grants_of(grants: Grants, allowed: set[int] | None = None) -> list[tuple[int, int]]:
    served = grants.serve(lambda child, _: allowed is None or child.index in allowed)
    return [(send.child.index, send.message.offset) for send in served if isinstance(send.message, Grant)]


def test_served_in_order() -> None:
    grants = Grants(4 * GRAIN, 8)
    for number in range(3):
        grants.ask(reader(number), SlabRequest(0, 1, 2 * GRAIN))
    assert grants_of(grants) == [(0, 0), (1, 2 * GRAIN)]
    assert grants.is_waiting(reader(2))
    grants.free(0)
    assert grants_of(grants) == [(2, 0)]


def test_a_large_request_is_not_overtaken_by_small_ones() -> None:
    grants = Grants(4 * GRAIN, 8)
    grants.ask(reader(0), SlabRequest(0, 1, 2 * GRAIN))
    assert grants_of(grants) == [(0, 0)]
    grants.ask(reader(1), SlabRequest(0, 1, 4 * GRAIN))
    grants.ask(reader(2), SlabRequest(0, 1, GRAIN))
    assert grants_of(grants) == []
    grants.free(0)
    assert grants_of(grants) == [(1, 0)]


def test_a_request_that_is_held_back_lets_others_pass() -> None:
    grants = Grants(4 * GRAIN, 8)
    grants.ask(reader(0), SlabRequest(0, 1, GRAIN))
    grants.ask(reader(1), SlabRequest(0, 1, GRAIN))
    assert grants_of(grants, allowed={1}) == [(1, 0)]


def test_the_number_of_slabs_is_bounded() -> None:
    grants = Grants(100 * GRAIN, 2)
    for number in range(3):
        grants.ask(reader(number), SlabRequest(0, 1, 1))
    assert len(grants_of(grants)) == 2


def test_dead_children_hold_nothing() -> None:
    grants = Grants(4 * GRAIN, 8)
    writer = Child("writer", 0)
    for number in range(3):
        grants.ask(reader(number), SlabRequest(0, 1, GRAIN))
    grants_of(grants)
    grants.hand_over(0, writer)
    grants.reclaim(reader(1))
    assert set(grants.slabs) == {0, 2 * GRAIN}
    grants.reclaim(writer)
    assert set(grants.slabs) == {2 * GRAIN}


def test_a_withdrawn_request_is_not_granted() -> None:
    grants = Grants(4 * GRAIN, 8)
    grants.ask(reader(0), SlabRequest(0, 1, GRAIN))
    grants.withdraw(reader(0))
    assert grants_of(grants) == []
