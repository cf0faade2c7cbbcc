"""Allocation of the shared memory.

State: the extents in use. Owner: the coordinator. The arena itself (``engine.shared.arena``) is one block of
shared memory; a slab is an extent of it, as large as its batch needs. That one rule covers both the usual batch
and the oversized one: both count against the same bytes.
"""

from __future__ import annotations

GRAIN = 4096


class Arena:
    """First-fit allocation of extents, from low addresses up, so that little of the arena is ever touched."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._extents: dict[int, int] = {}

    @property
    def used(self) -> int:
        """Bytes in use."""
        return sum(self._extents.values())

    def allocate(self, size: int) -> int | None:
        """Allocate ``size`` bytes and return their offset; None if there is no large enough gap right now."""
        needed = -(-size // GRAIN) * GRAIN
        assert needed <= self.size, "a request that can never fit must be refused before it waits"
        offset = 0
        for start in sorted(self._extents):
            if start - offset >= needed:
                break
            offset = start + self._extents[start]
        if self.size - offset < needed:
            return None
        self._extents[offset] = needed
        return offset

    def free(self, offset: int) -> None:
        """Return an extent."""
        del self._extents[offset]
