"""Extents of the arena never overlap, and can be used again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine.core.arena import GRAIN, Arena


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
