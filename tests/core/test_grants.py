"""Extents of the arena, and who is granted one when."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine.core.actions import Child
from engine.core.arena import GRAIN, Arena
from engine.core.grants import Grants
from engine.core.messages import Grant, SlabRequest


def test_an_extent_is_rounded_up_and_given_back() -> None:
    arena = Arena(4 * GRAIN)
    first, second = arena.allocate(1), arena.allocate(GRAIN + 1)
    assert (first, second) == (0, GRAIN)
    assert arena.used == 3 * GRAIN
    assert arena.allocate(2 * GRAIN) is None
    arena.free(0)
    assert arena.allocate(GRAIN) == 0


@given(st.lists(st.integers(1, 6), max_size=60), st.randoms())
def test_extents_never_overlap(sizes: list[int], random: object) -> None:
    arena = Arena(16 * GRAIN)
    held: dict[int, int] = {}
    for size in sizes:
        offset = arena.allocate(size * GRAIN)
        if offset is None:
            if held:
                arena.free(gone := random.choice(list(held)))  # type: ignore[attr-defined]
                del held[gone]
            continue
        assert 0 <= offset <= (16 - size) * GRAIN
        assert all(offset + size * GRAIN <= o or o + s * GRAIN <= offset for o, s in held.items())
        held[offset] = size
        assert arena.used == sum(held.values()) * GRAIN


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


def test_a_large_request_is_not_passed_by_small_ones() -> None:
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


def test_the_dead_hold_nothing() -> None:
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


def test_what_is_withdrawn_is_not_granted() -> None:
    grants = Grants(4 * GRAIN, 8)
    grants.ask(reader(0), SlabRequest(0, 1, GRAIN))
    grants.withdraw(reader(0))
    assert grants_of(grants) == []
